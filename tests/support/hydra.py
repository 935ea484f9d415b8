"""Ory Hydra as a process, with a login and consent app beside it: Hydra has neither people nor pages of its own."""

from __future__ import annotations

import html
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import httpx

from tests.support.parts import HYDRA, require
from tests.support.processes import Process, clean_environment
from tests.support.provider_pages import ProviderPages
from tests.support.real_provider import GROUP, PASSWORD, SECRET, RealProvider
from tests.support.waiting import accepts, free_port, wait_until

SCOPES = "openid offline_access"


class Hydra(RealProvider):
    """Hydra with its state in a file; the app beside it knows alice and bob."""

    name = "Ory Hydra"
    version = "2.3.0"
    limits: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "keys-renewal": "an ID token that it renews names the key before and is signed with the new one: "
            "people sign in again at the check, without a password"
        }
    )

    def __init__(self, folder: Path, site: str, back_channel: str) -> None:
        """Take an empty folder; the site's service is told of logouts at ``back_channel``."""
        self._program = require(HYDRA)
        self._folder = folder
        self.home = "http://127.0.0.1:"  # its own pages and those of the app
        self.port, self._admin_port = free_port(), free_port()
        self.issuer = f"http://127.0.0.1:{self.port}"
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self._admin_port}/admin", timeout=30)
        self.groups = {"alice": [GROUP], "bob": []}
        self.disabled: set[str] = set()
        self._app = serve_app(self)
        self._process: Process | None = None
        self._people = {
            "client_id": "prefect",
            "client_secret": SECRET,
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "scope": SCOPES,
            "redirect_uris": [f"{site}/_auth/callback"],
            "post_logout_redirect_uris": [f"{site}/_auth/signed-out"],
            "backchannel_logout_uri": back_channel,
            "backchannel_logout_session_required": True,
        }

    def start(self) -> None:
        app = self._app
        env = {
            "DSN": f"sqlite://{self._folder}/hydra.db?_fk=true",
            "SECRETS_SYSTEM": "a secret of more than thirty-two characters",
            "SERVE_PUBLIC_PORT": str(self.port),
            "SERVE_PUBLIC_HOST": "127.0.0.1",
            "SERVE_ADMIN_PORT": str(self._admin_port),
            "SERVE_ADMIN_HOST": "127.0.0.1",
            "URLS_SELF_ISSUER": self.issuer,
            **{f"URLS_{name.upper()}": f"{app}/{name}" for name in ("login", "consent", "logout")},
        }
        environment = clean_environment(self._folder / "home", env)
        first = not (self._folder / "hydra.db").exists()
        log = self._folder / "hydra.log"
        if first:
            made = Process("Hydra", [self._program, "migrate", "sql", "-e", "--yes"], env=environment, log=log)
            assert made.wait(timeout=120) == 0, made.tail()
        config = self._folder / "hydra.json"
        config.write_text(json.dumps({"oauth2": {"token_hook": f"{app}/hook"}}))
        argv: list[str | Path] = [self._program, "serve", "all", "--dev", "--sqa-opt-out", "--config", config]
        self._process = Process("Hydra", argv, env=environment, log=log)
        wait_until(lambda: accepts(self.port), timeout=60, what="Hydra listens", log=self._process.tail)
        wait_until(lambda: accepts(self._admin_port), timeout=60, what="Hydra listens", log=self._process.tail)
        httpx.get(f"{self.issuer}/.well-known/jwks.json", timeout=60).raise_for_status()  # it makes its keys now
        if first:
            machine = {
                "client_id": "etl",
                "client_secret": SECRET,
                "grant_types": ["client_credentials"],
                "audience": ["prefect-api"],
                "access_token_strategy": "jwt",
            }
            for client in (self._people, machine):
                self._admin("POST", "/clients", client)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _admin(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        answer = self._client.request(method, path, json=body, params=query)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def people(self) -> dict[str, Any]:
        return {"preset": "hydra", "issuer": self.issuer, "client_id": "prefect", "client_secret": SECRET}

    def machines(self) -> dict[str, Any]:
        asked = {"clients": ["etl"], "audience": "prefect-api"}
        return {"url": self.issuer, "audiences": "prefect-api", "role": "worker", "client_credentials": asked}

    def machine_token(self) -> str:
        form = {"grant_type": "client_credentials", "audience": "prefect-api"}
        answer = httpx.post(f"{self.issuer}/oauth2/token", auth=("etl", SECRET), data=form)
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def leave_group(self, name: str) -> None:
        self.groups[name] = []

    def join_group(self, name: str) -> None:
        self.groups[name] = [GROUP]

    def log_out(self, name: str) -> None:
        """Forget what somebody has consented to, which ends the tokens that came of it."""
        self._admin("DELETE", "/oauth2/auth/sessions/login", subject=name)
        self._admin("DELETE", "/oauth2/auth/sessions/consent", subject=name, all="true")

    def end_session(self, pages: ProviderPages, name: str, id_token: str) -> None:
        """Sign out at Hydra itself: only that way it tells others."""
        del name, id_token
        pages.open(f"{self.issuer}/oauth2/sessions/logout")

    def disable(self, name: str) -> None:
        self.disabled.add(name)

    def enable(self, name: str) -> None:
        self.disabled.discard(name)

    def change_secret(self, secret: str) -> None:
        self._admin("PUT", "/clients/prefect", {**self._people, "client_secret": secret})

    def rotate_keys(self) -> None:
        for keys in ("hydra.openid.id-token", "hydra.jwt.access-token"):
            self._admin("POST", f"/keys/{keys}", {"alg": "RS256", "use": "sig"})

    # what the app needs -----------------------------------------------------------------------------------

    def accept(self, kind: str, challenge: str, body: Mapping[str, Any] | None = None) -> str:
        """Accept a request, and return where the browser goes on."""
        path = f"/oauth2/auth/requests/{kind}/accept"
        return str(self._admin("PUT", path, dict(body or {}), **{f"{kind}_challenge": challenge})["redirect_to"])

    def request(self, kind: str, challenge: str) -> dict[str, Any]:
        """Return what a request is about."""
        found = self._admin("GET", f"/oauth2/auth/requests/{kind}", **{f"{kind}_challenge": challenge})
        assert isinstance(found, dict)
        return found

    def claims_of(self, name: str) -> dict[str, Any]:
        """Return what ID tokens say of somebody."""
        return {"email": f"{name}@example.test", "email_verified": True, "name": name, "groups": self.groups[name]}


class _App(BaseHTTPRequestHandler):
    """The login and consent app, with a hook that is asked at each refresh."""

    hydra: Hydra

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        kind = parts.path.strip("/")
        challenge = dict(parse_qsl(parts.query)).get(f"{kind}_challenge", "")
        if kind == "login":
            asked = self.hydra.request("login", challenge)
            if not asked["skip"]:
                self._answer(200, _FORM.format(html.escape(challenge)), "text/html")
                return
            self._go_on(self.hydra.accept("login", challenge, {"subject": asked["subject"]}))
        elif kind == "consent":
            asked = self.hydra.request("consent", challenge)
            session = {"id_token": self.hydra.claims_of(asked["subject"])}
            granted = {"grant_scope": asked["requested_scope"], "session": session, "remember": True}
            self._go_on(self.hydra.accept("consent", challenge, granted))
        elif kind == "logout":
            self._go_on(self.hydra.accept("logout", challenge))
        else:
            self._answer(200, f"<h1>{kind or 'nothing'}</h1>", "text/html")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/hook":
            subject = json.loads(body)["session"]["id_token"]["id_token_claims"]["sub"]
            if subject in self.hydra.disabled:
                self._answer(403, "{}", "application/json")
                return
            known = self.hydra.claims_of(subject) if subject in self.hydra.groups else {}
            self._answer(200, json.dumps({"session": {"id_token": known}}), "application/json")
            return
        form = dict(parse_qsl(body.decode()))
        right = form["username"] in self.hydra.groups and form["password"] == PASSWORD
        if not right or form["username"] in self.hydra.disabled:
            self._answer(403, "<h1>Wrong</h1>", "text/html")
            return
        accepted = {"subject": form["username"], "remember": True, "remember_for": 3600}
        self._go_on(self.hydra.accept("login", form["challenge"], accepted))

    def _go_on(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, status: int, body: str, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Keep the tests' output quiet."""


def serve_app(hydra: Hydra) -> str:
    """Serve the app until the process ends, and return its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("App", (_App,), {"hydra": hydra}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


_FORM = (
    '<form method="post" action="/login"><input type="hidden" name="challenge" value="{}">'
    '<input name="username"><input type="password" name="password"></form>'
)
