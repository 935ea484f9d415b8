"""The settings in force as a configuration file, each value with its source."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from service.settings.fields import Section
from service.settings.load import Loaded
from service.settings.toml import toml_key, toml_value


def shown(loaded: Loaded) -> Iterator[str]:
    """Yield the lines of a file that means the same; secrets are masked, and what is not set is a comment."""
    return _table(loaded, loaded.settings, "", "")


def _table(loaded: Loaded, section: BaseModel, header: str, at: str) -> Iterator[str]:
    """Yield a table's own keys, and the tables below it after them, as TOML demands.

    ``header`` and ``at`` are what stands before a key: in a table's name, and in the name of a source.
    """
    below: list[str] = []
    for name in type(section).model_fields:
        value, given = getattr(section, name), name in section.model_fields_set
        table, key = f"{header}{toml_key(name)}", f"{at}{name}"
        source = loaded.source_of(key) if given else ""
        if isinstance(value, BaseModel):
            below += ["", f"[{table}]", *_table(loaded, value, f"{table}.", f"{key}.")]
        elif _holds_tables(value):
            named = isinstance(value, Mapping)
            for member, one in value.items() if named else enumerate(value):
                inner = f"{table}.{toml_key(str(member))}" if named else table
                below += ["", f"[{inner}]" if named else f"[[{inner}]]"]
                below += _table(loaded, one, f"{inner}.", f"{key}.{member}.")
        elif given or (value is not None and value not in ("", (), frozenset(), {})):
            yield f"{toml_key(name)} = {toml_value(value)}  # {source or _default_of(section, name)}"
        else:
            yield f"# {name} is not set"
    yield from below


def _default_of(section: BaseModel, name: str) -> str:
    """Return whose default the value of a key is."""
    given = {one: getattr(section, one) for one in section.model_fields_set}
    brought = isinstance(section, Section) and name in section.defaults_for(given)
    return f"preset {given['preset']}" if brought else "default"


def _holds_tables(value: Any) -> bool:
    members = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else ()
    return bool(members) and all(isinstance(one, BaseModel) for one in members)
