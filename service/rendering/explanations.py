"""What ``explain`` and ``routes`` print: values → lines."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from service.core.model import Allow, Decision, Principal
from service.core.prefect.roles import Granted, Lacking
from service.core.prefect.routes import Route
from service.core.prefect.versions import Changes
from service.rendering.sentences import sentence


class GrantOutcome(NamedTuple):
    """A grant of the configuration, and the first condition that a principal does not meet, empty if it holds."""

    name: str
    roles: tuple[str, ...]
    unmet: str


class Way(StrEnum):
    """What becomes of a WebSocket of a caller."""

    DIRECT = "passes; the proxy opens it"
    RELAYED = "passes through the relay"
    ONLY_RELAYED = "passes only where the proxy sends it to /relay/ (websockets.relay is 'always')"
    VOUCHED = (
        "passes through the relay for ten minutes after a permitted HTTP request of this caller from the same address"
    )
    REFUSED = "refused, as above"
    RELAY_OFF = "refused: websockets.relay is 'off'"
    NO_PREFECT_URL = "refused: the relay needs prefect.url"
    NEVER_VOUCHED = "refused: only events/in and events/out may do without one"
    VOUCHED_OFF = "refused: websockets.vouched is off"
    NOT_VOUCHED = "refused: only a caller who may 'report' and 'emit' can vouch for it"


class Ways(NamedTuple):
    """What becomes of a WebSocket, by where its credential is."""

    header: Way
    first_message: Way
    nowhere: Way


class Explanation(NamedTuple):
    """A decision, and what led to it.

    ``is_request`` is False if the request could not be parsed; ``route`` is then None, as for an unknown route.
    ``principal`` has all of its roles; ``first_roles`` are those of it that come from ``source``, a key of the
    configuration, and not from ``grants``. ``unchecked`` are claims that the gate checks, and that were not known here.
    ``websocket`` is there for the route of a WebSocket under a configuration.
    """

    decision: Decision
    is_request: bool
    route: Route | None
    verdict: Granted | Lacking | None
    principal: Principal | None
    first_roles: tuple[str, ...] = ()
    source: str = ""
    grants: tuple[GrantOutcome, ...] = ()
    unchecked: tuple[str, ...] = ()
    websocket: Ways | None = None


def explanation_lines(explanation: Explanation) -> Iterator[str]:
    """Yield what ``explain`` prints."""
    decision, route, who = explanation.decision, explanation.route, explanation.principal
    if isinstance(decision, Allow):
        yield _line("allowed", f"as {decision.principal.name!r}")
    else:
        yield _line("refused", f"{decision.status} {decision.code}: {sentence(decision.cause)}")
    if explanation.is_request and route is None:
        yield _line("route", "none that is known: for the role admin only")
    elif route is not None:
        yield _line("route", f"{route.rule}, opened by {' or '.join(sorted(route.capabilities))}")
    if route is not None and isinstance(explanation.verdict, Granted):
        yield _line("opened", f"by {explanation.verdict.by} of the role {explanation.verdict.role}")
    if explanation.websocket is not None:
        yield _line("websocket", f"with an Authorization header: {explanation.websocket.header}")
        yield _line("", f"with the credential in the first message: {explanation.websocket.first_message}")
        yield _line("", f"without a credential: {explanation.websocket.nowhere}")
    if who is not None:
        yield _line("who", f"{who.name!r} of {who.issuer}")
        yield _line("roles", ", ".join(who.roles) or "none")
        yield from (_line("", f"{role}: {explanation.source}") for role in explanation.first_roles)
        for grant in explanation.grants:
            outcome = f"not given: its condition {grant.unmet!r} is not met" if grant.unmet else "given"
            yield _line("", f"{', '.join(grant.roles)}: {grant.name}, {outcome}")
    if explanation.unchecked:
        yield _line("note", f"not checked: the file has no {', no '.join(explanation.unchecked)}")


def _line(label: str, text: str) -> str:
    return f"{label:9} {text}"


def route_lines(routes: Iterable[Route]) -> Iterator[str]:
    """Yield what ``routes`` prints: a route each, with what opens it and a remark."""
    for route in routes:
        yield f"{route.rule:68} {' '.join(sorted(route.capabilities)):24} {route.why}".rstrip()


def change_lines(changes: Changes) -> Iterator[str]:
    """Yield what ``routes diff`` prints."""
    for what, rules in (
        ("not known, so for the role admin only", changes.unknown),
        ("known, with a new flag that may show secrets", changes.secret_flags),
        ("known from other versions, and not in this one", changes.gone),
    ):
        yield f"{len(rules)} {what}{':' if rules else ''}"
        yield from (f"  {rule}" for rule in rules)
