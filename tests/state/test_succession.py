"""What one adapter takes over from another when the settings change under a running service."""

import asyncio
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.adapters.outbound import open_client
from service.adapters.users_file import UsersFile, hash_password
from service.authn.issuers import Issuer, KeyPolicy
from service.authn.passwords import HashingPolicy, Passwords
from service.authn.seal import Seal
from service.authn.sessions import Sessions, Vouchers
from service.core.identity.sessions import MAX_LIFETIME, SessionPolicy
from service.core.model import Basic, Gate, IssuerTrust, Principal, Proof, Session, SessionCookie
from service.gate.wiring import Wiring
from service.settings import Settings
from service.state import revocations
from service.state.revocations import Revocations
from service.state.throttle import Throttle
from service.state.verdicts import Verdicts
from tests.support.issuer import Issuer as Provider

pytestmark = pytest.mark.anyio

TRUST = {"audiences": frozenset({"prefect"}), "algorithms": frozenset({"RS256"})}


@pytest.mark.parametrize(
    ("changes", "warm"),
    [
        ({}, True),
        ({"audiences": frozenset({"another"})}, True),
        ({"algorithms": frozenset({"ES256"})}, False),
        ({"jwks_url": "https://idp.example/keys"}, False),
        ({"allow_http": True}, False),
    ],
    ids=["nothing", "audience", "algorithms", "keys elsewhere", "over http"],
)
async def test_keys_go_on_where_they_would_be_fetched_alike(changes: dict[str, object], warm: bool) -> None:  # noqa: FBT001
    with Provider("RS256") as provider:
        client = open_client("test")
        before = Issuer(IssuerTrust(issuer=provider.url, **TRUST), client=client)  # type: ignore[arg-type]
        assert await before.refresh()
    options = {name: changes[name] for name in ("jwks_url", "allow_http") if name in changes}
    trust = {**TRUST, **{name: value for name, value in changes.items() if name not in options}}
    after = Issuer(IssuerTrust(issuer=provider.url, **trust), client=client, **options)  # type: ignore[arg-type]
    after.succeed(before)
    assert (after.warm, after.fetches, before.warm) == (warm, 1, True)
    bounded = Issuer(
        IssuerTrust(issuer=provider.url, **TRUST),  # type: ignore[arg-type]
        policy=KeyPolicy(max_stale=0),
        client=client,
    )
    bounded.succeed(before)
    assert not bounded.warm  # the new bound holds for the old keys
    await client.aclose()


def passwords_of(path: Path, hash_: str, role: str = "", remember: float = 300) -> Passwords:
    path.write_text(f"alice:{hash_}\n")
    users = UsersFile(path, 14)
    users.load()
    return Passwords(users, HashingPolicy(remember=remember), role)


async def test_verified_passwords_are_remembered_only_where_users_role_and_time_are_the_same(tmp_path: Path) -> None:
    pair, hash_ = Basic("alice", "secret"), hash_password("secret", 4)
    before = passwords_of(tmp_path / "users", hash_, "viewer")
    await before.authenticate(pair)
    others = {
        "same": (passwords_of(tmp_path / "users", hash_, "viewer"), True),
        "users": (passwords_of(tmp_path / "others", hash_password("secret", 4), "viewer"), False),
        "role": (passwords_of(tmp_path / "users", hash_, "admin"), False),
        "time": (passwords_of(tmp_path / "users", hash_, "viewer", remember=1), False),
    }
    for name, (after, remembered) in others.items():
        after.succeed(before)
        assert (after.recall(pair) is not None) is remembered, name
        after.close()
    same, _ = others["same"]
    same.forget()
    assert before.recall(pair) is not None  # each has a memory of its own: a late call of the one fills not the other's
    assert same.recall(pair) is None
    before.close()


async def test_sign_outs_are_known_in_both_directions() -> None:
    before, after = Revocations(None, keep=60), Revocations(None, keep=60)
    await before.first_use("token", "1", 60)
    after.succeed(before)
    await before.revoke_session("late")  # by a call that began before
    assert after.revoked(session("late"))
    assert not await after.first_use("token", "1", 60)


async def test_wrong_passwords_go_on_counting_unless_the_window_is_another() -> None:
    before = Throttle(attempts=1, window=60)
    await before.failed("192.0.2.1", "alice")
    same, other = Throttle(attempts=1, window=60), Throttle(attempts=1, window=30)
    same.succeed(before)
    other.succeed(before)
    assert same.retry_after("192.0.2.1", "alice") > 0
    assert other.retry_after("192.0.2.1", "alice") == 0


def session(id_: str) -> Session:
    now = time.time()
    return Session(id_, "https://idp.example", "s", "n", "", (), (), now, now, now - 1, refresh_token="once")


async def test_a_renewal_under_way_is_shared_and_not_made_twice() -> None:
    renewals = 0
    answered = asyncio.Event()

    async def renew(one: Session) -> Session:
        nonlocal renewals
        renewals += 1
        await answered.wait()
        return one._replace(check_at=time.time() + 900, refresh_token="next")

    def made(seal: Seal) -> Sessions:
        vouchers = {"https://idp.example": Vouchers(renew=renew)}
        return Sessions(seal, SessionPolicy(), vouchers, Revocations(None, keep=60))

    before = made(Seal(("a" * 32,)))
    cookie = SessionCookie(before.seal(session("one")))
    first = asyncio.create_task(before.open(cookie))
    await asyncio.sleep(0)
    after = made(Seal(("b" * 32, "a" * 32)))
    after.succeed(before)
    second = asyncio.create_task(after.open(cookie))
    await asyncio.sleep(0)
    answered.set()
    assert [one.session.refresh_token for one in await asyncio.gather(first, second)] == ["next", "next"]
    assert (await after.open(cookie)).session.refresh_token == "next"
    assert renewals == 1


def test_a_verdict_of_a_call_that_began_before_is_not_remembered() -> None:
    verdicts = Verdicts(seconds=60, capacity=3)
    proof = Proof(Principal("i", "s", "n"), time.time() + 60)
    key, era = verdicts.key_of(Gate.API, b"credential"), verdicts.era
    verdicts.remember(key, proof, era)
    verdicts.renew(seconds=60, capacity=3)
    assert verdicts.recall(key) is None
    verdicts.remember(key, proof, era)
    assert verdicts.recall(key) is None
    verdicts.renew(seconds=0, capacity=3)
    verdicts.remember(key, proof, verdicts.era)
    assert verdicts.recall(key) is None


async def test_what_was_revoked_stays_so_whatever_the_lifetime_becomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wiring(lifetime: float, before: Wiring | None = None) -> Wiring:
        configured = {"users": {"file": tmp_path / "users"}, "session": {"lifetime": lifetime, "idle": lifetime}}
        return Wiring(Settings(**configured), before)  # type: ignore[arg-type]

    (tmp_path / "users").write_text("# nobody\n")
    began = time.time()
    session = Session("one", "local", "a", "a", "", (), {}, began, began, began + MAX_LIFETIME)
    short = wiring(3_600)
    await short.revocations.revoke_session(session.id)
    longest = wiring(MAX_LIFETIME, short)
    await longest.start()
    almost = began + MAX_LIFETIME - 1
    monkeypatch.setattr(revocations.time, "time", lambda: almost)
    await longest.revocations.revoke_session("another")  # which drops those that are over
    assert longest.revocations.revoked(session)
    await longest.close()
    with pytest.raises(ValidationError):
        wiring(MAX_LIFETIME + 1)
