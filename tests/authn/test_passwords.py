"""Passwords: bcrypt paid once, in bounded numbers, and never a hint about who exists."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import bcrypt
import pytest

from service.adapters.users_file import Users, UsersFile, hash_password
from service.authn import passwords as module
from service.authn.passwords import HashingPolicy, Passwords
from service.core.errors import Rejected, Throttled
from service.core.identity.grant_index import RoleAssignment
from service.core.model import Basic
from service.state import passwords as memory
from service.state.concurrency import RefusalDelay
from service.state.fingerprints import Fingerprints
from service.state.passwords import VerifiedPasswords
from tests.authn.conftest import authenticate, recall
from tests.support.refusals import logged, told

pytestmark = pytest.mark.anyio
ALICE = Basic("alice", "secret")
HASH = hash_password("secret", 4)


@pytest.fixture
def file(tmp_path: Path) -> UsersFile:
    path = tmp_path / "users"
    path.write_text(f"alice:{HASH}\nbob:{hash_password('b', 6)}\n")
    users = UsersFile(path, 14)
    users.load()
    return users


@pytest.fixture
async def passwords(file: UsersFile) -> AsyncIterator[Passwords]:
    made = passwords_of(file, HashingPolicy(concurrency=1, queue=3, remember=60))
    yield made
    made.close()


def passwords_of(file: UsersFile, policy: HashingPolicy) -> Passwords:
    return Passwords(file, policy, RoleAssignment("worker"), VerifiedPasswords(), RefusalDelay())


class Slow:
    """A stand-in for bcrypt that waits to be let go, so that a test can look while it works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.go = threading.Event()
        self.real = module.verify_password
        monkeypatch.setattr(module, "verify_password", self)

    def __call__(self, users: object, name: str, password: str) -> bool:
        self.calls.append(name)
        assert self.go.wait(5)
        return self.real(users, name, password)  # type: ignore[arg-type]


