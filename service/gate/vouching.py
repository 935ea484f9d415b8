"""Vouched WebSockets: clients that send no credential at all, and what their address has proved over HTTP.

Prefect's clients send no credential on ``events/in`` where PREFECT_API_KEY alone is set, and on ``events/out`` a null
token. Such a socket is let in if a caller who may report and emit was verified over HTTP from the same address a short
time ago. Then each event is read, and passes only if that caller reports on its run from that address.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from service.core.errors import Later, Refusal, Throttled
from service.core.model import Allow, ForwardedRequest, Principal
from service.core.policy import decide
from service.core.prefect.client_events import ClientEvent, EventProblem, parse_event, runs_of_event
from service.core.prefect.routes import Capability
from service.core.problems import Problem
from service.gate.shared_reports import SharedReports
from service.gate.verify import VerifyEndpoints
from service.state.bounded import drop_oldest
from service.state.reporters import RECENT_SECONDS, Reporter

ENDPOINTS: Final = frozenset({"events/in", "events/out"})
CAPABILITIES: Final = (Capability.REPORT, Capability.EMIT)  # of who can vouch
MAX_OF_ADDRESS: Final = 512  # sockets
EVENTS_A_SECOND: Final = 500.0  # of one socket; more are slowed down
BYTES_A_SECOND: Final = 4_000_000.0
HOLD_SECONDS: Final = 1.5  # that an event waits for the request that names its run: both are on the way at once
_LOOK_SECONDS: Final = 0.1
_ELSEWHERE_SECONDS: Final = 0.3
_MAX_HELD: Final = 1_000  # runs that were waited for, of one socket
_UNREPORTED: Final = "unreported"


class Vouching:
    """Decides about sockets without a credential, and about each of their events."""

    def __init__(self, endpoints: VerifyEndpoints) -> None:
        self._endpoints = endpoints
        state = endpoints.wiring.state
        self._reporters, self._verdicts, self._telemetry = state.reporters, state.verdicts, state.telemetry
        self._open: Counter[str] = Counter()

    @property
    def shared(self) -> SharedReports | None:
        """Return what replicas share, if they do."""
        return self._endpoints.wiring.shared_reports

    @contextmanager
    def socket(self, request: ForwardedRequest) -> Iterator["VouchedSocket"]:
        """Yield what judges the messages of an open socket."""
        address = request.client
        self._open[address] += 1
        try:
            yield VouchedSocket(self, request)
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]

    async def principal_at(self, request: ForwardedRequest) -> Principal | None:
        """Return who vouches for a new socket, the latest caller first, or None.

        Raises Throttled if the address has too many sockets.
        """
        if self._open[request.client] >= MAX_OF_ADDRESS:
            raise Throttled(Problem.RELAY_FULL)
        recently = time.monotonic() - RECENT_SECONDS
        for reporter in await self.callers_at(request):
            if reporter.noted_at >= recently:
                return reporter.proof.principal
        return None

    async def callers_at(self, request: ForwardedRequest) -> list[Reporter]:
        """Return the callers at an address whose proof holds now, and who may do what a flow run does."""
        if not self._endpoints.wiring.notes_reporters or not request.client:  # no address is nobody's
            return []
        access = self._endpoints.wiring.access
        found = []
        for reporter in self._reporters.at(request.client):
            if not await self._holds(reporter, request.client):
                continue
            principal = reporter.proof.principal
            may = access.may(principal.roles, *CAPABILITIES)
            if may and isinstance(decide(request, principal, reporter.gate, access), Allow):
                found.append(reporter)
        return found

    async def _holds(self, reporter: Reporter, address: str) -> bool:
        """Tell whether a caller's credential is valid, and verify it again if that may have changed."""
        era = self._verdicts.era
        if reporter.era == era and time.time() < reporter.proof.until:
            return True
        try:
            reporter.proof = await self._endpoints.proof_of(reporter.gate, reporter.presented, address)
        except Later:  # not decided: as before, but never past the expiry
            return time.time() < reporter.proof.principal.expires
        except Refusal:
            self._reporters.forget(address, reporter)
            return False
        reporter.era = era
        return True

    def dropped(self, address: str, reason: str, name: str = "") -> None:
        """Count and log an event that does not pass."""
        self._telemetry.event_dropped(address, reason, name)


