"""Patterns in configuration: ``*`` matches any text without ``/``, ``:`` and ``@``; ``**`` matches any text.

So ``*@example.com`` does not match ``a@evil.example@example.com``, and ``repo:acme/*`` does not match
``repo:acme/app:main``. Every other character matches itself, and case counts.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

_PARTS: Final = re.compile(r"(\*\*|\*)")
_MEANING: Final = {"*": "[^/:@]*", "**": ".*"}


@lru_cache(maxsize=1024)  # patterns come from configuration alone
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("".join(_MEANING.get(part) or re.escape(part) for part in _PARTS.split(pattern)), re.DOTALL)


def literal_prefix(pattern: str) -> str:
    """Return what every value that matches the pattern begins with."""
    return pattern.partition("*")[0]


def patterns_overlap(one: str, other: str) -> bool:
    """Tell whether some value matches both patterns."""
    return _overlap(tuple(_parts_of(one)), tuple(_parts_of(other)))


def _parts_of(pattern: str) -> Iterator[str]:
    """Yield the wildcards, and every other character by itself."""
    for part in _PARTS.split(pattern):
        yield from [part] if part in _MEANING else part


@lru_cache(maxsize=4096)
def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    if not one or not other:
        return all(part in _MEANING for part in one or other)
    if one[0] not in _MEANING and other[0] not in _MEANING:
        return one[0] == other[0] and _overlap(one[1:], other[1:])
    for wild, text in ((one, other), (other, one)):
        if wild[0] in _MEANING and (
            _overlap(wild[1:], text) or (_consumes(wild[0], text[0]) and _overlap(wild, text[1:]))
        ):
            return True
    return False


def _consumes(wildcard: str, part: str) -> bool:
    return part not in _MEANING and (wildcard == "**" or part not in "/:@")


def matches_any(patterns: Iterable[str], value: str) -> bool:
    """Tell whether one of the patterns matches the whole value."""
    return any(_compiled(pattern).fullmatch(value) for pattern in patterns)
