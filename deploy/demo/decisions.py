"""The service's decisions, from its JSON log to lines for a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

LOGGER = "service.decisions"


def readable(entry: dict[str, Any]) -> str | None:
    """Return one line for an entry that a person wants to see, None for any other."""
    clock = str(entry.get("time", ""))[11:19]
    if entry.get("logger") == LOGGER:
        who = entry.get("user") or entry.get("code") or ""
        if "path" not in entry:  # about a person, not a request
            return f"{clock}      {entry.get('message')}: {who}"
        what = f"{entry.get('method', ''):<6} {entry['path']}"
        return f"{clock}  {entry.get('status')} {entry.get('message', ''):<8} {who:<20} {what}"
    if entry.get("level") in {"warning", "error", "critical"}:
        return f"{clock}  {entry['level']}: {entry.get('message')}"
    return None


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
