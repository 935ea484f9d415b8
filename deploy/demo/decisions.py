"""The service's decisions, from its JSON log to lines for a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

LOGGER = "service.decisions"
FACTS = ("client", "endpoint", "route")  # of a warning


def readable(entry: dict[str, Any]) -> str | None:
    """Return one line for an entry that a person wants to see, None for any other."""
    clock, message = str(entry.get("time", ""))[11:19], entry.get("message", "")
    if entry.get("level") in {"warning", "error", "critical"}:
        facts = ", ".join(f"{name} {entry[name]}" for name in FACTS if name in entry)
        return f"{clock}  {entry['level']}: {message}{f' ({facts})' if facts else ''}"
    if entry.get("logger") != LOGGER:
        return None
    who = entry.get("user") or entry.get("code") or ""
    if "path" not in entry:  # about a person, not a request
        return f"{clock}      {message}{f': {who}' if who else ''}"
    return f"{clock}  {entry.get('status')} {message:<8} {who:<20} {entry.get('method', ''):<6} {entry['path']}"


class Decisions:
    """Follows the log as it grows."""

    def __init__(self, log: Path) -> None:
        self._stream: IO[str] = log.open(errors="replace")
        self._rest = ""

    def new(self) -> list[str]:
        """Return the readable lines since the last call."""
        *lines, self._rest = (self._rest + self._stream.read()).split("\n")
        found = []
        for line in lines:
            try:
                text = readable(json.loads(line))
            except ValueError:
                text = line or None
            if text:
                found.append(text)
        return found

    def close(self) -> None:
        """Stop following."""
        self._stream.close()
