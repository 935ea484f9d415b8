"""The service and Traefik restart while flows run: nothing that a worker or a flow run reports is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.credential_forms import API_KEY
from tests.support.openid import OpenIDProvider
from tests.support.parts import TRAEFIK, require
from tests.support.prefect import Client, Server
from tests.support.processes import Process
from tests.support.site import Site
from tests.support.waiting import wait_until

AWAY_SECONDS = 15.0
VERSIONS = ("3.6.11", "3.9.1")


@pytest.fixture
def site(folder: Path, tmp_path: Path, prefect_server: Server, service_settings: Mapping[str, str]) -> Iterator[Site]:
    """Serve a site whose parts a test may stop, in front of the Prefect server of the session."""
    require(TRAEFIK)
    with Site(tmp_path / "site", prefect_server.url, service_settings) as site:
        yield site


@dataclass
class Run:
    """A flow run that a worker of its own carries out."""

    server: Server
    id: str
    tasks: int
    worker: Process

    def started(self) -> int:
        """Return how many task runs the server knows of."""
        return len(self.server.of_flow_run("task_runs", self.id))

    def assert_nothing_lost(self) -> None:
        """Wait for the end of the run; then each task run, each task's log line and the artifact are there."""

        def complete() -> bool:
            return self.worker.returncode is not None or self._found() == (self.tasks, self.tasks, 1, "COMPLETED")

        wait_until(complete, timeout=120, what=f"a whole run, not {self._found()}", log=self.worker.tail)
        assert self._found() == (self.tasks, self.tasks, 1, "COMPLETED"), self.worker.tail()
        assert self.worker.returncode is None, self.worker.tail()

    def _found(self) -> tuple[int, int, int, str]:
        states = [row["state_type"] for row in self.server.of_flow_run("task_runs", self.id)]
        logs = {row["message"] for row in self.server.of_flow_run("logs", self.id)}
        logged = len(logs & {f"doubling {number}" for number in range(1, self.tasks + 1)})
        artifacts = len(self.server.of_flow_run("artifacts", self.id))
        return states.count("COMPLETED"), logged, artifacts, self.server.state_of(self.id)


@pytest.fixture
def start(
    site: Site, prefect_server: Server, openid_provider: OpenIDProvider, tmp_path: Path
) -> Iterator[Callable[[str, str, int, float], Run]]:
    """Return a function that starts a worker of a version, with PREFECT_API_KEY alone, and a run of so many tasks."""
    with ExitStack() as stack:

        def start(name: str, version: str, tasks: int, pause: float) -> Run:
            prefect_server.create_pool(name)
            deployment = prefect_server.create_deployment(name, entrypoint="proof.py:proof", pool=name)
            asked = {"parameters": {"marker": name, "tasks": tasks, "pause": pause}}
            run = prefect_server.ask("POST", f"/deployments/{deployment}/create_flow_run", asked)["id"]
            settings = API_KEY.settings(f"{site.machines_url}/api", openid_provider.token())
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


def test_a_service_that_is_away_for_15_seconds_loses_nothing(
    site: Site, prefect_server: Server, start: Callable[[str, str, int, float], Run]
) -> None:
    """Of each version, one run goes on after the outage and another one ends in it."""
    ending = [start(f"away-end-{version}", version, 20, 0.4) for version in VERSIONS]
    lasting = [start(f"away-middle-{version}", version, 20, 1.5) for version in VERSIONS]
    wait_until(lambda: all(run.started() >= 4 for run in (*ending, *lasting)), timeout=90, what="four running flows")
    with away(site):
        pass
    assert all(prefect_server.state_of(run.id) == "RUNNING" for run in lasting)
    for run in (*ending, *lasting):
        run.assert_nothing_lost()


def test_restarts_of_service_and_proxy_lose_none_of_200_task_runs(
    site: Site, start: Callable[[str, str, int, float], Run]
) -> None:
    run = start("restarts-200", "3.9.1", 200, 0.05)
    for known in (30, 70, 110):
        wait_until(lambda known=known: run.started() >= known, timeout=60, what=f"{known} task runs")
        site.restart_service()
        site.restart_traefik()
    assert run.started() < 200, "the run ended before the restarts"
    run.assert_nothing_lost()
