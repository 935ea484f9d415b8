"""Starts the Compose files as a user does: from a fresh copy of the tree, as a separate project, on free ports."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.parts import ROOT, Part
from tests.support.waiting import free_port

MACHINES, PEOPLE = "prefect-m2m.localhost", "prefect.localhost"
NAVIGATION = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate"}
IMAGES = {"TRAEFIK_IMAGE", "PREFECT_IMAGE", "POSTGRES_IMAGE", "VALKEY_IMAGE"}  # may be set to others, here as by a user


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


def without_settings() -> dict[str, str]:
    """Return this environment without what would set the Compose files otherwise than a newcomer has them."""
    own = re.compile("COMPOSE_|AGENT_|GATE_|FORWARD_AUTH_|TRAEFIK_|PREFECT_|POSTGRES_|VALKEY_")
    return {name: value for name, value in os.environ.items() if not own.match(name) or name in IMAGES}


def copy_tree(folder: Path) -> Path:
    """Copy to a folder what a clone would hold, but for the tests."""
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@dataclass
class Stack:
    """One compose project; what a user would put into .env stands in its environment."""

    docker: Path
    folder: Path
    project: str = field(default_factory=lambda: f"gate-test-{os.getpid()}")
    port: int = field(default_factory=free_port)
    secure_port: int = field(default_factory=free_port)
    trust: ssl.SSLContext | None = None  # of its certificate, once it speaks TLS

    def __post_init__(self) -> None:
        self.environment = without_settings() | {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": "docker-compose.yml",
            "GATE_LISTEN": f"127.0.0.1:{self.port}",
            "GATE_TLS_LISTEN": f"127.0.0.1:{self.secure_port}",
            "GATE_IMAGE": f"{self.project}:latest",
        }
        if subprocess.run([self.docker, "network", "inspect", "bridge"], capture_output=True, check=False).returncode:
            # an engine without its default network: builds reach the package index by the host's
            (self.folder / "host.yml").write_text("services: {forward-auth: {build: {network: host}}}\n")
            self.add_file("host.yml")

    def add_file(self, name: str) -> None:
        """Add an override file."""
        self.environment["COMPOSE_FILE"] += f":{name}"

    def try_to(self, *words: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in the project's folder."""
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            input=given,
            text=True,
            capture_output=True,
            timeout=280,
            check=False,
        )

    def run(self, *words: str | Path, given: str = "") -> str:
        """Run a command, and return what it printed; fail with all it said if it fails."""
        done = self.try_to(*words, given=given)
        assert done.returncode == 0, f"{' '.join(map(str, words))}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def compose(self, *words: str, given: str = "") -> str:
        """Run docker compose in this project."""
        return self.run(self.docker, "compose", *words, given=given)

    def paste(self, lines: str) -> str:
        """Run lines of a document in a shell."""
        try:
            return self.run("bash", "-euo", "pipefail", "-c", lines)
        except AssertionError as error:
            error.add_note(self.compose("logs", "--tail", "50"))
            raise

    def down(self, *words: str) -> None:
        """Take everything away, but for the volumes unless told so."""
        self.compose("--profile", "*", "down", "--remove-orphans", "--timeout", "5", *words)

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine knows of a service's container."""
        container = self.compose("ps", "--all", "--quiet", service).strip()
        known: list[dict[str, Any]] = json.loads(self.run(self.docker, "inspect", container))
        return known[0]

    def published(self) -> dict[str, set[tuple[str, str]]]:
        """Return the addresses and ports that each container publishes."""
        containers = json.loads(self.run(self.docker, "inspect", *self.compose("ps", "--all", "--quiet").split()))
        return {
            one["Config"]["Labels"]["com.docker.compose.service"]: {
                (at["HostIp"], at["HostPort"])
                for bound in one["NetworkSettings"]["Ports"].values()
                for at in bound or ()
            }
            for one in containers
        }

    def ask(self, host: str, path: str, auth: tuple[str, str] | None = None, body: Any = None) -> httpx.Response:
        """Call Traefik, by TLS where it is on: a GET, or a POST where there is a body."""
        return self.send("GET" if body is None else "POST", host, path, auth=auth, json=body)

    def send(self, method: str, host: str, path: str, *, clear: bool = False, **rest: Any) -> httpx.Response:
        """Send a request to Traefik, by TLS where it is on and nothing else is asked for."""
        secure = self.trust is not None and not clear
        headers = {"Host": host} | rest.pop("headers", {})
        with httpx.Client(verify=self.trust or True, timeout=20) as client:
            return client.request(
                method,
                f"https://127.0.0.1:{self.secure_port}{path}" if secure else f"http://127.0.0.1:{self.port}{path}",
                headers=headers,
                extensions={"sni_hostname": host},
                **rest,
            )

    def passwords(self) -> dict[str, str]:
        """Return the passwords in the log of `users`, by name."""
        log = self.compose("logs", "--no-log-prefix", "users")
        return dict(re.findall(r"^  (\w+) +([\w-]{32}) ", log, re.MULTILINE))


@dataclass
class Person:
    """A browser at the people's host; *.localhost is this machine, so it keeps Secure cookies over plain http."""

    stack: Stack
    jar: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, data: dict[str, str] | None = None, **headers: str) -> httpx.Response:
        """Send a request as a page of that host does, and keep the cookies of the answer."""
        cookie = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        own = {"Cookie": cookie, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
        answer = self.stack.send(method, PEOPLE, path, headers=own | headers, data=data)
        for one in answer.headers.get_list("set-cookie"):
            name, _, value = one.partition(";")[0].partition("=")
            if "Max-Age=0" in one:
                self.jar.pop(name, None)
            else:
                self.jar[name] = value
        return answer

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Load something."""
        return self.ask("GET", path, None, **headers)

    def sign_in(self, name: str, password: str) -> None:
        """Fill in the form."""
        form = self.get("/_auth/login", **NAVIGATION)
        csrf = re.search(r'name="csrf"[^>]*value="([^"]+)"', form.text)
        assert csrf is not None
        answer = self.ask("POST", "/_auth/login", {"username": name, "password": password, "csrf": csrf[1]})
        assert answer.status_code == 303, answer.text
