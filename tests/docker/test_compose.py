"""docker-compose.yml as a user starts it: brought up for real from a fresh copy, used, restarted, taken away."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from service.settings import load
from tests.support.parts import ROOT, Part, require
from tests.support.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

MACHINES, PEOPLE = "prefect-m2m.localhost", "prefect.localhost"
IMAGES = {"TRAEFIK_IMAGE", "PREFECT_IMAGE"}  # may be set to others, here as by a user
NO_CREDENTIAL = None


def _docker_with_compose() -> Path | None:
    docker = shutil.which("docker")
    if docker is None:
        return None
    for question in (["compose", "version"], ["version", "--format", "{{.Server.Version}}"]):
        if subprocess.run([docker, *question], capture_output=True, timeout=30, check=False).returncode:
            return None
    return Path(docker)


DOCKER = Part(
    "a Docker engine with Compose v2", _docker_with_compose, "start one, with DOCKER_HOST set if it is not the default"
)


# what holds without an engine ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def _flat(value: Any, name: str = "TRAEFIK") -> dict[str, str]:
    """Return static configuration as the variables that mean the same."""
    if isinstance(value, dict):
        return {key: one for below in value for key, one in _flat(value[below], f"{name}_{below.upper()}").items()}
    return {} if value == [] else {name: str(value).lower() if isinstance(value, bool) else str(value)}


def test_traefik_is_set_up_as_in_its_own_file(composed: dict[str, Any]) -> None:
    told = composed["services"]["traefik"]["environment"]
    file = _flat(yaml.safe_load((ROOT / "traefik" / "http.yml").read_text()))
    assert {name: told.get(name) for name in file} == file
    more = {name for name in told if name.startswith("TRAEFIK_")} - set(file)
    for name in more:
        assert re.search(r"_HEALTH_|_PING_|_ASDEFAULT$|_TRUSTEDIPS$", name), f"{name} is not in traefik/http.yml"


def test_the_example_names_every_setting_and_no_other(composed: dict[str, Any]) -> None:
    taken = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    for service in composed["services"].values():
        taken |= {name for name, value in service.get("environment", {}).items() if value is None}
    assert set(_example()) == taken


def test_the_example_is_what_the_service_understands() -> None:
    told = {name: value for name, value in _example().items() if name.startswith("FORWARD_AUTH_")}
    settings = load(told | {"FORWARD_AUTH_USERS__FILE": "users.htpasswd"}).settings
    assert len(settings.all_issuers) == 3
    assert settings.all_issuers[0].required_claims == {"tenant": frozenset({"data", "science"})}
    assert settings.oidc is not None
    assert settings.oidc.required_claims == {"groups": frozenset({"data-engineers", "analysts"})}


def test_the_first_users_have_roles_and_whoever_is_added_may_look(composed: dict[str, Any]) -> None:
    told = composed["services"]["forward-auth"]["environment"]
    assert told["FORWARD_AUTH_USERS__ROLE"] == "${FORWARD_AUTH_USERS__ROLE-viewer}"
    grants = json.loads((ROOT / "deploy" / "compose" / "grants.json").read_text())
    settings = load({"FORWARD_AUTH_USERS__FILE": "users.htpasswd", "FORWARD_AUTH_GRANTS": json.dumps(grants)}).settings
    assert {one.users: one.roles for one in settings.all_grants} == {("admin",): ("admin",), ("worker",): ("worker",)}


def _example() -> dict[str, str]:
    lines = re.findall(r"^#([A-Z][A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert len(dict(lines)) == len(lines)
    return dict(lines)


# what is brought up -------------------------------------------------------------------------------------------


@dataclass
class Stack:
    """One compose project of a fresh copy of the tree, on a free port."""

    docker: Path
    folder: Path
    project: str = field(default_factory=lambda: f"gate-test-{os.getpid()}")
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        own = re.compile("COMPOSE_|GATE_|FORWARD_AUTH_|TRAEFIK_|PREFECT_")
        self.environment = {
            name: value for name, value in os.environ.items() if not own.match(name) or name in IMAGES
        } | {"GATE_LISTEN": f"127.0.0.1:{self.port}", "GATE_IMAGE": f"{self.project}:latest"}
        self.files = ["--file", "docker-compose.yml"]
        if subprocess.run([self.docker, "network", "inspect", "bridge"], capture_output=True, check=False).returncode:
            # an engine without its default network: builds reach the package index by the host's
            (self.folder / "host.yml").write_text("services: {forward-auth: {build: {network: host}}}\n")
            self.files += ["--file", "host.yml"]

    def run(self, *words: str, given: str = "") -> str:
        """Run docker with these words and return what it printed; fail with all it said if it fails."""
        done = subprocess.run(
            [self.docker, *words],
            cwd=self.folder,
            env=self.environment,
            input=given,
            text=True,
            capture_output=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, f"docker {' '.join(words)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def compose(self, *words: str, given: str = "") -> str:
        """Run docker compose in this project."""
        return self.run("compose", "--project-name", self.project, *self.files, *words, given=given)

    def up(self) -> None:
        """Do as the README says."""
        try:
            self.compose("up", "--detach", "--wait", "--wait-timeout", "240")
        except AssertionError as error:
            error.add_note(self.compose("logs", "--tail", "50"))
            raise

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine knows of a service's container."""
        container = self.compose("ps", "--all", "--quiet", service).strip()
        known: list[dict[str, Any]] = json.loads(self.run("inspect", container))
        return known[0]

    def ask(self, host: str, path: str, auth: tuple[str, str] | None, body: Any = None) -> httpx.Response:
        """Call Traefik's port: a GET, or a POST where there is a body."""
        return httpx.request(
            "GET" if body is None else "POST",
            f"http://127.0.0.1:{self.port}{path}",
            headers={"Host": host},
            auth=auth,
            json=body,
            timeout=20,
        )

    def passwords(self) -> dict[str, str]:
        """Return the passwords in the log of `users`, by name."""
        log = self.compose("logs", "--no-log-prefix", "users")
        return dict(re.findall(r"^  (\w+) +([\w-]{32}) ", log, re.MULTILINE))


