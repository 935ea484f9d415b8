"""The service and Traefik restart while flows run: nothing that a worker or a flow run reports is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.support.certificates import write_certificate
from tests.support.credential_forms import API_KEY
from tests.support.openid import OpenIDProvider
from tests.support.parts import TRAEFIK, require
from tests.support.prefect import Client, Server
from tests.support.processes import Process
from tests.support.site import MACHINES, Site
from tests.support.waiting import accepts, free_port, wait_until

pytestmark = pytest.mark.long

AWAY_SECONDS = 15.0
VERSIONS = ("3.6.11", "3.9.1")


@pytest.fixture
def site(folder: Path, tmp_path: Path, prefect_server: Server, service_settings: Mapping[str, str]) -> Iterator[Site]:
    """Serve a site whose parts a test may stop, in front of the Prefect server of the session."""
    require(TRAEFIK)
    with Site(tmp_path / "site", prefect_server.url, service_settings) as site:
        yield site


class Start(Protocol):
    """Starts a worker of a version, and a run of so many tasks that pause for so many seconds."""

    def __call__(self, name: str, version: str, tasks: int, pause: float, **settings: str) -> Run: ...


@dataclass
class Run:
    """A flow run that a worker of its own carries out."""

    server: Server
    id: str
    tasks: int
    worker: Process

    def has_reached(self, task: int) -> bool:
        """Tell whether the server has the log line of a task. Events of task runs may be held after a restart."""
        return f"doubling {task}" in {row["message"] for row in self._rows("logs")}

    def assert_complete(self, *, logs: bool = True) -> None:
        """Wait for the end of the run; then each task run, each task's log line and the artifact are there."""
        whole = {"state": "COMPLETED", "task runs": self.tasks, "artifacts": 1} | ({"logs": self.tasks} if logs else {})

        def found() -> dict[str, object]:
            states = [row["state_type"] for row in self._rows("task_runs")]
            messages = {row["message"] for row in self._rows("logs")}
            return {
                "state": self.server.state_of(self.id),
                "task runs": states.count("COMPLETED"),
                "artifacts": len(self._rows("artifacts")),
                "logs": len(messages & {f"doubling {number}" for number in range(1, self.tasks + 1)}),
            }

        wait_until(
            lambda: self.worker.returncode is not None or found().items() >= whole.items(),
            timeout=120,
            what=f"{whole}, not {found()}",
            log=self.worker.tail,
        )
        assert found().items() >= whole.items(), self.worker.tail()
        assert self.worker.returncode is None, self.worker.tail()

    def _rows(self, what: str) -> list[dict[str, Any]]:
        return self.server.of_flow_run(what, self.id)


@pytest.fixture
def start(site: Site, prefect_server: Server, openid_provider: OpenIDProvider, tmp_path: Path) -> Iterator[Start]:
    """Return what starts a worker with PREFECT_API_KEY alone, and a run."""
    with ExitStack() as stack:

        def start(name: str, version: str, tasks: int, pause: float, **settings: str) -> Run:
            prefect_server.create_pool(name)
            deployment = prefect_server.create_deployment(name, entrypoint="proof.py:proof", pool=name)
            asked = {"parameters": {"marker": name, "tasks": tasks, "pause": pause}}
            run = prefect_server.ask("POST", f"/deployments/{deployment}/create_flow_run", asked)["id"]
            settings = API_KEY.settings(f"{site.machines_url}/api", openid_provider.token()) | settings
            worker = stack.enter_context(Client(version, tmp_path / name, settings).start_worker(name))
            return Run(prefect_server, str(run), tasks, worker)

        yield start


@contextmanager
def away(site: Site) -> Iterator[None]:
    """Kill the service, and start it again after ``AWAY_SECONDS``."""
    site.service.kill()
    began = time.monotonic()
    yield
    wait_until(lambda: time.monotonic() - began >= AWAY_SECONDS, timeout=AWAY_SECONDS + 1, what="the end of an outage")
    site.start_service()


def test_a_service_that_is_away_for_15_seconds_loses_nothing(site: Site, prefect_server: Server, start: Start) -> None:
    """Of each version, one run goes on after the outage and another one ends in it."""
    ending = [start(f"away-end-{version}", version, 20, 0.4) for version in VERSIONS]
    lasting = [start(f"away-middle-{version}", version, 20, 1.5) for version in VERSIONS]
    wait_until(lambda: all(run.has_reached(4) for run in (*ending, *lasting)), timeout=90, what="four running flows")
    with away(site):
        pass
    assert all(prefect_server.state_of(run.id) == "RUNNING" for run in lasting)
    for run in (*ending, *lasting):
        run.assert_complete()


def test_restarts_of_the_service_and_of_traefik_lose_none_of_200_task_runs(
    site: Site, prefect_server: Server, start: Start, tmp_path: Path
) -> None:
    """Over TLS: without it, Traefik answers 404 for some moments, because it opens its ports before it has routes."""
    cert_file, key_file = write_certificate(tmp_path)
    port, clear = free_port(), free_port()

    def start_traefik() -> Process:
        env = {"GATE_TLS_CERT_FILE": str(cert_file), "GATE_TLS_KEY_FILE": str(key_file)}
        return site.start_traefik("https.yml", {8443: port, 8000: clear}, env)

    with ExitStack() as stack:
        traefik = stack.enter_context(start_traefik())
        wait_until(lambda: accepts(port), timeout=20, what="Traefik", log=traefik.tail)
        url = f"https://{MACHINES}:{port}/api"
        tls = {"PREFECT_API_URL": url, "PREFECT_API_SSL_CERT_FILE": str(cert_file)}
        run = start("restarts-200", "3.9.1", 200, 0.2, **tls)
        for task in (20, 50, 80):
            wait_until(partial(run.has_reached, task), timeout=60, what=f"task {task}", log=run.worker.tail)
            site.restart_service()
            traefik.stop()
            traefik = stack.enter_context(start_traefik())
        assert prefect_server.state_of(run.id) == "RUNNING", "the restarts have to come before the end"
        run.assert_complete(logs=False)  # the server returns no more than 200 lines at once
