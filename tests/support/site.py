"""One site: the service, and Traefik in front of it with the shipped configuration."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

from tests.support.parts import ROOT, TRAEFIK, require
from tests.support.processes import Process, clean_environment
from tests.support.waiting import accepts, free_port, wait_until

SHIPPED = ROOT / "traefik"
MACHINES = "127.0.0.1"  # two names of one address, for Traefik's two hosts
PEOPLE = "localhost"
USER, PASSWORD = "svc-workers", "correct horse battery staple"


def replace_once(text: str, old: str, new: str) -> str:
    """Replace the only occurrence; the shipped file has changed its shape if there is not exactly one."""
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
    return text.replace(old, new)


def add_user(file: Path, name: str, password: str) -> None:
    """Add a user by the service's own command."""
    argv = [sys.executable, "-m", "service", "users", "add", name, "--file", str(file)]
    subprocess.run(argv, input=password, text=True, check=True, capture_output=True, cwd=ROOT)


@dataclass
class Site:
    """The service and Traefik on free loopback ports, up inside the `with` block."""

    folder: Path
    prefect_url: str
    settings: Mapping[str, str]  # of the service, each time that it is started
    cold: bool = False  # expected to start without any issuer's keys
    service_port: int = field(default_factory=free_port)
    port: int = field(default_factory=free_port)
    auth_url: str = ""  # where Traefik finds the service, if that is not the service's own port
    websockets: str = "without-header"  # which WebSockets of machines the proxy hands over to the relay, or "always"
    dynamic: Path = SHIPPED / "dynamic"  # Traefik's dynamic configuration
    traefik_env: Mapping[str, str] = field(default_factory=dict)  # further variables of it

    @property
    def machines_url(self) -> str:
        return f"http://{MACHINES}:{self.port}"

    @property
    def people_url(self) -> str:
        return f"http://{PEOPLE}:{self.port}"

    @property
    def service_url(self) -> str:
        return f"http://127.0.0.1:{self.service_port}"

    def start_service(self) -> None:
        """Start the service on its port, and return once it is ready to decide (or just alive, if `cold`)."""
        self.service = self.start_replica(self.service_port)

    def restart_service(self, settings: Mapping[str, str] | None = None) -> None:
        """Let another process take its place, with other settings if there are any."""
        self.service.stop()
        self.settings = self.settings if settings is None else settings
        self.start_service()

    def start_replica(self, port: int) -> Process:
        """Start one more process of the service, with the same settings."""
        env = {
            "FORWARD_AUTH_HOST": "127.0.0.1",
            "FORWARD_AUTH_PORT": str(port),
            "FORWARD_AUTH_LOG__DECISIONS": "all",
            "FORWARD_AUTH_SIGN_IN__ATTEMPTS": "1000",  # all attackers of the tests share one address
            "FORWARD_AUTH_PREFECT__URL": self.prefect_url,
            **self.settings,
        }
        argv = [sys.executable, "-m", "service", "serve"]
        service = Process(
            "the service",
            argv,
            env=clean_environment(self.folder / "home", env),
            log=self.folder / "service.log",
            cwd=ROOT,
        )

        probe = f"http://127.0.0.1:{port}/{'healthz' if self.cold else 'readyz'}"

        def ready() -> bool:
            if service.returncode is not None:
                msg = f"the service ended with {service.returncode}:\n{service.tail()}"
                raise RuntimeError(msg)
            return accepts(port) and httpx.get(probe).status_code == 200

        try:
            wait_until(ready, timeout=20, what=f"200 from {probe} (see {service.log})")
        except BaseException:
            service.stop()
            raise
        return service

    def start_traefik(self, variant: str, ports: Mapping[int, int], env: Mapping[str, str] | None = None) -> Process:
        """Start Traefik from a static configuration as shipped, but for its ports and the folder it lies in."""
        static = (SHIPPED / variant).read_text()
        for shipped, port in ports.items():
            static = replace_once(static, f'":{shipped}"', f'"127.0.0.1:{port}"')
        verify = f"127.0.0.1:{free_port()}"
        static = replace_once(static, "127.0.0.1:8081", verify)
        static = replace_once(static, "/etc/traefik/dynamic", str(self.dynamic))
        config = self.folder / f"traefik-{variant}"
        config.write_text(static)
        gate = {
            "GATE_MACHINES_HOST": MACHINES,
            "GATE_PEOPLE_HOST": PEOPLE,
            "GATE_PREFECT_URL": self.prefect_url,
            "GATE_AUTH_URL": self.auth_url or self.service_url,
            "GATE_VERIFY_URL": f"http://{verify}",
            "GATE_WEBSOCKETS": self.websockets,
            "TMPDIR": str(self.folder / "nowhere"),  # no answer of Prefect may be written to disk
        }
        return Process(
            "Traefik",
            [require(TRAEFIK), f"--configFile={config}"],
            env=clean_environment(self.folder / "home", {**gate, **self.traefik_env, **(env or {})}),
            log=self.folder / f"{config.stem}.log",
        )

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self.traefik = self.start_traefik("http.yml", {8000: self.port})
            stack.callback(self._stop)
            self.start_service()
            self._wait_for_routes()
            self._stack = stack.pop_all()
        return self

    def _stop(self) -> None:
        self.traefik.stop()
        if hasattr(self, "service"):
            self.service.stop()

    def _wait_for_routes(self) -> None:
        """Wait until the machines' host knows /api: routes are loaded a moment after the port is open."""
        wait_until(
            lambda: accepts(self.port) and httpx.get(f"{self.machines_url}/api/health").status_code == 401,
            timeout=20,
            what=f"routes in Traefik (see {self.traefik.log})",
        )

    def __exit__(self, *_: object) -> None:
        self._stack.close()
