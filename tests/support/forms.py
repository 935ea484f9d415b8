"""The ways in which people give Prefect a credential, as its settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.site import PASSWORD, USER

Settings = dict[str, str]


@dataclass(frozen=True)
class Form:
    """One way: its name, and the settings it makes of the API's URL and a token."""

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


BASIC = Form("basic-auth-string", _basic)
CUSTOM_HEADERS = Form("jwt-custom-headers", _custom_headers)
URL_USERINFO = Form("jwt-url", _url_userinfo)
JWT_AUTH_STRING = Form("jwt-auth-string", _jwt_auth_string)
BEARER_AUTH_STRING = Form("bearer-auth-string", _bearer_auth_string)
API_KEY = Form("api-key", _api_key)
