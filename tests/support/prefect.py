"""Prefect, for real: a server, clients and workers of several versions, questions put to the server."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from tests.support.parts import SERVER_VERSION, beside_prefect, prefect_part, require
from tests.support.processes import Process, clean_environment
from tests.support.waiting import free_port, wait_until

FLOWS = Path(__file__).parent / "flows"
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_COLORS": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_LOGGING_COLORS": "false",
}


@dataclass(frozen=True)
class Client:
    """One version of Prefect with a home of its own, aimed at one API with one credential."""

    version: str
    home: Path
    settings: Mapping[str, str]  # PREFECT_API_URL and the credential's variable

    def start(self, name: str, *argv: str | Path) -> Process:
        """Start `python argv…` in this version's environment."""
        return self.start_behind(name, [require(prefect_part(self.version)), *argv])

    def start_behind(self, name: str, argv: Sequence[str | Path], cwd: Path | None = None) -> Process:
        """Start a command that starts this version's Python, or is it."""
        python = require(prefect_part(self.version))
        env = clean_environment(
            self.home,
            {
                **QUIET,
                "PREFECT_HOME": str(self.home / ".prefect"),
                "PREFECT_WORKER_QUERY_SECONDS": "1",
                "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
                **self.settings,
            },
        )
        env["PATH"] = f"{python.parent}:{env['PATH']}"
        return Process(name, argv, env=env, log=self.home / f"{name}.log", cwd=cwd)

    def start_worker(self, pool: str, *options: str) -> Process:
        """Start a process worker that polls this pool."""
        command = ("-m", "prefect", "worker", "start", "--type", "process", "--pool", pool)
        return self.start("worker", *command, *options)


class Server:
    """A Prefect server on loopback with a database of its own, up inside the `with` block."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.settings = settings or {}
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        once = httpx.Limits(max_keepalive_connections=0)  # the server closes idle ones, maybe just as one is used
        self._http = httpx.Client(base_url=f"{self.url}/api", timeout=30, limits=once)

    def __enter__(self) -> Self:
        client = Client(
            SERVER_VERSION,
            self.folder,
            {
                "PREFECT_SERVER_UI_API_URL": "/api",
                "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "0.5",
                "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",  # whole seconds: 0.5 is 0, a busy loop
                **self.settings,
            },
        )
        database = self.folder / ".prefect" / "prefect.db"
        if not database.exists():  # its migrations take ten seconds, from one empty database to the same other
            database.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(beside_prefect(SERVER_VERSION, "prefect.db"), database)
        argv = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        self.process = client.start("server", *argv)
        try:
            wait_until(self._healthy, timeout=120, what="health of the Prefect server")
        except BaseException:
            self.process.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self.process.stop()

    def _healthy(self) -> bool:
        if self.process.returncode is not None:
            msg = f"the Prefect server ended with {self.process.returncode}:\n{self.process.tail()}"
            raise RuntimeError(msg)
        try:
            return self._http.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Call the server's own API, past the gate, and return its JSON; wait while its SQLite is busy (503)."""

        def call() -> httpx.Response | None:
            answer = self._http.request(method, path, json=body)
            return None if answer.status_code == 503 else answer

        answer = wait_until(call, timeout=30, what=f"an answer other than 503 to {method} {path}")
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def create_pool(self, name: str) -> None:
        """Make a process work pool."""
        self.ask("POST", "/work_pools/", {"name": name, "type": "process"})

    def create_deployment(
        self, name: str, *, entrypoint: str, pool: str, parameters: Mapping[str, Any] | None = None
    ) -> str:
        """Deploy a flow of tests/support/flows to a pool, and return the deployment's id."""
        flow = self.ask("POST", "/flows/", {"name": name})
        deployment = {
            "name": name,
            "flow_id": flow["id"],
            "work_pool_name": pool,
            "entrypoint": entrypoint,
            "parameters": dict(parameters or {}),
            "parameter_openapi_schema": {"type": "object", "properties": {}},
            "path": str(FLOWS),
            "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(FLOWS)}}],
        }
        return str(self.ask("POST", "/deployments/", deployment)["id"])

    def emit(self, name: str, *, resource: str = "e2e") -> None:
        """Put an event about a resource into the server, past the gate."""
        now, about = dt.datetime.now(dt.UTC).isoformat(), {"prefect.resource.id": resource}
        self.ask("POST", "/events", [{"occurred": now, "event": name, "resource": about, "id": str(uuid.uuid4())}])

    def state_of(self, flow_run: str) -> str:
        """Return the type of a flow run's state, such as COMPLETED."""
        return str(self.ask("GET", f"/flow_runs/{flow_run}")["state_type"])

    def of_flow_run(self, what: str, flow_run: str) -> list[dict[str, Any]]:
        """Return the rows of task_runs, artifacts or logs that belong to a flow run."""
        key = "logs" if what == "logs" else what
        condition = {"flow_run_id": {"any_": [flow_run]}}
        body = {"flow_runs": {"id": {"any_": [flow_run]}}} if what == "task_runs" else {key: condition}
        return list(self.ask("POST", f"/{what}/filter", body))


def openapi_of(version: str) -> dict[str, Any]:
    """Return the OpenAPI document of a version's server."""
    return dict(json.loads(beside_prefect(version, "openapi.json").read_text()))
