"""deploy/compose/replicas.yml as a user starts it: two replicas that answer alike, and no end of one loses a call."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.compose import DOCKER, MACHINES, NAVIGATION, Person, Stack, copy_tree
from tests.support.parts import ROOT, require
from tests.support.steady_load import SteadyLoad
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

NO_CREDENTIAL = None
REPLICAS = ("forward-auth", "forward-auth-2")
RATE = 500  # requests a second
AT_LEAST = 50  # that a busy machine has to manage for it to count as load

# In Prefect's place something that tells what it was told, so that the load is on the gate and not on Prefect. And
# loopback is no trusted proxy, as where the setting names the proxies' network alone: clients are known all the same.
UPSTREAM = f"""
services:
  prefect:
    image: ${{GATE_IMAGE}}
    pull_policy: never
    entrypoint: [uvicorn, --app-dir, /echo, --host, 0.0.0.0, --port, "4200", --lifespan, "off", "identity_echo:app"]
    command: !override [--log-level, critical]
    volumes: !override ["{ROOT}/tests/support/identity_echo.py:/echo/identity_echo.py:ro"]
  forward-auth: &replica
    environment:
      FORWARD_AUTH_TRUSTED_PROXIES: 10.0.0.0/8,172.16.0.0/12,192.168.0.0/16
  forward-auth-2: *replica