async def test_a_right_pair_is_hashed_once(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recall(passwords, ALICE) is None
    who = await authenticate(passwords, ALICE)
    assert (who.issuer, who.name, who.roles) == ("local", "alice", ("worker",))
    assert recall(passwords, ALICE) == who
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    assert recall(passwords, ALICE) is None


@pytest.mark.parametrize(
    "pair",
    [
        Basic("alice", "wrong"),
        Basic("alice", ""),
        Basic("Alice", "secret"),
        Basic("alice ", "secret"),
        Basic("nobody", "secret"),
        Basic("alices", "ecret"),
        Basic("alic", "esecret"),
        Basic("alice", "secret" + "x" * 80),
        Basic("bob", "secret"),
    ],
)
async def test_a_wrong_pair_is_rejected_and_says_not_which_half_is_wrong(pair: Basic, passwords: Passwords) -> None:
    await authenticate(passwords, ALICE)
    assert recall(passwords, pair) is None
    with pytest.raises(Rejected) as refusal:
        await authenticate(passwords, pair)
    assert told(refusal.value) == (
        "The user name or the password is wrong: check PREFECT_API_AUTH_STRING ('user:password')."
    )
    known = pair.username in {"alice", "bob"}
    assert logged(refusal.value) == f"pair_wrong user={pair.username if known else None}"
    assert recall(passwords, pair) is None


async def test_row21_a_failure_costs_the_same_whoever_was_named(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in bcrypt rounds, not in seconds: 2 ** 6 for each, the cost of the file's most expensive hash."""
    rounds: list[int] = []
    real = bcrypt.hashpw

    def counting(password: bytes, salt: bytes) -> bytes:
        rounds.append(2 ** int(salt[4:6]))
        return real(password, salt)

    monkeypatch.setattr(bcrypt, "hashpw", counting)
    for pair in (
        Basic("alice", "x"),
        Basic("bob", "x"),
        Basic("nobody", "x"),
        Basic("alice", "x" * 90),
        Basic("alice", ""),
        Basic("alice", "secret\x00"),
        Basic("bob", "\x00"),
        Basic("nobody", "\x00"),
        Basic("alice", "\ud800"),
        Basic("alice", "x" * 5_000),
    ):
        rounds.clear()
        with pytest.raises(Rejected):
            await authenticate(passwords, pair)
        assert sum(rounds) == 2**6, pair.username


async def test_row22_each_user_has_one_entry_and_a_new_password_replaces_it(
    passwords: Passwords, file: UsersFile
) -> None:
    await authenticate(passwords, ALICE)
    file.path.write_text(f"alice:{hash_password('new', 4)}\n")
    await file.reload_if_changed()
    assert recall(passwords, ALICE) is None
    await authenticate(passwords, Basic("alice", "new"))
    assert len(passwords._verified._verified) == 1
    with pytest.raises(Rejected):
        await authenticate(passwords, ALICE)


async def test_row22_the_key_of_the_memory_has_a_delimiter(passwords: Passwords) -> None:
    pairs = [Basic("ab", "c"), Basic("a", "bc"), Basic("abc", ""), Basic("", "abc"), Basic("a", "bc\x00")]
    pairs += [Basic("a", "x" * 80 + "1"), Basic("a", "x" * 80 + "2")]
    assert len({passwords._verified._fingerprint(pair) for pair in pairs}) == len(pairs)
    assert passwords._verified._fingerprints.of(b"x") != Fingerprints().of(b"x")  # another process, another key


async def test_a_reload_during_hashing_decides_by_the_new_file(
    passwords: Passwords, file: UsersFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    under_way = asyncio.create_task(authenticate(passwords, ALICE))
    while not slow.calls:
        await asyncio.sleep(0.005)
    file.path.write_text(f"alice:{hash_password('new', 4)}\n")
    await file.reload_if_changed()
    slow.go.set()
    with pytest.raises(Rejected):
        await under_way
    assert recall(passwords, ALICE) is None


async def test_many_with_the_same_pair_share_one_hashing(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    many = [asyncio.create_task(authenticate(passwords, ALICE)) for _ in range(50)]
    while not slow.calls:
        await asyncio.sleep(0.005)
    slow.go.set()
    assert len({id(who) for who in await asyncio.gather(*many)}) == 1
    assert slow.calls == ["alice"]


async def test_row25_the_queue_is_bounded_and_a_full_one_says_when_to_come_back(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    await authenticate(passwords, ALICE)
    slow = Slow(monkeypatch)
    waiting = [asyncio.create_task(authenticate(passwords, Basic("bob", str(n)))) for n in range(4)]
    while passwords.waiting < 4:
        await asyncio.sleep(0.005)
    with pytest.raises(Throttled) as refusal:
        await authenticate(passwords, Basic("bob", "one more"))
    assert refusal.value.status == 429
    assert refusal.value.retry_after >= 1
    assert recall(passwords, ALICE)  # whoever is remembered waits for nobody
    slow.go.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, Rejected) for outcome in outcomes)
    assert passwords.waiting == 0
    with pytest.raises(Rejected):
        await authenticate(passwords, Basic("bob", "now there is room"))


@pytest.mark.parametrize("remember", [60, 0])
async def test_a_flood_of_strangers_does_not_shut_out_who_was_right_before(
    file: UsersFile, monkeypatch: pytest.MonkeyPatch, remember: float
) -> None:
    passwords = passwords_of(file, HashingPolicy(concurrency=1, queue=3, remember=remember))
    await passwords.authenticate(ALICE)
    slow = Slow(monkeypatch)
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now + 120)
    assert recall(passwords, ALICE) is None  # it would be hashed again
    flood = [asyncio.create_task(passwords.authenticate(Basic("bob", str(n)))) for n in range(4)]
    while passwords.waiting < 4:
        await asyncio.sleep(0.005)
    assert bool(recall(passwords, ALICE)) is bool(remember)
    assert recall(passwords, Basic("alice", "another")) is None
    file.users = Users({"alice": hash_password("new", 4)})
    assert recall(passwords, ALICE) is None
    slow.go.set()
    await asyncio.gather(*flood, return_exceptions=True)
    passwords.close()


async def test_a_caller_who_leaves_does_not_end_the_hashing_of_others(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    leaver, stayer = (asyncio.create_task(authenticate(passwords, ALICE)) for _ in range(2))
    while not slow.calls:
        await asyncio.sleep(0.005)
    leaver.cancel()
    slow.go.set()
    assert (await stayer).name == "alice"


async def test_row24_the_comparison_takes_constant_time(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    """compare_digest is the only comparison: where it says no, the password is hashed again."""
    hashed: list[str] = []

    def counting(_: object, name: str, __: str) -> bool:
        hashed.append(name)
        return True

    monkeypatch.setattr(module, "verify_password", counting)
    await authenticate(passwords, ALICE)
    assert hashed == ["alice"]
    assert recall(passwords, ALICE)
    monkeypatch.setattr(memory, "compare_digest", lambda *_: False)
    assert recall(passwords, ALICE) is None
