"""The users file: lines of ``name:bcrypt-hash`` in htpasswd's format, accepted as a whole or not at all.

A file is accepted only if every line is. While the service runs, a file that is not accepted changes nothing:
the users that were read last stay, and the log says so at each change.
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from passlib.hash import bcrypt

from service.adapters.files import locked, replace, writers
from service.core.mistakes import MistakeError
from service.core.names import is_visible_name
from service.core.request.headers import MAX_USERNAME

log = logging.getLogger(__name__)

MAX_SIZE: Final = 64 * 1024 * 1024  # bytes, where no setting says otherwise; some 700,000 users
MAX_TOLD: Final = 20  # problems of one file
MAX_PASSWORD_BYTES: Final = 72  # of which bcrypt knows no more
MIN_PASSWORD: Final = 15  # characters of one that is chosen now
MIN_COST: Final = 4
DEFAULT_COST: Final = 10  # of a wrong password, where there is no hash
HEADER: Final = "# prefect-forward-auth users: one name:bcrypt a line"
MAX_COST: Final = 16  # where no setting says less
_BLANK: Final = " \t\r"
_NO_NAME: Final = (
    "{!a:.80} cannot be a user name: no colon, no '#' in front, no white space around it, no character that cannot be "
    f"seen, and at most {MAX_USERNAME} characters"
)
_DUMMY: Final = "." * 53  # salt and digest that no password has
_BCRYPT: Final = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
# What bcrypt writes: 16 bytes of salt and 23 of digest leave 4 and 2 bits of their last characters unused, which are 0.
# A hash with other bits is one that no password has: bcrypt refuses such a salt, and compares the digest as text.
_WRITTEN_BY_BCRYPT: Final = re.compile(
    r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]"
)


class UsersFileError(MistakeError):
    """A users file that cannot be used, with all of its problems. Hashes are never quoted."""


@dataclass(frozen=True, slots=True)
class Users:
    """The users of one version of the file: hashes by name, and the highest cost of a hash."""

    hashes: Mapping[str, str]
    highest_cost: int = DEFAULT_COST


def cost_of(password_hash: str) -> int:
    """Return the cost of a bcrypt hash: the base-2 logarithm of its rounds."""
    return int(password_hash[4:6])


def parse_users(text: str, max_cost: int) -> Users:
    """Return the users of a file's text, or raise UsersFileError with every problem by its line number.

    A line ends at a line feed alone, as htpasswd has it; a carriage return before that is skipped. Accepted are
    ``$2a$``, ``$2b$`` and ``$2y$`` up to ``max_cost``; comments and blank lines are skipped. A text without a single
    line is a file that is just being written, so it is an error; one of comments is not.
    """
    hashes: dict[str, str] = {}
    problems: list[str] = []
    highest_cost = 0
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.rstrip(_BLANK)
        if not line or line.lstrip(_BLANK).startswith("#"):
            continue
        name, _, password_hash = line.partition(":")
        match = _WRITTEN_BY_BCRYPT.fullmatch(password_hash)
        cost = int(match[1]) if match else 0
        if MIN_COST <= cost <= max_cost and name not in hashes and _is_user_name(name):
            hashes[name] = password_hash
            highest_cost = max(highest_cost, cost)
        else:
            problems.append(f"line {number}: {_problem(name, password_hash, hashes, max_cost)}")
    if not text.strip():
        problems.append("the file is empty (a file of comments alone stands for no users)")
    if problems:
        more = f"; and {len(problems) - MAX_TOLD} more" if len(problems) > MAX_TOLD else ""
        raise UsersFileError("; ".join(problems[:MAX_TOLD]) + more)
    return Users(hashes, highest_cost or DEFAULT_COST)


def _problem(name: str, password_hash: str, hashes: Mapping[str, str], max_cost: int) -> str:
    if not name or not password_hash:
        return "expected name:bcrypt-hash"
    if not _is_user_name(name):
        return _NO_NAME.format(name)
    if name in hashes:
        return f"{name!r} stands twice"
    match = _BCRYPT.fullmatch(password_hash)
    if match is None:
        return f"{name!r}: its hash is not bcrypt ($2a$, $2b$ or $2y$, 60 characters): make one with 'users hash'"
    if not MIN_COST <= int(match[1]) <= max_cost:
        return f"{name!r}: its cost is {int(match[1])}, accepted are {MIN_COST} to {max_cost} (users.max_cost)"
    return f"{name!r}: its hash is damaged: no password has it"


def _is_user_name(name: str) -> bool:
    """Tell whether a name can be written to the file and sent in a Basic credential."""
    return is_visible_name(name) and name[0] != "#" and ":" not in name and len(name) <= MAX_USERNAME


def read_users(path: Path, max_cost: int = MAX_COST, max_size: int = MAX_SIZE) -> Users:
    """Read and parse the file of at most ``max_size`` bytes, or raise UsersFileError."""
    return parse_users(_read(path, max_size), max_cost)


def _read(path: Path, max_size: int) -> str:
    try:
        with path.open("rb") as file:
            if open_to := writers(os.fstat(file.fileno())):  # whoever may write to it may let anybody in
                raise UsersFileError(f"{open_to}: chmod go-w {path}")
            content = file.read(max_size + 1)
    except OSError as problem:
        raise UsersFileError(f"the file cannot be read: {problem.strerror}") from None
    if len(content) > max_size:
        raise UsersFileError(f"the file has more than {max_size} bytes (users.max_size)")
    try:
        return content.decode("utf-8-sig")  # without the byte order mark that editors on Windows put in front
    except UnicodeDecodeError:
        raise UsersFileError("the file is not UTF-8") from None


def write_user(
    path: Path, name: str, password_hash: str | None, max_cost: int = MAX_COST, max_size: int = MAX_SIZE
) -> bool:
    """Add, change or (with None) remove one user, all other lines kept; tell whether the user was there before.

    The file is replaced whole and keeps its owner and mode; a new one is for its owner alone. Changes at the same time
    are made one after the other. A file that is not accepted is not written to, and what is written was accepted
    before. Raises UsersFileError or FileError, and then nothing was changed.
    """
    if not _is_user_name(name):
        raise UsersFileError(_NO_NAME.format(name))
    with locked(path):
        text = _read(path, max_size) if path.exists() else ""
        before = parse_users(text, max_cost).hashes if text.strip() else {}
        if password_hash is None and name not in before:
            return False
        lines = text.removesuffix("\n").split("\n") if text.strip() else [HEADER]
        kept = [line for line in lines if _name_on(line) != name]
        after = {other: its_hash for other, its_hash in before.items() if other != name}
        if password_hash is not None:
            kept.append(f"{name}:{password_hash}")
            after[name] = password_hash
        text = "\n".join(kept if any(kept) else [HEADER]) + "\n"
        content = text.encode()
        if len(content) > max_size:
            raise UsersFileError(f"the file would have more than {max_size} bytes (users.max_size)")
        if parse_users(text, max_cost).hashes != after:
            raise UsersFileError(f"{name!r} cannot be written so that it is read again: nothing was changed")
        replace(path, content)
        return name in before


def _name_on(line: str) -> str:
    return line.partition(":")[0]


def check_new_password(password: str) -> None:
    """Raise UsersFileError for a password that is too short to be chosen; those in the file already stay good.

    It is the only factor here, for which NIST SP 800-63B-4 §3.1.1.2 asks for 15 characters (Unicode code points), and
    for no rules about what they are. Passwords that are made have more.
    """
    if len(password) < MIN_PASSWORD:
        told = f"a password has at least {MIN_PASSWORD} characters, such as several words in a row"
        raise UsersFileError(f"{told}, or what 'openssl rand -base64 18' prints")


def hash_password(password: str, cost: int) -> str:
    """Return the bcrypt hash of a password, or raise UsersFileError if bcrypt cannot hash all of it."""
    if not password or "\x00" in password or len(password.encode()) > MAX_PASSWORD_BYTES:
        raise UsersFileError(f"a password has 1 to {MAX_PASSWORD_BYTES} bytes, and no NUL")
    return str(bcrypt.using(rounds=cost).hash(password))


def verify_password(users: Users, name: str, password: str) -> bool:
    """Tell whether a name and a password are correct. A wrong pair costs 2 ** highest_cost rounds for every name.

    That holds for passwords that bcrypt refuses without hashing them, too (a NUL, more than 72 bytes). It takes tens to
    hundreds of milliseconds of one processor.
    """
    password_hash, highest = users.hashes.get(name), users.highest_cost
    owed = range(highest, highest + 1)
    with suppress(ValueError):  # a password that cannot be hashed; nothing was spent on it
        if password_hash is not None and password and len(password.encode()) <= MAX_PASSWORD_BYTES:
            if bcrypt.verify(password, password_hash):
                return True
            owed = range(cost_of(password_hash), highest)  # 2^a spent, and 2^a + … + 2^(b-1) more make 2^b
    for cost in owed:
        bcrypt.verify("wrong", f"$2b${cost:02}${_DUMMY}")
    return False


class UsersFile:
    """A users file that is read again when it changes: in place, by a rename, or by a changed symbolic link."""

    def __init__(
        self,
        path: Path,
        max_cost: int,
        on_change: Callable[[], None] = lambda: None,
        *,
        max_size: int = MAX_SIZE,
    ) -> None:
        self.path = path
        self.users = Users({})
        self.problem = ""
        self.reloads = 0
        self._max_cost, self._max_size = max_cost, max_size
        self._on_change = on_change
        self._seen: tuple[int, ...] | None = None

    def load(self) -> None:
        """Read the file for the first time, or raise UsersFileError."""
        self._seen = self._signature()
        self.users = self._read()

    async def watch(self, interval: float) -> None:
        """Look for a change every ``interval`` seconds, until cancelled."""
        while True:
            await asyncio.sleep(interval)
            try:
                await self.reload_if_changed()
            except Exception:
                log.exception("users file %s: the check failed, the users stay as they are", self.path)

    async def reload_if_changed(self) -> None:
        """Read the file again if it has changed. If it cannot be used, keep the users as they are and log why."""
        signature = self._signature()
        if signature == self._seen:
            return
        try:
            users = await asyncio.to_thread(self._read)
        except UsersFileError as problem:
            self.problem = str(problem)
            log.error(  # noqa: TRY400 - the message is the whole story
                "users file %s: NOT LOADED, the %d users read before stay in force: %s",
                self.path,
                len(self.users.hashes),
                problem,
            )
        else:
            self.problem = ""
            self.reloads += 1
            if users != self.users:
                self.users = users
                self._on_change()
            log.info("users file %s: %d users loaded", self.path, len(users.hashes))
        self._seen = signature  # taken before reading: a change in between is seen next time

    def _read(self) -> Users:
        return read_users(self.path, self._max_cost, self._max_size)

    def _signature(self) -> tuple[int, ...] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev, status.st_size)
