"""Patterns in configuration: ``*`` matches any text without ``/``, ``:`` and ``@``; ``**`` matches any text.

So ``*@example.com`` does not match ``a@evil.example@example.com``, and ``repo:acme/*`` does not match
``repo:acme/app:main``. Every other character matches itself, and case counts. Values come from strangers, so none may
be slow to match: the time is at most proportional to the length of the pattern times the length of the value, and a
value longer than ``MAX_LENGTH`` matches nothing.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

MAX_LENGTH: Final = 1024  # characters of a value, and of a pattern in a configuration

_WILDCARD: Final = re.compile(r"(\*+)")
_WITHIN_A_WORD: Final = "[^/:@]*"
_ANY_TEXT: Final = ".*"
_BOUNDARIES: Final = frozenset("/:@")


def matches_any(patterns: Iterable[str], value: str) -> bool:
    """Tell whether the whole value matches one of the patterns."""
    return len(value) <= MAX_LENGTH and any(_matcher(pattern)(value) for pattern in patterns)


def literal_prefix(pattern: str) -> str:
    """Return what every value that matches the pattern begins with."""
    return pattern.partition("*")[0]


def patterns_overlap(one: str, other: str) -> bool:
    """Tell whether some value, however long, matches both patterns."""
    ours, theirs = _States(one), _States(other)
    seen = {(0, 0)}
    waiting = [(0, 0)]  # how many literal characters of either have been matched by one and the same text
    while waiting:
        i, j = waiting.pop()
        if i == ours.last and j == theirs.last:
            return True
        mine = ours.text[i : i + 1]
        yours = theirs.text[j : j + 1]
        following = (
            (i + 1, j + 1) if mine and mine == yours else None,
            (i + 1, j) if mine and theirs.stays(j, mine) else None,
            (i, j + 1) if yours and ours.stays(i, yours) else None,
        )
        for pair in following:
            if pair is not None and pair not in seen:
                seen.add(pair)
                waiting.append(pair)
    return False


@lru_cache(maxsize=8192)  # patterns come from configuration alone
def _matcher(pattern: str) -> Callable[[str], object]:
    """Return what is true of a value that matches. With one wildcard, a regular expression has nothing to try twice."""
    match _WILDCARD.split(pattern):
        case [_]:
            return pattern.__eq__
        case [before, wildcard, after]:
            meaning = _WITHIN_A_WORD if wildcard == "*" else _ANY_TEXT
            return re.compile(f"{re.escape(before)}{meaning}{re.escape(after)}", re.DOTALL).fullmatch
        case _:
            return _States(pattern).match


class _States:
    """A pattern as an automaton: state n is reached when the first n literal characters have been matched.

    A wildcard stands at a state, which then stays through what the wildcard takes. A set of states is an integer, one
    bit each, so that a character takes all of them one step further at once.
    """

    def __init__(self, pattern: str) -> None:
        parts = _WILDCARD.split(pattern)
        self.text = "".join(parts[::2])
        self.last = len(self.text)
        self._any_text = self._within_a_word = 0
        state = 0
        for literal, wildcard in zip(parts[::2], [*parts[1::2], ""], strict=True):
            state += len(literal)
            self._within_a_word |= (wildcard != "") << state
            self._any_text |= (len(wildcard) > 1) << state
        self._leading_to: dict[str, int] = {}
        for number, character in enumerate(self.text, start=1):
            self._leading_to[character] = self._leading_to.get(character, 0) | 1 << number

    def stays(self, state: int, character: str) -> bool:
        """Tell whether a wildcard at a state takes a character."""
        return bool((self._any_text if character in _BOUNDARIES else self._within_a_word) >> state & 1)

    def match(self, value: str) -> bool:
        """Tell whether the pattern matches the whole value."""
        states = 1
        for character in value:
            staying = self._any_text if character in _BOUNDARIES else self._within_a_word
            states = states << 1 & self._leading_to.get(character, 0) | states & staying
            if not states:
                return False
        return bool(states >> self.last)
