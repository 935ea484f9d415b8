"""Hooks for ``json`` that refuse what two readers of one document could understand differently (RFC 8259 §4, §6)."""

from typing import Any, Never


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members of an object, as an ``object_pairs_hook``. Raises ValueError if a name is repeated."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError  # one reader takes the last, another the first
    return members


def no_constant(_name: str) -> Never:
    """Raise ValueError for NaN and the infinities, as a ``parse_constant``: they are no JSON."""
    raise ValueError