class VouchedSocket:
    """Judges the messages of one socket."""

    def __init__(self, vouching: Vouching, request: ForwardedRequest) -> None:
        self._vouching = vouching
        self._request = request
        self._waited_for: set[str] = set()
        self._looked: dict[str, float] = {}  # monotonic: when other replicas may be asked for this name again
        self._free_at = 0.0  # monotonic: when the next message may pass

    async def passes_to_prefect(self, message: str | bytes) -> bool:
        """Tell whether a client's message on ``events/in`` passes. Waits if there are too many."""
        await self._slow_down(len(message))
        event = parse_event(message)
        if isinstance(event, EventProblem):
            self._vouching.dropped(self._request.client, event)
            return False
        if (
            await self._reported(event)
            or (self._may_wait(event) and await self._reported_soon(event))
            or await self._reported_elsewhere(event)
        ):
            return True
        self._vouching.dropped(self._request.client, _UNREPORTED, event.name)
        return False

    async def passes_to_client(self, message: str | bytes) -> bool:
        """Tell whether a message of ``events/out`` passes: what is no event does, and an event of a reported run."""
        runs = runs_of_event(message)
        if runs is None:
            return True
        callers = await self._vouching.callers_at(self._request)
        if any(run in caller.runs for caller in callers for run in runs):
            return True
        await self._look_elsewhere(callers, runs)
        return any(run in caller.runs for caller in callers for run in runs)

    async def _reported(self, event: ClientEvent) -> bool:
        now = time.time()
        for caller in await self._vouching.callers_at(self._request):
            if event.worker is not None:
                if event.worker.work_pool in caller.pools:
                    return True
            elif event.is_reported(caller.runs, now=now):
                if event.task_run is not None:
                    caller.reports(event.task_run)  # it may start further ones
                return True
        return False

    def _may_wait(self, event: ClientEvent) -> bool:
        """Tell whether an event may wait for the request that names its run or pool: the first one of each may."""
        names = event.all_of | event.any_of
        if event.worker is not None:
            names |= {event.worker.work_pool}
        if names <= self._waited_for or len(self._waited_for) >= _MAX_HELD:
            return False
        self._waited_for |= names
        return True

    async def _reported_soon(self, event: ClientEvent) -> bool:
        until = time.monotonic() + HOLD_SECONDS
        while time.monotonic() < until:
            await asyncio.sleep(_LOOK_SECONDS)
            if await self._reported(event) or await self._reported_elsewhere(event):
                return True
        return False

    async def _reported_elsewhere(self, event: ClientEvent) -> bool:
        """Tell whether an event passes by what its sender has named at other replicas."""
        pools = () if event.worker is None else (event.worker.work_pool,)
        callers = await self._vouching.callers_at(self._request)
        return await self._look_elsewhere(callers, event.all_of | event.any_of, pools) and await self._reported(event)

    async def _look_elsewhere(self, callers: list[Reporter], runs: Iterable[str], pools: Iterable[str] = ()) -> bool:
        """Learn from the store, and tell whether it was asked: a while passes between two looks for one name."""
        shared, now = self._vouching.shared, time.monotonic()
        if shared is None:
            return False
        runs, pools = ([one for one in names if self._looked.get(one, 0.0) < now] for names in (runs, pools))
        if not runs and not pools:
            return False
        for name in (*runs, *pools):
            self._looked[name] = now + _ELSEWHERE_SECONDS
        drop_oldest(self._looked, _MAX_HELD)
        await shared.learn(self._request.client, callers, runs, pools)
        return True

    async def _slow_down(self, size: int) -> None:
        now = time.monotonic()
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)
        self._free_at = max(now - 1.0, self._free_at) + max(1 / EVENTS_A_SECOND, size / BYTES_A_SECOND)
