"""Values as TOML 1.0 writes them."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import SecretStr

MASK: Final = "********"
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")


def toml_value(value: Any) -> str:
    """Return a value on one line; what is no number, list or table is text. A secret is masked."""
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{toml_key(name)} = {toml_value(member)}" for name, member in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple | frozenset):
        members = sorted(value, key=str) if isinstance(value, frozenset) else value
        return "[" + ", ".join(map(toml_value, members)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(int(value) if value == int(value) else value)
    return _text(MASK if isinstance(value, SecretStr) else str(value))


def toml_key(name: str) -> str:
    """Return a key, in quotes where it needs them."""
    return name if _BARE.fullmatch(name) else _text(name)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # the one control that JSON leaves as it is