NAVIGATION = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate"}


@dataclass
class Person:
    """A browser at the people's host; *.localhost is this machine, so it keeps Secure cookies over plain http."""

    stack: Stack
    jar: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, data: dict[str, str] | None = None, **headers: str) -> httpx.Response:
        cookie = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        origin = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
        answer = httpx.request(
            method,
            f"http://127.0.0.1:{self.stack.port}{path}",
            headers={"Host": PEOPLE, "Cookie": cookie, **origin, **headers},
            data=data,
            timeout=20,
        )
        for one in answer.headers.get_list("set-cookie"):
            name, _, value = one.partition(";")[0].partition("=")
            if "Max-Age=0" in one:
                self.jar.pop(name, None)
            else:
                self.jar[name] = value
        return answer

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.ask("GET", path, **headers)

    def sign_in(self, name: str, password: str) -> None:
        form = self.get("/_auth/login", **NAVIGATION)
        csrf = re.search(r'name="csrf"[^>]*value="([^"]+)"', form.text)
        assert csrf is not None
        answer = self.ask("POST", "/_auth/login", {"username": name, "password": password, "csrf": csrf[1]})
        assert answer.status_code == 303, answer.text


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    docker = require(DOCKER)
    folder = tmp_path_factory.mktemp("compose")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    stack = Stack(docker, folder)
    try:
        stack.up()
        yield stack
    finally:
        stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
        subprocess.run([docker, "image", "rm", f"{stack.project}:latest"], capture_output=True, check=False)


@pytest.fixture(scope="module")
def worker(stack: Stack) -> tuple[str, str]:
    return "worker", stack.passwords()["worker"]


def test_the_files_are_in_order(stack: Stack) -> None:
    stack.compose("config", "--quiet")
    (stack.folder / "example.env").write_text("".join(f"{name}={value}\n" for name, value in _example().items()))
    told = json.loads(stack.compose("--env-file", "example.env", "config", "--format", "json"))
    service = told["services"]["forward-auth"]["environment"]
    assert {name: service[name] for name in _example() if name in service} == {
        name: value for name, value in _example().items() if name.startswith("FORWARD_AUTH_")
    }


