"""Patterns: what matches them, whether two of them can match one value, and what that may cost."""

import re
import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.globs import MAX_LENGTH, matches_any, patterns_overlap

SMALL = ["".join(one) for length in range(5) for one in product("ab/", repeat=length)]
PIECES = st.sampled_from(["a", "b", "/", ".", "\n", "*", "**"])
PATTERNS = st.lists(PIECES, max_size=7).map("".join)
VALUES = st.text(st.sampled_from("ab/:@.*\n"), max_size=8)
SHORT = st.lists(st.sampled_from(["a", "b", "/", "*", "**"]), max_size=4).map("".join)


def expected(pattern: str, value: str) -> bool:
    """Say it by a regular expression, as plainly as can be."""
    meaning = {"*": "[^/:@]*", "**": ".*"}
    parts = (meaning.get(part) or re.escape(part) for part in re.split(r"(\*\*|\*)", pattern))
    return re.fullmatch("".join(parts), value, re.DOTALL) is not None


@given(PATTERNS, VALUES)
def test_a_value_matches_as_the_regular_expression_says(pattern: str, value: str) -> None:
    assert matches_any([pattern], value) is expected(pattern, value)


@given(PATTERNS, st.data())
def test_a_value_that_is_made_to_match_does(pattern: str, data: st.DataObject) -> None:
    fill = {"*": st.text("ab.", max_size=3), "**": st.text("ab/:@", max_size=3)}
    value = "".join(data.draw(fill[part]) if part in fill else part for part in re.split(r"(\*\*|\*)", pattern))
    assert matches_any([pattern], value)


@given(SHORT, SHORT)
def test_two_patterns_overlap_if_some_value_matches_both(one: str, other: str) -> None:
    """What two short patterns have in common shows in a short value."""
    one, other = (re.sub(r"\*{3,}", "**", pattern) for pattern in (one, other))
    assert patterns_overlap(one, other) == patterns_overlap(other, one)
    if any(matches_any([one], value) and matches_any([other], value) for value in SMALL):
        assert patterns_overlap(one, other)
    elif len(one.replace("*", "")) + len(other.replace("*", "")) <= 4:
        assert not patterns_overlap(one, other)


@pytest.mark.parametrize(
    ("pattern", "value", "matches"),
    [
        ("alice", "alice", True),
        ("alice", "alice2", False),
        ("a.c", "abc", False),
        ("*", "", True),
        ("*", "a/b", False),
        ("*@example.com", "alice@example.com", True),
        ("*@example.com", "a@evil.example@example.com", False),
        ("repo:acme/*", "repo:acme/flows", True),
        ("repo:acme/*", "repo:acme/flows:ref:x", False),
        ("repo:acme/**", "repo:acme/flows:ref:x", True),
        ("team-*-*-prod", "team-a-b-prod", True),
        ("team-*-*-prod", "team-a-prod", False),
        ("team-*-*-prod", "team-a/b-prod", False),
        ("**/x*y", "a/x/xy", True),
        ("ab*bc", "abc", False),
        ("ab*b*bc", "abbc", False),
        ("**:*", "a:b:c", True),
        ("***", "a/b", True),
        ("a*b*", "ab\n", True),
    ],
)
def test_examples(pattern: str, value: str, matches: bool) -> None:  # noqa: FBT001
    assert matches_any(["nothing", pattern], value) is matches
    assert not matches_any([], value)


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("prefect-*", "*-night", True),
        ("prefect-*", "ci-*", False),
        ("*", "a@b", False),
        ("**", "a@b", True),
        ("*@example.com", "**", True),
        ("*@a.example", "*@b.example", False),
        ("a.c", "abc", False),
        ("", "*", True),
        ("", "a", False),
        ("*a*b*", "*b*a*", True),
        ("*a/b", "a*/b", True),
    ],
)
def test_examples_of_overlap(one: str, other: str, both: bool) -> None:  # noqa: FBT001
    assert patterns_overlap(one, other) is both


# what it may cost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        ("team-*-*-*-prod", "team-" + "-" * 1200),
        ("team-*-*-*-*-*-*-prod", "team-" + "-" * 1000),
        ("*a*a*a*a*a*a*a*a*b", "a" * 1000),
        ("**a**a**a**a**a**a**b", "a" * 1000),
        ("**/*/**/*/**x", "/" * 1000),
        ("**a*b**a*b**a*b**c", "ab" * 500),
        ("*" + "?*" * 300 + "!", "?" * 1000),
        ("*-*" * 300, "-" * 1000),
        ("*" * 999, "a" * 1000),
    ],
)
def test_no_value_makes_a_pattern_slow(pattern: str, value: str) -> None:
    began = time.process_time()
    matches_any([pattern], value)
    assert time.process_time() - began < 1


@given(st.lists(st.sampled_from(["*", "**", "-", "a"]), min_size=20, max_size=40).map("".join), st.sampled_from("-a"))
def test_no_pattern_is_slow_for_any_value(pattern: str, character: str) -> None:
    began = time.process_time()
    matches_any([pattern], character * 1000 + "!")
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a" * 1000 + "*", "a" * 1000 + "b*"),
        ("*a" * 500, "*b" * 500),
        ("**a" * 300, "*b" * 500),
        ("*" * 1000, "*" * 1000),
        ("*a" * 500, "a" * 1000),
    ],
)
def test_long_patterns_are_compared_in_a_bounded_time(one: str, other: str) -> None:
    began = time.process_time()
    patterns_overlap(one, other)
    assert time.process_time() - began < 20


def test_long_patterns_are_compared_rightly() -> None:
    assert patterns_overlap("a" * 1000 + "*", "*" + "a" * 1000)
    assert not patterns_overlap("a" * 1000 + "*", "b" + "*a" * 400)
    assert patterns_overlap("*a" * 500, "*b" * 400 + "a")


def test_a_value_beyond_the_bound_matches_nothing() -> None:
    for pattern in ("**", "*", "a*", "*a*a*", "a" * (MAX_LENGTH + 1)):
        assert not matches_any([pattern], "a" * (MAX_LENGTH + 1))
    for pattern in ("**", "*", "a*", "*a*a*", "a" * MAX_LENGTH):
        assert matches_any([pattern], "a" * MAX_LENGTH)
