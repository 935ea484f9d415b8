"""Run workers behind the agent for a long time, with tokens that live for 20 seconds: `make long-run`.

Each version of Prefect shares one environment with the agent. Flows of 20 tasks run all the time. Meanwhile the gate is
restarted once, the provider once, and its keys change twice. It prints what became of it, for docs/agent.md, and exits
with 1 unless all task runs are there, no worker saw a 401, and no agent has grown.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.support.openid import AUDIENCE, OpenIDProvider
from tests.support.package_index import install_beside_prefect
from tests.support.parts import ROOT
from tests.support.prefect import Client, Server
from tests.support.processes import Process
from tests.support.site import Site
from tests.support.waiting import wait_until

VERSIONS = ("3.2.15", "3.9.1")
TOKEN_SECONDS = 20
OUTAGE_SECONDS = 15
TASKS = 20
MAY_GROW = 4 * 1024  # KiB that an agent may grow from a fifth of the time to its end
OUTPUT = ROOT / "build" / "long-run.json"


@dataclass
class Pool:
    """One worker behind its agent, and what became of its flow runs."""

    version: str
    process: Process
    deployment: str
    runs: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # of the agent, in KiB, from a fifth of the time on

    def measure(self) -> None:
        """Note how much memory the agent has."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        self.memory.append(int(re.findall(r"VmRSS:\s+(\d+)", status)[0]))


@dataclass(frozen=True)
class Outcome:
    """What is printed."""

    version: str
    flow_runs: int
    completed: int
    task_runs: int
    task_runs_completed: int
    seen_401: int
    agent_kib: int
    agent_grown_kib: int

    @property
    def good(self) -> bool:
        """Tell whether nothing was lost."""
        whole = self.flow_runs == self.completed > 0 and self.task_runs_completed == TASKS * self.flow_runs
        return whole and not self.seen_401 and self.agent_grown_kib <= MAY_GROW


def start(version: str, folder: Path, site: Site, server: Server, provider: OpenIDProvider) -> Pool:
    """Start a worker behind an agent, out of one environment."""
    name = f"long-{version}"
    venv = install_beside_prefect(version, folder)
    server.create_pool(name)
    deployment = server.create_deployment(name, entrypoint="proof.py:proof", pool=name)
    settings = {
        "PREFECT_API_URL": f"{site.machines_url}/api",
        "FORWARD_AUTH_AGENT_ISSUER": provider.url,
        "FORWARD_AUTH_AGENT_CLIENT_ID": "worker",
        "FORWARD_AUTH_AGENT_CLIENT_SECRET": "worker-secret",
        "FORWARD_AUTH_AGENT_SCOPE": "prefect:write",
    }
    worker: list[str | Path] = [venv / "bin" / "python", "-W", "ignore", "-m", "prefect", "worker", "start"]
    argv: list[str | Path] = [
        venv / "bin" / "prefect-forward-auth",
        "run",
        "--",
        *worker,
        "--type",
        "process",
        "--pool",
        name,
    ]
    process = Client(version, folder / name, settings).start_behind("worker", argv)
    return Pool(version, process, deployment)


def disturbances(site: Site, provider: OpenIDProvider, seconds: float) -> list[tuple[float, str, Callable[[], None]]]:
    """Return what happens after how many seconds."""
    return [
        (0.25 * seconds, "the gate restarts", site.restart_service),
        (0.35 * seconds, "new keys sign", provider.rotate),
        (0.45 * seconds, "the old keys are gone", provider.drop_old),
        (0.55 * seconds, "the provider is away", provider.stop),
        (0.55 * seconds + OUTAGE_SECONDS, "the provider is back, with new keys", provider.start),
        (0.75 * seconds, "new keys sign", provider.rotate),
        (0.85 * seconds, "the old keys are gone", provider.drop_old),
    ]


