"""Changing the secrets file: a draft in the person's own editor, which replaces the file only once it is good."""

import shlex
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

from service.adapters.files import exposure, locked, replace
from service.core.mistakes import MistakeError
from service.settings.starter import SECRETS_MODE, secrets_text

Wish = Literal["edit", "write", "discard"]


class EditError(MistakeError):
    """The file stays as it is; the message says why."""


def edit_secrets(
    path: Path,
    environ: Mapping[str, str],
    problems_of: Callable[[Path], list[str]],
    ask: Callable[[list[str]], Wish],
) -> bool:
    """Let a person edit the file and replace it whole; tell whether anything was changed, or raise EditError.

    ``problems_of`` says what is wrong with the configuration with a given secrets file. A draft that brings a problem
    which was not there before is a case for ``ask``. Only the owner may read the draft, and nothing of it is left.
    """
    target = path.resolve()
    before = target.read_bytes() if target.exists() else None
    known = problems_of(path)
    with _drafts(path, target.parent) as folder, _undisturbed():
        draft = Path(folder, path.name)  # in a folder of its own: editors leave copies beside what they edit
        draft.touch(SECRETS_MODE)
        draft.write_bytes(secrets_text().encode() if before is None else before)
        wish: Wish = "edit"
        while wish == "edit":
            _run_editor(environ, draft)
            if not draft.is_file():
                raise EditError(f"the editor left no file: {path} stays as it was.")
            if draft.read_bytes() == before:
                return False
            draft.chmod(SECRETS_MODE)
            told = [one.replace(str(draft), str(path)) for one in problems_of(draft)]
            new = [one for one in told if one not in known]
            wish = ask(new) if new else "write"
        if wish == "discard":
            raise EditError(f"{path} stays as it was.")
        with locked(path):
            if (target.read_bytes() if target.exists() else None) != before:
                raise EditError(f"{path} was changed by somebody else meanwhile, and stays as they left it.")
            replace(path, draft.read_bytes(), _private_mode(target))
    return True


def _drafts(path: Path, parent: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix=".secrets-", dir=parent)
    except OSError as problem:
        told = f"{path} cannot be edited: its folder cannot be written to: {problem.strerror}"
        raise EditError(told) from None


def _run_editor(environ: Mapping[str, str], draft: Path) -> None:
    editor = environ.get("VISUAL") or environ.get("EDITOR") or "vi"
    try:
        ended = subprocess.run([*shlex.split(editor), str(draft)], check=False).returncode  # noqa: S603 - the person's own
    except OSError as problem:
        raise EditError(f"{editor!r} cannot be run ({problem.strerror}): set EDITOR.") from None
    if ended != 0:
        raise EditError(f"{editor!r} ended with {ended}: nothing was changed.")


def _private_mode(target: Path) -> int:
    """Return the mode of the file where that is a private one, else that of a new file."""
    if target.exists() and not exposure(status := target.stat()):
        return stat.S_IMODE(status.st_mode)
    return SECRETS_MODE


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave Ctrl-C to the editor, and clean up before ending for any other signal."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: leave, signal.SIGHUP: leave}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
