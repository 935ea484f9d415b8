"""The guard of the machine gates: guesses are few, and whoever is right is not locked out by whoever is wrong."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.adapters.store import Store
from service.adapters.users_file import UsersFile, hash_password
from service.authn import passwords as module
from service.authn.guard import Guard
from service.authn.passwords import HashingPolicy, Passwords
from service.core.errors import OutOfReach, Refusal, Rejected, Throttled, Unclear
from service.core.identity.grant_index import RoleAssignment
from service.core.model import Basic, Proof
from service.core.problems import Problem
from service.state import concurrency
from service.state.concurrency import RefusalDelay
from service.state.passwords import KnownPairs, VerifiedPasswords
from service.state.throttle import FailedAttempts, GuessLimits, Throttle
from service.telemetry.events import Telemetry
from tests.support.redis import PATIENT, RedisServer

pytestmark = pytest.mark.anyio

ALICE, BOB = Basic("alice", "secret"), Basic("bob", "b")
OFFICE, ELSEWHERE = "203.0.113.7", "198.51.100.9"
PER_NAME, ATTEMPTS, WINDOW = 3, 12, 300.0


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names whose passwords were hashed, as they are."""
    names: list[str] = []
    real = module.verify_password

    def counting(users: object, name: str, password: str) -> bool:
        names.append(name)
        return real(users, name, password)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "verify_password", counting)
    return names


@pytest.fixture
def file(tmp_path: Path) -> UsersFile:
    path = tmp_path / "users"
    path.write_text(f"alice:{hash_password('secret', 4)}\nbob:{hash_password('b', 4)}\n")
    users = UsersFile(path, 14)
    users.load()
    return users


@pytest.fixture
async def passwords(file: UsersFile) -> AsyncIterator[Passwords]:
    policy = HashingPolicy(concurrency=1, queue=100, remember=0)
    made = Passwords(file, policy, RoleAssignment("worker"), VerifiedPasswords(), RefusalDelay())
    yield made
    made.close()


Make = Callable[..., Guard]


@pytest.fixture
def make(passwords: Passwords, clock: Clock) -> Make:
    def made(store: Store | None = None) -> Guard:
        throttle = Throttle(FailedAttempts(clock), GuessLimits(ATTEMPTS, WINDOW, PER_NAME), store)
        return Guard(passwords, (), throttle, KnownPairs(), Telemetry(), RefusalDelay())

    return made


@pytest.fixture
def guard(make: Make) -> Guard:
    return make()


async def outcome(guard: Guard, credential: Basic, address: str = OFFICE) -> type[object]:
    try:
        return type(await guard.authenticate(credential, address))
    except Refusal as refusal:
        return type(refusal)


async def guess(guard: Guard, count: int, name: str = "alice", address: str = OFFICE) -> list[type[object]]:
    """Send guesses all at once, and return what came of each."""
    return await asyncio.gather(*(outcome(guard, Basic(name, f"guess {n}"), address) for n in range(count)))