def keep_running(pool: Pool, server: Server) -> None:
    """Begin another flow run when the last one has ended; raise RuntimeError if the worker has."""
    if pool.process.returncode is not None:
        raise RuntimeError(f"the worker of {pool.version} ended with {pool.process.returncode}: {pool.process.tail()}")
    if not pool.runs or ended(server, pool.runs[-1]):
        asked = {"parameters": {"marker": pool.version, "tasks": TASKS, "pause": 1}}
        run = server.ask("POST", f"/deployments/{pool.deployment}/create_flow_run", asked)
        pool.runs.append(str(run["id"]))


def ended(server: Server, run: str) -> bool:
    """Tell whether a flow run has ended."""
    return server.state_of(run) not in {"SCHEDULED", "PENDING", "RUNNING"}


def refusals(pool: Pool) -> list[str]:
    """Return the lines in which the worker tells of a 401, or the agent that it passed one on."""
    seen = re.compile(r"401 Unauthorized|HTTP 401|refuses the credential")
    return [line for line in pool.process.text().splitlines() if seen.search(line)]


def outcome(pool: Pool, server: Server) -> Outcome:
    """Wait for the last flow run, and count."""
    wait_until(lambda: ended(server, pool.runs[-1]), timeout=300, what="the end of the last flow run")

    def task_runs() -> list[str]:
        return [row["state_type"] for run in pool.runs for row in server.of_flow_run("task_runs", run)]

    try:  # they are recorded a little later
        wait_until(lambda: task_runs().count("COMPLETED") >= TASKS * len(pool.runs), timeout=60, what="all task runs")
    except TimeoutError as problem:
        print(problem, flush=True)
    states = task_runs()
    return Outcome(
        pool.version,
        len(pool.runs),
        [server.state_of(run) for run in pool.runs].count("COMPLETED"),
        len(states),
        states.count("COMPLETED"),
        len(refusals(pool)),
        pool.memory[0],
        pool.memory[-1] - pool.memory[0],
    )


def main() -> int:
    """Run for some minutes, print a table, write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--versions", nargs="*", default=VERSIONS, metavar="VERSION")
    options = parser.parse_args()
    seconds = 60 * options.minutes
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        provider = stack.enter_context(OpenIDProvider(folder, token_seconds=TOKEN_SECONDS))
        server = stack.enter_context(Server(folder / "server"))
        settings = {
            "FORWARD_AUTH_ISSUER__URL": provider.url,
            "FORWARD_AUTH_ISSUER__AUDIENCES": AUDIENCE,
            "FORWARD_AUTH_ISSUER__ROLE": "worker",
            "FORWARD_AUTH_ISSUER__LEEWAY": "0",
        }
        site = stack.enter_context(Site(folder / "site", server.url, settings))
        before = len(site.traefik.text())
        pools = [start(version, folder, site, server, provider) for version in options.versions]
        for pool in pools:
            stack.enter_context(pool.process)
        begin, due = time.monotonic(), disturbances(site, provider, seconds)
        while (elapsed := time.monotonic() - begin) < seconds:
            for pool in pools:
                keep_running(pool, server)
                if elapsed > seconds / 5:
                    pool.measure()
            while due and elapsed > due[0][0]:
                _, told, happen = due.pop(0)
                print(f"{elapsed:5.0f} s  {told}", flush=True)
                happen()
            time.sleep(1)
        outcomes = [outcome(pool, server) for pool in pools]
        renewed = len(re.findall(r'" 401 ', site.traefik.text()[before:]))
        for pool in pools:
            print("\n".join(refusals(pool)) or f"{pool.version}: no 401")
    rows = [asdict(one) for one in outcomes]
    print(f"{options.minutes:g} minutes, tokens of {TOKEN_SECONDS} s; the gate answered the agents 401 {renewed} times")
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps({"minutes": options.minutes, "renewed": renewed, "pools": rows}, indent=1) + "\n")
    return 0 if all(one.good for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
