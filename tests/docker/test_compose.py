"""docker-compose.yml as a user starts it: brought up for real from a fresh copy, used, changed, restarted."""

from __future__ import annotations

import json
import re
from copy import copy
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import sync_playwright

from tests.browser.people import sign_in_with_password
from tests.support.chromium import ARGUMENTS, TIMEOUT_MS, starter
from tests.support.compose import MACHINES, NAVIGATION, PEOPLE, Person, Stack
from tests.support.waiting import wait_until

NO_CREDENTIAL = None
SERVICES = ("traefik", "forward-auth", "prefect", "users", "worker")


@pytest.fixture(scope="module")
def worker(stack: Stack) -> tuple[str, str]:
    return "worker", stack.passwords()["worker"]


@pytest.fixture(scope="module")
def shown(stack: Stack, readme_lines: list[str]) -> str:
    """Start the worker and run a flow, as the README says; return what that showed."""
    return stack.paste(readme_lines[1])


def test_the_lines_of_the_readme_run_a_flow_and_show_its_task_runs(
    stack: Stack, worker: tuple[str, str], shown: str
) -> None:
    assert re.search(r"^flow run [\w-]+: Completed$", shown, re.MULTILINE), shown
    assert len(re.findall(r"│ count-.*│ COMPL", shown)) == 2, shown
    runs = stack.ask(MACHINES, "/api/task_runs/filter", worker, {}).json()
    assert [(one["name"].partition("-")[0], one["state_name"]) for one in runs] == [("count", "Completed")] * 2


@pytest.mark.long
@pytest.mark.usefixtures("shown")
def test_the_worker_s_image_with_the_agent_calls_through_the_gate(stack: Stack) -> None:
    """Its token is one of this service, as there is no issuer here; the worker in service goes on as it is."""
    files = [stack.environment["COMPOSE_FILE"], "deploy/compose/agent.yml"]
    if "host.yml" in files[0]:  # see Stack
        (stack.folder / "agent-host.yml").write_text("services: {worker: {build: {network: host}}}\n")
        files.append("agent-host.yml")
    client = {"AGENT_ISSUER": "https://idp.test", "AGENT_CLIENT_ID": "worker", "AGENT_CLIENT_SECRET": "s3cret"}
    command = ("exec", "-T", "forward-auth", "prefect-forward-auth", "token", "issue", "--name", "agent")
    token = stack.compose(*command, "--role", "worker").strip()
    behind = copy(stack)
    behind.environment = stack.environment | client | {"COMPOSE_FILE": ":".join(files)}
    try:
        behind.compose("--profile", "worker", "build", "worker")
        agent = ("prefect-forward-auth", "run", "--allow-http", "--token-command", f"echo {token}", "--")
        run = ("run", "--rm", "-T", "-e", "FORWARD_AUTH_AGENT_ISSUER=", "worker", *agent)
        assert "default" in behind.compose(*run, "prefect", "work-pool", "ls")
    finally:
        behind.try_to(stack.docker, "image", "rm", "--force", "prefect-forward-auth-worker:local")


@pytest.mark.usefixtures("shown")
def test_all_are_healthy_and_the_users_are_made(stack: Stack) -> None:
    for service in set(SERVICES) - {"users"}:
        assert stack.inspect(service)["State"]["Health"]["Status"] == "healthy", service
    assert stack.inspect("users")["State"]["ExitCode"] == 0
    assert set(stack.passwords()) == {"admin", "worker", "deployer"}
    assert len(set(stack.passwords().values())) == 3


@pytest.mark.parametrize("name", ["admin", "worker"])
def test_a_first_user_reaches_the_api(stack: Stack, name: str) -> None:
    user = name, stack.passwords()[name]
    assert stack.ask(MACHINES, "/api/health", user).json() is True
    assert stack.ask(MACHINES, "/api/flows/filter", user, {}).status_code == 200
    written = stack.ask(MACHINES, "/api/variables/", user, {"name": f"by_{name}", "value": 1})
    deleted = stack.ask(MACHINES, "/api/flows/bulk_delete", user, {"flows": {"name": {"any_": ["no-such"]}}})
    assert (written.status_code, deleted.status_code == 403) == (201, name == "worker")


