"""Measure the agent: what it adds to a request, how many a core carries, and its start. `python -m tests.bench.agent`.

The upstream is the bare ASGI answer, on the core of the load; the agent has the other core for itself. One caller asks
at a time for what is added. What a core carries is counted in the processor time of the agent, and not in seconds, so
that other work on the machine counts less.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.__main__ import in_turns
from tests.bench.load import Load, Measured
from tests.bench.report import machine
from tests.bench.stage import LOAD_CORE, SERVER_CORE, UVICORN, Stage, environment, resident_mb
from tests.support.waiting import free_port

ALONE, MANY = 1, 16  # callers
BODY = {"User-Agent": "prefect/3.9.1", "X-Prefect-Api-Version": "0.8.4", "Accept": "*/*"}


class AgentStage(Stage):
    """An upstream that answers at once, and an agent before it with a token from a file."""

    def _start_all(self) -> None:
        port, upstream = free_port(), free_port()
        app = [sys.executable, "-m", "uvicorn", "tests.bench.apps:bare", "--lifespan", "off", "--port", str(upstream)]
        self.start([*app, "--log-level", "warning", *UVICORN], {}, upstream, core=LOAD_CORE)
        self.direct = f"http://127.0.0.1:{upstream}/api/flow_runs/filter"
        self.token = self.folder / "token"
        self.token.write_text(self.issuer.mint(lifetime=3600))
        self.options = ["--url", f"http://127.0.0.1:{upstream}/api", "--token-file", str(self.token)]
        argv = [sys.executable, "-m", "service", "agent", *self.options, "--path", "bench"]
        self.agent = self.start([*argv, "--listen", f"127.0.0.1:{port}"], {}, port, core=SERVER_CORE)
        self.behind = f"http://127.0.0.1:{port}/bench/api/flow_runs/filter"

    def seconds_to_child(self, runs: int) -> float:
        """Return the median time from the start of `run` to that of its command."""
        times = []
        argv = [sys.executable, "-m", "service", "run", *self.options, "--", "date", "+%s.%N"]
        for _ in range(runs):
            began = time.time()
            done = subprocess.run(argv, env=environment(), check=True, capture_output=True, text=True)
            times.append(float(done.stdout) - began)
        return statistics.median(times)


def processor_seconds(process: subprocess.Popen[bytes]) -> float:
    """Return how much processor time a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure in turns, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each row")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, AgentStage(Path(name)) as stage:
        carried: list[float] = []  # requests in a second of the agent's processor time

        def load(url: str, callers: int) -> Measured:
            given = {"seconds": options.seconds, "core": LOAD_CORE, "connections": callers}
            return Load(url, [BODY], folder=stage.folder, name="load", **given).result()

        def many() -> Measured:
            before = processor_seconds(stage.agent)
            measured = load(stage.behind, MANY)
            carried.append(measured.requests / (processor_seconds(stage.agent) - before))
            return measured

        rounds = in_turns(
            {
                "upstream, 1 caller": lambda: load(stage.direct, ALONE),
                "behind the agent, 1 caller": lambda: load(stage.behind, ALONE),
                "upstream, 16 callers": lambda: load(stage.direct, MANY),
                "behind the agent, 16 callers": many,
            },
            options.rounds,
        )
        figures = {
            "added_p50_ms": rounds.paired(
                lambda one, other: one.p50_ms - other.p50_ms, "behind the agent, 1 caller", "upstream, 1 caller"
            ),
            "requests_per_processor_second": statistics.median(carried),
            "rss_mb": resident_mb(stage.agent),
            "seconds_to_child": stage.seconds_to_child(11),
        }
    print(f"\n{machine()}\n")
    print("| | requests/s | p50 ms | p99 ms |\n| --- | ---: | ---: | ---: |")
    for row in rounds:
        one = rounds.median(row)
        print(f"| {row} | {one.rps:,.0f} | {one.p50_ms:.2f} | {one.p99_ms:.2f} |")
    print("\n| figure | value |\n| --- | ---: |")
    for figure, value in figures.items():
        print(f"| {figure} | {value:,.2f} |")


if __name__ == "__main__":
    main()
