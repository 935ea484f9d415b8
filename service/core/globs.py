"""Patterns in configuration: ``*`` is any text without ``/``, ``:`` and ``@``, ``**`` any text at all.

So ``*@example.com`` is not met by ``a@evil.example@example.com``, and ``repo:acme/*`` not by what follows the name.
Every other character stands for itself; case counts.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

_PARTS: Final = re.compile(r"(\*\*|\*)")
_MEANING: Final = {"*": "[^/:@]*", "**": ".*"}


@lru_cache(maxsize=1024)  # patterns come from configuration alone
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("".join(_MEANING.get(part) or re.escape(part) for part in _PARTS.split(pattern)), re.DOTALL)


def met(patterns: Iterable[str], value: str) -> bool:
    """Tell whether the whole value meets one of the patterns."""
    return any(_compiled(pattern).fullmatch(value) for pattern in patterns)
