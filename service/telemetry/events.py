"""Counters of events and the log. Labels are from closed sets, and neither contains a secret."""

import json
import logging
import sys
import time
from collections import Counter
from typing import Any, Final, Literal

from cachetools import TTLCache

from service.core.errors import Refusal
from service.core.model import Allow, Decision, Face, ForwardedRequest, Gate, Principal, Session
from service.core.prefect.routes import websocket_endpoint
from service.rendering.sentences import log_reason

log = logging.getLogger("service.decisions")

REFUSALS_A_SECOND: Final = 100  # a flood of refusals must not become a flood of log lines
MAX_UNKNOWN: Final = 1_000  # routes, and senders of wrong passwords, that are remembered as logged
GUESSER_SECONDS: Final = 3_600.0
WARN_EVERY: Final = 60.0


class Telemetry:
    """Counts events, and logs those that the settings ask for."""

    def __init__(self, decisions: Literal["refused", "all", "none"] = "refused") -> None:
        self.allowed: dict[Gate, int] = dict.fromkeys(Gate, 0)
        self.refused: Counter[tuple[Gate, str]] = Counter()
        self.websockets_refused: Counter[str] = Counter()
        self.websockets: Counter[tuple[str, str]] = Counter()  # relayed ones, by endpoint and what became of them
        self.websockets_open = 0
        self.events_dropped: Counter[str] = Counter()  # of vouched WebSockets, by why
        self._droppers: TTLCache[tuple[str, str], None] = TTLCache(MAX_UNKNOWN, GUESSER_SECONDS)
        self.sign_ins: Counter[str] = Counter()
        self.token_requests: Counter[str] = Counter()  # of machines, by "granted" or the error
        self.unknown_routes = 0
        self.guesses_refused = 0
        self._guessers: TTLCache[str, None] = TTLCache(MAX_UNKNOWN, GUESSER_SECONDS)
        self._unknown: set[str] = set()
        self.reloads: Counter[str] = Counter()
        self.config_problem = ""  # why the configuration as it stands in the files is not the one in force
        self.suppressed = 0
        self.log(decisions)
        self._window = 0
        self._written = 0
        self._warned_at = float("-inf")

    def log(self, decisions: Literal["refused", "all", "none"]) -> None:
        """Set which decisions are logged from now on."""
        self.log_allowed = decisions == "all"
        self._log_refused = decisions != "none"

    def reloaded(self, problem: str = "") -> None:
        """Count a reload, and remember the problem if the new configuration was refused."""
        self.reloads["refused" if problem else "done"] += 1
        self.config_problem = problem

    def decided(
        self,
        decision: Decision,
        request: ForwardedRequest | None,
        *,
        face: Face,
        gate: Gate,
        request_id: str,
        peer: str,
    ) -> None:
        """Count a refusal, and log a decision. Queries, headers and credentials are never logged."""
        if not isinstance(decision, Allow):
            self.refused[gate, decision.code] += 1
            self._note_lost_websocket(decision.code, request, gate)
            if not self._log_refused or not self._within_bounds():
                return
        fields: dict[str, Any] = {"gate": gate, "face": face, "peer": peer}
        if request is not None:
            fields |= {
                "method": request.method,
                "host": request.host,
                "path": request.path,
                "client": request.client,
            }
        if isinstance(decision, Allow):
            who = decision.principal
            fields |= {"status": 200, "user": who.name, "subject": who.subject, "issuer": who.issuer}
            log.info("allowed", extra={"fields": fields})
        else:
            fields |= {
                "status": decision.status,
                "code": decision.code,
                "reason": log_reason(decision.cause),
                "request_id": request_id,
            }
            log.info("refused", extra={"fields": fields})

    def unknown_route(self, request: ForwardedRequest | None) -> None:
        """Count a request for an unknown route, and log each such route once."""
        self.unknown_routes += 1
        if request is None or len(self._unknown) >= MAX_UNKNOWN:
            return
        route = f"{request.method} {request.path[:200]}"
        if route not in self._unknown:
            self._unknown.add(route)
            log.warning(
                "a route that is not known was called: only the role admin opens it ('routes diff' tells what "
                "another version of Prefect has changed)",
                extra={"fields": {"route": route}},
            )

    def guess_refused(self, sender: str) -> None:
        """Count a throttled password, and log each sender once an hour."""
        self.guesses_refused += 1
        if sender not in self._guessers:
            self._guessers[sender] = None
            log.warning("too many wrong passwords came from one address", extra={"fields": {"client": sender}})

    def signed_in(self, session: Session, client: str) -> None:
        """Count and log a sign-in."""
        self.sign_ins["signed_in"] += 1
        log.info("signed in", extra={"fields": {**_who(session), "client": client}})

    def signed_out(self, session: Session, by: Session | None = None) -> None:
        """Count and log a sign-out; ``by`` is another session of the same person that has ended it."""
        self.sign_ins["signed_out"] += 1
        log.info("signed out", extra={"fields": _who(session) | ({"by_session": by.id[:8]} if by is not None else {})})

    def signed_out_by_provider(self, issuer: str, subject: str, sid: str) -> None:
        """Count and log that a provider has ended a session of its own (``sid``), or all of a person's."""
        self.sign_ins["signed_out_by_provider"] += 1
        named = {name: value for name, value in (("subject", subject), ("provider_session", sid[:8])) if value}
        log.info("signed out by the provider", extra={"fields": {"issuer": issuer, **named}})

    def sign_in_refused(self, refusal: Refusal, request_id: str) -> None:
        """Count and log a refused sign-in or sign-out."""
        self.sign_ins[refusal.code] += 1
        if self._within_bounds():
            fields = {"code": refusal.code, "reason": log_reason(refusal.cause), "request_id": request_id}
            log.info("sign-in refused", extra={"fields": fields})

    def token_requested(self, outcome: str, *, client: str, machine: str = "", reason: str = "") -> None:
        """Count and log a request for a token. ``machine`` is empty unless it was proved."""
        self.token_requests[outcome] += 1
        if reason and not self._within_bounds():
            return
        fields = {"machine": machine, "client": client} if machine else {"client": client}
        if reason:
            fields |= {"error": outcome, "reason": reason}
        log.info("token request refused" if reason else "token granted", extra={"fields": fields})

    def own_token(
        self, done: Literal["issued", "revoked"], who: Session, token_id: str, role: str, client: str
    ) -> None:
        """Log that a person has issued or revoked a token of one's own."""
        log.info(
            "token %s by its owner",
            done,
            extra={"fields": {**_who(who), "token": token_id, "role": role, "client": client}},
        )

    def websocket_ended(self, request: ForwardedRequest, who: Principal, reason: str) -> None:
        """Count and log that a relayed WebSocket was closed because its credential is not valid any more."""
        endpoint = websocket_endpoint(request.path) or ""
        self.websockets[endpoint, "ended"] += 1
        fields = {"endpoint": endpoint, "client": request.client, "user": who.name, "issuer": who.issuer}
        log.info("a WebSocket was closed with its credential", extra={"fields": {**fields, "reason": reason}})

    def event_dropped(self, address: str, reason: str, name: str) -> None:
        """Count an event that nobody vouches for, and log each address once an hour for each reason."""
        self.events_dropped[reason] += 1
        if (address, reason) not in self._droppers:
            self._droppers[address, reason] = None
            log.warning(
                "an event of a client without a credential was dropped: it concerns no run that its address reports "
                "on. Give the client a credential for WebSockets (docs/workers.md)",
                extra={"fields": {"client": address, "reason": reason, "event": name[:100]}},
            )

    def _note_lost_websocket(self, code: str, request: ForwardedRequest | None, gate: Gate) -> None:
        """Count a WebSocket without a credential. Its sender is losing task runs, so the log names it and the cure."""
        endpoint = websocket_endpoint(request.path) if request is not None and gate is not Gate.UI else None
        if endpoint is None or request is None or code != "credential_required":
            return
        self.websockets_refused[endpoint] += 1
        now = time.monotonic()
        if now - self._warned_at >= WARN_EVERY:
            self._warned_at = now
            log.warning(
                "a Prefect client opens WebSockets without a credential: its task runs and events are lost. "
                "Prefect does not send PREFECT_API_KEY there; set PREFECT_CLIENT_CUSTOM_HEADERS, or put the "
                "credential into PREFECT_API_URL (docs/workers.md, 'Which form for which Prefect version')",
                extra={"fields": {"client": request.client, "endpoint": endpoint}},
            )

    def _within_bounds(self) -> bool:
        second = int(time.monotonic())
        if second != self._window:
            missed, self._window, self._written = self._written - REFUSALS_A_SECOND, second, 0
            if missed > 0:
                self.suppressed += missed
                log.warning("%d refusals more were not logged one by one", missed)
        self._written += 1
        return self._written <= REFUSALS_A_SECOND


def _who(session: Session) -> dict[str, str]:
    return {"user": session.name, "subject": session.subject, "issuer": session.issuer, "session": session.id[:8]}


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """A line for a terminal; values are quoted as JSON where they are not plain words."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = " ".join(f"{name}={_word(value)}" for name, value in getattr(record, "fields", {}).items())
        message = record.getMessage().replace("\n", "\\n").replace("\r", "\\r")
        line = f"{_timestamp(record)} {record.levelname.lower():7} {message} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logging(level: str, style: Literal["json", "text"]) -> None:
    """Send every log of this process to standard output in one style."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JSONFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("httpx", "httpcore"):  # they log each request's URL
        logging.getLogger(name).setLevel(logging.WARNING)


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"


def _word(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text)