@pytest.mark.parametrize("auth", [NO_CREDENTIAL, ("worker", "wrong"), ("nobody", "wrong")])
@pytest.mark.parametrize(("path", "body"), [("/api/health", None), ("/api/flows/filter", {})])
def test_nobody_else_does(stack: Stack, auth: tuple[str, str] | None, path: str, body: Any) -> None:
    answer = stack.ask(MACHINES, path, auth, body)
    assert answer.status_code == 401
    assert answer.json()["code"]


def test_the_machines_host_has_the_api_alone(stack: Stack, worker: tuple[str, str]) -> None:
    for path in ("/", "/docs", "/ui-settings", "/ping", "/forward-auth/api", "/readyz"):
        assert stack.ask(MACHINES, path, worker).status_code == 404, path
    assert stack.ask("elsewhere.example", "/api/health", worker).status_code == 404


def test_the_peoples_host_takes_no_password_and_sends_browsers_to_sign_in(
    stack: Stack, worker: tuple[str, str]
) -> None:
    for path in ("/", "/api/health", "/ping", "/forward-auth/api", "/metrics"):
        for auth in (NO_CREDENTIAL, worker):  # a password is no session
            answer = stack.ask(PEOPLE, path, auth)
            assert answer.status_code == 401, path
            assert answer.json()["detail"]
            assert "basic" not in answer.headers.get("www-authenticate", "").lower()
    answer = stack.send("GET", PEOPLE, "/v2/runs?x=1", headers=NAVIGATION)
    assert answer.status_code == 302
    assert answer.headers["location"] == "/_auth/login?return_to=%2Fv2%2Fruns%3Fx%3D1"


def test_a_person_signs_in_and_a_new_container_knows_the_session(stack: Stack) -> None:
    person = Person(stack)
    assert person.get("/api/health").status_code == 401
    person.sign_in("admin", stack.passwords()["admin"])
    assert person.get("/api/health").json() is True
    assert person.get("/api/admin/version").status_code == 200
    assert "prefect" in person.get("/v2/", **NAVIGATION).text.lower()
    stack.compose("up", "--detach", "--wait", "--force-recreate", "--no-deps", "forward-auth")
    wait_until(lambda: person.get("/api/health").status_code == 200, timeout=30, what="200 from the new container")


@pytest.mark.usefixtures("shown")
def test_a_browser_signs_in(stack: Stack, tmp_path: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=starter(tmp_path), args=ARGUMENTS)
        page = browser.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.goto(f"http://{PEOPLE}:{stack.port}/v2/work-pools")
        sign_in_with_password(page, "admin", stack.passwords()["admin"])
        page.wait_for_url(f"http://{PEOPLE}:{stack.port}/v2/work-pools")
        page.get_by_role("link", name="default", exact=True).first.wait_for()  # the worker's pool
        browser.close()


def test_traefiks_port_is_the_only_one(stack: Stack) -> None:
    published = {name: ports for name, ports in stack.published().items() if ports}
    assert published == {"traefik": {("127.0.0.1", str(stack.port))}}


@pytest.mark.usefixtures("shown")
def test_prefect_is_reached_by_traefik_and_the_service_alone_and_reaches_nobody(stack: Stack) -> None:
    networks = set(stack.inspect("prefect")["NetworkSettings"]["Networks"])
    assert networks == {f"{stack.project}_prefect", f"{stack.project}_database"}
    within = {}
    for name in networks:
        network = json.loads(stack.run(stack.docker, "network", "inspect", name))[0]
        assert network["Internal"] is True
        within[name.rpartition("_")[2]] = set(network["Containers"])
    prefect, traefik, service = (stack.inspect(one)["Id"] for one in ("prefect", "traefik", "forward-auth"))
    assert within == {"prefect": {prefect, traefik, service}, "database": {prefect}}
    assert set(stack.inspect("worker")["NetworkSettings"]["Networks"]) == {f"{stack.project}_front"}