async def test_guesses_are_counted_before_bcrypt_is_paid_though_they_come_all_at_once(
    guard: Guard, hashed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = await guess(guard, 50)
    assert (outcomes.count(Rejected), outcomes.count(Throttled)) == (PER_NAME, 50 - PER_NAME)
    assert len(hashed) == PER_NAME
    assert await outcome(guard, ALICE) is Throttled  # though it would be right: it might be the next guess
    assert guard.telemetry.guesses_refused == 48
    assert caplog.text.count("too many wrong passwords") == 1
    assert "guess" not in caplog.text
    assert "alice" not in caplog.text


async def test_a_flood_of_guesses_is_slowed_down_and_not_the_ones_who_are_right(guard: Guard) -> None:
    await guess(guard, PER_NAME)
    began = time.monotonic()
    flood = asyncio.create_task(guess(guard, 200))
    await asyncio.sleep(0)
    assert await outcome(guard, BOB) is Proof
    assert not flood.done()
    assert set(await flood) == {Throttled}
    assert 0.2 < time.monotonic() - began < 20


async def test_one_is_told_for_how_long_and_then_it_is_over(guard: Guard, clock: Clock) -> None:
    await guess(guard, PER_NAME)
    clock.now += 100
    with pytest.raises(Throttled) as refusal:
        await guard.authenticate(ALICE, OFFICE)
    assert (refusal.value.status, refusal.value.retry_after) == (429, 200)
    clock.now += 200
    assert await outcome(guard, ALICE) is Proof


async def test_row23_nobody_is_locked_out_from_elsewhere_nor_under_another_name(guard: Guard) -> None:
    await guess(guard, PER_NAME + 5)
    assert await outcome(guard, ALICE, ELSEWHERE) is Proof
    assert await outcome(guard, BOB, OFFICE) is Proof


async def test_one_address_may_not_go_through_many_names(guard: Guard, hashed: list[str]) -> None:
    await asyncio.gather(*(guess(guard, 1, f"name-{number}") for number in range(ATTEMPTS + 5)))
    assert len(hashed) == ATTEMPTS
    assert await outcome(guard, BOB) is Throttled
    assert await outcome(guard, BOB, ELSEWHERE) is Proof


async def test_a_worker_outlives_a_neighbour_of_the_same_name_with_an_old_password(guard: Guard) -> None:
    assert await outcome(guard, ALICE) is Proof
    await guess(guard, PER_NAME + 5)
    for number in range(ATTEMPTS):
        await guess(guard, 1, f"name-{number}")
    assert await outcome(guard, ALICE) is Proof
    assert await outcome(guard, BOB) is Throttled  # was not right from here before
    assert await outcome(guard, Basic("alice", "secret "), OFFICE) is Throttled


async def test_a_pair_that_was_right_and_is_wrong_now_counts_like_any_other(
    guard: Guard, file: UsersFile, hashed: list[str]
) -> None:
    assert await outcome(guard, ALICE) is Proof
    file.path.write_text(f"alice:{hash_password('new', 4)}\n")
    await file.reload_if_changed()
    hashed.clear()
    outcomes = [await outcome(guard, ALICE) for _ in range(6)]
    assert outcomes == [Rejected] * PER_NAME + [Throttled] * (6 - PER_NAME)
    assert len(hashed) == PER_NAME


async def test_many_workers_that_start_at_once_are_one_try(guard: Guard, hashed: list[str]) -> None:
    outcomes = await asyncio.gather(*(outcome(guard, ALICE) for _ in range(50)))
    assert set(outcomes) == {Proof}
    assert hashed == ["alice"]
    assert await guess(guard, PER_NAME) == [Rejected] * PER_NAME  # none of them was left counted


async def test_success_forgets_the_wrong_ones_of_that_name(guard: Guard) -> None:
    for _ in range(5):
        await guess(guard, PER_NAME - 1)
        assert await outcome(guard, ALICE, OFFICE) is Proof
        guard.known_pairs.clear()


async def test_what_was_not_decided_does_not_count(
    guard: Guard, passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: Basic) -> Proof:
        raise OutOfReach(Problem.ISSUER_OUT_OF_REACH)

    with monkeypatch.context() as patched:
        patched.setattr(passwords, "authenticate", away)
        for _ in range(ATTEMPTS + 1):
            assert await outcome(guard, ALICE) is OutOfReach
    assert await outcome(guard, ALICE) is Proof


# replicas -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
async def store(redis: RedisServer) -> AsyncIterator[Store]:
    made = Store(redis.url, "guard:", timeout=PATIENT)
    await made._client.flushall()
    yield made
    await made.close()


async def test_replicas_add_up_what_they_count(make: Make, store: Store, hashed: list[str]) -> None:
    first, second = make(store), make(store)
    await guess(first, PER_NAME)
    assert await outcome(second, Basic("alice", "one more")) is Rejected  # by this it hears of the others
    assert await outcome(second, ALICE) is Throttled
    assert len(hashed) == PER_NAME + 1


async def test_replicas_forget_what_was_not_wrong(
    make: Make, store: Store, passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: Basic) -> Proof:
        raise OutOfReach(Problem.ISSUER_OUT_OF_REACH)

    first, second = make(store), make(store)
    with monkeypatch.context() as patched:
        patched.setattr(passwords, "authenticate", away)
        for _ in range(ATTEMPTS):
            await outcome(first, ALICE)
    assert await outcome(second, Basic("alice", "wrong")) is Rejected  # by this it hears of the others
    assert await outcome(second, ALICE) is Proof


# clients of an issuer -------------------------------------------------------------------------------------


class Answering:
    """Stands for the clients of an issuer that answers each pair in the same way, and counts how often it is asked."""

    def __init__(self, answer: Exception) -> None:
        self.answer, self.asked = answer, 0

    def takes(self, username: str) -> bool:
        return username.startswith("prefect-")

    async def authenticate(self, _: Basic) -> Proof:
        self.asked += 1
        raise self.answer


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        (Rejected(Problem.PAIR_WRONG_AT_ISSUER), True),
        (Rejected(Problem.CLIENT_REFUSED), True),
        (Unclear(Problem.ISSUER_OUT_OF_REACH), True),
        (Rejected(Problem.CLIENT_NOT_AUTHORIZED), False),
        (Rejected(Problem.CLIENT_TOKEN_NOT_A_JWT), False),
        (Rejected(Problem.CLIENT_TOKEN_NOT_ACCEPTED), False),
        (OutOfReach(Problem.ISSUER_OUT_OF_REACH), False),
        (Throttled(Problem.CLIENT_CHECKS_FULL), False),
    ],
    ids=lambda value: value.problem if isinstance(value, Refusal) else "",
)
async def test_what_may_be_a_wrong_secret_counts_and_what_is_none_does_not(
    make: Make,
    answer: Refusal,
    counted: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(concurrency, "REFUSAL_DELAY", 0.001)
    issuer = Answering(answer)
    guard = replace(make(), clients=[issuer])
    for number in range(40):
        assert await outcome(guard, Basic("prefect-a", f"secret {number}")) in {type(answer), Throttled}
    assert issuer.asked == (PER_NAME if counted else 40)


async def test_a_client_that_was_right_is_not_throttled_while_its_issuer_fails(make: Make) -> None:
    guard = replace(make(), clients=[Answering(Unclear(Problem.ISSUER_OUT_OF_REACH))])
    pair = Basic("prefect-a", "secret")
    guard.known_pairs.add(guard.known_pairs.key_of(OFFICE, pair))
    assert [await outcome(guard, pair) for _ in range(20)] == [Unclear] * 20


async def test_a_known_pair_may_be_forgotten_while_it_is_checked(guard: Guard, file: UsersFile) -> None:
    """A full memory, or the end of its day, may take it away at any time."""
    assert await outcome(guard, ALICE) is Proof
    file.path.write_text(f"alice:{hash_password('new', 4)}\n")
    await file.reload_if_changed()
    check = asyncio.create_task(outcome(guard, ALICE))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    guard.known_pairs.clear()
    assert await check is Rejected
    assert guard.throttle.failures.of(OFFICE, WINDOW)


async def test_without_a_users_file_a_name_that_is_no_client_is_told_so(make: Make) -> None:
    for clients, problem in (
        ([], Problem.PASSWORD_NOT_ACCEPTED),
        ([Answering(ValueError())], Problem.CLIENT_NOT_CONFIGURED),
    ):
        guard = replace(make(), passwords=None, clients=clients)
        with pytest.raises(Rejected) as refusal:
            await guard.authenticate(ALICE, OFFICE)
        assert refusal.value.problem is problem


# as the sign-in page calls it -----------------------------------------------------------------------------


async def test_the_sign_in_page_and_the_gates_count_together_and_a_known_pair_passes(guard: Guard) -> None:
    assert await guard.authenticate_user("alice", "secret", OFFICE)
    await guess(guard, PER_NAME)
    for _ in range(2):
        with pytest.raises(Throttled):
            await guard.authenticate_user("alice", "wrong", OFFICE)
    assert guard.telemetry.guesses_refused == 2
    assert await guard.authenticate_user("alice", "secret", OFFICE)  # a neighbour's guesses do not lock her out


@pytest.mark.parametrize("password", ["secret\x00", "a\x1fb", "x" * 5_000, "\x85"])
@pytest.mark.parametrize("name", ["alice", "nobody", "", "a\x00b", "x" * 300])
async def test_a_pair_that_nobody_can_have_is_refused_alike_whoever_was_named(
    guard: Guard, hashed: list[str], name: str, password: str
) -> None:
    with pytest.raises(Rejected) as refusal:
        await guard.authenticate_user(name, password, OFFICE)
    assert refusal.value.cause == (Problem.PAIR_WRONG, {"user": None})
    assert hashed == []
