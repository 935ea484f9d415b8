"""Reads systemd's unit files and environment files."""

from __future__ import annotations

import shlex
from pathlib import Path


def environment_file(text: str) -> dict[str, str]:
    """Return the variables of an EnvironmentFile= (systemd.exec(5)); fail where a shell would read another value."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line or line.startswith(("#", ";")):
            continue
        name, equals, value = line.partition("=")
        assert equals, line
        assert name.isidentifier(), line
        (found[name],) = shlex.split(value) or [""]
    return found


def unit(file: Path) -> dict[str, list[str]]:
    """Return the values of each `Section.Key` of a unit, in their order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in file.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            found.setdefault(f"{section}.{key}", []).append(value)
    return found
