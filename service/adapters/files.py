"""Files that are secret or decide who gets in: who else may read or write them, and how they are changed safely."""

import errno
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

_NEW_FILE: Final = 0o600
_NOT_YOURS: Final = "its owner and group could not be kept: run this as its owner, or as root"


class FileError(Exception):
    """A file that could not be changed. The message names the file and the cause."""


def exposure(status: os.stat_result) -> str:
    """Return who besides its owner may read or write a secret file, or an empty string.

    The group of a file that root owns may read it: that is how Kubernetes (``defaultMode: 0440`` with an ``fsGroup``)
    and systemd hand a secret to a process that is not root.
    """
    if os.name == "nt":  # whose files have no such mode
        return ""
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o007:
        return f"everybody may read or write it (mode {mode:04o})"
    if mode & (0o030 if status.st_uid == 0 else 0o070):
        return f"its group may read or write it (mode {mode:04o})"
    return ""


def replace(path: Path, content: bytes, mode: int | None = None) -> None:
    """Replace a file whole: a reader sees the old content or the new one, even after a power failure.

    A symbolic link is followed. An existing file keeps its owner, its group and its mode, unless ``mode`` is given; a
    new one is for its owner alone. Raises FileError, and then the file is what it was.
    """
    target = path.resolve()
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                _take_after(temporary, target, mode)
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except OSError as problem:
        raise FileError(f"{path} cannot be replaced: {_cause(problem)}") from None


def _take_after(temporary: Path, target: Path, mode: int | None) -> None:
    """Give a new file the owner, the group and the mode of the one that it will replace."""
    try:
        before = target.stat()
    except FileNotFoundError:
        temporary.chmod(_NEW_FILE if mode is None else mode)
        return
    kept = stat.S_IMODE(before.st_mode) if mode is None else mode
    made = temporary.stat()
    if (made.st_uid, made.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.chown(temporary, before.st_uid, before.st_gid)
        except PermissionError:
            if not kept & stat.S_IROTH:  # whoever reads it now, as the service does, could not read it any more
                raise PermissionError(errno.EPERM, _NOT_YOURS) from None
            kept = kept & ~stat.S_IRWXG | (kept & stat.S_IRWXO) << 3  # another group gets what everybody has
    temporary.chmod(kept)


def _sync_folder(folder: Path) -> None:
    """Write the folder's entries to the disk, where the file system can do that for a folder."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cause(problem: OSError) -> str:
    if problem.errno == errno.EBUSY:
        return f"{problem.strerror} (a file that is mounted by itself cannot be replaced: mount its folder)"
    return str(problem.strerror)
