"""Measure the gate beside what it is to be compared with, in one run: `make bench`.

Rows of a group are measured in turns, several rounds, and the median counts, since a machine's speed drifts.
"""

import argparse
import base64
import statistics
import tempfile
import time
import timeit
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from service.core.prefect.roles import BUILT_IN, Access
from service.core.prefect.routes import Routes, known_routes
from service.gate.verify import MAX_ASKED
from tests.bench.load import Load, Measured
from tests.bench.report import keep
from tests.bench.stage import ALGORITHMS, FORWARDED, LOAD_CORE, Stage, resident_mb
from tests.support.forwarded_requests import call, filled_in

CALLERS = (4, 16)  # Traefik lets those who send one password at once share one bcrypt: more callers, more answers
FROM_THE_UI = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Accept": "*/*"}
BARE, CACHED, DENIED = "bare ASGI answer", "gate, cached Bearer", "gate, no credential"
OTHER_BYTES, BY_ASGI = "gate, cached Bearer, never the same bytes", "gate, cached Bearer, by ASGI"
REFUSED = {DENIED}


def basic(user: str, password: str) -> str:
    """Return the value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def with_credential(credential: str) -> dict[str, str]:
    """Return the headers of a verify call."""
    return {**FORWARDED, "Authorization": credential}


def other_paths(headers: dict[str, str]) -> list[dict[str, str]]:
    """Return so many calls about different paths that none is remembered until it comes again."""
    asked = {**headers, "X-Forwarded-Method": "GET"}
    return [{**asked, "X-Forwarded-Uri": f"/api/flow_runs/{uuid.uuid4()}"} for _ in range(2 * MAX_ASKED)]


class Rounds(dict[str, list[Measured]]):
    """What each row measured, round by round."""

    def median(self, name: str) -> Measured:
        """Return the medians of a row."""
        all_ = self[name]
        return Measured(
            statistics.median(one.rps for one in all_),
            statistics.median(one.p50_ms for one in all_),
            statistics.median(one.p99_ms for one in all_),
            sum(one.requests for one in all_),
            sum(one.refused for one in all_),
            statistics.median(one.cpu_us for one in all_),
        )

    def paired(self, figure: Callable[..., float], *names: str) -> float:
        """Return the median of a figure that is taken round by round, from rows measured one after the other."""
        return statistics.median(figure(*of_a_round) for of_a_round in zip(*(self[one] for one in names), strict=True))


def in_turns(rows: dict[str, Callable[[], Measured]], rounds: int) -> Rounds:
    """Measure each row once a round."""
    seen = Rounds({name: [] for name in rows})
    for _ in range(rounds):
        for name, measure in rows.items():
            one = measure()
            if one.refused and name not in REFUSED:
                raise SystemExit(f"{name}: {one.refused} of {one.requests} were refused: not a measurement")
            seen[name].append(one)
    return seen


def times(one: Measured, other: Measured) -> float:
    """Return how many times the other's throughput one carries."""
    return one.rps / other.rps


def cost(one: Measured, other: Measured) -> float:
    """Return how many times the other's processor time a request costs in one."""
    return one.cpu_us / other.cpu_us


def extra(one: Measured, other: Measured) -> float:
    """Return how many microseconds of processor time a request costs more in one than in the other."""
    return one.cpu_us - other.cpu_us


def raw(algorithm: str) -> str:
    """Return the name of a row."""
    return f"{BARE} + one raw {algorithm} verification"


def first_seen(algorithm: str) -> str:
    """Return the name of a row."""
    return f"gate, first-seen {algorithm}"


def judging_us(method: str, path: str) -> float:
    """Return how many microseconds it takes to find a route and judge it, the first look at it aside."""
    access = Access(BUILT_IN.values(), Routes(known_routes()))
    request = call(method, path)
    judged = timeit.repeat(lambda: access.judge(request, ("worker",)), number=2_000, repeat=5)
    return 1e6 * min(judged) / 2_000


def main() -> None:
    """Measure, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=2, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each row")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Stage(Path(name)) as stage:
        folder = Path(name)

        def load(url: str, headers: list[dict[str, str]], label: str, **more: Any) -> Load:
            given: dict[str, Any] = {"seconds": options.seconds, "core": LOAD_CORE, **more}
            if given["core"] is not None and "rate" not in given:
                given["server"] = stage.process_at(url)
            return Load(url, headers, folder=folder, name=label, **given)

        bearer = with_credential(f"Bearer {stage.issuer.mint(lifetime=3600)}")
        password = with_credential(basic("bench", stage.password))
        session = {**FORWARDED, "Cookie": f"{stage.session()}; prefect_ui_version=v2", **FROM_THE_UI}
        people = stage.gate.replace("/api", "/ui")
        httpx.get(people, headers=session).raise_for_status()
        many = {
            algorithm: [with_credential(f"Bearer {token}") for token in stage.tokens(2000, algorithm)]
            for algorithm in ALGORITHMS
        }
        paths = other_paths(bearer)
        for url in (stage.gate, stage.by_asgi, stage.ordinary):
            for headers in (bearer, password):
                httpx.get(url, headers=headers).raise_for_status()

        direct = in_turns(
            {
                BARE: lambda: load(stage.bare, [bearer], "bare").result(),
                CACHED: lambda: load(stage.gate, [bearer], "bearer").result(),
                OTHER_BYTES: lambda: load(stage.gate, paths, "paths").result(),
                BY_ASGI: lambda: load(stage.by_asgi, [bearer], "by-asgi").result(),
                "gate, cached Basic": lambda: load(stage.gate, [password], "basic").result(),
                "gate, a person's session": lambda: load(people, [session], "session").result(),
                DENIED: lambda: load(stage.gate, [dict(FORWARDED)], "denied").result(),
                **{
                    name: row
                    for algorithm in ALGORITHMS
                    for name, row in (
                        (raw(algorithm), lambda one=algorithm: load(stage.raw[one], [bearer], "raw").result()),
                        (first_seen(algorithm), lambda one=algorithm: load(stage.forgetful, many[one], one).result()),
                    )
                },
                "FastAPI endpoint, cached Bearer": lambda: load(stage.ordinary, [bearer], "fa-bearer").result(),
                "FastAPI endpoint, cached Basic": lambda: load(stage.ordinary, [password], "fa-basic").result(),
            },
            options.rounds,
        )
        user = {"Authorization": basic("bench", stage.password)}
        # both cores are Traefik's, the gate's and the load's together here
        through = in_turns(
            {
                f"Traefik, {title}, {connections} callers": lambda path=path, connections=connections: load(  # type: ignore[misc]
                    f"{stage.traefik}/{path}/api/health", [user], path, core=None, connections=connections
                ).result()
                for connections in CALLERS
                for path, title in (
                    ("open", "open route"),
                    ("own", "its basicAuth, bcrypt 10"),
                    ("bare", "forwardAuth to a bare answer"),
                    ("ours", "our gate"),
                )
            },
            options.rounds,
        )
        steady = in_turns(
            {
                f"{title}, 1,000 requests/s": lambda url=url: load(  # type: ignore[misc]
                    url, [bearer], "steady", rate=1000, connections=10
                ).result()
                for title, url in (("bare ASGI answer", stage.bare), ("gate", stage.gate))
            },
            options.rounds,
        )

        def while_under(attack: Callable[[], Load]) -> Measured:
            """Measure a valid caller while the attack goes on."""
            attacker = attack()
            measured = load(stage.gate, [bearer], "meanwhile", rate=500, connections=5).result()
            attacks.append(attacker.result())
            return measured

        attacks: list[Measured] = []
        long = options.seconds + 1
        strangers = [with_credential(f"Bearer {token}") for token in stage.strangers(10_000)]
        fetches, began = stage.issuer.fetches["/jwks"], time.monotonic()
        # each from an address of its own, so that it is looked at, and not held up as one of too many
        wrong = [
            with_credential(basic(f"user{number}", "wrong"))
            | {"X-Forwarded-For": f"198.18.{number // 250}.{number % 250}"}
            for number in range(1000)
        ]
        attacked = in_turns(
            {
                "valid caller, 500/s, quiet": lambda: load(
                    stage.gate, [bearer], "meanwhile", rate=500, connections=5
                ).result(),
                "valid caller, 500/s, unknown key ids at 1,000/s": lambda: while_under(
                    lambda: load(stage.gate, strangers, "strangers", rate=1000, connections=10, seconds=long)
                ),
                "valid caller, 500/s, 200 parallel wrong passwords": lambda: while_under(
                    lambda: load(stage.gate, wrong, "wrong", connections=200, seconds=long)
                ),
            },
            options.rounds,
        )
        flood_seconds = time.monotonic() - began
        unknown_kid_fetches = stage.issuer.fetches["/jwks"] - fetches
        if any(one.requests != one.refused for one in attacks):
            raise SystemExit("an attacker was let in")
        rss = resident_mb(stage.gate_process)
        ready = stage.start_up_seconds()

    rows = {name: measured.median(name) for measured in (direct, through, steady, attacked) for name in measured}
    quiet = "valid caller, 500/s, quiet"
    summary = {
        "rss_mb": rss,
        "ready_s": ready,
        "cached_bearer_cpu_to_bare": direct.paired(cost, CACHED, BARE),
        "cached_basic_cpu_to_bare": direct.paired(cost, "gate, cached Basic", BARE),
        "session_cpu_to_bare": direct.paired(cost, "gate, a person's session", BARE),
        "denied_cpu_to_bare": direct.paired(cost, DENIED, BARE),
        "other_bytes_cpu_to_bare": direct.paired(cost, OTHER_BYTES, BARE),
        "by_asgi_cpu_to_bare": direct.paired(cost, BY_ASGI, BARE),
        "judge_us": judging_us("POST", FORWARDED["X-Forwarded-Uri"]),
        "judge_slowest_us": max(judging_us(route.method, filled_in(route.path)) for route in known_routes()),
        "cached_bearer_to_fastapi": direct.paired(times, CACHED, "FastAPI endpoint, cached Bearer"),
        "cached_basic_to_fastapi": direct.paired(times, "gate, cached Basic", "FastAPI endpoint, cached Basic"),
        **{
            name: figure
            for one in ALGORITHMS
            for name, figure in (
                (f"raw_{one}_us", direct.paired(extra, raw(one), BARE)),
                (f"first_seen_{one}_extra_us", direct.paired(extra, first_seen(one), CACHED)),
                (
                    f"first_seen_{one}_extra_to_raw",
                    direct.paired(
                        lambda first, cached, verified, bare: extra(first, cached) / extra(verified, bare),
                        first_seen(one),
                        CACHED,
                        raw(one),
                        BARE,
                    ),
                ),
            )
        },
        **{
            f"traefik_ours_to_bare_{connections}": through.paired(
                times,
                f"Traefik, our gate, {connections} callers",
                f"Traefik, forwardAuth to a bare answer, {connections} callers",
            )
            for connections in CALLERS
        },
        **{
            f"traefik_{name}_to_its_basicauth_{connections}": through.paired(
                times,
                f"Traefik, {title}, {connections} callers",
                f"Traefik, its basicAuth, bcrypt 10, {connections} callers",
            )
            for connections in CALLERS
            for name, title in (("ours", "our gate"), ("bare", "forwardAuth to a bare answer"))
        },
        "p99_ms_at_1000_rps": rows["gate, 1,000 requests/s"].p99_ms,
        "bare_p99_ms_at_1000_rps": rows["bare ASGI answer, 1,000 requests/s"].p99_ms,
        "unknown_kid_p99_to_quiet": attacked.paired(
            lambda one, other: one.p99_ms / other.p99_ms, "valid caller, 500/s, unknown key ids at 1,000/s", quiet
        ),
        "unknown_kid_fetches": unknown_kid_fetches,
        "unknown_kid_seconds": flood_seconds,
        "wrong_passwords_p99_ms": rows["valid caller, 500/s, 200 parallel wrong passwords"].p99_ms,
    }
    keep("bench", rows, summary, [])


if __name__ == "__main__":
    main()
