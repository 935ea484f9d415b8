"""Glewlwyd as a process, set up by its admin API; its state is in a file."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import httpx
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.support.parts import GLEWLWYD, require
from tests.support.processes import Process, clean_environment
from tests.support.provider_pages import PageShownError, ProviderPages
from tests.support.real_provider import GROUP, PASSWORD, SECRET, RealProvider
from tests.support.waiting import accepts, free_port, wait_until

_TABLES = Path("/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3")
_CONFIGURATION = Path("/etc/glewlwyd/glewlwyd.conf")


def _keys() -> dict[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return {"key": private.decode(), "cert": public.decode()}


class Glewlwyd(RealProvider):
    """Glewlwyd of Debian. Its pages are programs for browsers, so people call here what those pages call."""

    name = "Glewlwyd"
    version = "2.7.5"
    for_odd_secrets: ClassVar[Mapping[str, str]] = MappingProxyType({"client_auth": "client_secret_post"})
    limits: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "logged-out": "a refresh token that it has revoked is refused with 400 and no word, as if it had failed: "
            "the session lasts an hour beyond the check",
            "disabled": "it renews the tokens of somebody who is disabled",
            "secret": "a wrong secret is refused with 400 and no word: sessions go on for an hour, but `/readyz` does "
            "not say so",
        }
    )

    def __init__(self, folder: Path, site: str, back_channel: str) -> None:
        """Take an empty folder; the site's service is told of logouts at ``back_channel``."""
        self._program = require(GLEWLWYD)
        self._folder = folder
        self.port = free_port()
        self.home = f"http://127.0.0.1:{self.port}"
        self.issuer = f"{self.home}/api/oidc"
        self._client = httpx.Client(base_url=f"{self.home}/api", timeout=30)
        self._process: Process | None = None
        self._people = {
            "client_id": "prefect",
            "name": "Prefect",
            "confidential": True,
            "client_secret": SECRET,
            "redirect_uri": [f"{site}/_auth/callback"],
            "authorization_type": ["code", "refresh_token"],
            "token_endpoint_auth_method": ["client_secret_basic", "client_secret_post"],
            "post_logout_redirect_uri": f"{site}/_auth/signed-out",
            "backchannel_logout_uri": back_channel,
            "scope": [],
            "enabled": True,
        }

    def start(self) -> None:
        file = self._folder / "glewlwyd.db"
        first = not file.exists()
        if first:
            self._make(file)
        env = clean_environment(self._folder / "home", {})
        argv: list[str | Path] = [self._program, f"--config-file={self._folder / 'glewlwyd.conf'}"]
        self._process = Process("Glewlwyd", argv, env=env, log=self._folder / "glewlwyd.log")
        wait_until(lambda: accepts(self.port), timeout=30, what="Glewlwyd listens", log=self._process.tail)
        self._admin("POST", "/auth/", {"username": "admin", "password": "password"})
        if first:
            self._set_up()

    def _make(self, file: Path) -> None:
        """Make its tables and its configuration, in which people have groups."""
        database = sqlite3.connect(file)
        database.executescript(_TABLES.read_text())
        (text,) = database.execute("SELECT gumi_parameters FROM g_user_module_instance").fetchone()
        parameters = json.loads(text)
        parameters["data-format"]["groups"] = {"multiple": True, "read": True, "write": True}
        database.execute("UPDATE g_user_module_instance SET gumi_parameters = ?", [json.dumps(parameters)])
        database.commit()
        database.close()
        configuration = _CONFIGURATION.read_text()
        for pattern, value in {
            r"^port=.*": f"port={self.port}",
            r"^external_url=.*": f'external_url="{self.home}"',
            r"^log_mode=.*": 'log_mode="console"',
            r"^@include .*": f'database = {{ type = "sqlite3" path = "{file}" }};',
        }.items():
            configuration, count = re.subn(pattern, value, configuration, flags=re.MULTILINE)
            assert count == 1, pattern
        (self._folder / "glewlwyd.conf").write_text(configuration)

    def _set_up(self) -> None:
        self._parameters: dict[str, Any] = {
            "iss": self.issuer,
            "jwt-type": "rsa",
            "jwt-key-size": "256",
            **_keys(),
            "jwks-show": True,
            "access-token-duration": 3600,
            "refresh-token-duration": 1_209_600,
            "refresh-token-rolling": True,
            "code-duration": 600,
            "session-cookie-name": "OIDC_SESSION",
            "session-cookie-expiration": 2_419_200,
            "subject-type": "public",
            "allow-non-oidc": True,
            "allowed-scope": ["openid"],
            **{f"auth-type-{one}-enabled": True for one in ("code", "client", "refresh", "id-token")},
            **{f"auth-type-{one}-enabled": False for one in ("token", "none", "password")},
            "pkce-allowed": True,
            "session-management-allowed": True,
            "back-channel-logout-allowed": True,
            "introspection-revocation-allowed": True,
            "introspection-revocation-allow-target-client": True,
            "name-claim": "mandatory",
            "email-claim": "mandatory",
            "claims": [{"name": "groups", "user-property": "groups", "type": "string", "mandatory": True}],
            **{
                f"client-{one}-parameter": one.replace("uris", "uri")
                for one in ("redirect_uris", "post_logout_redirect_uris", "backchannel_logout_uri")
            },
        }
        self._admin("POST", "/mod/plugin/", self._plugin())
        for name, groups in (("alice", [GROUP]), ("bob", [])):
            self._admin("POST", "/user/", {**self._user(name, groups), "username": name, "password": PASSWORD})
        self._admin("POST", "/scope/", {"name": "prefect-api", "password_required": False, "scheme": {}})
        machine = {"client_id": "etl", "name": "etl", "authorization_type": ["client_credentials"]}
        for client in (self._people, {**self._people, **machine, "scope": ["prefect-api"]}):
            self._admin("POST", "/client/", client)

    def _plugin(self) -> dict[str, Any]:
        named = {"module": "oidc", "name": "oidc", "display_name": "oidc", "enabled": True}
        return {**named, "parameters": self._parameters}

    @staticmethod
    def _user(name: str, groups: list[str], *, enabled: bool = True) -> dict[str, Any]:
        known = {"name": name, "email": f"{name}@example.test", "scope": ["openid"]}
        return {**known, "groups": groups, "enabled": enabled}

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _admin(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._client.request(method, path, json=body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def people(self) -> dict[str, Any]:
        people = {"issuer": self.issuer, "client_id": "prefect", "client_secret": SECRET, "scopes": ["openid"]}
        return {**people, "another_account": "login", "logout_needs_hint": True}

    def sign_in(self, pages: ProviderPages, url: str, name: str) -> str:
        if name:
            signed_in = pages.call("POST", f"{self.home}/api/auth/", {"username": name, "password": PASSWORD})
            if not signed_in.is_success:
                raise PageShownError(signed_in)
            pages.call("PUT", f"{self.home}/api/auth/grant/prefect/", {"scope": "openid"})
        answer = pages.call("GET", f"{url}&g_continue")
        if answer.headers.get("location", self.home).startswith(self.home):
            raise PageShownError(answer)
        return str(answer.headers["location"])

    def sign_out(self, pages: ProviderPages, url: str) -> str:
        asked = dict(parse_qsl(urlsplit(url).query))
        page = pages.call("GET", url)
        told = dict(parse_qsl(urlsplit(page.headers["location"]).query))
        pages.call("DELETE", f"{self.issuer}/session/{told['sid']}")
        pages.call("DELETE", f"{self.home}/api/auth/")
        return asked["post_logout_redirect_uri"]

    def end_session(self, pages: ProviderPages, name: str, id_token: str) -> None:
        """Sign out at Glewlwyd itself: only that way it tells others."""
        del name
        there = self.people()["issuer"]
        page = pages.call("GET", f"{there}/end_session?id_token_hint={id_token}&post_logout_redirect_uri=")
        pages.call("DELETE", f"{there}/session/{dict(parse_qsl(urlsplit(page.headers['location']).query))['sid']}")

    def machines(self) -> dict[str, Any]:
        asked = {"clients": ["etl"], "scopes": ["prefect-api"]}
        return {"url": self.issuer, "audiences": "prefect-api", "role": "worker", "client_credentials": asked}

    def machine_token(self) -> str:
        form = {"grant_type": "client_credentials", "scope": "prefect-api"}
        answer = httpx.post(f"{self.issuer}/token", auth=("etl", SECRET), data=form)
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def leave_group(self, name: str) -> None:
        self._admin("PUT", f"/user/{name}", self._user(name, ["others"]))

    def join_group(self, name: str) -> None:
        self._admin("PUT", f"/user/{name}", self._user(name, [GROUP]))

    def change_secret(self, secret: str) -> None:
        self._admin("PUT", "/client/prefect", {**self._people, "client_secret": secret})

    def rotate_keys(self) -> None:
        self._parameters.update(_keys())
        self._admin("PUT", "/mod/plugin/oidc", self._plugin())
        self._admin("PUT", "/mod/plugin/oidc/reset")
