"""Patterns: what they are met by, and whether two of them can be met at once."""

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.globs import matches_any, patterns_overlap

SMALL = ["".join(one) for length in range(5) for one in product("ab/", repeat=length)]
PATTERNS = st.lists(st.sampled_from(["a", "b", "/", "*", "**"]), max_size=4).map("".join)


@given(PATTERNS, PATTERNS)
def test_two_patterns_overlap_if_some_value_meets_both(one: str, other: str) -> None:
    """What two short patterns have in common shows in a short value."""
    one, other = (re.sub(r"\*{3,}", "**", pattern) for pattern in (one, other))
    assert patterns_overlap(one, other) == patterns_overlap(other, one)
    if any(matches_any([one], value) and matches_any([other], value) for value in SMALL):
        assert patterns_overlap(one, other)
    elif len(one.replace("*", "")) + len(other.replace("*", "")) <= 4:
        assert not patterns_overlap(one, other)


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
    ],
)
def test_examples(one: str, other: str, both: bool) -> None:  # noqa: FBT001
    assert patterns_overlap(one, other) is both
