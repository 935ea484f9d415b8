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
from functools import partial
from typing import Final

from service.core.errors import Later, Refusal, Throttled
from service.core.model import Allow, ForwardedRequest, Principal
from service.core.policy import decide
from service.core.prefect.client_events import ClientEvent, EventProblem, parse_event, runs_of_event
from service.core.prefect.routes import Capability, websocket_endpoint
from service.core.problems import Problem
from service.gate.held_events import HeldByAll, HeldEvents, Passes
from service.gate.passage import Passage, Send
from service.gate.shared_reports import SharedReports
from service.gate.verify import VerifyEndpoints
from service.state.bounded import drop_oldest
from service.state.reporters import RECENT_SECONDS, Reporter

EVENTS_IN: Final = "events/in"
ENDPOINTS: Final = frozenset({EVENTS_IN, "events/out"})
CAPABILITIES: Final = (Capability.REPORT, Capability.EMIT)  # of who can vouch
MAX_OF_ADDRESS: Final = 512  # sockets
EVENTS_A_SECOND: Final = 500.0  # of one socket; more are slowed down
BYTES_A_SECOND: Final = 4_000_000.0
_MAX_LOOKED_UP: Final = 1_000  # names of one socket that other replicas were asked for
_LOOKED_UP_AT_ONCE: Final = 100
_LOOK_UP_SECONDS: Final = 0.3  # until the second look for a name; doubled with each further one
_LOOK_UP_SECONDS_AT_MOST: Final = 30.0
_UNREPORTED: Final = "unreported"


class Vouching:
    """Decides about sockets without a credential, and about each of their events."""

    def __init__(self, endpoints: VerifyEndpoints) -> None:
        self._endpoints = endpoints
        state = endpoints.wiring.state
        self._reporters, self._verdicts, self._telemetry = state.reporters, state.verdicts, state.telemetry
        self._open: Counter[str] = Counter()
        self.held_by_all = HeldByAll()

    @property
    def shared(self) -> SharedReports | None:
        """Return what replicas share, if they do."""
        return self._endpoints.wiring.shared_reports

    @contextmanager
    def socket(self, request: ForwardedRequest) -> Iterator["VouchedSocket"]:
        """Yield what passes the messages of an open socket on."""
        address = request.client
        self._open[address] += 1
        socket = VouchedSocket(self, request)
        try:
            yield socket
        finally:
            socket.close()
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


class VouchedSocket(Passage):
    """Passes the messages of one socket on, as far as they concern runs that its address reports on."""

    def __init__(self, vouching: Vouching, request: ForwardedRequest) -> None:
        self._vouching = vouching
        self._request = request
        self._sends_events = websocket_endpoint(request.path) == EVENTS_IN
        dropped = partial(vouching.dropped, request.client, _UNREPORTED)
        self._held = HeldEvents(self._judge, vouching.held_by_all, dropped)
        self._looked_up: dict[tuple[str, str], tuple[float, float]] = {}  # by kind and name: when next, and the pause
        self._free_at = 0.0  # monotonic: when the next message may pass

    async def to_prefect(self, message: str | bytes, send: Send) -> None:
        """Pass a client's message on. An event is held if its run is not reported on, and dropped if it is none."""
        if not self._sends_events:
            await send(message)
            return
        await self._slow_down(len(message))
        event = parse_event(message)
        if isinstance(event, EventProblem):
            self._vouching.dropped(self._request.client, event)
        elif (await self._judge([event]))(event):
            await send(message)
        else:
            self._held.add(event, message)

    async def to_client(self, message: str | bytes, send: Send) -> None:
        """Pass a message of Prefect on. Of events, only those of a reported run reach the client."""
        runs = None if self._sends_events else runs_of_event(message)
        if runs is not None:
            callers = await self._vouching.callers_at(self._request)
            if not _any_reported(callers, runs):
                await self._look_up(callers, {("run", run) for run in runs})
                if not _any_reported(callers, runs):
                    return
        await send(message)

    async def release_held(self, send: Send) -> None:
        """Pass held events on as soon as their run is reported on, until cancelled."""
        await self._held.release(send)

    async def finish(self, send: Send) -> None:
        """Give the events that are held when their client leaves a last moment."""
        await self._held.finish(send)

    def close(self) -> None:
        """Drop the events that are still held."""
        self._held.drop_all()

    async def _judge(self, events: Iterable[ClientEvent]) -> Passes:
        """Return what tells whether an event passes now, after a look at other replicas for those that do not."""
        callers = await self._vouching.callers_at(self._request)
        passes = partial(_passes, callers, time.time())
        await self._look_up(callers, {name for event in events if not passes(event) for name in _names_of(event)})
        return passes

    async def _look_up(self, callers: list[Reporter], names: set[tuple[str, str]]) -> None:
        """Let callers report what they have named at other replicas; the longer ago, the more rarely it is asked."""
        shared, now = self._vouching.shared, time.monotonic()
        if shared is None:
            return
        due = [name for name in names if self._looked_up.get(name, _NEVER)[0] <= now][:_LOOKED_UP_AT_ONCE]
        if not due:
            return
        for name in due:
            _, pause = self._looked_up.pop(name, _NEVER)
            self._looked_up[name] = now + pause, min(2 * pause, _LOOK_UP_SECONDS_AT_MOST)
        drop_oldest(self._looked_up, _MAX_LOOKED_UP)
        runs, pools = ([name for kind, name in due if kind == wanted] for wanted in ("run", "pool"))
        await shared.learn(self._request.client, callers, runs, pools)

    async def _slow_down(self, size: int) -> None:
        now = time.monotonic()
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)
        self._free_at = max(now - 1.0, self._free_at) + max(1 / EVENTS_A_SECOND, size / BYTES_A_SECOND)


_NEVER: Final = 0.0, _LOOK_UP_SECONDS


def _passes(callers: list[Reporter], now: float, event: ClientEvent) -> bool:
    """Tell whether one of these callers reports on an event's runs, or asks its work pool for runs."""
    for caller in callers:
        if event.worker is not None:
            if event.worker.work_pool in caller.pools:
                return True
        elif event.is_reported(caller.runs, now=now):
            if event.task_run is not None:
                caller.reports(event.task_run)  # it may start further ones
            return True
    return False


def _any_reported(callers: list[Reporter], runs: Iterable[str]) -> bool:
    return any(run in caller.runs for caller in callers for run in runs)


def _names_of(event: ClientEvent) -> Iterator[tuple[str, str]]:
    """Yield what has to be named for an event to pass: runs, and a work pool."""
    if event.worker is not None:
        yield "pool", event.worker.work_pool
    for run in event.all_of | event.any_of:
        yield "run", run
