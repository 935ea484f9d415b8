"""What is wrong with a configuration, in sentences: each with its key, what the key takes, and an example of that."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, Literal, TypeGuard, TypeVar, get_args, get_origin

from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from service.core.errors import UnusableError
from service.rendering.sentences import sentence
from service.settings.fields import Section, json_value
from service.settings.schema import PREFIX, Settings
from service.settings.toml import toml_value

_MOST_SUGGESTIONS: Final = 3
_LISTS: Final = (tuple, frozenset, list)
_KEY: Final = "[key]"  # how pydantic marks a key of a table that takes any names
_NAME: Final = FieldInfo(annotation=str, examples=["night"])  # what such a key could be
_Section = TypeVar("_Section", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of one key.

    ``meant`` is the key that an unknown one probably stands for. A key ``is_missing`` if it is needed and not there.
    """

    key: str
    text: str
    meant: str = ""
    is_missing: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the settings a value belongs: its key, the type of that, and the field that says more about it."""

    path: tuple[str, ...]
    annotation: Any
    metadata: Sequence[Any]
    field: FieldInfo | None

    @property
    def key(self) -> str:
        return ".".join(self.path)


def problems_of(error: ValidationError) -> Iterator[Problem]:
    """Yield the problem of each key, in our words, without its value; contradictions between keys are not told here."""
    told = set()
    for one in error.errors(include_input=False, include_url=False):
        if one["loc"] and (problem := _problem(one)) not in told:  # several wrong members of a list are one problem
            told.add(problem)
            yield problem


def no_such_key(meant: Sequence[str]) -> str:
    """Return what is said of a key that does not exist, with those that it could stand for."""
    return f"no such key; did you mean {' or '.join(meant)}?" if meant else "no such key (see docs/configuration.md)"


def keys_meant(path: Sequence[str]) -> list[str]:
    """Return the keys that one which does not exist could stand for: a similar one of its table, or its namesakes."""
    *above, name = path
    section = _bare(_place(above).annotation)
    if _is_section(section):
        similar = get_close_matches(name, section.model_fields, n=1)
        if similar:
            return [".".join([*above, *similar])]
    found = [key for key in _keys(Settings, "") if key.rpartition(".")[2] == name]
    return found if len(found) <= _MOST_SUGGESTIONS else []


def variables_meant(variable: str) -> list[str]:
    """Return the variables that one which does not exist could stand for."""
    path: list[str] = []
    for part in variable.removeprefix(PREFIX).lower().split("__"):
        section = _bare(_place(path).annotation)
        if not _is_section(section):
            return []
        known = part in section.model_fields
        similar = [part] if known else get_close_matches(part, section.model_fields, n=1)
        if not similar:
            return []
        path += similar
    return [PREFIX + "__".join(path).upper()]


def draft_of(values: Mapping[str, Any]) -> Settings:
    """Return settings in which a value that is wrong counts as not given, so that one can look for more problems.

    A needed key that is wrong is empty. These settings are good for nothing else.
    """
    return _draft(Settings, values)


# what a key takes -----------------------------------------------------------------------------------------


def _problem(error: Mapping[str, Any]) -> Problem:
    place = _place(error["loc"])
    cause = error.get("ctx", {}).get("error")
    match error["type"]:
        case "extra_forbidden":
            meant = keys_meant(place.path)
            return Problem(place.key, no_such_key(meant), meant[0] if meant else "")
        case "missing":
            return Problem(place.key, f"this key is needed: {_expected(place)}", is_missing=True)
        case "value_error":  # one of ours; the core's errors have no words
            return Problem(place.key, sentence(cause.cause) if isinstance(cause, UnusableError) else str(cause))
        case _:
            return Problem(place.key, f"expected {_expected(place)}")


def _expected(place: _Place) -> str:
    """Return what a key takes, with an example."""
    kind = _bare(place.annotation)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(toml_value, get_args(kind)))}"
    if kind is bool:
        return "true or false"
    what = _what(kind, place.metadata)
    return f"{what}, such as {toml_value(_example(place, kind))}"


def _what(kind: Any, metadata: Sequence[Any]) -> str:
    if kind in {int, float}:
        return f"a {'whole ' if kind is int else ''}number {_range(metadata)}".rstrip()
    if kind is Path:
        return "a path"
    as_json = " (JSON in a variable)" if any(one is json_value for one in _of(metadata, "func")) else ""
    if _is_section(kind) or get_origin(kind) is dict:
        return f"a table{as_json}"
    if get_origin(kind) in _LISTS:
        return f"a list of {'tables' if _is_section(get_args(kind)[0]) else 'texts'}{as_json}"
    return f"text{_length(metadata)}"


def _range(metadata: Sequence[Any]) -> str:
    limits = {name: toml_value(value) for name in ("gt", "ge", "le") for value in _of(metadata, name)}
    least = f"above {limits['gt']} and up to" if "gt" in limits else f"from {limits.get('ge', '0')} to"
    return f"{least} {limits['le']}" if "le" in limits else ""


def _length(metadata: Sequence[Any]) -> str:
    most = "".join(f" of at most {value} characters" for value in _of(metadata, "max_length"))
    kind = " (letters, digits, _, . and -)" if [*_of(metadata, "pattern")] else ""
    return most + kind or "".join(" that is not empty" for _ in _of(metadata, "min_length"))


def _of(metadata: Sequence[Any], name: str) -> Iterator[Any]:
    return (value for one in metadata if (value := getattr(one, name, None)) is not None)


def _example(place: _Place, kind: Any) -> Any:
    field = place.field
    if field is not None and _bare(field.annotation) is kind:
        if field.examples:
            return field.examples[0]
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if default not in (None, "", (), frozenset(), {}) and not isinstance(default, BaseModel):
            return default
    elif field is not None and field.examples and isinstance(field.examples[0], dict):
        return next(iter(field.examples[0].values()))  # the value of one name in a table of any names
    if _is_section(kind):
        needed = _needed(kind)
        return {name: _example(_Place((), one.annotation, (), one), _bare(one.annotation)) for name, one in needed}
    if get_origin(kind) in _LISTS:
        (of, *_) = get_args(kind)
        return [_example(_Place((), of, (), None), of)] if _is_section(of) else ["a", "b"]
    if get_origin(kind) is dict:
        return {"name": ["a", "b"]}
    return "text"


def _needed(section: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """Return the keys that an example of a table has: those that are needed, or else the first."""
    fields = list(section.model_fields.items())
    return [one for one in fields if one[1].is_required()] or fields[:1]


# where a value belongs ------------------------------------------------------------------------------------


def _place(location: Sequence[str | int]) -> _Place:
    """Follow a location, as pydantic gives it, to its key; a member of a list of texts belongs to the list's key."""
    path: list[str] = []
    annotation: Any = Settings
    metadata: Sequence[Any] = ()
    field: FieldInfo | None = None
    names: Any = None
    for part in location:
        kind = _bare(annotation)
        if part == _KEY:
            return _Place(tuple(path), names, _metadata(names), _NAME)
        if _is_section(kind):
            field = kind.model_fields.get(str(part))
            annotation, metadata = (None, ()) if field is None else (field.annotation, field.metadata)
        elif get_origin(kind) is dict:
            names, annotation = get_args(kind)
            metadata = _metadata(annotation)
        elif get_origin(kind) in _LISTS and _is_section(get_args(kind)[0]):
            annotation, metadata = get_args(kind)[0], ()
        else:
            break
        path.append(str(part))
    return _Place(tuple(path), annotation, metadata, field)


