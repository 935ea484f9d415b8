"""The forms in which a Prefect client can be given a credential, as Prefect settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.site import PASSWORD, USER

Settings = dict[str, str]


@dataclass(frozen=True)
class CredentialForm:
    """A form: its name, and a function from the API's URL and a token to Prefect settings."""

    name: str
    settings: Callable[[str, str], Settings]


def _basic(url: str, _token: str) -> Settings:
    return {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": f"{USER}:{PASSWORD}"}


def _custom_headers(url: str, token: str) -> Settings:
    headers = json.dumps({"Authorization": f"Bearer {token}"})
    return {"PREFECT_API_URL": url, "PREFECT_CLIENT_CUSTOM_HEADERS": headers}


def _url_userinfo(url: str, token: str) -> Settings:
    return {"PREFECT_API_URL": url.replace("http://", f"http://jwt:{token}@")}


def _jwt_auth_string(url: str, token: str) -> Settings:
    return {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": f"jwt:{token}"}


def _bearer_auth_string(url: str, token: str) -> Settings:
    return {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": f"Bearer {token}"}


def _api_key(url: str, token: str) -> Settings:
    return {"PREFECT_API_URL": url, "PREFECT_API_KEY": token}


BASIC = CredentialForm("basic-auth-string", _basic)
CUSTOM_HEADERS = CredentialForm("jwt-custom-headers", _custom_headers)
URL_USERINFO = CredentialForm("jwt-url", _url_userinfo)
JWT_AUTH_STRING = CredentialForm("jwt-auth-string", _jwt_auth_string)
BEARER_AUTH_STRING = CredentialForm("bearer-auth-string", _bearer_auth_string)
API_KEY = CredentialForm("api-key", _api_key)
