"""Tokens that one process has fetched and the next one uses: files for their owner alone."""

import fcntl
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.agent.tokens import Token

SPARE_SECONDS: Final = 300.0  # that a token is good for at least, so that a long clone ends with it
MAX_ENTRY: Final = 64 * 1024  # bytes
_NAME: Final = "prefect-forward-auth"


def cache_folder(environ: Mapping[str, str]) -> Path | None:
    """Return the folder for these files (XDG Base Directory Specification), or None where nobody has a home."""
    named = environ.get("XDG_CACHE_HOME", "")
    if named.startswith("/"):
        return Path(named) / _NAME
    try:
        return Path.home() / ".cache" / _NAME
    except RuntimeError:
        return None


@dataclass(frozen=True, slots=True)
class TokenCache:
    """One entry of the folder: a token by what was asked for. It is used only if nobody else can have written it.

    Whatever cannot be read or written is as if it were not there; a new token is fetched then.
    """

    folder: Path
    name: str

    @classmethod
    def of(cls, folder: Path, *asked: str) -> "TokenCache":
        """Return the entry for what is asked for. The name of its file tells nothing of that."""
        return cls(folder, hashlib.sha256(json.dumps(asked).encode()).hexdigest())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the entry, so that of several processes one fetches a token and the others find it."""
        descriptor = None
        with suppress(OSError):
            self._make_folder()
            descriptor = os.open(self.folder / f"{self.name}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def recall(self) -> Token | None:
        """Return the token if it is good for long enough, or None."""
        try:
            descriptor = os.open(self.folder / self.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                if not _is_ours(os.fstat(file.fileno())):
                    return None
                value, expires = json.loads(file.read(MAX_ENTRY))
                token = Token(str(value), float(expires))
        except (OSError, ValueError, TypeError):
            return None
        return token if token.expires is not None and time.time() + SPARE_SECONDS < token.expires else None

    def keep(self, token: Token) -> None:
        """Keep a token that says when it ends; raise OSError if it cannot be written."""
        if token.expires is None:
            return
        self._make_folder()
        descriptor, draft = tempfile.mkstemp(dir=self.folder)  # mode 0600
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump([token.value, token.expires], file)
            Path(draft).replace(self.folder / self.name)
        except BaseException:
            with suppress(OSError):
                Path(draft).unlink()
            raise

    def forget(self, value: str) -> None:
        """Remove the token if it is this one; another one may have taken its place."""
        found = self.recall()
        if found is not None and found.value == value:
            with suppress(OSError):
                (self.folder / self.name).unlink()

    def _make_folder(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
        found = self.folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(f"{self.folder} is not a folder of this user alone")


def _is_ours(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
