"""What was found, one line each: what is right, what is worth knowing, and what to change."""

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

Kind = Literal["ok", "note", "change"]
WIDTH: Final = 8


class Finding(NamedTuple):
    """One thing that was looked at. The text contains no secret."""

    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.kind:<{WIDTH}}{self.text}"


def ok(text: str) -> Finding:
    """Return what is right."""
    return Finding("ok", text)


def note(text: str) -> Finding:
    """Return what is worth knowing, and may stay as it is."""
    return Finding("note", text)


def change(text: str) -> Finding:
    """Return what is wrong, and what to do."""
    return Finding("change", text)


def status_of(findings: Iterable[Finding]) -> int:
    """Return 0, or 1 if there is something to change."""
    return int(any(one.kind == "change" for one in findings))
