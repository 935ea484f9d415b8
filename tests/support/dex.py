"""Dex as a process, with people of its own, set up by its configuration file alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import bcrypt
import yaml

from tests.support.parts import DEX, require
from tests.support.processes import Process, clean_environment
from tests.support.provider_pages import ProviderPages
from tests.support.real_provider import PASSWORD, SECRET, RealProvider
from tests.support.waiting import accepts, free_port, wait_until

_NO_GROUPS = "its own people have no groups; those of a connector, such as LDAP, do"
_NO_MACHINES = "this version has no client-credentials grant"


class Dex(RealProvider):
    """Dex with its own list of people, and its state in a file."""

    name = "Dex"
    version = "2.41.1"
    limits: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "roles": _NO_GROUPS,
            "groups": _NO_GROUPS,
            "sign-out": "it keeps no session of its own: each sign-in asks for the password",
            "back-channel": "it has none",
            "logged-out": "there is nobody to log out: it keeps no session",
            "disabled": "it answers as if it had failed (500), so the session lasts an hour beyond the check",
            "machine-token": _NO_MACHINES,
            "machine-secret": _NO_MACHINES,
        }
    )

    def __init__(self, folder: Path, site: str, back_channel: str) -> None:
        """Take an empty folder; nobody is told of logouts."""
        del back_channel
        self._program = require(DEX)
        self._folder = folder
        self.port = free_port()
        self.home = f"http://127.0.0.1:{self.port}"
        self.issuer = f"{self.home}/dex"
        self._site = site
        self._secret = SECRET
        self._people = ["alice", "bob"]
        self._hash = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode()
        self._process: Process | None = None

    def _configuration(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "storage": {"type": "sqlite3", "config": {"file": str(self._folder / "dex.db")}},
            "web": {"http": f"127.0.0.1:{self.port}"},
            "frontend": {"dir": str(self._program.parents[1] / "web")},
            "oauth2": {"skipApprovalScreen": True},
            "expiry": {"refreshTokens": {"reuseInterval": "0s"}},
            "staticClients": [
                {
                    "id": "prefect",
                    "name": "Prefect",
                    "secret": self._secret,
                    "redirectURIs": [f"{self._site}/_auth/callback"],
                }
            ],
            "enablePasswordDB": True,
            "staticPasswords": [
                {"email": f"{name}@example.test", "hash": self._hash, "username": name, "userID": f"id-of-{name}"}
                for name in self._people
            ],
        }

    def start(self) -> None:
        file = self._folder / "dex.yaml"
        file.write_text(yaml.safe_dump(self._configuration()))
        env = clean_environment(self._folder / "home", {})
        self._process = Process("Dex", [self._program, "serve", file], env=env, log=self._folder / "dex.log")
        wait_until(lambda: accepts(self.port), timeout=30, what="Dex listens", log=self._process.tail)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _restart(self) -> None:
        self.stop()
        self.start()

    def people(self) -> dict[str, Any]:
        return {"preset": "dex", "issuer": self.issuer, "client_id": "prefect", "client_secret": SECRET}

    def sign_in(self, pages: ProviderPages, url: str, name: str) -> str:
        return pages.walk(url, {"login": f"{name}@example.test", "password": PASSWORD} if name else None)

    def disable(self, name: str) -> None:
        self._people.remove(name)
        self._restart()

    def enable(self, name: str) -> None:
        self._people.append(name)
        self._restart()

    def change_secret(self, secret: str) -> None:
        self._secret = secret
        self._restart()

    def rotate_keys(self) -> None:
        """Let it make new keys at its next start, as if the ones before had run out."""
        self.stop()
        with sqlite3.connect(self._folder / "dex.db") as database:
            database.execute("DELETE FROM keys")
        self.start()