"""
PAGE = (ROOT / "docs" / "replicas.md").read_text()
ONE_BY_ONE = re.findall(r"^docker compose (up .*--force-recreate.*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    docker = require(DOCKER)
    folder = copy_tree(tmp_path_factory.mktemp("replicas"))
    (folder / "upstream.yml").write_text(UPSTREAM)
    stack = Stack(docker, folder, project=f"gate-replicas-{os.getpid()}")
    stack.add_file("deploy/compose/replicas.yml")
    stack.add_file("upstream.yml")
    try:
        stack.compose("up", "--detach", "--wait")
        yield stack
    finally:
        stack.down("--volumes")
        subprocess.run([docker, "image", "rm", f"{stack.project}:latest"], capture_output=True, check=False)


@pytest.fixture(scope="module")
def worker(stack: Stack) -> tuple[str, str]:
    return "worker", stack.passwords()["worker"]


@pytest.fixture(scope="module")
def admins_password(stack: Stack) -> str:
    return stack.passwords()["admin"]


def steady(stack: Stack, user: tuple[str, str]) -> SteadyLoad:
    credential = base64.b64encode(":".join(user).encode()).decode()
    head = f"GET /api/health HTTP/1.1\r\nHost: {MACHINES}\r\nAuthorization: Basic {credential}"
    return SteadyLoad(stack.port, head, rate=RATE)


def decided(stack: Stack, replica: str) -> int:
    """Return how many verify calls a replica has answered since it started."""
    look = "import urllib.request as r, socket as s; print(r.urlopen(f'http://{s.gethostname()}:8080/metrics').read())"
    metrics = stack.compose("exec", "-T", replica, "python", "-c", look)
    return int(sum(map(float, re.findall(r"\\nforward_auth_decisions_total\{.*?\} ([\d.]+)", metrics))))


def csrf_of(page: str) -> str:
    found = re.search(r'name="csrf"[^>]*value="([^"]+)"', page)
    assert found is not None, page
    return found[1]


def sign_out(person: Person) -> None:
    page = person.get("/_auth/logout", **NAVIGATION)
    assert person.ask("POST", "/_auth/logout", {"csrf": csrf_of(page.text)}).status_code == 303


def statuses(person: Person, times: int = 12) -> set[int]:
    """Return what both replicas, which take turns, answer to a person."""
    return {person.get("/api/health").status_code for _ in range(times)}


def test_what_the_replicas_share_is_theirs_alone(stack: Stack) -> None:
    store = stack.inspect("valkey")
    assert store["HostConfig"]["ReadonlyRootfs"] is True
    assert store["HostConfig"]["CapDrop"] == ["ALL"]
    assert store["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]
    assert store["Config"]["User"] == "999:1000"
    assert not any(store["NetworkSettings"]["Ports"].values())
    assert set(store["NetworkSettings"]["Networks"]) == {f"{stack.project}_store"}
    network = json.loads(stack.run(stack.docker, "network", "inspect", f"{stack.project}_store"))[0]
    assert network["Internal"] is True
    assert set(network["Containers"]) == {stack.inspect(one)["Id"] for one in ("valkey", *REPLICAS)}


def test_replicas_differ_in_nothing_but_their_name(stack: Stack) -> None:
    one, other = map(stack.inspect, REPLICAS)
    for of_container, of_replica in ((one, other), (other, one)):
        assert sorted(of_container["Config"]["Env"]) == sorted(of_replica["Config"]["Env"])
    for name in ("ReadonlyRootfs", "CapDrop", "SecurityOpt", "Privileged", "Tmpfs", "RestartPolicy"):
        assert one["HostConfig"][name] == other["HostConfig"][name], name
    for name in ("Image", "AppArmorProfile"):
        assert one[name] == other[name], name
    assert set(one["NetworkSettings"]["Networks"]) == set(other["NetworkSettings"]["Networks"])


def test_nobody_but_traefik_reaches_its_way_to_the_replicas(stack: Stack) -> None:
    look = "import socket; socket.create_connection(('traefik', {}), 5)"
    stack.compose("exec", "-T", "forward-auth", "python", "-c", look.format(8000))
    with pytest.raises(AssertionError, match="ConnectionRefusedError"):
        stack.compose("exec", "-T", "forward-auth", "python", "-c", look.format(8081))


def test_both_answer_and_alike(stack: Stack, worker: tuple[str, str]) -> None:
    before = {one: decided(stack, one) for one in REPLICAS}
    told = [stack.ask(MACHINES, "/api/health", worker).json() for _ in range(12)]
    assert {one["x-auth-request-user"] for one in told} == {"worker"}
    assert len(set(map(str, told))) == 1
    for auth, status in ((NO_CREDENTIAL, 401), (("worker", "wrong"), 401)):
        refused = [stack.ask(MACHINES, "/api/health", auth) for _ in range(4)]
        assert {one.status_code for one in refused} == {status}
        assert len({(one.json()["code"], one.headers["www-authenticate"]) for one in refused}) == 1
    forbidden = {stack.ask(MACHINES, "/api/flows/bulk_delete", worker, {}).status_code for _ in range(4)}
    assert forbidden == {403}
    assert all(decided(stack, one) >= before[one] + 10 for one in REPLICAS), "one of them has all the work"


def test_the_client_is_known_behind_the_second_hop(stack: Stack, worker: tuple[str, str]) -> None:
    told = stack.ask(MACHINES, "/api/health", worker).json()
    stack.ask(MACHINES, "/api/flows/client-of-this", NO_CREDENTIAL)
    lines = stack.compose("logs", "--no-log-prefix", *REPLICAS).splitlines()
    line = next(one for one in lines if "client-of-this" in one)
    assert json.loads(line)["client"] == told["x-forwarded-for"] != "127.0.0.1"


def test_a_sign_out_is_known_to_both_at_once(stack: Stack, admins_password: str) -> None:
    person = Person(stack)
    person.sign_in("admin", admins_password)
    copy = Person(stack, dict(person.jar))
    assert statuses(copy) == {200}
    sign_out(person)
    wait_until(lambda: statuses(copy) == {401}, timeout=5, what="the copied cookie refused by both")
    assert statuses(copy) == {401}


def test_a_token_that_one_issues_is_good_at_both_until_the_other_revokes_it(stack: Stack) -> None:
    def token(replica: str, *words: str) -> str:
        return stack.compose("exec", "-T", replica, "prefect-forward-auth", "token", *words)

    def answers() -> set[int]:
        sent = {"Authorization": f"Bearer {issued}"}
        return {stack.send("GET", MACHINES, "/api/health", headers=sent).status_code for _ in range(12)}

    issued = token(REPLICAS[0], "issue", "--name", "etl-worker", "--role", "worker").strip()
    assert answers() == {200}
    token(REPLICAS[1], "revoke", "--name", "etl-worker")
    wait_until(lambda: answers() == {401}, timeout=5, what="a revoked token refused by both")


def test_wrong_passwords_are_counted_together(stack: Stack) -> None:
    form, seen = Person(stack), []
    page = form.get("/_auth/login", **NAVIGATION)
    for _ in range(14):
        guess = {"username": "somebody", "password": "wrong", "csrf": csrf_of(page.text)}
        page = form.ask("POST", "/_auth/login", guess)
        seen.append(page.status_code)
    assert set(seen) == {403, 429}, "each replica by itself would look at ten"
    assert seen.count(403) <= 11, "one replica may hear of the tenth by its next"


def test_no_request_is_lost_when_one_is_killed_and_when_both_are_replaced(
    stack: Stack, worker: tuple[str, str]
) -> None:
    assert len(ONE_BY_ONE) == len(REPLICAS), "docs/replicas.md says how"
    with steady(stack, worker) as load:
        wait_until(lambda: len(load.answers.seconds) > RATE, timeout=60, what="load")
        stack.compose("kill", "--signal", "KILL", "forward-auth-2")
        killed = len(load.answers.seconds)
        wait_until(lambda: len(load.answers.seconds) > killed + 3 * RATE, timeout=60, what="answers of the other")
        for line in reversed(ONE_BY_ONE):
            stack.compose(*line.split(), "--no-build")
        wait_until(
            lambda: all(decided(stack, one) > RATE / 4 for one in REPLICAS), timeout=60, what="both new ones are asked"
        )
    assert not load.answers.failures, load.answers
    assert load.answers.rate > AT_LEAST, load.answers


def test_without_any_nobody_passes_and_all_that_was_signed_out_stays_so(
    stack: Stack, worker: tuple[str, str], admins_password: str
) -> None:
    person = Person(stack)
    person.sign_in("admin", admins_password)
    gone = Person(stack, dict(person.jar))
    sign_out(person)
    person.sign_in("admin", admins_password)

    stack.compose("kill", "--signal", "KILL", *REPLICAS, "valkey")
    with steady(stack, worker) as load:
        wait_until(lambda: load.answers.failures, timeout=40, what="answers of Traefik alone")
    assert not load.answers.seconds
    assert {one.partition(" at ")[0] for one in load.answers.failures} == {"status 503"}

    stack.compose("up", "--detach", "--wait")
    wait_until(lambda: statuses(person) == {200}, timeout=30, what="both replicas back, and the session with them")
    assert statuses(gone) == {401}
