"""The page that a person sees at the gate instead of what was refused, filled in without running a template engine."""

from collections.abc import Mapping
from html import escape
from typing import Final, NamedTuple

from service.core.model import Challenge, Deny, Unavailable
from service.rendering.cures import Cure, cure_of, heading_of
from service.rendering.sentences import duration, sentence_for_person
from service.rendering.wire import WireHeaders

GAPS: Final = ("heading", "detail", "wait", "request_id", "code")


class RefusalPage(NamedTuple):
    """A page for each cure, rendered once, and the headers of all.

    A page is a list: text, the name of a gap, text, the name of a gap, and so on.
    """

    pages: Mapping[Cure, list[str]]
    headers: WireHeaders

    def fill(self, decision: Deny | Challenge | Unavailable, request_id: str) -> bytes:
        """Return the page of a decision in ASCII, so that a proxy can carry it in a header."""
        facts = {
            "heading": heading_of(decision.code, decision.cause),
            "detail": sentence_for_person(decision.cause),
            "wait": wait_sentence(decision.retry_after) if isinstance(decision, Unavailable) else "",
            "request_id": request_id,
            "code": decision.code,
        }
        parts = list(self.pages[cure_of(decision.code, decision.cause)])
        parts[1::2] = [escape(facts[gap]) for gap in parts[1::2]]
        return "".join(parts).encode("ascii", "xmlcharrefreplace")


def wait_sentence(seconds: int) -> str:
    """Return when to try again, or an empty text where nothing is to be waited for."""
    return f"You can try again in about {duration(seconds)}." if seconds else ""
