"""Sessions: sealed, opened, vouched for again while they last; and the ways in which they end."""

import asyncio
import time
from collections.abc import Callable
from functools import partial

import pytest

from service.authn.seal import Seal
from service.authn.sessions import (
    OUTAGE_GRACE,
    PEER_RENEWAL,
    RETRY_PAUSE,
    ClaimRenewal,
    Opened,
    SessionAuthority,
    Sessions,
)
from service.core.errors import NotPermitted, OutOfReach, Refusal, SessionEnded, SignInFailed
from service.core.identity.grant_index import RoleAssignment
from service.core.identity.sessions import SessionPolicy
from service.core.model import Session, SessionCookie
from service.core.problems import Problem
from service.core.request.cookies import CHUNK, HOST_PREFIX, MAX_SEALED, own_cookies, session_cookie, set_session
from service.state.renewals import Renewals
from service.state.revocation_log import RevocationLog
from service.state.revocations import Revocations, of_session
from tests.support.refusals import refused

pytestmark = pytest.mark.anyio
KEY = "a secret of more than thirty-two characters"
POLICY = SessionPolicy(idle=10_000.0, lifetime=50_000.0)  # sealed anew after 300 s
IDP = "https://idp.example"


def session(**changes: object) -> Session:
    """Return a session that has just begun at the provider, but for what is given here."""
    now = time.time()
    fresh = Session("s-1", IDP, "248", "alice", "", (), {}, now, now, now + 900, refresh_token="token-1")
    return fresh._replace(**changes)  # type: ignore[arg-type]


def due(overdue: float = 1.0, **changes: object) -> Session:
    """Return one that its provider is to be asked about, and has been for some seconds."""
    now = time.time()
    return session(began=now - 20_000, seen=now - 10, check_at=now - overdue, **changes)