@pytest.mark.usefixtures("shown")
def test_the_workers_password_is_in_its_volume_and_nowhere_else(stack: Stack) -> None:
    held = stack.compose("exec", "-T", "worker", "cat", "/var/lib/prefect-worker/profiles.toml")
    assert "PREFECT_CLIENT_CUSTOM_HEADERS" in held
    printed = json.dumps(stack.inspect("worker")) + stack.compose("logs", "worker")
    for secret in (*stack.passwords().values(), *re.findall(r"Basic (\S+?)\"", held)):
        assert secret not in printed


@pytest.mark.usefixtures("shown")
def test_the_doctor_finds_nothing_wrong(stack: Stack) -> None:
    """Beside the service, and where the worker is: with its volume, on its network, by its variables."""
    told = stack.compose("exec", "-T", "forward-auth", "prefect-forward-auth", "doctor", "--server")
    assert "Prefect answers at http://prefect:4200/api" in told
    variables = [one for one in stack.inspect("worker")["Config"]["Env"] if one.startswith("PREFECT_")]
    argv = ["run", "--rm", "--network", f"{stack.project}_front", "--entrypoint", "prefect-forward-auth"]
    argv += ["--volume", f"{stack.project}_worker:/var/lib/prefect-worker:ro"]
    for variable in variables:
        argv += ["--env", variable]
    told = stack.run(stack.docker, *argv, f"{stack.project}:latest", "doctor")
    for word in ("is a gate", "lets this credential in over HTTP", "A WebSocket for events reaches Prefect"):
        assert word in told
    assert "change " not in told


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize("service", SERVICES)
def test_containers_can_do_little(stack: Stack, service: str) -> None:
    container = stack.inspect(service)
    assert container["HostConfig"]["ReadonlyRootfs"] is True
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
    assert container["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]
    if service != "prefect":
        assert container["Config"]["User"] == "65532:65532"


def test_the_image_is_small_and_starts_from_bytecode(stack: Stack) -> None:
    image = f"{stack.project}:latest"
    history = stack.run(
        stack.docker, "history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", image
    )
    ours, base, _ = history.partition("compileall")
    assert base
    rows = [line for line in (ours + base).splitlines() if line]
    assert sum(int(row.split()[0]) for row in rows) < 150_000_000
    look = """if True:
        import asyncio, fastapi, service.gate.verify
        open(asyncio.__cached__).close()
        print(*(open(one.__cached__, "rb").read(8)[4] for one in (fastapi, service.gate.verify)))
    """
    assert stack.compose("exec", "-T", "forward-auth", "python", "-c", look).split() == ["1", "1"]  # PEP 552: unchecked


def test_users_are_changed_while_it_runs(stack: Stack) -> None:
    stack.compose("run", "--rm", "-T", "users", "add", "alice", given="a fine password\n")
    try:
        wait_until(
            lambda: stack.ask(MACHINES, "/api/health", ("alice", "a fine password")).status_code == 200,
            timeout=20,
            what="the new user let in",
        )
    finally:
        stack.compose("run", "--rm", "-T", "users", "remove", "alice")
    assert stack.compose("run", "--rm", "-T", "users", "list").split() == ["admin", "worker", "deployer"]


def test_a_restart_keeps_the_users(stack: Stack, worker: tuple[str, str]) -> None:
    passwords = stack.passwords()
    stack.compose("restart", "--timeout", "5", "users", "forward-auth", "traefik")
    wait_until(lambda: _answers(stack, worker), timeout=60, what="200 after a restart")
    assert stack.compose("logs", "--no-log-prefix", "users").count(passwords["admin"]) == 1
    assert stack.passwords() == passwords


def _answers(stack: Stack, user: tuple[str, str]) -> bool:
    try:
        return stack.ask(MACHINES, "/api/health", user).status_code == 200
    except httpx.TransportError:
        return False
