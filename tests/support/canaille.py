"""Canaille as a process, set up by its own commands; its state is in a file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import httpx
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.parts import CANAILLE, require
from tests.support.processes import Process, clean_environment
from tests.support.provider_pages import ProviderPages
from tests.support.real_provider import GROUP, PASSWORD, SECRET, RealProvider
from tests.support.waiting import accepts, free_port, wait_until

_SCOPES = ("openid", "profile", "email", "groups")


def _key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


class Canaille(RealProvider):
    """Canaille with its state in SQLite."""

    name = "Canaille"
    version = "0.3.6"
    pause = 1.1  # two tokens of one second are the same, and the second is an error (500)
    limits: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "back-channel": "it has none",
            "odd-secret": "it does not decode them: set `client_secret_post` there and `oidc.client_auth` here",
        }
    )

    def __init__(self, folder: Path, site: str, back_channel: str) -> None:
        """Take an empty folder; nobody is told of logouts."""
        del back_channel
        program = require(CANAILLE)
        self._program = (program.with_name("python"), program)  # wherever its environment was made
        self._folder = folder
        self._site = site
        self.port = free_port()
        self.home = self.issuer = f"http://localhost:{self.port}"
        self._keys = [_key()]
        self._process: Process | None = None
        self._env = clean_environment(folder / "home", {"CANAILLE_CONFIG": str(folder / "canaille.toml")})

    def _configure(self) -> None:
        keys = ", ".join(json.dumps(one) for one in self._keys)
        (self._folder / "canaille.toml").write_text(
            f"""
SECRET_KEY = "a secret of more than thirty-two characters"
SERVER_NAME = "localhost:{self.port}"
PREFERRED_URL_SCHEME = "http"
[CANAILLE]
DATABASE = "sql"
[CANAILLE_SQL]
DATABASE_URI = "sqlite:///{self._folder}/canaille.db"
[CANAILLE_OIDC]
ACTIVE_JWKS = [{keys}]
"""
        )

    def start(self) -> None:
        self._configure()
        if not (self._folder / "canaille.db").exists():
            self._command("install")
            for name in ("alice", "bob"):
                names = {"user_name": name, "given_name": name, "family_name": name, "formatted_name": name}
                self._create("user", **names, emails=f"{name}@example.test", password=PASSWORD)
            self._create("group", display_name=GROUP, members="alice")
            self._create(
                "client",
                client_id="prefect",
                client_secret=SECRET,
                client_name="Prefect",
                redirect_uris=f"{self._site}/_auth/callback",
                post_logout_redirect_uris=f"{self._site}/_auth/signed-out",
                grant_types=["authorization_code", "refresh_token"],
                response_types="code",
                scope=_SCOPES,
                token_endpoint_auth_method="client_secret_basic",
            )
            self._create(
                "client",
                client_id="etl",
                client_secret=SECRET,
                client_name="etl",
                grant_types="client_credentials",
                scope="openid",
                token_endpoint_auth_method="client_secret_basic",
            )
            for client in ("prefect", "etl"):
                self._command("set", "client", client, f"--audience={client}")
        argv: list[str | Path] = [*self._program, "run", "--bind", f"127.0.0.1:{self.port}"]
        self._process = Process("Canaille", argv, env=self._env, log=self._folder / "canaille.log")
        wait_until(lambda: accepts(self.port), timeout=60, what="Canaille listens", log=self._process.tail)

    def _command(self, *argv: str) -> str:
        done = subprocess.run(
            [*self._program, *argv], env=self._env, capture_output=True, text=True, cwd=self._folder, check=False
        )
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def _create(self, kind: str, **values: str | Sequence[str]) -> str:
        options = [
            f"--{name.replace('_', '-')}={one}"
            for name, value in values.items()
            for one in ([value] if isinstance(value, str) else value)
        ]
        return self._command("create", kind, *options)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    def people(self) -> dict[str, Any]:
        people = {"issuer": self.issuer, "client_id": "prefect", "client_secret": SECRET, "scopes": _SCOPES}
        return {**people, "another_account": "sign_out"}

    def sign_in(self, pages: ProviderPages, url: str, name: str) -> str:
        known = {"answer": "accept"}
        return pages.walk(url, {**known, "login": name, "password": PASSWORD} if name else known)

    def sign_out(self, pages: ProviderPages, url: str) -> str:
        return pages.walk(url, {"answer": "logout"})

    def machines(self) -> dict[str, Any]:
        """Return settings with introspection: tokens of machines are opaque."""
        introspection = {"client_id": "etl", "client_secret": SECRET}
        issuer = {"url": self.issuer, "audiences": "etl", "role": "worker", "principal_claim": "client_id"}
        return {**issuer, "introspection": introspection, "client_credentials": {"clients": ["etl"]}}

    def machine_token(self) -> str:
        form = {"grant_type": "client_credentials"}
        answer = httpx.post(f"{self.home}/oauth/token", auth=("etl", SECRET), data=form)
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def leave_group(self, name: str) -> None:
        """Let bob alone be in it."""
        assert name == "alice"
        self._command("set", "group", GROUP, "--members=bob")

    def join_group(self, name: str) -> None:
        self._command("set", "group", GROUP, f"--members={name}")

    def log_out(self, name: str) -> None:
        """Delete somebody's tokens, as the administrator's pages do."""
        self._command("delete", "token", f"--subject={name}", "--noconfirm")

    def disable(self, name: str) -> None:
        self._command("set", "user", name, "--lock-date=2020-01-01T00:00:00+00:00")

    def enable(self, name: str) -> None:
        self._command("set", "user", name, "--lock-date=2099-01-01T00:00:00+00:00")

    def change_secret(self, secret: str) -> None:
        self._command("set", "client", "prefect", f"--client-secret={secret}")

    def rotate_keys(self) -> None:
        self.stop()
        self._keys = [_key()]
        self.start()
