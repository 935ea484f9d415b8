"""Load from wrk, to loopback alone and bounded in time, and what came back."""

import json
import math
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Each request of the list in turn; after each answer a connection may pause for a while of random length, which
# bounds the rate and keeps the connections from marching in step.
_SCRIPT = """
local requests, next_one, pause = {}, 0, tonumber(os.getenv("LOAD_PAUSE_MS") or "0")
function init()
  for line in io.lines(os.getenv("LOAD_HEADERS")) do
    local headers = {}
    for name, value in string.gmatch(line, "([^\\t]+)\\t([^\\t]+)") do headers[name] = value end
    requests[#requests + 1] = wrk.format("GET", nil, headers)
  end
end
function request()
  next_one = next_one % #requests + 1
  return requests[next_one]
end
if pause > 0 then function delay() return math.random(0, 2 * pause) end end
function done(summary, latency)
  io.write(string.format('\\n{"requests":%d,"micros":%d,"refused":%d,"broken":%d,"p50":%.1f,"p99":%.1f}\\n',
    summary.requests, summary.duration, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Measured:
    """One run of load.

    That is answers a second, latencies in milliseconds, how many were no 2xx, and the processor time of the server for
    one request in microseconds (user and system), if a server was given.
    """

    rps: float
    p50_ms: float
    p99_ms: float
    requests: int
    refused: int
    cpu_us: float = math.nan


def processor_seconds(process: int) -> float:
    """Return the processor time, user and system, that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Load:
    """A running wrk."""

    def __init__(  # noqa: PLR0913 - load has these parts
        self,
        url: str,
        headers: Sequence[dict[str, str]],
        *,
        folder: Path,
        name: str,
        seconds: int,
        connections: int = 16,
        rate: float | None = None,
        core: int | None = None,
        server: int | None = None,
    ) -> None:
        """``server`` is the process whose time is measured."""
        script, lines = folder / f"{name}.lua", folder / f"{name}.tsv"
        script.write_text(_SCRIPT)
        lines.write_text("".join("\t".join(f"{key}\t{value}" for key, value in one.items()) + "\n" for one in headers))
        pause = 0 if rate is None else max(1, round(connections / rate * 1000))
        wrk = shutil.which("wrk")
        if wrk is None:
            raise SystemExit("the benchmark needs wrk: apt-get install wrk")
        self._server = server
        self._began = 0.0 if server is None else processor_seconds(server)
        self._process = subprocess.Popen(
            [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script), url],
            env={**os.environ, "LOAD_HEADERS": str(lines), "LOAD_PAUSE_MS": str(pause)},
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509
        )

    def result(self) -> Measured:
        """Wait for the end and return what was measured."""
        output, _ = self._process.communicate(timeout=120)
        if self._process.returncode:
            raise SystemExit(f"wrk ended with {self._process.returncode}: {output}")
        found = json.loads(output.strip().splitlines()[-1])
        if found["broken"]:
            raise SystemExit(f"{found['broken']} requests were not answered: {output}")
        seconds, requests = found["micros"] / 1e6, found["requests"]
        used = math.nan if self._server is None else processor_seconds(self._server) - self._began
        return Measured(
            requests / seconds,
            found["p50"] / 1e3,
            found["p99"] / 1e3,
            requests,
            found["refused"],
            1e6 * used / requests,
        )
