"""Files of the configuration: TOML, and single secrets."""

import os
import tomllib
from pathlib import Path
from typing import Any, Final

from service.adapters.files import exposure

MAX_SECRET: Final = 64 * 1024
_ENCODING: Final = "utf-8-sig"  # UTF-8, without the byte order mark that editors on Windows put in front


def read_secret(path: Path, name: str, problems: list[str]) -> str | None:
    """Return a file's text without its last line's end; a problem is told by the name that led to the file."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_SECRET).decode(_ENCODING).rstrip("\r\n")
    except OSError as problem:
        problems.append(f"{name}: {path} cannot be read: {problem.strerror}")
    except UnicodeDecodeError:
        problems.append(f"{name}: {path} is not UTF-8 text")
    return None


def read_toml(path: Path, problems: list[str], *, needed: bool, private: bool = False) -> dict[str, Any]:
    """Return a TOML file's keys; a ``needed`` one has to be there, a ``private`` one must be nobody else's to read."""
    try:
        with path.open("rb") as file:
            exposed = exposure(os.fstat(file.fileno())) if private else ""
            if not exposed:
                return tomllib.loads(file.read().decode(_ENCODING))
        problems.append(f"{path}: {exposed}; it was not read: chmod 600 {path}")
    except FileNotFoundError:
        if needed:
            problems.append(f"{path}: there is no such configuration file")
    except OSError as problem:
        problems.append(f"{path} cannot be read: {problem.strerror}")
    except ValueError as problem:
        problems.append(f"{path} is not TOML: {problem}")
    return {}
