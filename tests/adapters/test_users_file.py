"""The users file: read whole or not at all, and again whenever it changes."""

import asyncio
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from passlib.hash import bcrypt as passlib_bcrypt

from service.adapters.users_file import (
    Users,
    UsersFile,
    UsersFileError,
    hash_password,
    parse_users,
    read_users,
    verify_password,
    write_user,
)

pytestmark = pytest.mark.anyio
HASH = hash_password("secret", 4)
OTHER = hash_password("other", 4)


@pytest.mark.parametrize("ident", ["$2a$", "$2b$", "$2y$"])
def test_bcrypt_of_each_kind_is_read(ident: str) -> None:
    users = parse_users(f"# comment\n\nalice:{ident}{HASH[4:]}\r\nbob smith:{OTHER}\n", 14)
    assert list(users.hashes) == ["alice", "bob smith"]
    assert verify_password(users, "alice", "secret")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "empty", id="row19-empty"),
        pytest.param(" \n\n", "empty", id="row19-blank"),
        pytest.param("alice", "line 1", id="no-colon"),
        pytest.param(f":{HASH}", "line 1", id="no-name"),
        pytest.param(f"a\tb\x00:{HASH}", "line 1", id="control-character"),
        pytest.param("alice:secret", "not bcrypt", id="plain-text"),
        pytest.param("alice:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "not bcrypt", id="sha1"),
        pytest.param("alice:$apr1$x$y", "not bcrypt", id="apr1"),
        pytest.param(f"alice:$2x$10${HASH[7:]}", "not bcrypt", id="row25-2x"),
        pytest.param(f"alice:$2b$31${HASH[7:]}", "cost is 31", id="row25-cost-31"),
        pytest.param(f"alice:$2b$15${HASH[7:]}", "cost is 15", id="row25-cost-over-the-cap"),
        pytest.param(f"alice:$2b$03${HASH[7:]}", "cost is 3", id="cost-under-4"),
        pytest.param(f"alice:{HASH[:-1]}", "not bcrypt", id="row25-cut"),
        pytest.param(f"alice:{HASH}x", "not bcrypt", id="row25-longer"),
        pytest.param(f"alice:$2b$\u0661\u0660${HASH[7:]}", "not bcrypt", id="digits-of-another-script"),
        pytest.param(f"alice:{HASH[:28]}/{HASH[29:]}", "damaged", id="salt-that-bcrypt-never-writes"),
        pytest.param(f"alice:{HASH[:-1]}/", "damaged", id="digest-that-bcrypt-never-writes"),
        pytest.param(f"alice:{HASH}\nalice:{OTHER}", "twice", id="duplicate"),
    ],
)
def test_one_bad_line_refuses_the_file_and_quotes_no_hash(text: str, problem: str) -> None:
    with pytest.raises(UsersFileError, match=problem) as refusal:
        parse_users(text, 14)
    assert HASH[10:] not in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_of_many_bad_lines_the_first_are_named() -> None:
    with pytest.raises(UsersFileError, match=r"^line 1: .*; line 20: [^;]*; and 980 more$") as told:
        parse_users("nobody\n" * 1000, 14)
    assert "line 21" not in str(told.value)


@pytest.mark.parametrize("place", [28, 59], ids=["salt", "digest"])
def test_accepted_is_exactly_what_bcrypt_writes(place: int) -> None:
    """The last characters of salt and digest have bits that stand for nothing; set ones make a hash of no password."""
    accepted = set()
    for last in "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789":
        changed = HASH[:place] + last + HASH[place + 1 :]
        with suppress(UsersFileError):
            parse_users(f"alice:{changed}", 14)
            accepted.add(last)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = passlib_bcrypt.from_string(changed).to_string()
        assert (changed == written) is (last in accepted), last
    assert HASH[place] in accepted


