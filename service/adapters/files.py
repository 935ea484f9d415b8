"""Sensitive files: who else may read or write them, and how they are replaced and locked."""

import errno
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from service.core.mistakes import MistakeError

if sys.platform != "win32":
    import fcntl

LOCK_TIMEOUT: Final[float] = 30.0  # seconds; one change takes less than two, even of 100,000 users
_LOCK_POLL: Final = 0.05  # seconds
_NEW_FILE: Final = 0o600
_NOT_YOURS: Final = "its owner and group could not be kept: run this as its owner, or as root"


class FileError(MistakeError):
    """A file that could not be changed. The message names the file and the cause."""


def exposure(status: os.stat_result) -> str:
    """Return who besides its owner may read or write a secret file, or an empty string.

    The group of a file that root owns may read it: that is how Kubernetes (``defaultMode: 0440`` with an ``fsGroup``)
    and systemd hand a secret to a process that is not root.
    """
    return _others(status, "read or write it", everybody=0o007, group=0o030 if status.st_uid == 0 else 0o070)


def writers(status: os.stat_result) -> str:
    """Return who besides its owner may write to a file or a folder, or an empty string.

    That others may read it is no matter here: a users file holds no password, and a Secret of Kubernetes is mounted
    with mode 0644 unless it says otherwise.
    """
    return _others(status, "write to it", everybody=0o002, group=0o020)


def strangers_may_write(status: os.stat_result, at: Path | int) -> str:
    """Return that everybody may write to a file, or an empty string; ``at`` is its path or a descriptor.

    Its group may: an editor makes it so where the umask is 002. A file on a read-only file system is written to by
    nobody, whatever its mode says.
    """
    found = _others(status, "write to it", everybody=0o002, group=0)
    return "" if found and is_read_only(at) else found


def is_read_only(at: Path | int) -> bool:
    """Tell whether a path, or a descriptor, is on a file system that nobody can write to."""
    return bool(os.statvfs(at).f_flag & os.ST_RDONLY)


def _others(status: os.stat_result, may: str, *, everybody: int, group: int) -> str:
    mode = stat.S_IMODE(status.st_mode)
    if os.name == "nt":  # whose files have no such mode
        return ""
    if mode & everybody:
        return f"everybody may {may} (mode {mode:04o})"
    return f"its group may {may} (mode {mode:04o})" if mode & group else ""


def replace(path: Path, content: bytes, mode: int | None = None) -> None:
    """Replace a file as a whole: readers see the old content or the new one, even after a power failure.

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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time read, change and replace a file. Others wait up to ``LOCK_TIMEOUT`` seconds.

    The lock is on a file beside it, which stays: whoever removed it would let two in, each with a lock of its own.
    It holds across containers that share a volume, and over NFS, where Linux asks the server. The kernel ends it with
    the process. Raises FileError where the lock cannot be had.
    """
    if sys.platform == "win32":
        yield
        return
    target = path.resolve()
    try:
        descriptor = _open_lock(target.with_name(f".{target.name}.lock"))
    except OSError as problem:
        told = f"{path} cannot be changed: its folder cannot be written to: {problem.strerror}"
        raise FileError(told) from None
    try:
        _take(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _open_lock(lock: Path) -> int:
    """Open the lock file, or make it, for the owner of its folder: root must not shut that one out.

    It is opened for writing, since NFS gives an exclusive lock for nothing less. A symbolic link is not followed, and
    only what was made here is given away: the folder may be somebody else's.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, _NEW_FILE)
    except FileExistsError:
        return os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    folder = lock.parent.stat()
    if folder.st_uid != os.geteuid():
        with suppress(PermissionError):
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
    return descriptor


def _take(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                told = f"{path} is being changed by another process, which did not end within {LOCK_TIMEOUT:g} s"
                raise FileError(f"{told}: try again") from None
            time.sleep(_LOCK_POLL)
        except OSError as problem:  # a network's file system without a lock service
            raise FileError(f"{path} cannot be changed: it cannot be locked here: {problem.strerror}") from None
        else:
            return


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
