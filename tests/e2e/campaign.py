"""Runs of one deployed flow, each through the gate with its own client version and form of credential."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.credential_forms import CredentialForm
from tests.support.openid import OpenIDProvider
from tests.support.prefect import Client, Server
from tests.support.site import Site

SIDE_BY_SIDE = 2


@dataclass(frozen=True)
class Case:
    """A client version, a form of credential, and the algorithm of its token."""

    version: str
    form: CredentialForm
    alg: str = "RS256"

    def __str__(self) -> str:
        return f"{self.version}-{self.form.name}"


@dataclass(frozen=True)
class Outcome:
    """What a worker left behind."""

    flow_run: str
    returncode: int
    worker_log: str


class Campaign:
    """Starts a real process worker for each case, a few side by side, and hands out what came of it."""

    def __init__(self, folder: Path, server: Server, site: Site, provider: OpenIDProvider) -> None:
        self._folder = folder
        self._server = server
        self._site = site
        self._provider = provider
        self._pool = ThreadPoolExecutor(SIDE_BY_SIDE)
        self._outcomes: dict[Case, Future[Outcome]] = {}

    def enlist(self, case: Case) -> None:
        """Queue a case, once."""
        if case not in self._outcomes:
            self._outcomes[case] = self._pool.submit(self._run, case)

    def outcome(self, case: Case) -> Outcome:
        """Return what came of a case, waiting for it."""
        return self._outcomes[case].result(timeout=280)

    def _run(self, case: Case) -> Outcome:
        name = str(case)
        self._server.create_pool(name)
        deployment = self._server.create_deployment(name, entrypoint="proof.py:proof", pool=name)
        started = self._server.ask(
            "POST", f"/deployments/{deployment}/create_flow_run", {"parameters": {"marker": name}}
        )
        settings = case.form.settings(f"{self._site.machines_url}/api", self._provider.token(case.alg))
        client = Client(case.version, self._folder / name, settings)
        with client.start_worker(name, "--run-once") as worker:
            code = worker.wait(timeout=150)
        return Outcome(started["id"], code, worker.text())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
