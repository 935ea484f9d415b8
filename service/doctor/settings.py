"""The settings that Prefect would have on this machine, and where each comes from. Prefect is not imported.

Its order, the strongest first: the environment, ``.env``, ``prefect.toml``, ``pyproject.toml``, the active profile. The
files are those of the working directory.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dotenv import dotenv_values

URL: Final = "PREFECT_API_URL"
KEY: Final = "PREFECT_API_KEY"
AUTH_STRING: Final = "PREFECT_API_AUTH_STRING"
HEADERS: Final = "PREFECT_CLIENT_CUSTOM_HEADERS"
CA_FILE: Final = "PREFECT_API_SSL_CERT_FILE"
UNVERIFIED: Final = "PREFECT_API_TLS_INSECURE_SKIP_VERIFY"
UI_URL: Final = "PREFECT_UI_URL"
_IN_TOML: Final = {
    URL: ("api", "url"),
    KEY: ("api", "key"),
    AUTH_STRING: ("api", "auth_string"),
    HEADERS: ("client", "custom_headers"),
    CA_FILE: ("api", "ssl_cert_file"),
    UNVERIFIED: ("api", "tls_insecure_skip_verify"),
    UI_URL: ("ui_url",),
}
_ON: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_PROFILES: Final = "PREFECT_PROFILES_PATH"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting in force, and the source that it has it from. It may be a secret."""

    text: str = field(repr=False)
    source: str


@dataclass(frozen=True, slots=True)
class PrefectSettings:
    """The settings in force, by the name of their variable; ``problems`` are files that cannot be read."""

    settings: Mapping[str, Setting]
    problems: tuple[str, ...]

    def text(self, name: str) -> str:
        """Return a setting, or an empty string; Prefect treats an empty one as none."""
        found = self.settings.get(name)
        return found.text if found is not None else ""

    def is_on(self, name: str) -> bool:
        """Tell whether a switch is on, in the words that Prefect takes for it."""
        return self.text(name).lower() in _ON

    def source(self, name: str) -> str:
        """Return the source of a setting."""
        found = self.settings.get(name)
        return found.source if found is not None else ""


def read_settings(environ: Mapping[str, str], folder: Path, home: Path) -> PrefectSettings:
    """Return what Prefect would use with this environment, when started in ``folder`` by the owner of ``home``."""
    problems: list[str] = []
    variables = {name.upper(): value for name, value in environ.items()}
    dotenv = _dotenv(folder / ".env", problems)
    project = _toml(folder / "prefect.toml", problems)
    package = _below(_toml(folder / "pyproject.toml", problems), "tool", "prefect")
    profile, profile_source = _profile(
        environ, _profiles_path(environ, dotenv, project, package, folder, home), problems
    )
    layers: list[tuple[Mapping[str, Any], str]] = [
        (variables, "the environment"),
        (dotenv, ".env"),
        (_of_tables(project), "prefect.toml"),
        (_of_tables(package), "pyproject.toml"),
        (profile, profile_source),
    ]
    found: dict[str, Setting] = {}
    for values, source in reversed(layers):
        for name in (one for one in _IN_TOML if values.get(one) is not None):
            text = _text(values[name])
            below = found[name].text if name == HEADERS and name in found else ""
            found[name] = Setting(_merged(below, text) if below else text, source)
    return PrefectSettings(found, tuple(problems))


def _profiles_path(
    environ: Mapping[str, str],
    dotenv: Mapping[str, str],
    project: Mapping[str, Any],
    package: Mapping[str, Any],
    folder: Path,
    home: Path,
) -> Path:
    named = (environ.get(_PROFILES), dotenv.get(_PROFILES), project.get("profiles_path"), package.get("profiles_path"))
    path = next((one for one in named if one), None)
    if path is not None:
        return folder / str(path)
    return (folder / environ["PREFECT_HOME"] if environ.get("PREFECT_HOME") else home / ".prefect") / "profiles.toml"


def _profile(environ: Mapping[str, str], path: Path, problems: list[str]) -> tuple[Mapping[str, Any], str]:
    """Return the active profile and its name; that of a fresh installation has none of these settings."""
    document = _toml(path, problems)
    name = environ.get("PREFECT_PROFILE") or document.get("active")
    profile = _below(document, "profiles", str(name))
    if name and not profile and environ.get("PREFECT_PROFILE"):
        problems.append(f"PREFECT_PROFILE names {name!r}, which {path} does not have")
    return profile, f"the profile {name!r} of {path}"


def _dotenv(path: Path, problems: list[str]) -> dict[str, str]:
    try:
        found = dotenv_values(path) if path.is_file() else {}
    except (OSError, UnicodeDecodeError) as problem:
        problems.append(f"{path} cannot be read: {getattr(problem, 'strerror', None) or 'it is not text'}")
        return {}
    return {name.upper(): value for name, value in found.items() if value is not None}


def _toml(path: Path, problems: list[str]) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as problem:
        problems.append(f"{path} cannot be read: {problem.strerror}")
    except ValueError:
        problems.append(f"{path} is not TOML: correct it, or Prefect ignores it or does not start")
    return {}


def _below(document: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        found = document.get(name)
        document = found if isinstance(found, Mapping) else {}
    return document


def _of_tables(document: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: _below(document, *place[:-1]).get(place[-1]) for name, place in _IN_TOML.items()}
    return {name: value for name, value in found.items() if value is not None}


def _merged(weaker: str, stronger: str) -> str:
    """Return the headers of two sources: Prefect puts those of the stronger one over those of the weaker."""
    try:
        below, above = json.loads(weaker), json.loads(stronger)
    except ValueError:
        return stronger
    return json.dumps({**below, **above}) if isinstance(below, dict) and isinstance(above, dict) else stronger


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
