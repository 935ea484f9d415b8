"""The sources of the configuration, merged; every problem at once, each by its key and where it came from."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard, get_args

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource

from service.adapters.environment import problems_of_environment
from service.core.mistakes import MistakeError
from service.settings.clouds import CloudError, read_place
from service.settings.fields import check_place, holds_secret, split
from service.settings.files import check_folder, read_toml, read_value
from service.settings.problems import Problem, draft_of, no_such_key, problems_of, variables_meant
from service.settings.schema import PREFIX, Settings

CONFIG: Final = PREFIX + "CONFIG"
SECRETS: Final = PREFIX + "SECRETS_FILE"
SESSION_KEY: Final = "_" + PREFIX + "SESSION_KEY"  # not for people: what `serve` makes, and its processes share
_SECRETS_DIR: Final = PREFIX + "SECRETS_DIR"
_OURS: Final = frozenset({CONFIG, SECRETS, _SECRETS_DIR})
_FILE: Final = "_FILE"
# what Kubernetes and Docker put into the environment beside a service that is named forward-auth
_SERVICE_LINK: Final = re.compile(PREFIX + r"(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT_\d+_(TCP|UDP|SCTP)(_.*)?)")
_LINK_VALUE: Final = re.compile(r"(tcp|udp|sctp)://")

_Layer = tuple[dict[str, Any], str]  # values, and the source they were taken from


class ConfigError(MistakeError):
    """A configuration that cannot be used, with every problem that was found; values are never quoted.

    ``draft`` is what is right of it, for a caller who can find more problems.
    """

    def __init__(self, problems: list[str], draft: Settings | None = None) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.draft = draft

    def report(self) -> str:
        """Return the problems, a line each."""
        return "\n".join(
            [f"The configuration has {len(self.problems)} problem(s):", *(f"  - {one}" for one in self.problems)]
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and for each key that was given the source it was taken from."""

    settings: Settings
    sources: Mapping[str, str]

    def source_of(self, key: str) -> str:
        """Return where a key's value was taken from, or an empty string for a default."""
        return _source_of(key, self.sources)


class _Variables(EnvSettingsSource):
    """pydantic-settings' reading of variables, from a mapping that is given."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._variables.items()}


def load(
    environ: Mapping[str, str] | None = None,
    command_line: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
    secrets_file: Path | None = None,
) -> Loaded:
    """Return the validated settings, or raise ConfigError with every problem.

    ``config_file`` and ``secrets_file`` (else FORWARD_AUTH_CONFIG and FORWARD_AUTH_SECRETS_FILE) must exist if they
    are named; ``forward-auth.toml`` in the working directory and ``secrets.toml`` beside it are read if they exist.
    """
    environ = os.environ if environ is None else environ
    problems = problems_of_environment(environ)
    plain, from_files = _variables(environ, problems)
    directory = _secrets_directory(environ, problems)
    config, named = config_path(environ, config_file)
    secrets, secrets_named = secrets_path(environ, config_file, secrets_file)
    unread = any(one.startswith(_SECRETS_DIR) for one in problems)
    before = len(problems)
    configured = read_toml(config, problems, needed=named), str(config)
    nearby = [  # weakest first, here and below
        (read_toml(secrets, problems, needed=secrets_named, private=True), str(secrets)),
        *_variable_layer(directory, "secrets directory, ", problems),
        *_variable_layer(from_files, "file named by ", problems, _FILE),
        *_variable_layer(plain, "environment, ", problems),
        (dict(command_line or {}), "command line"),
    ]
    layers = [_made(environ), configured, *_clouds([configured, *nearby], problems), *nearby]
    unread = unread or len(problems) > before
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for values, source in layers:
        _merge(merged, values, source, sources, "")
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        draft = draft_of(merged)
        meant = set() if unread else _meant(environ, from_files)
        found = _by_cause(problems_of(error), draft, None if unread else meant)
        raise ConfigError(problems + [_told(key, text, sources) for key, text in found], draft) from None
    if problems:
        raise ConfigError(problems, settings)
    return Loaded(settings, sources)


def _by_cause(found: Iterable[Problem], draft: Settings, meant: Collection[str] | None) -> Iterator[tuple[str, str]]:
    """Yield problems, each with its key, without those that others cause.

    ``meant`` are keys that were given, but cannot be read; None if a whole source cannot be read. Nothing is missing
    that could be there.
    """
    found = list(found)
    keys = set(Settings.model_fields) if meant is None else {*meant, *(one.meant for one in found)}
    yield from ((one.key, one.text) for one in found if not (one.is_missing and (meant is None or one.key in keys)))
    wrong = {one.key for one in found}
    unread = {key.partition(".")[0] for key in keys} | (wrong & set(Settings.model_fields))  # the whole of a table
    yield from ((key, text) for key, text in draft.contradictions(unread) if key not in wrong)


def _meant(environ: Mapping[str, str], from_files: Mapping[str, str]) -> set[str]:
    """Return the keys of variables that do not exist, or that name a file which cannot be read."""
    found: set[str] = set()
    for name in (name.upper() for name, value in environ.items() if value):
        if name.startswith(PREFIX) and not (name in _OURS or _SERVICE_LINK.fullmatch(name) or _known(name)):
            stem = name.removesuffix(_FILE)
            if stem not in from_files:
                found |= {stem} if _known(stem) else set(variables_meant(name))
    return {name.removeprefix(PREFIX).lower().replace("__", ".") for name in found}


def is_configured(environ: Mapping[str, str]) -> bool:
    """Tell whether there is any configuration to be read, right or wrong."""
    files = config_path(environ)[0], secrets_path(environ)[0]
    return any(path.exists() for path in files) or any(name.upper().startswith(PREFIX) for name in environ)


def _variables(environ: Mapping[str, str], problems: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split our variables into plain ones and those that name a file, whose content is read here."""
    plain: dict[str, str] = {}
    from_files: dict[str, str] = {}
    for name, value in environ.items():
        key = name.upper()
        if not key.startswith(PREFIX) or key in _OURS or not value:
            continue
        if _SERVICE_LINK.fullmatch(key) or (key == PREFIX + "PORT" and _LINK_VALUE.match(value)):
            continue
        if _known(key):
            plain[key] = value
        elif key.endswith(_FILE) and _known(key.removesuffix(_FILE)):
            private = holds_secret(_annotation(key.removesuffix(_FILE)))
            content = read_value(Path(value), name, problems, private=private)
            if content is not None:
                from_files[key.removesuffix(_FILE)] = content
        else:
            problems.append(f"{name}: {no_such_key(variables_meant(key))}")
    return plain, from_files


