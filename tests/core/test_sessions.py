"""When a session ends, how it is written, and whom it stands for."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import SessionEnded
from service.core.identity.sessions import (
    SessionPolicy,
    dump_session,
    ends_at,
    load_session,
    principal_of,
    validate_session,
)
from service.core.model import Session
from service.core.problems import Problem
from tests.support.refusals import refused

BEGAN = 1_800_000_000.0
POLICY = SessionPolicy(idle=1_000.0, lifetime=3_000.0)
SESSION = Session(
    id="s-1",
    issuer="https://idp.example",
    subject="248",
    name="alice",
    email="alice@example.test",
    groups=("data", "ops"),
    claims={"department": ["data"]},
    began=BEGAN,
    seen=BEGAN,
    check_at=BEGAN + 900,
)


def ended(now: float, session: Session = SESSION, policy: SessionPolicy = POLICY) -> Problem | None:
    """Return why the session has ended, or None if it is good."""
    try:
        validate_session(session, policy, now)
    except SessionEnded as refusal:
        return refusal.problem
    return None


USED = SESSION._replace(seen=BEGAN + 2_900)
BORDERS = {
    "at-once": (SESSION, BEGAN, None),
    "idle-just-before": (SESSION, BEGAN + 999.999, None),
    "idle-exactly": (SESSION, BEGAN + 1_000, Problem.SESSION_IDLE_TOO_LONG),
    "lifetime-just-before": (USED, BEGAN + 2_999.999, None),
    "lifetime-exactly": (USED, BEGAN + 3_000, Problem.SESSION_LIFETIME_OVER),
    "lifetime-however-lately-used": (
        SESSION._replace(seen=BEGAN + 9_000),
        BEGAN + 3_000,
        Problem.SESSION_LIFETIME_OVER,
    ),
    "clocks-differ-a-little": (SESSION._replace(began=BEGAN + 100), BEGAN, None),
    "from-the-future": (SESSION._replace(began=BEGAN + 101), BEGAN, Problem.SESSION_FROM_THE_FUTURE),
    "never": (SESSION._replace(began=float("inf"), seen=float("inf")), BEGAN, Problem.SESSION_FROM_THE_FUTURE),
}


@pytest.mark.parametrize(("session", "now", "why"), BORDERS.values(), ids=BORDERS)
def test_a_session_ends_exactly_at_its_end(session: Session, now: float, why: Problem | None) -> None:
    assert ended(now, session) is why


@given(st.floats(0, 5_000), st.floats(0, 5_000))
def test_where_it_ends_is_where_it_is_refused(seen: float, now: float) -> None:
    session = SESSION._replace(seen=BEGAN + seen)
    assert bool(ended(BEGAN + now, session)) == (BEGAN + now >= ends_at(session, POLICY))


@pytest.mark.parametrize(("idle", "touch"), [(60.0, 6.0), (3_000.0, 300.0), (28_800.0, 300.0)])
def test_the_cookie_is_sealed_anew_well_before_idle_time_is_over(idle: float, touch: float) -> None:
    assert replace(POLICY, idle=idle).touch == touch


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]))),
)
def test_row16_any_name_and_any_groups_are_read_as_they_were_written(name: str, groups: list[str]) -> None:
    session = SESSION._replace(name=name, groups=tuple(groups), check_at=float("inf"))
    assert load_session(dump_session(session)) == session


OTHER_SHAPES = {
    "fewer-fields": list(SESSION)[:-1],
    "more-fields": [*SESSION, "new"],
    "an-object": SESSION._asdict(),
    "nothing": None,
}


@pytest.mark.parametrize("document", OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_a_session_of_another_version_has_ended(document: object) -> None:
    with refused(SessionEnded, "older version"):
        load_session(json.dumps(document).encode())


def test_it_stands_for_its_person_until_its_lifetime_is_over() -> None:
    who = principal_of(SESSION, POLICY)
    assert who.identity == ("https://idp.example", "alice", "alice@example.test", ("data", "ops"), ())
    assert (who.subject, who.expires) == ("248", BEGAN + 3_000)


def test_what_it_holds_is_not_shown() -> None:
    secret = SESSION._replace(refresh_token="refresh-me", id_token="identify-me", password_mark="mark-me")
    assert not {"refresh-me", "identify-me", "mark-me"} & set(repr(secret).split("'"))
