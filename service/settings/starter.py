"""The two files to begin with: each key with its meaning and its default, written from the settings themselves."""

import os
import secrets
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from service.settings.fields import holds_secret
from service.settings.schema import Settings
from service.settings.toml import toml_value

CONFIG_MODE: Final = 0o644
SECRETS_MODE: Final = 0o600
_WIDTH: Final = 100
_CONFIG: Final = """\
# Configuration of prefect-forward-auth. A key behind '#' shows its default, or an empty value if it has none. To change
# a key, remove its '#' and that of the [table] above it. `prefect-forward-auth config check` lists every mistake at
# once. On SIGHUP a running service reads the file again.
"""
_SECRETS: Final = """\
# Secrets of prefect-forward-auth. Only the owner of this file may read it (chmod 600).
# `prefect-forward-auth config edit-secrets` changes it safely. Any other key may be here, too.
"""


def config_text() -> str:
    """Return a configuration file in which every key but the secrets is commented out."""
    return "\n".join([_CONFIG, *_table(Settings, "", lambda field: not _is_secret(field), {})]).rstrip() + "\n"


def secrets_text() -> str:
    """Return a secrets file with a new key for sessions, and every other secret commented out."""
    made = {"session.keys": [secrets.token_urlsafe(32)]}
    return "\n".join([_SECRETS, *_table(Settings, "", _is_secret, made)]).rstrip() + "\n"


def write_new(path: Path, text: str, mode: int) -> bool:
    """Write a file that is not there yet, and tell whether it was not; one that is there stays as it is."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def _table(
    section: type[BaseModel], at: str, wanted: Callable[[FieldInfo], bool], made: Mapping[str, Any]
) -> list[str]:
    """Return the lines of a table: its own keys, then the tables below it (TOML would have it so)."""
    keys: list[str] = []
    tables: list[str] = []
    for name, field in section.model_fields.items():
        path, below, many = f"{at}{name}", _below(field.annotation), _is_many(field.annotation)
        if below is None and wanted(field):
            line = f"{name} = {toml_value(made.get(path, _default(field)))}"
            keys += [*_comment(field), line if path in made else f"#{line}", ""]
        elif below is not None and many and wanted(field):
            keys += [*_comment(field), ""]
        elif below is not None and not many:
            inner = _table(below, f"{path}.", wanted, made)
            if inner:
                given = any(one.startswith(f"{path}.") for one in made)
                tables += [*_comment(field), f"[{path}]" if given else f"#[{path}]", "", *inner]
    return keys + tables


def _comment(field: FieldInfo) -> list[str]:
    needed = " Required in this table." if field.is_required() else ""
    return [f"# {line}" for line in textwrap.wrap(f"{field.description or ''}{needed}", _WIDTH)]


def _below(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a key leads into, if it leads into one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _below(one)) is not None), None)


def _is_many(annotation: Any) -> bool:
    return get_origin(annotation) in {tuple, dict}


def _is_secret(field: FieldInfo) -> bool:
    return holds_secret(field.annotation)


def _default(field: FieldInfo) -> Any:
    """Return the default, or what stands for a value of the key's type where there is none."""
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if default is None and get_origin(field.annotation) is frozenset:
        return []
    return default if default is not None else bool in get_args(field.annotation) or ""
