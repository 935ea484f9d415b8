"""Files of the configuration: TOML, and single secrets."""

import os
import tomllib
from pathlib import Path
from typing import Any, Final

from service.adapters.files import exposure, is_read_only, strangers_may_write, writers

MAX_VALUE: Final = 64 * 1024
_CLOSE: Final = "it was not read: chmod 600 {} (a mounted secret: mode 0440, and a group of the service)"
_CLOSE_TO_WRITERS: Final = "it was not read: chmod o-w {}"
_ENCODING: Final = "utf-8-sig"  # UTF-8, without the byte order mark that editors on Windows put in front


def read_value(path: Path, name: str, problems: list[str], *, private: bool) -> str | None:
    """Return a file's text without its last line's end; a problem is told by the name that led to the file.

    A ``private`` file is not read if anybody but its owner may read or write it, another not if everybody may write it.
    """
    try:
        with path.open("rb") as file:
            exposed = _exposed(path, file.fileno(), private=private)
            content = b"" if exposed else file.read(MAX_VALUE + 1)
    except OSError as problem:
        problems.append(f"{name}: {path} cannot be read: {problem.strerror}")
        return None
    if exposed:
        problems.append(f"{name}: {path}: {exposed}")
    elif len(content) > MAX_VALUE:
        problems.append(f"{name}: {path} has more than {MAX_VALUE} bytes")
    else:
        try:
            return content.decode(_ENCODING).rstrip("\r\n")
        except UnicodeDecodeError:
            problems.append(f"{name}: {path} is not UTF-8 text")
    return None


def check_folder(path: Path, name: str, problems: list[str]) -> bool:
    """Tell whether what lies in a folder of secrets may be used: nobody but its owner can have put it there.

    A folder on a read-only file system is written to by nobody, whatever its mode says: Kubernetes mounts a Secret so,
    with mode 1777.
    """
    open_to = writers(path.stat())
    if not open_to or is_read_only(path):
        return True
    problems.append(f"{name}: {path}: {open_to}; nothing in it was read: chmod go-w {path}")
    return False


def read_toml(path: Path, problems: list[str], *, needed: bool, private: bool = False) -> dict[str, Any]:
    """Return a TOML file's keys; a ``needed`` one has to be there, ``private`` is as for read_value."""
    try:
        with path.open("rb") as file:
            exposed = _exposed(path, file.fileno(), private=private)
            if not exposed:
                return tomllib.loads(file.read().decode(_ENCODING))
        problems.append(f"{path}: {exposed}")
    except FileNotFoundError:
        if needed:
            problems.append(f"{path}: there is no such configuration file")
    except OSError as problem:
        problems.append(f"{path} cannot be read: {problem.strerror}")
    except ValueError as problem:
        problems.append(f"{path} is not TOML: {problem}")
    return {}


def _exposed(path: Path, descriptor: int, *, private: bool) -> str:
    """Return why an open file must not be read, and what to do about it, or an empty string."""
    status = os.fstat(descriptor)
    found = exposure(status) if private else strangers_may_write(status, descriptor)
    return f"{found}; {(_CLOSE if private else _CLOSE_TO_WRITERS).format(path)}" if found else ""