@pytest.fixture(scope="module")
def hundred_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 100,000 users, of whom alice and bob have passwords that are known."""
    file = tmp_path_factory.mktemp("many") / "users"
    others = (f"user-{number:06}.of-some-length@example.com:{HASH}" for number in range(99_998))
    file.write_text("\n".join([f"alice:{HASH}", *others, f"bob:{OTHER}"]) + "\n")
    return file


def test_a_hundred_thousand_users_can_be_read_and_changed(hundred_thousand: Path) -> None:
    users = read_users(hundred_thousand, 14)
    assert len(users.hashes) == 100_000
    assert verify_password(users, "alice", "secret")
    assert verify_password(users, "bob", "other")
    write_user(hundred_thousand, "carol", HASH)
    assert len(read_users(hundred_thousand, 14).hashes) == 100_001
    write_user(hundred_thousand, "carol", None)


def test_a_password_costs_the_same_among_a_hundred_thousand_users(hundred_thousand: Path) -> None:
    few, many = parse_users(f"alice:{HASH}\n", 14), read_users(hundred_thousand, 14)

    def spent(users: Users, name: str, password: str) -> float:
        began = time.process_time()
        verify_password(users, name, password)
        return time.process_time() - began

    for name, password in (("alice", "secret"), ("alice", "wrong"), ("nobody", "wrong")):
        least = [min(spent(users, name, password) for _ in range(40)) for users in (few, many)]
        assert least[1] < 1.2 * least[0], (name, least)


async def test_the_event_loop_goes_on_while_a_hundred_thousand_users_are_read(hundred_thousand: Path) -> None:
    """Measured in processor time of this process, of which the reading thread has its share."""
    file = UsersFile(hundred_thousand, 14)
    gaps: list[float] = []

    async def beat() -> None:
        last = time.process_time()
        while True:
            await asyncio.sleep(0.001)
            gaps.append(time.process_time() - last)
            last += gaps[-1]

    beating = asyncio.create_task(beat())
    try:
        await asyncio.sleep(0.01)
        await file.reload_if_changed()
    finally:
        beating.cancel()
    assert len(file.users.hashes) == 100_000
    assert max(gaps) < 0.1


def test_a_file_beyond_the_bound_is_refused_and_not_made(tmp_path: Path) -> None:
    file = tmp_path / "users"
    line = f"alice:{HASH}\n"
    file.write_text(line)
    assert read_users(file, 14, len(line)).hashes
    told = rf"more than {len(line)} bytes \(users.max_size\)"
    with pytest.raises(UsersFileError, match=told):
        write_user(file, "bob", HASH, 14, len(line))
    assert file.read_text() == line
    file.write_text(line + "\n")
    for attempt in (lambda: read_users(file, 14, len(line)), UsersFile(file, 14, max_size=len(line)).load):
        with pytest.raises(UsersFileError, match=told):
            attempt()


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_bytes(b"\xef\xbb\xbf" + f"alice:{HASH}\n".encode())
    assert list(read_users(file, 14).hashes) == ["alice"]
    write_user(file, "bob", OTHER)
    assert file.read_text("utf-8") == f"alice:{HASH}\nbob:{OTHER}\n"
    assert write_user(file, "alice", None)
    with pytest.raises(UsersFileError, match="line 2: "):
        parse_users(f"bob:{OTHER}\n\ufeffalice:{HASH}\n", 14)


@pytest.mark.parametrize(
    "name",
    [
        "\u200balice",
        "al\u200dice",
        "alice\u2060",
        "\ufeffalice",
        "bob ",
        " bob",
        "\tbob",
        "bob\u00a0",
        "bob\ufe0f",
        "\u202eecila",
    ],
)
def test_a_name_that_is_not_what_one_sees_is_refused_by_its_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsersFileError, match=r"^line 2: ") as told:
        parse_users(f"# comment\n{name}:{HASH}\n", 14)
    assert str(told.value).isascii()
    with pytest.raises(UsersFileError):
        write_user(tmp_path / "users", name, HASH)
    assert not (tmp_path / "users").exists()


def test_every_bad_line_is_named() -> None:
    with pytest.raises(UsersFileError, match=r"line 1.*line 3"):
        parse_users(f"a\nb:{HASH}\nc:x\n", 14)


def test_a_file_of_comments_stands_for_nobody() -> None:
    users = parse_users("# all gone\n", 14)
    assert users.hashes == {}
    assert not verify_password(users, "alice", "secret")


@pytest.mark.parametrize("password", ["", "a\x00b", "x" * 73, "é" * 37])
def test_row25_a_password_that_bcrypt_would_cut_is_not_hashed(password: str) -> None:
    with pytest.raises(UsersFileError):
        hash_password(password, 4)


@pytest.mark.parametrize(
    "password", ["", "secret\x00", "secret" + "x" * 100, "x" * 5000, "Secret", "secret ", "\ud7ff"]
)
def test_row25_odd_passwords_are_wrong_and_no_more(password: str) -> None:
    assert verify_password(parse_users(f"alice:{HASH}", 14), "alice", password) is False


def test_row22_a_password_of_72_bytes_is_compared_whole() -> None:
    longest = "x" * 71 + "a"
    users = parse_users(f"alice:{hash_password(longest, 4)}", 14)
    assert verify_password(users, "alice", longest)
    assert not verify_password(users, "alice", "x" * 71 + "b")
    assert not verify_password(users, "alice", longest + "b")


def test_users_are_written_whole_and_other_lines_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "users"
    assert write_user(file, "alice", HASH) is False
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text(file.read_text() + "# a note\n")
    file.chmod(0o640)
    assert write_user(file, "bob", OTHER) is False
    assert write_user(file, "alice", OTHER) is True
    assert file.stat().st_mode & 0o777 == 0o640
    assert "# a note" in file.read_text()
    assert dict(read_users(file, 14).hashes) == {"bob": OTHER, "alice": OTHER}
    assert write_user(file, "alice", None)
    assert write_user(file, "bob", None)
    assert read_users(file, 14).hashes == {}
    assert sorted(one.name for one in tmp_path.iterdir()) == [".users.lock", "users"]


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "#a", " a", "x" * 300])
def test_a_name_that_the_file_could_not_hold_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsersFileError):
        write_user(tmp_path / "users", name, HASH)
    assert not list(tmp_path.iterdir())


def test_lines_end_at_line_feeds_alone() -> None:
    """Other programs read such a file, and they know no other ends of lines."""
    assert list(parse_users(f"alice:{HASH}\r\nbob:{OTHER}\r\n", 14).hashes) == ["alice", "bob"]
    for end in ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"):
        with pytest.raises(UsersFileError, match=r"^line 1: "):
            parse_users(f"alice:{HASH}{end}bob:{OTHER}\n", 14)


@pytest.mark.parametrize("name", ["alice\u2028", "al\u2028ice", "alice\u2029", "\u2028alice", "alice\x85"])
def test_a_name_with_the_end_of_a_line_in_it_ruins_no_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text(f"bob:{OTHER}\n")
    with suppress(UsersFileError):
        write_user(file, name, HASH)
        assert set(read_users(file, 14).hashes) == {"bob", name}
    assert read_users(file, 14).hashes["bob"] == OTHER


def test_nothing_is_written_that_would_not_be_read_again(tmp_path: Path) -> None:
    file = tmp_path / "users"
    for password_hash in ("plain", "", f"{HASH}\nmallory:{OTHER}", f"$2b$15${HASH[7:]}"):
        with pytest.raises(UsersFileError):
            write_user(file, "alice", password_hash, max_cost=14)
        assert not file.exists()


@pytest.mark.parametrize("broken", ["alice:plain\n", f"alice:{HASH}\nalice:{HASH}\n", "\xff\n"])
def test_a_broken_file_is_left_for_a_person_to_repair(broken: str, tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_bytes(broken.encode("latin-1"))
    for password_hash in (HASH, None):
        with pytest.raises(UsersFileError):
            write_user(file, "alice", password_hash)
        assert file.read_bytes() == broken.encode("latin-1")


def test_what_other_programs_wrote_keeps_its_form(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_bytes(f"# ours\r\n\r\nalice:{HASH}\r\nbob:{OTHER}".encode())
    write_user(file, "alice", OTHER)
    assert file.read_bytes() == f"# ours\r\n\r\nbob:{OTHER}\nalice:{OTHER}\n".encode()


def test_writing_follows_a_symbolic_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text(f"alice:{HASH}\n")
    link.symlink_to(real)
    write_user(link, "bob", OTHER)
    assert link.is_symlink()
    assert set(read_users(real, 14).hashes) == {"alice", "bob"}


def at_once(*changes: Callable[[], object]) -> None:
    """Run the changes side by side, or raise what one of them raised."""
    begin = threading.Barrier(len(changes))

    def one(change: Callable[[], object]) -> None:
        begin.wait(10)
        change()

    with ThreadPoolExecutor(len(changes)) as threads:
        for done in [threads.submit(one, change) for change in changes]:
            done.result(60)


def test_changes_at_the_same_time_lose_none_of_each_other(tmp_path: Path) -> None:
    file, link = tmp_path / "users", tmp_path / "link"
    for number in range(8):
        write_user(file, f"leaves-{number}", HASH)
    link.symlink_to(file)
    at_once(
        *(
            partial(write_user, path, f"comes-{number}-{path.name}", HASH)
            for number in range(4)
            for path in (file, link)
        ),
        *(partial(write_user, file, f"leaves-{number}", None) for number in range(8)),
    )
    users = read_users(file, 14).hashes
    assert set(users) == {f"comes-{number}-{path.name}" for number in range(4) for path in (file, link)}


@pytest.mark.parametrize("mode", [0o666, 0o602, 0o664, 0o620, 0o646, 0o777])
async def test_a_file_that_others_may_write_is_refused_and_not_written_to(mode: int, tmp_path: Path) -> None:
    """Whoever may write it can let anybody in, or everybody out."""
    file = tmp_path / "users"
    file.write_text(f"alice:{HASH}\n")
    users = UsersFile(file, 14)
    users.load()
    file.chmod(mode)
    told = rf"may write to it \(mode {mode:04o}\): chmod go-w"
    for attempt in (lambda: read_users(file, 14), users.load, lambda: write_user(file, "bob", OTHER)):
        with pytest.raises(UsersFileError, match=told):
            attempt()
    file.write_text(f"mallory:{OTHER}\n")
    await users.reload_if_changed()
    assert set(users.users.hashes) == {"alice"}
    assert "may write to it" in users.problem


@pytest.mark.parametrize("mode", [0o644, 0o444, 0o640, 0o440, 0o600, 0o400])
def test_a_file_that_others_may_only_read_is_accepted(mode: int, tmp_path: Path) -> None:
    """It holds no password, and Kubernetes mounts it with 0644 by default."""
    file = tmp_path / "users"
    file.write_text(f"alice:{HASH}\n")
    file.chmod(mode)
    assert set(read_users(file, 14).hashes) == {"alice"}


async def test_a_file_whose_mode_is_put_right_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text(f"alice:{HASH}\n")
    users = UsersFile(file, 14)
    users.load()
    file.write_text(f"bob:{HASH}\n")
    file.chmod(0o666)
    await users.reload_if_changed()
    assert users.problem
    file.chmod(0o644)
    await users.reload_if_changed()
    assert (set(users.users.hashes), users.problem) == ({"bob"}, "")


class Counting(UsersFile):
    def __init__(self, path: Path) -> None:
        self.changes = 0
        super().__init__(path, 14, self._count)

    def _count(self) -> None:
        self.changes += 1


@pytest.fixture
def loaded(tmp_path: Path) -> Counting:
    path = tmp_path / "users"
    path.write_text(f"alice:{HASH}\n")
    file = Counting(path)
    file.load()
    return file


async def test_a_change_in_place_is_read(loaded: Counting) -> None:
    await loaded.reload_if_changed()
    assert loaded.changes == 0
    loaded.path.write_text(f"bob:{OTHER}\n")
    await loaded.reload_if_changed()
    assert (set(loaded.users.hashes), loaded.changes) == ({"bob"}, 1)


async def test_a_change_by_rename_is_read(loaded: Counting) -> None:
    new = loaded.path.with_suffix(".new")
    new.write_text(f"bob:{HASH}\n")
    os.utime(new, ns=(loaded.path.stat().st_atime_ns, loaded.path.stat().st_mtime_ns))  # same time, same size
    new.replace(loaded.path)
    await loaded.reload_if_changed()
    assert set(loaded.users.hashes) == {"bob"}


async def test_a_swapped_symbolic_link_is_read(tmp_path: Path) -> None:
    """Kubernetes: users → ..data/users, ..data → ..2026_01, swapped by renaming a new ..data over the old."""
    for version, name in (("..1", "alice"), ("..2", "bob")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "users").write_text(f"{name}:{HASH}\n")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "users").symlink_to("..data/users")
    file = Counting(tmp_path / "users")
    file.load()
    (tmp_path / "..tmp").symlink_to("..2")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    await file.reload_if_changed()
    assert set(file.users.hashes) == {"bob"}


@pytest.mark.parametrize(
    "broken",
    ["", "garbage\n", pytest.param(f"bob:{HASH}\nmallory:x\n", id="one-line-broken"), None, "directory"],
)
async def test_row19_a_broken_file_keeps_the_users_and_says_so_loudly(
    broken: str | None, loaded: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    loaded.path.unlink()
    if broken == "directory":
        loaded.path.mkdir()
    elif broken is not None:
        loaded.path.write_text(broken)
    with caplog.at_level(logging.ERROR):
        await loaded.reload_if_changed()
        await loaded.reload_if_changed()
    assert set(loaded.users.hashes) == {"alice"}
    assert loaded.changes == 0
    assert loaded.problem
    assert caplog.text.count("NOT LOADED") == 1
    if broken == "directory":
        loaded.path.rmdir()
    loaded.path.write_text(f"carol:{HASH}\n")
    await loaded.reload_if_changed()
    assert (set(loaded.users.hashes), loaded.problem) == ({"carol"}, "")


@pytest.mark.parametrize("content", [None, "", "garbage"])
def test_row19_a_file_that_cannot_be_loaded_stops_the_start(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "users"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsersFileError):
        UsersFile(path, 14).load()