def test_all_are_healthy_and_the_users_are_made(stack: Stack) -> None:
    for service in ("traefik", "forward-auth", "prefect"):
        assert stack.inspect(service)["State"]["Health"]["Status"] == "healthy", service
    assert stack.inspect("users")["State"]["ExitCode"] == 0
    assert set(stack.passwords()) == {"admin", "worker"}
    assert len(set(stack.passwords().values())) == 2


@pytest.mark.parametrize("name", ["admin", "worker"])
def test_a_first_user_reaches_the_api(stack: Stack, name: str) -> None:
    user = name, stack.passwords()[name]
    assert stack.ask(MACHINES, "/api/health", user).json() is True
    assert stack.ask(MACHINES, "/api/flows/filter", user, {}).json() == []
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
    answer = httpx.get(f"http://127.0.0.1:{stack.port}/v2/runs?x=1", headers={"Host": PEOPLE, **NAVIGATION})
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


def test_traefiks_port_is_the_only_one(stack: Stack) -> None:
    published = {
        service: {
            (one["HostIp"], one["HostPort"])
            for bound in stack.inspect(service)["NetworkSettings"]["Ports"].values()
            for one in bound or ()
        }
        for service in ("traefik", "forward-auth", "prefect", "users")
    }
    assert published == {
        "traefik": {("127.0.0.1", str(stack.port))},
        "forward-auth": set(),
        "prefect": set(),
        "users": set(),
    }


def test_prefect_and_traefik_are_alone_on_a_network_without_a_way_out(stack: Stack) -> None:
    assert set(stack.inspect("prefect")["NetworkSettings"]["Networks"]) == {f"{stack.project}_prefect"}
    network = json.loads(stack.run("network", "inspect", f"{stack.project}_prefect"))[0]
    assert network["Internal"] is True
    assert set(network["Containers"]) == {stack.inspect(one)["Id"] for one in ("traefik", "prefect")}
    assert f"{stack.project}_prefect" not in stack.inspect("forward-auth")["NetworkSettings"]["Networks"]


@pytest.mark.parametrize("service", ["traefik", "forward-auth", "prefect", "users"])
def test_containers_can_do_little(stack: Stack, service: str) -> None:
    container = stack.inspect(service)
    assert container["HostConfig"]["ReadonlyRootfs"] is True
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
    assert not container["HostConfig"]["CapAdd"]
    assert container["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]
    assert not container["HostConfig"]["Privileged"]
    if service != "prefect":
        assert container["Config"]["User"] == "65532:65532"
    sockets = [mount["Source"] for mount in container["Mounts"] if mount["Source"].endswith(".sock")]
    assert not sockets


def test_the_image_is_small_and_starts_from_bytecode(stack: Stack) -> None:
    image = f"{stack.project}:latest"
    history = stack.run("history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", image)
    ours, base, _ = history.partition("compileall")
    assert base
    rows = [line for line in (ours + base).splitlines() if line]
    assert sum(int(row.split()[0]) for row in rows) < 150_000_000
    modules = "asyncio, fastapi, service.gate"
    look = f"import {modules}; [open(one.__cached__).close() for one in ({modules})]"
    stack.compose("exec", "-T", "forward-auth", "python", "-c", look)


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
    assert stack.compose("run", "--rm", "-T", "users", "list").split() == ["admin", "worker"]


def test_a_restart_keeps_the_users(stack: Stack, worker: tuple[str, str]) -> None:
    passwords = stack.passwords()
    stack.compose("restart", "--timeout", "5")
    wait_until(lambda: _answers(stack, worker), timeout=120, what="200 after a restart")
    assert stack.compose("logs", "--no-log-prefix", "users").count(passwords["admin"]) == 1
    assert stack.passwords() == passwords


def test_down_and_up_keep_the_users_and_print_no_password(stack: Stack, worker: tuple[str, str]) -> None:
    stack.compose("down", "--timeout", "5")
    stack.up()
    assert _answers(stack, worker)
    assert stack.passwords() == {}
    assert stack.ask(MACHINES, "/api/health", NO_CREDENTIAL).status_code == 401


def _answers(stack: Stack, user: tuple[str, str]) -> bool:
    try:
        return stack.ask(MACHINES, "/api/health", user).status_code == 200
    except httpx.TransportError:
        return False
