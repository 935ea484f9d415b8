"""What was learnt is the same for the configuration before a reload and for the one after it."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.adapters.outbound import open_client
from service.adapters.users_file import UsersFile, hash_password
from service.authn.passwords import HashingPolicy, Passwords
from service.authn.seal import Seal
from service.authn.sessions import SessionAuthority, Sessions
from service.core.identity.grant_index import RoleAssignment
from service.core.identity.sessions import MAX_LIFETIME, SessionPolicy
from service.core.model import Basic, Gate, Principal, Proof, Session, SessionCookie
from service.gate.wiring import Wiring, new_state, wire
from service.settings import Settings
from service.state import revocations
from service.state.concurrency import RefusalDelay
from service.state.passwords import VerifiedPasswords
from service.state.process import ProcessState
from service.state.renewals import Renewals
from service.state.revocation_log import RevocationLog
from service.state.revocations import Revocations, of_session
from service.state.throttle import FailedAttempts, GuessLimits, Throttle
from service.state.verdicts import Verdicts
from tests.support.issuer import Issuer as Provider

pytestmark = pytest.mark.anyio

IDP = "https://idp.example"


def issuer(url: str, **changes: Any) -> Settings:
    return Settings(issuer={"url": url, "audiences": "prefect", "role": "viewer", **changes})  # type: ignore[arg-type]


async def fetched(wiring: Wiring, url: str) -> None:
    one = wiring.issuers[url]
    assert await one.keys.refresh(one.policy)


@pytest.mark.parametrize(
    ("changes", "warm"),
    [
        ({}, True),
        ({"audiences": "another"}, True),
        ({"algorithms": "RS256"}, True),
        ({"algorithms": "ES256"}, False),
        ({"jwks_url": "https://idp.example/keys"}, False),
        ({"allow_http": True}, False),
        ({"keys": {"refresh": 1, "max_stale": 1}}, False),
    ],
    ids=["nothing", "audience", "algorithms", "other algorithms", "keys elsewhere", "over http", "a shorter bound"],
)
async def test_keys_go_on_where_they_would_be_fetched_alike(
    changes: dict[str, Any],
    warm: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = new_state()
    with Provider("RS256") as provider:
        before = wire(issuer(provider.url), state)
        await fetched(before, provider.url)
    later = time.monotonic() + 2  # the issuer is down by now
    monkeypatch.setattr(time, "monotonic", lambda: later)
    after = wire(issuer(provider.url, **changes), state)
    assert (after.issuers[provider.url].warm, before.issuers[provider.url].warm) == (warm, True)
    await state.close()


async def test_the_keys_of_an_issuer_that_nobody_names_any_more_are_forgotten() -> None:
    state = new_state()
    with Provider("RS256") as provider:
        kept, dropped = wire(issuer(provider.url), state), wire(issuer(provider.url, jwks_url=provider.jwks_url), state)
        for one in (kept, dropped):
            await fetched(one, provider.url)
    state.keys.keep_only([one.keys for one in kept.all_issuers])
    again = [wire(one.settings, state).issuers[provider.url].warm for one in (kept, dropped)]
    assert again == [True, False]
    await state.close()


def passwords_of(path: Path, hash_: str, memory: VerifiedPasswords, role: str = "", remember: float = 300) -> Passwords:
    path.write_text(f"alice:{hash_}\n")
    users = UsersFile(path, 14)
    users.load()
    return Passwords(users, HashingPolicy(remember=remember), RoleAssignment(role), memory, RefusalDelay())


async def test_a_verified_password_is_good_for_its_hash_under_the_role_and_time_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, hash_, memory = Basic("alice", "secret"), hash_password("secret", 4), VerifiedPasswords()
    before = passwords_of(tmp_path / "users", hash_, memory, "viewer")
    await before.authenticate(pair)
    same = passwords_of(tmp_path / "users", hash_, memory, "viewer")
    another_role = passwords_of(tmp_path / "users", hash_, memory, "admin")
    another_hash = passwords_of(tmp_path / "others", hash_password("secret", 4), memory, "viewer")
    shorter = passwords_of(tmp_path / "users", hash_, memory, "viewer", remember=1)
    later = time.time() + 2
    monkeypatch.setattr(time, "time", lambda: later)
    found = [one.recall(pair) for one in (same, another_role, another_hash, shorter)]
    assert [one.principal.roles if one else None for one in found] == [("viewer",), ("admin",), None, None]
    for one in (before, same, another_role, another_hash, shorter):
        one.close()


async def test_wrong_passwords_count_under_the_limits_of_now() -> None:
    failures = FailedAttempts()
    before = Throttle(failures, GuessLimits(attempts=2, window=60, per_name=2))
    await before.failed("192.0.2.1", "alice")
    same = Throttle(failures, GuessLimits(attempts=2, window=60, per_name=2))
    assert same.retry_after("192.0.2.1", "alice") == 0
    await same.failed("192.0.2.1", "alice")
    assert before.retry_after("192.0.2.1", "alice") > 0
    assert Throttle(failures, GuessLimits(attempts=1, window=60, per_name=1)).retry_after("192.0.2.1", "alice") > 0
    assert Throttle(failures, GuessLimits(attempts=9, window=60, per_name=9)).retry_after("192.0.2.1", "alice") == 0


def session(id_: str) -> Session:
    now = time.time()
    return Session(id_, IDP, "s", "n", "", (), {}, now, now, now - 1, refresh_token="once")


async def test_a_renewal_under_way_is_shared_and_not_made_twice() -> None:
    renewals, answered, calls = Renewals(), asyncio.Event(), 0

    async def renew(one: Session) -> Session:
        nonlocal calls
        calls += 1
        await answered.wait()
        return one._replace(check_at=time.time() + 900, refresh_token="next")

    def made(seal: Seal) -> Sessions:
        authorities = {IDP: SessionAuthority(RoleAssignment(), renew=renew)}
        return Sessions(seal, SessionPolicy(), authorities, RevocationLog(Revocations(), None), renewals)

    before = made(Seal(("a" * 32,)))
    cookie = SessionCookie(before.seal(session("one")))
    first = asyncio.create_task(before.open(cookie))
    await asyncio.sleep(0)
    after = made(Seal(("b" * 32, "a" * 32)))
    second = asyncio.create_task(after.open(cookie))
    await asyncio.sleep(0)
    answered.set()
    assert [one.session.refresh_token for one in await asyncio.gather(first, second)] == ["next", "next"]
    assert (await after.open(cookie)).session.refresh_token == "next"
    assert calls == 1


def test_a_verdict_of_a_call_that_began_before_is_not_remembered() -> None:
    verdicts = Verdicts()
    verdicts.renew(seconds=60, capacity=3)
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
    def wiring(lifetime: float, state: ProcessState) -> Wiring:
        configured = {"users": {"file": tmp_path / "users"}, "session": {"lifetime": lifetime, "idle": lifetime}}
        return wire(Settings(**configured), state)  # type: ignore[arg-type]

    (tmp_path / "users").write_text("# nobody\n")
    state, began = ProcessState.empty(open_client("test")), time.time()
    one = Session("one", "local", "a", "a", "", (), {}, began, began, began + MAX_LIFETIME)
    short = wiring(3_600, state)
    await short.revocation_log.revoke(of_session(one.id))
    longest = wiring(MAX_LIFETIME, state)
    almost = began + MAX_LIFETIME - 1
    monkeypatch.setattr(revocations.time, "time", lambda: almost)
    await longest.revocation_log.revoke(of_session("another"))  # which drops those that are over
    assert longest.revocation_log.revocations.revoked(one)
    await state.close()
    with pytest.raises(ValidationError):
        wiring(MAX_LIFETIME + 1, state)
