"""Secrets managers of the clouds, read by pydantic-settings' own sources with whatever the SDK finds to sign in with.

A place is written ``gcp:PROJECT``, ``aws:SECRET-ID`` or ``azure:https://VAULT``. What is there under the names of our
variables is taken, and nothing else is even read. Azure's names have dashes for underscores.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any, Final

from pydantic_settings import (
    AWSSecretsManagerSettingsSource,
    AzureKeyVaultSettingsSource,
    BaseSettings,
    GoogleSecretManagerSettingsSource,
)

from service.settings.schema import PREFIX

SECONDS: Final = 30.0  # for all that one place is asked; the SDKs would go on for minutes


class CloudError(Exception):
    """A place that gave nothing, or not all that it has; the message is for the operator and quotes no secret."""


def read_place(place: str) -> dict[str, str]:
    """Return the variables that a place holds, or raise CloudError; this takes at most ``SECONDS``."""
    answer: Future[dict[str, str]] = Future()

    def ask() -> None:
        try:
            answer.set_result(_ask(place))
        except BaseException as problem:  # noqa: BLE001 - it is raised below
            answer.set_exception(problem)

    Thread(target=ask, name=place, daemon=True).start()  # an SDK cannot be interrupted, only left behind
    try:
        return answer.result(SECONDS)
    except TimeoutError:
        raise CloudError(f"no answer within {SECONDS:g} s") from None


def _ask(place: str) -> dict[str, str]:
    kind, _, where = place.partition(":")
    try:
        return _ours(_SOURCES[kind](where))
    except CloudError:
        raise
    except ImportError:
        raise CloudError(f"one more package is needed: pip install 'prefect-forward-auth[{kind}]'") from None
    except Exception as problem:  # noqa: BLE001 - of three SDKs, and none of them may end in a traceback
        raise CloudError(f"{type(problem).__name__}: {' '.join(str(problem).split()):.300}") from None


def _ours(found: Mapping[str, Any]) -> dict[str, str]:
    """Return what stands under our names; an SDK is asked for the value of each of those alone."""
    names = _names(found)
    if not names:
        raise CloudError(f"there is no secret whose name begins with {PREFIX} (on Azure {PREFIX.replace('_', '-')})")
    return {variable: _text(found, name) for variable, name in names.items()}


def _names(found: Iterable[str]) -> dict[str, str]:
    """Return for each of our variables the name under which it stands there."""
    names: dict[str, str] = {}
    for name in found:
        variable = name.upper().replace("-", "_")
        if variable.startswith(PREFIX):
            if variable in names:
                raise CloudError(f"{names[variable]} and {name} are the same key")
            names[variable] = name
    return names


def _text(found: Mapping[str, Any], name: str) -> str:
    try:
        value = found[name]
    except KeyError:
        value = None
    if value is None:  # pydantic-settings keeps Google's reason to itself
        raise CloudError(f"{name} cannot be read: has it an enabled version, and may this service access it?")
    if not isinstance(value, str | int | float):
        raise CloudError(f"{name}: expected text")
    return value.rstrip("\r\n") if isinstance(value, str) else json.dumps(value)


class _Google(GoogleSecretManagerSettingsSource):
    def found(self) -> Mapping[str, Any]:
        return self._load_env_vars()


def _google(project: str) -> Mapping[str, Any]:
    return _Google(BaseSettings, project_id=project, case_sensitive=True).found()


def _amazon(secret_id: str) -> Mapping[str, Any]:
    """Return one secret's members; the region stands in its ARN, in AWS_REGION, or where boto3 looks for it."""
    region = secret_id.partition(":secretsmanager:")[2].partition(":")[0] or os.environ.get("AWS_REGION")
    return AWSSecretsManagerSettingsSource(BaseSettings, secret_id, region_name=region, case_sensitive=True).env_vars


def _azure(vault: str) -> Mapping[str, Any]:
    from azure.identity import DefaultAzureCredential  # noqa: PLC0415 - it comes with the extra

    return AzureKeyVaultSettingsSource(BaseSettings, vault, DefaultAzureCredential(), case_sensitive=True).env_vars


_SOURCES: Final[dict[str, Callable[[str], Mapping[str, Any]]]] = {"gcp": _google, "aws": _amazon, "azure": _azure}