def _bare(annotation: Any) -> Any:
    """Return a type without its metadata, and without None."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    members = [one for one in get_args(annotation) if one is not NoneType]
    if NoneType in get_args(annotation) and len(members) == 1:
        return _bare(members[0])
    return str if annotation is SecretStr else annotation


def _metadata(annotation: Any) -> Sequence[Any]:
    if get_origin(annotation) is not Annotated:
        return ()
    return [one for given in get_args(annotation)[1:] for one in (getattr(given, "metadata", None) or [given])]


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _keys(section: type[BaseModel], at: str) -> Iterator[str]:
    """Yield every key that has one place: those of single tables."""
    for name, field in section.model_fields.items():
        yield f"{at}{name}"
        if _is_section(kind := _bare(field.annotation)):
            yield from _keys(kind, f"{at}{name}.")


# drafts ---------------------------------------------------------------------------------------------------


def _draft(section: type[_Section], values: Any) -> _Section:
    given = values if isinstance(values, Mapping) else {}
    if issubclass(section, Section):
        given = {**section.defaults_for(given), **given}
    found = {name: _good(field, given.get(name)) for name, field in section.model_fields.items() if name in given}
    empty = {name: "" for name, field in section.model_fields.items() if field.is_required()}
    return section.model_construct(**{**empty, **{name: value for name, value in found.items() if value is not None}})


def _good(field: FieldInfo, value: Any) -> Any:
    """Return a value as the settings hold it, or None if it is wrong."""
    kind = _bare(field.annotation)
    if _is_section(kind):
        return _draft(kind, value)
    *_, below = get_args(kind) if get_origin(kind) is dict else (get_args(kind) or (None,))[:1]
    if _is_section(below):
        if isinstance(value, str):
            value = json_value(value)
        if isinstance(value, Mapping) and get_origin(kind) is dict:
            return {name: _draft(below, one) for name, one in value.items()}
        if isinstance(value, list) and get_origin(kind) is tuple:
            return tuple(_draft(below, one) for one in value)
        return None
    type_: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    try:
        return TypeAdapter(type_).validate_python(value)
    except ValidationError:
        return None