class Provider:
    """Renews as a provider with rotating refresh tokens does: each is good once."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers: list[Refusal | None] = []  # what it says instead, in turn; the last one stays
        self.wait = asyncio.Event()
        self.wait.set()
        self.groups: tuple[str, ...] = ("new",)
        self.in_part = 0  # how often it takes the token, and can say nothing about the person
        self._good = "token-1"

    async def renew(self, old: Session) -> Session:
        self.asked += 1
        await self.wait.wait()
        refusal = self.answers.pop(0) if len(self.answers) > 1 else next(iter(self.answers), None)
        if refusal is not None:
            raise refusal
        if old.refresh_token != self._good:
            raise SessionEnded(Problem.SESSION_ENDED_BY_PROVIDER, because="invalid_grant")
        self._good = f"token-{int(self._good[-1]) + 1}"
        if self.in_part:
            self.in_part -= 1
            return old._replace(refresh_token=self._good)
        return old._replace(groups=self.groups, refresh_token=self._good, check_at=time.time() + 900)


def replica(
    provider: Provider | None = None,
    *,
    stands: Callable[[Session], bool] = lambda _: True,
    claim: ClaimRenewal | None = None,
    revocations: RevocationLog | None = None,
    renewals: Renewals | None = None,
    policy: SessionPolicy = POLICY,
    keys: tuple[str, ...] = (KEY,),
) -> Sessions:
    authorities = {IDP: SessionAuthority(RoleAssignment(), stands, provider.renew if provider else None)}
    return Sessions(Seal(keys), policy, authorities, revocations or shared_by_nobody(), renewals or Renewals(), claim)


def shared_by_nobody() -> RevocationLog:
    return RevocationLog(Revocations(), None)


async def opened(sessions: Sessions, one: Session | str) -> Opened:
    return await sessions.open(SessionCookie(one if isinstance(one, str) else sessions.seal(one)))


async def fate(sessions: Sessions, one: Session | str) -> str:
    """Return what became of a session: ``good``, or the code of the refusal."""
    try:
        await opened(sessions, one)
    except Refusal as refusal:
        return refusal.code
    return "good"


# in and out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["alice", "zoë", "日本", 'a"b\\c;=,', "\u202egpj", "a\nb\x00", "🦊" * 50], ids=range(7)
)
async def test_row16_whoever_it_is_comes_back_as_they_went(name: str) -> None:
    sessions = replica()
    one = session(name=name, email=f"{name}@example.test", groups=(name, ""), refresh_token="")
    assert (await opened(sessions, one)).session._replace(check_at=one.check_at) == one


@pytest.mark.parametrize("groups", [0, 50, 200, 300])
async def test_many_groups_take_many_cookies_and_come_back_whole(groups: int) -> None:
    sessions = replica()
    one = session(groups=tuple(f"department-{number:04}-of-the-company" for number in range(groups)))
    cookies = set_session(sessions.seal(one), 60, secure=True)
    header = "; ".join(cookie.partition(";")[0] for cookie in cookies).encode()
    found = session_cookie(own_cookies(header, HOST_PREFIX))
    assert isinstance(found, SessionCookie)
    assert (await sessions.open(found)).session.groups == one.groups


async def test_more_groups_than_cookies_can_hold_are_refused_with_a_sentence() -> None:
    with refused(SignInFailed, "groups"):
        replica().seal(session(groups=tuple(f"department-{number:04}-of-the-company" for number in range(500))))


async def test_the_id_token_stays_out_where_it_would_take_a_second_cookie() -> None:
    sessions = replica()
    small, large = (sessions.seal(session(id_token="x" * length)) for length in (500, 5_000))
    assert (await opened(sessions, small)).session.id_token
    assert not (await opened(sessions, large)).session.id_token
    assert len(large) < CHUNK < MAX_SEALED


async def test_a_session_opens_at_every_replica_that_has_the_key_and_nowhere_else() -> None:
    sealed = replica().seal(session())
    assert await fate(replica(), sealed) == "good"
    assert await fate(replica(keys=("a newer secret of more than 32 characters", KEY)), sealed) == "good"
    assert await fate(replica(keys=("a newer secret of more than 32 characters",)), sealed) == "session_ended"


async def test_row18_what_was_sealed_for_something_else_is_no_session() -> None:
    sealed = Seal((KEY,)).seal("attempt", b'["s-1"]')
    assert await fate(replica(), sealed) == "session_ended"


# how it ends ----------------------------------------------------------------------------------------------


async def test_it_ends_when_it_is_old_or_was_not_used() -> None:
    now = time.time()
    assert await fate(replica(), session(began=now - 49_990, seen=now - 9_990)) == "good"
    assert await fate(replica(), session(began=now - 50_000, seen=now)) == "session_ended"
    assert await fate(replica(), session(began=now - 20_000, seen=now - 10_000)) == "session_ended"


async def test_it_ends_where_nobody_vouches_for_it_any_more() -> None:
    one = session()
    assert await fate(replica(), one._replace(issuer="https://removed.example")) == "session_ended"
    assert await fate(replica(stands=lambda _: False), one) == "session_ended"


async def test_it_ends_once_it_is_revoked() -> None:
    revocations = shared_by_nobody()
    sessions, one = replica(revocations=revocations), session()
    assert await fate(sessions, one) == "good"
    await revocations.revoke(of_session(one.id))
    assert await fate(sessions, one) == "session_ended"
    assert await fate(sessions, one._replace(id="s-2")) == "good"


async def test_the_cookie_is_sealed_anew_when_it_was_used_after_a_while_and_not_before() -> None:
    sessions, now = replica(), time.time()
    lately = await opened(sessions, session(began=now - 5_000, seen=now - 290))
    assert lately.sealed is None
    before = await opened(sessions, session(began=now - 5_000, seen=now - 310))
    assert before.sealed is not None
    anew = sessions.read(SessionCookie(before.sealed))
    assert anew.seen == pytest.approx(now, abs=5)
    assert anew.began == pytest.approx(now - 5_000, abs=5)  # its lifetime is not prolonged


async def test_what_is_remembered_of_it_never_outlasts_it() -> None:
    sessions, now = replica(), time.time()
    for one in (
        session(),
        session(began=now - 49_995),
        session(began=now - 20_000, seen=now - 9_995),
        session(check_at=now + 5),
    ):
        ends = min(one.began + POLICY.lifetime, now + POLICY.touch + 1, max(one.check_at, now))
        assert (await opened(sessions, one)).proof.until <= ends


# renewal --------------------------------------------------------------------------------------------------


async def test_the_provider_is_asked_when_it_is_time_and_what_it_says_now_counts() -> None:
    provider = Provider()
    sessions = replica(provider)
    assert (await opened(sessions, session())).session.groups == ()
    assert provider.asked == 0
    renewed = await opened(sessions, due())
    assert renewed.session.groups == ("new",)
    assert renewed.proof.principal.groups == ("new",)
    assert renewed.sealed is not None
    assert sessions.read(SessionCookie(renewed.sealed)).refresh_token == "token-2"


async def test_requests_at_once_share_one_renewal() -> None:
    provider = Provider()
    provider.wait.clear()
    sessions = replica(provider)
    cookie = sessions.seal(due())
    requests = [asyncio.create_task(opened(sessions, cookie)) for _ in range(20)]
    while not provider.asked:
        await asyncio.sleep(0)
    provider.wait.set()
    answers = await asyncio.gather(*requests)
    assert provider.asked == 1
    assert {one.session.refresh_token for one in answers} == {"token-2"}
    assert all(one.sealed for one in answers)


async def test_a_request_that_still_has_the_old_cookie_shares_the_renewal_that_was_made() -> None:
    provider = Provider()
    sessions = replica(provider)
    cookie = sessions.seal(due())
    first, second = await opened(sessions, cookie), await opened(sessions, cookie)
    assert provider.asked == 1
    assert second.session.refresh_token == first.session.refresh_token == "token-2"
    assert second.sealed is not None  # so that it too brings the new one


async def test_a_caller_who_goes_away_does_not_spoil_the_renewal_for_the_others() -> None:
    provider = Provider()
    provider.wait.clear()
    sessions = replica(provider)
    cookie = sessions.seal(due())
    gone, stays = (asyncio.create_task(opened(sessions, cookie)) for _ in range(2))
    while not provider.asked:
        await asyncio.sleep(0)
    gone.cancel()
    provider.wait.set()
    assert (await stays).session.refresh_token == "token-2"
    assert provider.asked == 1


async def test_without_a_refresh_token_it_lasts_until_its_own_end() -> None:
    provider = Provider()
    sessions = replica(provider)
    answer = await opened(sessions, due(refresh_token=""))
    assert answer.sealed is not None
    assert provider.asked == 0
    assert (await opened(sessions, answer.sealed)).sealed is None


@pytest.mark.parametrize("overdue", [0.0, PEER_RENEWAL + 1])
async def test_it_ends_when_the_provider_says_so(overdue: float) -> None:
    """A process alone waits for no other, which would bring another answer."""
    provider = Provider()
    provider.answers = [SessionEnded(Problem.SESSION_ENDED_BY_PROVIDER)]
    assert await fate(replica(provider), due(overdue)) == "session_ended"


async def test_a_refresh_token_that_was_used_up_is_kept_until_the_person_can_be_asked_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.authn.sessions.RETRY_PAUSE", 0.0)
    provider = Provider()
    provider.in_part = 2
    sessions = replica(provider)
    cookie = sessions.seal(due())
    used: list[str] = []
    for _ in range(4):  # with the cookie that each answer brings, and once more with the first
        answer = await opened(sessions, cookie)
        used.append(answer.session.refresh_token)
        assert answer.sealed is not None or used[-2:] == ["token-4", "token-4"]
        cookie = answer.sealed or cookie
    assert used == ["token-2", "token-3", "token-4", "token-4"]
    assert answer.session.check_at > time.time() + 800


async def test_an_old_cookie_gets_the_refresh_token_that_replaced_its_own() -> None:
    provider = Provider()
    provider.in_part = 1
    sessions = replica(provider)
    cookie = sessions.seal(due())
    first, second = await opened(sessions, cookie), await opened(sessions, cookie)
    assert provider.asked == 1  # the provider is left alone for a moment
    assert (first.session.refresh_token, second.session.refresh_token) == ("token-2", "token-2")
    assert first.proof.until <= time.time() + RETRY_PAUSE


async def test_who_cannot_be_asked_about_for_an_hour_is_not_believed_any_longer() -> None:
    provider = Provider()
    provider.in_part = 1
    assert await fate(replica(provider), due(OUTAGE_GRACE + 5)) == "issuer_unavailable"


async def test_it_ends_when_it_is_revoked_while_it_is_being_renewed() -> None:
    provider, revocations = Provider(), shared_by_nobody()
    provider.wait.clear()
    sessions = replica(provider, revocations=revocations)
    one = due()
    request = asyncio.create_task(fate(sessions, one))
    while not provider.asked:
        await asyncio.sleep(0)
    await revocations.revoke(of_session(one.id))
    provider.wait.set()
    assert await request == "session_ended"


@pytest.mark.parametrize("shared", [True, False], ids=["with-a-store", "without-a-store"])
async def test_who_may_not_enter_any_more_does_not_get_in_by_asking_again(*, shared: bool) -> None:
    revocations = shared_by_nobody()
    provider = Provider()
    provider.answers = [NotPermitted(Problem.PERSON_NOT_PERMITTED), SessionEnded(Problem.SESSION_ENDED_BY_PROVIDER)]
    claim = partial(revocations.first_use, "renewal") if shared else None
    sessions = replica(provider, claim=claim, revocations=revocations)
    cookie = sessions.seal(due())
    assert await fate(sessions, cookie) == "insufficient_scope"
    assert [await fate(sessions, cookie) for _ in range(3)] == ["session_ended"] * 3


async def test_who_has_too_many_groups_by_now_is_told(caplog: pytest.LogCaptureFixture) -> None:
    provider = Provider()
    provider.groups = tuple(f"department-{number:04}-of-the-company" for number in range(500))
    assert await fate(replica(provider), due()) == "sign_in_failed"
    assert not caplog.records


# a provider that cannot be asked --------------------------------------------------------------------------


async def test_while_the_provider_is_out_of_reach_a_session_lasts_for_a_bounded_time() -> None:
    for overdue, expected in ((1.0, "good"), (OUTAGE_GRACE - 5, "good"), (OUTAGE_GRACE + 5, "issuer_unavailable")):
        provider = Provider()
        provider.answers = [OutOfReach(Problem.ISSUER_OUT_OF_REACH)]
        sessions = replica(provider)
        assert [await fate(sessions, due(overdue)) for _ in range(3)] == [expected] * 3, overdue
        assert provider.asked == 1  # it is left alone for a while


async def test_a_provider_that_is_back_is_asked_again_and_nobody_was_signed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.authn.sessions.RETRY_PAUSE", 0.0)
    provider = Provider()
    provider.answers = [OutOfReach(Problem.ISSUER_OUT_OF_REACH), None]
    sessions = replica(provider)
    cookie = sessions.seal(due(OUTAGE_GRACE + 5))
    assert await fate(sessions, cookie) == "issuer_unavailable"
    assert (await opened(sessions, cookie)).session.refresh_token == "token-2"


async def test_what_was_not_vouched_for_is_not_remembered_for_long() -> None:
    provider = Provider()
    provider.answers = [OutOfReach(Problem.ISSUER_OUT_OF_REACH)]
    proof = (await opened(replica(provider), due())).proof
    assert proof.until <= time.time() + RETRY_PAUSE


# several replicas -----------------------------------------------------------------------------------------


async def test_with_a_store_one_replica_renews_and_the_others_carry_on() -> None:
    shared, provider = shared_by_nobody(), Provider()
    provider.wait.clear()
    one, other = (replica(provider, claim=partial(shared.first_use, "renewal"), revocations=shared) for _ in range(2))
    cookie = one.seal(due(OUTAGE_GRACE + 5))  # back from a long lunch
    renewing = asyncio.create_task(opened(one, cookie))
    while not provider.asked:
        await asyncio.sleep(0)
    carried_on = await opened(other, cookie)
    assert carried_on.session.refresh_token == "token-1"
    assert carried_on.proof.until <= time.time() + RETRY_PAUSE
    provider.wait.set()
    assert (await renewing).session.refresh_token == "token-2"
    assert provider.asked == 1


async def test_with_a_store_an_end_is_one_for_all() -> None:
    shared, provider = shared_by_nobody(), Provider()
    provider.answers = [SessionEnded(Problem.SESSION_ENDED_BY_PROVIDER)]
    one, other = (replica(provider, claim=partial(shared.first_use, "renewal"), revocations=shared) for _ in range(2))
    cookie = one.seal(due())
    assert await fate(one, cookie) == "session_ended"
    assert await fate(other, cookie) == "session_ended"
    assert provider.asked == 1


@pytest.mark.parametrize("several", [True, False], ids=["two-replicas", "one-replica"])
async def test_with_a_store_an_outage_is_not_outlasted_by_leaving_it_to_each_other(
    *,
    several: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.authn.sessions.RETRY_PAUSE", 0.0)
    shared, provider = shared_by_nobody(), Provider()
    provider.answers = [OutOfReach(Problem.ISSUER_OUT_OF_REACH)]
    claim = partial(shared.first_use, "renewal")
    one, other = (replica(provider, claim=claim, revocations=shared) for _ in range(2))
    cookie = one.seal(due(OUTAGE_GRACE + 5))
    assert await fate(one, cookie) == "issuer_unavailable"
    patient = other if several else one
    assert await fate(patient, cookie) == "good"  # for a moment: a sibling may be renewing it
    monkeypatch.setattr("service.authn.sessions.PEER_RENEWAL", 0.0)  # the moment is over
    assert await fate(patient, cookie) == "issuer_unavailable"


async def test_without_a_store_a_replica_that_has_noticed_another_forgives_for_a_moment() -> None:
    provider = Provider()
    one, other = replica(provider), replica(provider)
    cookie = one.seal(due())
    elsewhere = other.seal(session(id="another-session"))
    assert await fate(one, elsewhere) == "good"  # a session that this replica has not sealed
    assert (await opened(other, cookie)).session.refresh_token == "token-2"
    assert (await opened(one, cookie)).session.refresh_token == "token-1"


async def test_without_a_store_a_token_that_a_sibling_may_have_used_is_forgiven_for_a_moment() -> None:
    provider = Provider()
    one, other = replica(provider), replica(provider)
    cookie = one.seal(due())
    assert (await opened(one, cookie)).session.refresh_token == "token-2"
    forgiven = await opened(other, cookie)
    assert forgiven.session.refresh_token == "token-1"
    assert forgiven.proof.until <= time.time() + RETRY_PAUSE
    assert await fate(other, due(PEER_RENEWAL + 1)) == "session_ended"
