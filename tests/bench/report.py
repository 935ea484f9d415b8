"""The tables and the plot of the measurements: printed, kept in build/, and written into docs/performance.md.

`python -m tests.bench.report` (`make bench-docs`) writes into the document what the last runs have left in build/.
"""

import json
import math
import os
import platform
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

from tests.bench.load import Measured
from tests.support.parts import ROOT

BUILD: Final = ROOT / "build"
DOCUMENT: Final = ROOT / "docs" / "performance.md"
PLOT: Final = ROOT / "docs" / "images" / "peers.svg"
WIDEST: Final = 200.0  # microseconds: what takes longer has a bar that leaves the plot


def keep(name: str, rows: Mapping[str, Measured], summary: Mapping[str, float], left_out: list[str]) -> None:
    """Print what was measured, and write it to build/{name}.json."""
    table = [
        {
            "name": row,
            "rps": one.rps,
            "cpu_us": None if math.isnan(one.cpu_us) else one.cpu_us,
            "p50_ms": one.p50_ms,
            "p99_ms": one.p99_ms,
        }
        for row, one in rows.items()
    ]
    run = {"machine": machine(), "rows": table, "summary": dict(summary), "left_out": left_out}
    BUILD.mkdir(exist_ok=True)
    (BUILD / f"{name}.json").write_text(json.dumps(run, indent=2) + "\n")
    print(f"\n{markdown(run)}")


def keep_steps(taken: Mapping[str, Mapping[str, float]]) -> None:
    """Print what each step took in microseconds, by algorithm, and write it to build/bench-first-seen.json."""
    BUILD.mkdir(exist_ok=True)
    run = {"machine": machine(), "steps": taken}
    (BUILD / "bench-first-seen.json").write_text(json.dumps(run, indent=2) + "\n")
    print(f"\n{markdown_of_steps(run)}")


def markdown_of_steps(run: Mapping[str, Any]) -> str:
    """Return steps as Markdown."""
    taken = run["steps"]
    lines = [run["machine"], "", f"| µs of processor | {' | '.join(taken)} |", "| --- |" + " ---: |" * len(taken)]
    lines += [
        f"| {step} | {' | '.join(f'{of_one[step]:.1f}' for of_one in taken.values())} |"
        for step in next(iter(taken.values()))
    ]
    return "\n".join(lines)


def markdown(run: Mapping[str, Any]) -> str:
    """Return a run as Markdown."""
    lines = [
        run["machine"],
        "",
        "| | µs of processor | requests/s | p50 ms | p99 ms |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in run["rows"]:
        cpu = "" if row["cpu_us"] is None else _figure(row["cpu_us"])
        lines.append(f"| {row['name']} | {cpu} | {row['rps']:,.0f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} |")
    lines += ["", "| figure | value |", "| --- | ---: |"]
    lines += [f"| {name} | {value:,.2f} |" for name, value in run["summary"].items()]
    if run["left_out"]:
        lines += ["", f"Not installed, and left out: {', '.join(run['left_out'])}."]
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.1f}" if value < 1_000 else f"{value:,.0f}"


def plot(run: Mapping[str, Any]) -> str:
    """Return the processor time of each row as an SVG of bars."""
    rows = [row for row in run["rows"] if row["cpu_us"] is not None]
    height, left, width = 26, 300, 420
    box = f"0 0 {left + width + 110} {height * len(rows) + 40}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-family="sans-serif" font-size="13" role="img">',
        "<title>Microseconds of processor time for one request, less is better</title>",
        "<style>text{fill:#24292f}.a{fill:#8c959f}.b{fill:#1a7f37}@media(prefers-color-scheme:dark){text{fill:#e6edf3}}</style>",
        f'<text x="{left}" y="18">µs of processor time for one request (less is better)</text>',
    ]
    for number, row in enumerate(rows):
        top, cpu = 30 + number * height, row["cpu_us"]
        long = width * min(cpu / WIDEST, 1.0)
        kind = "b" if row["name"].startswith("gate") else "a"
        more = " →" if cpu > WIDEST else ""
        parts += [
            f'<text x="{left - 8}" y="{top + 15}" text-anchor="end">{escape(row["name"])}</text>',
            f'<rect class="{kind}" x="{left}" y="{top}" width="{long:.1f}" height="{height - 7}"/>',
            f'<text x="{left + long + 6:.1f}" y="{top + 15}">{_figure(cpu)}{more}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def machine() -> str:
    """Describe this machine in a line."""
    cpu = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpu)
    return (
        f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release()}, CPython {platform.python_version()}"
    )


def _replace(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}: written by make bench-docs -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{DOCUMENT} has no place for {name}")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def main() -> None:
    """Write the last runs into the document."""
    text = DOCUMENT.read_text()
    for name in ("bench", "bench-peers", "bench-first-seen"):
        file = BUILD / f"{name}.json"
        if not file.exists():
            print(f"{name}: not measured, left as it is")
            continue
        run = json.loads(file.read_text())
        text = _replace(text, name, markdown_of_steps(run) if "steps" in run else markdown(run))
        if name == "bench-peers":
            PLOT.write_text(plot(run))
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
