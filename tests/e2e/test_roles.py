"""Each role against the real Prefect server through Traefik: what it is for succeeds, and nothing beyond."""

from __future__ import annotations

import itertools
import json
import re
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.core.prefect.roles import BUILT_IN
from service.core.prefect.routes import Route, parse_table
from service.core.prefect.table import API, BESIDE_API
from tests.support.echo import Echo
from tests.support.forwarded_requests import filled_in
from tests.support.parts import SERVER_VERSION, TRAEFIK, require
from tests.support.prefect import FLOWS, Client, Server
from tests.support.processes import Process
from tests.support.raw_http import basic
from tests.support.site import PASSWORD, Site, add_user
from tests.support.waiting import wait_until

POOL = "shop"
SECRET = "told-in-plain-text"
KEPT = ("flows", "flow_runs", "task_runs", "deployments", "work_pools", "variables", "block_documents", "artifacts")
ROUTES = [*parse_table(API, "/api"), *parse_table(BESIDE_API, "/api", in_schema=False)]


@pytest.fixture(scope="module")
def settings(folder: Path) -> dict[str, str]:
    """Return settings with a user for each role, called like it."""
    users = folder / "roles.htpasswd"
    for role in BUILT_IN:
        add_user(users, role, PASSWORD)
    grants = [{"users": role, "roles": role} for role in BUILT_IN]
    return {"FORWARD_AUTH_USERS__FILE": str(users), "FORWARD_AUTH_GRANTS": json.dumps(grants)}


@pytest.fixture(scope="module")
def site(folder: Path, prefect_server: Server, settings: dict[str, str]) -> Iterator[Site]:
    require(TRAEFIK)
    with Site(folder / "roles-site", prefect_server.url, settings) as site:
        yield site


@pytest.fixture(scope="module")
def echoing(folder: Path, settings: dict[str, str]) -> Iterator[Site]:
    require(TRAEFIK)
    with Echo() as echo, Site(folder / "roles-echo", echo.url, settings) as site:
        yield site


def call(site: Site, role: str, method: str, path: str, **more: Any) -> httpx.Response:
    return httpx.request(method, f"{site.machines_url}{path}", auth=(role, PASSWORD), timeout=30, **more)


def lacks(answer: httpx.Response) -> bool:
    """Tell whether the gate refused this for want of a role."""
    if answer.status_code != 403:
        return False
    return bool(answer.json()["code"] == "insufficient_scope")


def attempt(site: Site, role: str, route: Route) -> httpx.Response:
    """Call a route with an empty filter, and names of what does not exist."""
    body: Any = {} if route.method in {"POST", "PUT", "PATCH"} else None
    return call(site, role, "GET" if route.method == "WS" else route.method, filled_in(route.path), json=body)


# all routes -----------------------------------------------------------------------------------------------


def test_a_viewer_changes_nothing_whatever_is_tried(site: Site, prefect_server: Server) -> None:
    prefect_server.create_pool("looked-at")
    prefect_server.create_deployment("looked-at", entrypoint="proof.py:proof", pool="looked-at")

    def kept() -> dict[str, list[tuple[str, str]]]:
        return {
            what: sorted(
                (one["id"], "" if what == "work_pools" else one.get("updated", ""))  # the server tends to pools
                for one in prefect_server.ask("POST", f"/{what}/filter", {})
            )
            for what in KEPT
            if what not in {"flow_runs", "task_runs"}  # the server schedules by itself
        }

    before, passed = kept(), set()
    for route in ROUTES:
        if not lacks(attempt(site, "viewer", route)):
            passed.add((route.method, route.path.rpartition("/")[2]))
    assert kept() == before
    assert {method for method, _ in passed} <= {"GET", "POST", "WS"}
    assert {name for method, name in passed if method == "WS"} == {"out"}
    reading = {"filter", "count", "paginate", "history", "lateness", "concurrency_status", "{countable}", "counts"}
    reading |= {"count-deployments", "next-runs", "count-task-runs", "validate"}
    assert {name for method, name in passed if method == "POST"} <= reading
    assert len(passed) > 40