def _secrets_directory(environ: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    """Read the files of a secrets directory that are named like our variables, in any case; each must be private."""
    directory = environ.get(_SECRETS_DIR)
    if not directory:
        return {}
    found: dict[str, str] = {}
    try:
        private = check_folder(Path(directory), _SECRETS_DIR, problems)
        for path in sorted(Path(directory).iterdir()) if private else ():
            key = path.name.upper()
            if key.startswith(PREFIX) and path.is_file():
                if not _known(key):
                    problems.append(f"{path}: {no_such_key(variables_meant(key))}")
                elif (content := read_value(path, str(path), problems, private=True)) is not None:
                    found[key] = content
    except OSError as problem:
        problems.append(f"{_SECRETS_DIR}: {directory} cannot be read: {problem.strerror}")
    return found


def config_path(environ: Mapping[str, str], given: Path | None = None) -> tuple[Path, bool]:
    """Return the configuration file, and whether it was named."""
    named = given or (Path(environ[CONFIG]) if environ.get(CONFIG) else None)
    return named or Path("forward-auth.toml"), named is not None


def secrets_path(
    environ: Mapping[str, str], config_file: Path | None = None, given: Path | None = None
) -> tuple[Path, bool]:
    """Return the secrets file, and whether it was named."""
    named = given or (Path(environ[SECRETS]) if environ.get(SECRETS) else None)
    return named or config_path(environ, config_file)[0].with_name("secrets.toml"), named is not None


def _made(environ: Mapping[str, str]) -> _Layer:
    """Return what `serve` makes up where nothing is configured, and every process and every reload has to know."""
    key = environ.get(SESSION_KEY)
    return ({"session": {"keys": key}} if key else {}), "made at the start"


def lasting_keys(settings: Settings) -> tuple[str, ...]:
    """Return the session keys that were configured, and not the one that ends with the process."""
    made = os.environ.get(SESSION_KEY)
    return tuple(key for one in settings.session.keys if (key := one.get_secret_value()) != made)


def _clouds(layers: list[_Layer], problems: list[str]) -> Iterator[_Layer]:
    """Yield what the secrets managers hold that the strongest of these layers names."""
    named = split(next((values["secrets_from"] for values, _ in reversed(layers) if "secrets_from" in values), ()))
    for place in reversed(named if isinstance(named, list | tuple) else ()):
        try:
            found = read_place(check_place(str(place)))
        except CloudError as problem:
            problems.append(f"secrets_from: {place}: {problem}")
        except ValueError:
            pass  # told with all other values that are none
        else:
            problems += [f"{place}, {name}: {no_such_key(variables_meant(name))}" for name in found if not _known(name)]
            known = {name: value for name, value in found.items() if _known(name)}
            yield from _variable_layer(known, f"{place}, ", problems)


def _variable_layer(
    variables: Mapping[str, str], before: str, problems: list[str], after: str = ""
) -> Iterator[_Layer]:
    """Yield one layer a variable, so that each value knows the name it came under."""
    for name, value in variables.items():
        try:
            yield _Variables({name: value})(), f"{before}{name}{after}"
        except ValueError:
            problems.append(f"{name}: cannot be read")


def _known(name: str) -> bool:
    """Tell whether a variable's name is a key, or leads into one that takes any names."""
    return _annotation(name) is not None


def _annotation(name: str) -> Any:
    """Return the type of the key that a variable is named after, or None where there is no such key."""
    section: type[BaseModel] = Settings
    annotation: Any = None
    for part in name.removeprefix(PREFIX).lower().split("__"):
        field = section.model_fields.get(part)
        if field is None:
            return None
        below = next((one for one in (field.annotation, *get_args(field.annotation)) if _is_section(one)), None)
        if below is None:
            return field.annotation
        section, annotation = below, field.annotation
    return annotation


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _merge(into: dict[str, Any], values: Mapping[str, Any], source: str, sources: dict[str, str], at: str) -> None:
    for key, value in values.items():
        path = f"{at}{key}"
        if isinstance(value, Mapping):
            below = into.get(key)
            into[key] = below if isinstance(below, dict) else {}
            _merge(into[key], value, source, sources, f"{path}.")
        else:
            into[key] = value
            sources[path] = source


def _told(key: str, text: str, sources: Mapping[str, str]) -> str:
    source = _source_of(key, sources)
    return (f"{key}: {text}" if key else text) + (f" ({source})" if source else "")


def _source_of(key: str, sources: Mapping[str, str]) -> str:
    """Return the source of a key, of the nearest key above it that was given as a whole, or of the keys below it."""
    parts = key.split(".")
    above = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    below = sorted({source for one, source in sources.items() if one.startswith(f"{key}.")})
    return next((sources[one] for one in above if one in sources), "") or " and ".join(below)
