"""Who has proved itself over HTTP, from which address, and which runs it reports on there.

Some clients of Prefect send no credential at all on a WebSocket. What the same address proved over HTTP vouches for it.
"""

import time
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from service.core.model import Gate, Proof
from service.state.bounded import drop_oldest

MAX_ADDRESSES: Final = 10_000
MAX_OF_ADDRESS: Final = 32
MAX_RUNS: Final = 5_000  # of one reporter; those that were named longest ago are forgotten
RECENT_SECONDS: Final = 600.0  # after which an address that is silent vouches for no new WebSocket
KEEP_SECONDS: Final = 86_400.0
MAX_NEWS: Final = 5_000


class Report(NamedTuple):
    """That a caller has named a run or a work pool from an address."""

    address: str
    issuer: str
    subject: str
    kind: str  # "run" or "pool"
    name: str


class Reporter:
    """A caller at one address: its credential, which stays in memory while it vouches, and the runs that it names."""

    __slots__ = ("_address", "_news", "era", "gate", "noted_at", "pools", "presented", "proof", "runs", "who")

    def __init__(
        self,
        address: str,
        who: tuple[str, str],
        gate: Gate,
        presented: bytes,
        proof: Proof,
        era: int,
        news: deque[Report],
    ) -> None:
        self._address, self._news = address, news
        self.who = who  # issuer and subject
        self.gate = gate
        self.presented = presented
        self.proof = proof
        self.era = era  # of the verdicts when it was proved
        self.noted_at = time.monotonic()
        self.runs: dict[str, None] = {}  # the one named last is last
        self.pools: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"Reporter(name={self.proof.principal.name!r}, runs={len(self.runs)})"

    def reports(self, run: str) -> None:
        """Remember that the caller names a run."""
        if run not in self.runs:
            self._news.append(Report(self._address, *self.who, "run", run))
        _add(self.runs, run)

    def asks_for(self, work_pool: str) -> None:
        """Remember that the caller asks a work pool for flow runs."""
        if work_pool not in self.pools:
            self._news.append(Report(self._address, *self.who, "pool", work_pool))
        _add(self.pools, work_pool)

    def learn(self, report: Report) -> None:
        """Remember what the caller has named at another replica."""
        _add(self.runs if report.kind == "run" else self.pools, report.name)


class Reporters:
    """Remembers callers by address. The address that was silent for longest is forgotten first."""

    def __init__(self) -> None:
        self.news: deque[Report] = deque(maxlen=MAX_NEWS)  # what replicas do not share yet, if they share
        self._of_address: dict[str, dict[tuple[str, str], Reporter]] = {}  # by issuer and subject; latest last
        self.fresh: dict[tuple[str, bytes], Reporter] = {}  # by address and verdict key: what need not be noted again

    def note(self, address: str, key: bytes, gate: Gate, presented: bytes, proof: Proof, era: int) -> Reporter:
        """Return the reporter that a call comes from, noted as seen now.

        ``key`` is the verdict key of the credential: it finds the reporter in ``fresh`` until ``look_again()``.
        """
        now = time.monotonic()
        callers = self._of_address.pop(address, {})
        self._of_address[address] = callers
        who = proof.principal.issuer, proof.principal.subject or proof.principal.name
        reporter = callers.pop(who, None)
        if reporter is None:
            reporter = Reporter(address, who, gate, presented, proof, era, self.news)
        else:
            reporter.gate, reporter.presented, reporter.proof = gate, presented, proof
            reporter.era, reporter.noted_at = era, now
        callers[who] = reporter
        self.fresh[address, key] = reporter
        drop_oldest(self.fresh, MAX_ADDRESSES)
        drop_oldest(callers, MAX_OF_ADDRESS)
        drop_oldest(self._of_address, MAX_ADDRESSES)
        return reporter

    def look_again(self) -> None:
        """Note each caller at its next call, so that it counts as seen."""
        self.fresh.clear()
        too_old = time.monotonic() - KEEP_SECONDS
        for address, callers in list(self._of_address.items()):
            if all(one.noted_at < too_old for one in callers.values()):
                del self._of_address[address]

    def at(self, address: str) -> Iterator[Reporter]:
        """Yield the callers at an address, the latest first."""
        yield from reversed(list(self._of_address.get(address, {}).values()))

    def forget(self, address: str, reporter: Reporter) -> None:
        """Forget a caller whose credential is not valid any more."""
        callers = self._of_address.get(address, {})
        for who in [who for who, one in callers.items() if one is reporter]:
            del callers[who]
        for key in [key for key, one in self.fresh.items() if one is reporter]:
            del self.fresh[key]

    def __len__(self) -> int:
        return sum(map(len, self._of_address.values()))


def _add(entries: dict[str, None], entry: str) -> None:
    entries.pop(entry, None)
    entries[entry] = None
    if len(entries) > MAX_RUNS:
        drop_oldest(entries, MAX_RUNS - MAX_RUNS // 16)  # several at once: finding the oldest takes a while
