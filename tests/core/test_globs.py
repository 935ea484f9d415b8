"""Patterns: what they are met by, and whether two of them can be met at once."""

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.globs import met, overlap

SMALL = ["".join(one) for length in range(5) for one in product("ab/", repeat=length)]
PATTERNS = st.lists(st.sampled_from(["a", "b", "/", "*", "**"]), max_size=4).map("".join)


@given(PATTERNS, PATTERNS)
def test_two_patterns_overlap_if_some_value_meets_both(one: str, other: str) -> None:
    """What two short patterns have in common shows in a short value."""
    one, other = (re.sub(r"\*{3,}", "**", pattern) for pattern in (one, other))
    assert overlap(one, other) == overlap(other, one)
    if any(met([one], value) and met([other], value) for value in SMALL):
        assert overlap(one, other)
    elif len(one.replace("*", "")) + len(other.replace("*", "")) <= 4:
        assert not overlap(one, other)


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
    assert overlap(one, other) is both
