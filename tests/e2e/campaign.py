"""Runs of one deployed flow, each through the gate with its own client version and form of credential."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from tests.support.credential_forms import CredentialForm
from tests.support.openid import OpenIDProvider
from tests.support.prefect import FLOWS, Client, Server
from tests.support.site import Site
from tests.support.waiting import wait_until

SIDE_BY_SIDE = 2
TASKS = 20
OBSERVER_SECONDS = 45.0  # that an observer gets to see what it waits for
ENDED = ("COMPLETED", "FAILED", "CRASHED")
OBSERVES = FLOWS / "observes.py"


@dataclass(frozen=True)
class Case:
    """A client version, a form of credential, and the algorithm of its token."""

    version: str
    form: CredentialForm
    alg: str = "RS256"

    def __str__(self) -> str:
        return f"{self.version}-{self.form.name}"


@dataclass
class Outcome:
    """What a worker and its flow run of ``TASKS`` tasks left behind, and which observers saw what they wait for."""

    flow_run: str
    state: str
    task_runs: int  # that are completed
    logs: int  # one for each task
    artifacts: int
    worker_exit: int | None
    worker_log: str
    observers: dict[str, bool]


class Campaign:
    """Starts a real process worker for each case, a few side by side, and hands out what came of it."""

    def __init__(
        self, folder: Path, server: Server, site: Site, provider: OpenIDProvider, *, observers: bool = False
    ) -> None:
        self._folder = folder
        self._server = server
        self._site = site
        self._provider = provider
        self._observers = observers
        self._pool = ThreadPoolExecutor(SIDE_BY_SIDE)
        self._outcomes: dict[Case, Future[Outcome]] = {}

    def enlist(self, case: Case) -> None:
        """Queue a case, once."""
        if case not in self._outcomes:
            self._outcomes[case] = self._pool.submit(self._run, case)

    def outcome(self, case: Case) -> Outcome:
        """Return what came of a case, waiting for it."""
        return self._outcomes[case].result()

    def _run(self, case: Case) -> Outcome:
        name = str(case)
        self._server.create_pool(name)
        deployment = self._server.create_deployment(
            name, entrypoint="proof.py:proof", pool=name, parameters={"tasks": 1}
        )
        asked = {"parameters": {"marker": name, "tasks": TASKS}}
        run = str(self._server.ask("POST", f"/deployments/{deployment}/create_flow_run", asked)["id"])
        settings = case.form.settings(f"{self._site.machines_url}/api", self._provider.token(case.alg))
        client = Client(case.version, self._folder / name, settings)
        with client.start_worker(name) as worker:
            _within(90, lambda: worker.returncode is not None or self._server.state_of(run) in ENDED)
            _within(15, lambda: self._count(run) == (TASKS, TASKS, 1))
            seen = self._observe(client, name, deployment) if self._observers and worker.returncode is None else {}
            return Outcome(run, self._server.state_of(run), *self._count(run), worker.returncode, worker.text(), seen)

    def _count(self, run: str) -> tuple[int, int, int]:
        completed = [one for one in self._server.of_flow_run("task_runs", run) if one["state_type"] == "COMPLETED"]
        logs = {one["message"] for one in self._server.of_flow_run("logs", run)}
        logged = logs & {f"doubling {number}" for number in range(1, TASKS + 1)}
        return len(completed), len(logged), len(self._server.of_flow_run("artifacts", run))

    def _observe(self, client: Client, name: str, deployment: str) -> dict[str, bool]:
        """Tell which observers see what they wait for, while a worker runs."""
        watch = ("-m", "prefect", "deployment", "run", f"{name}/{name}", "--watch")
        stream = ("-m", "prefect", "events", "stream", "--format", "text")
        emit = partial(self._server.emit, f"seen.{name}")
        seen = {
            "deployment run --watch": _shows(client, "watch", "(?i)finished in state .*completed", *watch),
            "events stream": _shows(client, "stream", f"seen.{name}", *stream, meanwhile=emit),
            "wait_for_flow_run": _shows(client, "wait", "ended as COMPLETED", OBSERVES, "wait", deployment),
        }
        with client.start("serve", OBSERVES, "serve"):
            return {**seen, "task.serve": _shows(client, "delay", "result 42", OBSERVES, "delay")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _shows(
    client: Client, name: str, pattern: str, *argv: str | Path, meanwhile: Callable[[], None] = lambda: None
) -> bool:
    """Tell whether a command writes this in time; ``meanwhile`` is called again and again."""

    def shown() -> bool:
        meanwhile()
        return process.returncode is not None or re.search(pattern, process.text()) is not None

    with client.start(name, *argv) as process:
        _within(OBSERVER_SECONDS, shown)
        return re.search(pattern, process.text()) is not None


def _within(seconds: float, condition: Callable[[], bool]) -> None:
    """Wait for a condition, and go on without it after a while: what there is then is the outcome."""
    try:
        wait_until(condition, timeout=seconds, what="an outcome")
    except TimeoutError:
        return
