"""The index of grants: the same roles as a look at each grant, and a look at few of them."""

import timeit
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.core.identity.grant_index import GrantIndex
from service.core.identity.grants import ClaimRule, Grant
from service.core.model import Principal

ISSUERS = ["https://one.example", "local"]
WORDS = ["", "a", "ab", "abc", "b", "team-a", "team-b", "a@x", "a/b"]
PATTERNS = [*WORDS[1:], "*", "**", "a*", "team-*", "*a", "a**b", "team-*-x"]

words = st.sampled_from(WORDS)
patterns = st.lists(st.sampled_from(PATTERNS), max_size=2).map(tuple)
rules = st.one_of(
    st.builds(ClaimRule, equals=words),
    st.builds(ClaimRule, any_of=st.frozensets(words, min_size=1, max_size=2)),
    st.builds(ClaimRule, all_of=st.frozensets(words, min_size=1, max_size=2)),
    st.builds(ClaimRule, glob=st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=2).map(tuple)),
    st.builds(ClaimRule, equals=words, glob=st.just(("a*",))),
)
grants = st.builds(
    Grant,
    roles=st.lists(st.sampled_from(["viewer", "runner", "admin"]), min_size=1, max_size=2).map(tuple),
    issuer=st.sampled_from(ISSUERS),
    users=patterns,
    clients=patterns,
    groups=patterns,
    scopes=st.frozensets(words, max_size=2),
    claims=st.dictionaries(st.sampled_from(["c", "n.m"]), rules, max_size=2),
)
values = st.one_of(words, st.lists(words, max_size=3), st.booleans(), st.integers(0, 2), st.none())
principals = st.builds(
    Principal,
    issuer=st.sampled_from(ISSUERS),
    name=words,
    groups=st.lists(words, max_size=3).map(tuple),
    roles=st.just(()),
    scopes=st.frozensets(words, max_size=2),
)
claims = st.fixed_dictionaries({}, optional={"c": values, "n": st.dictionaries(st.just("m"), values), "azp": words})


def one_by_one(all_: list[Grant], principal: Principal, claims: dict[str, Any]) -> tuple[str, ...]:
    granted = [role for grant in all_ if not grant.unmet(principal, claims) for role in grant.roles]
    return tuple(dict.fromkeys(granted))


@given(st.lists(grants, max_size=6), principals, claims)
def test_it_finds_what_a_look_at_each_grant_finds(
    all_: list[Grant], principal: Principal, claims: dict[str, Any]
) -> None:
    assert GrantIndex(all_).roles_of(principal, claims) == one_by_one(all_, principal, claims)


def test_a_thousand_grants_cost_little_more_than_ten() -> None:
    """Bounded by what is looked at, and by time as well: a look at each of a thousand costs a hundred times as much."""
    looks = 0

    class Counting(Grant):
        def unmet(self, principal: Principal, claims: Any = ()) -> str:
            nonlocal looks
            looks += 1
            return super().unmet(principal, claims)

    def made(count: int) -> list[Grant]:
        kinds: list[dict[str, Any]] = [
            {"groups": ("team-{}",)},
            {"claims": {"repository": ClaimRule(equals="acme/{}")}},
            {"claims": {"sub": ClaimRule(glob=("repo:acme/{}:*",))}},
            {"users": ("svc-{}", "bot-{}")},
        ]
        return [Counting(("runner",), "local", **_filled(kinds[n % 4], n)) for n in range(count)]

    who = Principal("local", "svc-3", groups=("team-0", "staff"))
    proved = {"repository": "acme/1", "sub": "repo:acme/2:ref:refs/heads/main"}
    many, few = GrantIndex(made(1_000)), GrantIndex(made(10))
    assert many.roles_of(who, proved) == few.roles_of(who, proved) == ("runner",)
    looks = 0
    many.roles_of(who, proved)
    assert looks == 4
    times = [min(timeit.repeat(lambda one=one: one.roles_of(who, proved), number=200, repeat=5)) for one in (few, many)]
    assert times[1] < 10 * times[0]


def _filled(value: Any, number: int) -> Any:
    """Put a number into every {} of a value."""
    if isinstance(value, str):
        return value.format(number)
    if isinstance(value, tuple):
        return tuple(_filled(one, number) for one in value)
    if isinstance(value, ClaimRule):
        equals = None if value.equals is None else value.equals.format(number)
        return ClaimRule(equals=equals, glob=_filled(value.glob, number))
    return {name: _filled(one, number) for name, one in value.items()}
