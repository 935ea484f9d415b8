"""Changing a file: whole or not at all, with nothing of it left beside it, and one process at a time."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Never

import pytest

from service.adapters import files
from service.adapters.files import FileError, locked, replace
from tests.support.waiting import wait_until


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    replace(tmp_path / "file", b"text\n")
    assert (tmp_path / "file").read_bytes() == b"text\n"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["file"]


def test_a_replaced_file_keeps_its_mode_unless_another_is_given(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    file.chmod(0o640)
    before = file.stat().st_ino
    replace(file, b"new")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o640)
    assert file.stat().st_ino != before
    replace(file, b"newer", 0o600)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_symbolic_link_is_followed_and_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    replace(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_what_is_replaced_is_on_the_disk_before_it_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    fsync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (steps.append(_kind(number)), fsync(number)))
    monkeypatch.setattr(Path, "replace", lambda *paths: (steps.append("replaced"), rename(*paths))[1])
    replace(tmp_path / "file", b"text")
    assert steps == ["file", "replaced", "folder"]


def _kind(descriptor: int) -> str:
    return "folder" if Path(f"/dev/fd/{descriptor}").stat().st_mode & 0o040000 else "file"


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EBUSY, "busy")])
def test_a_failure_leaves_the_file_as_it_was_and_names_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: OSError
) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def fail(*_: object) -> Never:
        raise problem

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(FileError, match=f"{file} cannot be replaced: {problem.strerror}") as told:
        replace(file, b"new")
    assert (file.read_text(), names(tmp_path)) == ("old", ["file"])
    assert ".file." not in str(told.value)
    assert ("mount its folder" in str(told.value)) is (problem.errno == errno.EBUSY)


def test_a_folder_that_is_not_there_is_told_by_the_files_name(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=f"{tmp_path}/none/file cannot be replaced: No such file or directory"):
        replace(tmp_path / "none" / "file", b"text")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_root_keeps_the_owner_and_the_group(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    os.chown(file, 4711, 4712)
    file.chmod(0o640)
    replace(file, b"new")
    status = file.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (4711, 4712, 0o640)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize(("mode", "after"), [(0o640, None), (0o600, None), (0o664, 0o644), (0o644, 0o644)])
def test_whoever_cannot_keep_the_owner_takes_the_file_from_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, after: int | None
) -> None:
    """The service reads it as that owner, or in that group; no other group may get in instead."""
    file = tmp_path / "file"
    file.write_text("old")
    os.chown(file, 4711, 4712)
    file.chmod(mode)

    def fail(*_: object) -> Never:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", fail)
    if after is None:
        with pytest.raises(FileError, match="run this as its owner, or as root"):
            replace(file, b"new")
        assert file.read_text() == "old"
    else:
        replace(file, b"new")
        assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", after)
    assert names(tmp_path) == ["file"]


# one at a time -------------------------------------------------------------------------------------------


def test_whoever_waits_too_long_is_told_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_TIMEOUT", 0.2)
    began = time.monotonic()
    with (
        locked(tmp_path / "file"),
        pytest.raises(FileError, match=r"file is being changed by another process, .*: try again"),
        locked(tmp_path / "file"),
    ):
        pytest.fail("both had it")
    assert 0.2 <= time.monotonic() - began < 5
    with locked(tmp_path / "file"):
        assert names(tmp_path) == [".file.lock"]


def test_two_ways_to_one_file_share_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_TIMEOUT", 0.0)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/file")
    with (
        locked(tmp_path / "folder" / "file"),
        pytest.raises(FileError, match="being changed"),
        locked(tmp_path / "link"),
    ):
        pytest.fail("both had it")


def test_a_process_that_is_killed_leaves_no_lock_held(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from service.adapters.files import locked\n"
        "with locked(Path(sys.argv[1])): Path(sys.argv[2]).touch(); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "file"), str(tmp_path / "held")])
    wait_until((tmp_path / "held").exists, timeout=15, what="the lock")
    process.kill()
    process.wait()
    with locked(tmp_path / "file"):
        pass


def test_a_folder_that_cannot_be_written_to_is_told_by_the_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Never:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", fail)
    told = f"{tmp_path}/file cannot be changed: its folder cannot be written to: Read-only file system"
    with pytest.raises(FileError, match=told), locked(tmp_path / "file"):
        pytest.fail("it had the lock")


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An NFS server without its lock service: a change could get lost there, so none is made."""

    def fail(*_: object) -> Never:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.raises(FileError, match="file cannot be changed: it cannot be locked here: No locks"),
        locked(tmp_path / "file"),
    ):
        pytest.fail("it had the lock")


def test_a_link_in_the_locks_place_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write to the folder makes root change nothing elsewhere."""
    (tmp_path / ".file.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match="cannot be changed"), locked(tmp_path / "file"):
        pytest.fail("it had the lock")
    assert names(tmp_path) == [".file.lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_lock_that_root_makes_is_the_folders_owners(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4712)
    with locked(tmp_path / "file"):
        status = (tmp_path / ".file.lock").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (4711, 4712, 0o600)