def test_each_role_opens_what_the_table_says_and_admin_everything(echoing: Site) -> None:
    opened = {
        role: {route.rule for route in ROUTES if attempt(echoing, role, route).status_code == 200}
        for role in ("runner", "admin")
    }
    assert opened["admin"] == {route.rule for route in ROUTES}
    ran = {rule for rule in opened["runner"] if rule.endswith(("/resume", "/set_state", "/create_flow_run"))}
    assert ran == {
        "POST /api/flow_runs/{id}/resume",
        "POST /api/flow_runs/{id}/set_state",
        "POST /api/deployments/{id}/create_flow_run",
    }
    assert call(echoing, "admin", "DELETE", "/api/brand_new/1").status_code == 200
    assert lacks(call(echoing, "deployer", "DELETE", "/api/brand_new/1"))


# secrets --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def block(prefect_server: Server) -> str:
    """Make a block with a secret in it, and return its name."""
    kind = prefect_server.ask("GET", "/block_types/slug/secret")["id"]
    schema = prefect_server.ask("POST", "/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind]}}})
    made = {"name": "seen", "block_type_id": kind, "block_schema_id": schema[0]["id"], "data": {"value": SECRET}}
    return str(prefect_server.ask("POST", "/block_documents/", made)["name"])


@pytest.mark.parametrize("role", ["viewer", "runner", "worker"])
def test_blocks_are_seen_and_their_secrets_by_those_who_may(site: Site, block: str, role: str) -> None:
    def listed(**more: Any) -> httpx.Response:
        return call(site, role, "POST", "/api/block_documents/filter", **more)

    plain = listed(json={"limit": 200})
    assert (plain.status_code, block in plain.text, SECRET in plain.text) == (200, True, False)
    for asked in (
        listed(json={"include_secrets": True}),
        listed(content=b'{"include_\\u0073ecrets": 1}', headers={"Content-Type": "application/json"}),
        listed(content=iter([b'{"include_', b'secrets": true}']), headers={"Content-Type": "application/json"}),
        listed(json={}, params={"include_secrets": "true"}),
    ):
        told = SECRET in asked.text
        if role == "worker":
            assert asked.status_code == 200
        else:
            assert (lacks(asked), told) == (True, False)
    escaped = call(site, role, "POST", "/api/block%5Fdocuments/filter", json={"include_secrets": True})
    assert SECRET not in escaped.text or role == "worker"
    # too long to be judged: whoever may see secrets may send it; then too long for Traefik
    unjudged = listed(json={"padding": "x" * 70_000})
    assert (unjudged.status_code == 200) if role == "worker" else lacks(unjudged)
    too_long = listed(json={"include_secrets": True, "padding": "x" * 140_000})
    assert (too_long.status_code, SECRET in too_long.text) == (413, False)


# what each role is for ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(folder: Path, site: Site, prefect_server: Server) -> Shop:
    """Let a deployer make all that the others need: a pool, a block, deployments."""
    prefect_server.ask("POST", "/v2/concurrency_limits/", {"name": "shop-slots", "limit": 2})
    shop = Shop(folder / "shop", site, prefect_server)
    shop.finished("deployer", "deploys", FLOWS / "deploys.py", FLOWS, POOL)
    return shop


class Shop:
    """People and machines with one role each, who use Prefect's own client."""

    def __init__(self, folder: Path, site: Site, server: Server) -> None:
        self.folder, self.site, self.server = folder, site, server
        self._count = itertools.count()

    def client(self, role: str) -> Client:
        """Return a client of this role's user."""
        name, value = basic(role, PASSWORD)
        url, headers = f"{self.site.machines_url}/api", json.dumps({name: value})
        home = self.folder / role
        home.mkdir(parents=True, exist_ok=True)
        return Client(SERVER_VERSION, home, {"PREFECT_API_URL": url, "PREFECT_CLIENT_CUSTOM_HEADERS": headers})

    def run(self, role: str, name: str, *argv: str | Path) -> tuple[int, str]:
        """Run a program of this role's to its end, and return its exit code and what it said."""
        with self.client(role).start(name, *map(str, argv)) as process:
            return process.wait(timeout=120), process.text()

    def finished(self, role: str, name: str, *argv: str | Path) -> str:
        """Run a program that succeeds, and return what it said."""
        code, text = self.run(role, name, *argv)
        assert code == 0, text
        return text

    def operates(self, *commands: str) -> list[str]:
        """Do what tests/support/flows/operates.py can, as a runner, and return the ids of the runs that it started."""
        said = self.finished("runner", f"operates-{next(self._count)}", FLOWS / "operates.py", *commands)
        return re.findall(r"^[0-9a-f-]{36}$", said, re.MULTILINE)

    def deployment(self, name: str) -> str:
        (found,) = self.server.ask("POST", "/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        return str(found["id"])

    def becomes(self, run: str, state: str, worker: Process) -> None:
        wait_until(lambda: self.server.state_of(run) == state, timeout=90, what=f"{state} of a run", log=worker.tail)


def test_a_runner_runs_and_a_worker_carries_it_out(shop: Shop) -> None:
    quick, slow = shop.operates("start", shop.deployment(f"quick-{POOL}"), "start", shop.deployment(f"slow-{POOL}"))
    with shop.client("worker").start_worker(POOL) as worker:
        shop.becomes(quick, "COMPLETED", worker)
        recorded = partial(shop.server.of_flow_run, "task_runs", quick)
        wait_until(lambda: len(recorded()) == 2, timeout=30, what="a task's run, and the child's")
        shop.becomes(slow, "RUNNING", worker)
        shop.operates("cancel", slow, "retry", quick)
        shop.becomes(slow, "CANCELLED", worker)
        wait_until(
            lambda: (
                shop.server.ask("GET", f"/flow_runs/{quick}")["run_count"] == 2
                and shop.server.state_of(quick) == "COMPLETED"
            ),
            timeout=90,
            what="the retry",
            log=worker.tail,
        )
        assert not re.search(r"403 Forbidden|HTTP 403", worker.text())
    (paused,) = shop.operates("start", shop.deployment(f"slow-{POOL}"), "pause", "-", "resume", "-")
    shop.server.ask("DELETE", f"/flow_runs/{paused}")


def test_a_worker_and_a_runner_do_no_more(shop: Shop) -> None:
    deployment, an_id = shop.deployment(f"quick-{POOL}"), "6f0b3a52-1b6f-4c0f-9b1e-0a5a8a1b2c3d"
    beyond = {
        "POST /api/deployments/": ("worker", "runner"),
        f"PATCH /api/deployments/{deployment}": ("worker", "runner"),
        f"DELETE /api/deployments/{deployment}": ("worker", "runner", "deployer"),
        "POST /api/flows/bulk_delete": ("worker", "runner", "deployer"),
        f"DELETE /api/work_pools/{POOL}": ("worker", "runner"),
        f"DELETE /api/flow_runs/{an_id}": ("worker", "runner", "deployer"),
        "PUT /api/admin/storage": ("worker", "runner", "deployer"),
        "POST /api/block_documents/": ("worker", "runner"),
        "POST /api/automations/": ("worker", "runner"),
        f"POST /api/work_pools/{POOL}/get_scheduled_flow_runs": ("runner", "deployer"),
    }
    for rule, roles in beyond.items():
        method, path = rule.split()
        for role in roles:
            assert lacks(call(shop.site, role, method, path, json={})), (role, rule)
    code, _ = shop.run("runner", "no-deploys", FLOWS / "deploys.py", FLOWS, "pool-of-a-runner")
    assert code != 0
    pools = shop.server.ask("POST", "/work_pools/filter", {})
    assert "pool-of-a-runner" not in {one["name"] for one in pools}


def test_a_deployer_deploys_from_the_terminal_and_serves(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text((FLOWS / "shop.py").read_text())
    (tmp_path / "prefect.yaml").write_text(
        textwrap.dedent(f"""
            deployments:
            - name: from-yaml
              entrypoint: shop.py:quick
              work_pool: {{name: {POOL}}}
              schedules: [{{cron: "0 0 * * *"}}]
              triggers: [{{type: event, expect: [a.b]}}]
            """)
    )
    program = "import os, sys; os.chdir(sys.argv.pop(1)); from prefect.cli import app; app()"
    shop.finished("deployer", "deploy", "-c", program, tmp_path, "--no-prompt", "deploy", "--all")
    assert shop.deployment("from-yaml")
    serves = (
        "import os, sys; os.chdir(sys.argv[1]); sys.path.insert(0, '.'); import shop; shop.quick.serve(name='served')"
    )
    with shop.client("deployer").start("serves", "-c", serves, str(tmp_path)) as serving:

        def served() -> bool:
            found = shop.server.ask("POST", "/deployments/filter", {"deployments": {"name": {"any_": ["served"]}}})
            return bool(found)

        wait_until(served, timeout=60, what="the deployment", log=serving.tail)
        (run,) = shop.operates("start", shop.deployment("served"))
        shop.becomes(run, "COMPLETED", serving)
