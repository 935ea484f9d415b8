"""Keycloak as a process, set up by its admin REST API alone: realms, clients, mappers, groups, roles and people."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from tests.support.parts import KEYCLOAK, require
from tests.support.processes import Process, Startable, clean_environment
from tests.support.waiting import free_port

PASSWORD = "correct horse battery staple"
_ADMIN = "admin"


class Keycloak(Startable):
    """Serves on loopback inside the `with` block; what it was told survives `stop` and `start`."""

    def __init__(self, folder: Path) -> None:
        """Take an empty folder for its database and its log."""
        self._program = require(KEYCLOAK)
        self._folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: Process | None = None
        self._client = httpx.Client(base_url=self.url, timeout=60)
        self._token, self._token_until = "", 0.0

    def start(self) -> None:
        """Start, and return once it listens."""
        options = {
            "db-url": f"jdbc:h2:file:{self._folder}/database;NON_KEYWORDS=VALUE",
            "http-enabled": "true",
            "http-host": "127.0.0.1",
            "http-port": str(self.port),
            "hostname": self.url,
            "cache": "local",
            "log-level": "info,org.keycloak.events:debug",
        }
        extra = {
            "KC_BOOTSTRAP_ADMIN_USERNAME": _ADMIN,
            "KC_BOOTSTRAP_ADMIN_PASSWORD": PASSWORD,
            "JAVA_OPTS_APPEND": "-XX:TieredStopAtLevel=1",  # it lives for minutes: no time to compile twice
        }
        self._process = Process(
            "Keycloak",
            [self._program, "start", "--optimized", *(f"--{name}={value}" for name, value in options.items())],
            env=clean_environment(self._folder / "home", extra),
            log=self._folder / "keycloak.log",
        )
        self._process.wait_for_line(r"started in .* Listening on", timeout=180)

    def stop(self) -> None:
        """Go away; connections are refused from here on."""
        if self._process is not None:
            self._process.stop(grace=30)
            self._process = None

    def restart(self) -> None:
        """Go away and come back."""
        self.stop()
        self.start()

    def log(self) -> str:
        """Return all that it has logged, its events among it."""
        return (self._folder / "keycloak.log").read_text(errors="replace")

    def admin(self, method: str, path: str, json: Any = None) -> httpx.Response:
        """Call the admin REST API below `/admin/realms`; anything but success is an error."""
        answer = self._client.request(
            method,
            f"/admin/realms{path}",
            json=json,
            headers={"authorization": f"Bearer {self._admin_token()}"},
        )
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer

    def realm(self, name: str, **representation: Any) -> Realm:
        """Create a realm, with members as the admin API names them."""
        realm = {"realm": name, "enabled": True, "sslRequired": "none", **representation}
        self.admin("POST", "", realm)
        return Realm(self, name)

    def _admin_token(self) -> str:
        if time.monotonic() >= self._token_until:
            form = {"grant_type": "password", "client_id": "admin-cli", "username": _ADMIN, "password": PASSWORD}
            answer = self._client.post("/realms/master/protocol/openid-connect/token", data=form)
            answer.raise_for_status()
            self._token, self._token_until = answer.json()["access_token"], time.monotonic() + 30
        return self._token

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._client.close()


class Realm:
    """One realm; people, clients, groups and roles are named by what an administrator calls them."""

    def __init__(self, keycloak: Keycloak, name: str) -> None:
        self.keycloak = keycloak
        self.name = name
        self.issuer = f"{keycloak.url}/realms/{name}"
        self.token_url = f"{self.issuer}/protocol/openid-connect/token"

    def admin(self, method: str, path: str = "", json: Any = None) -> httpx.Response:
        """Call the admin REST API below this realm."""
        return self.keycloak.admin(method, f"/{self.name}{path}", json)

    def set(self, **members: Any) -> None:
        """Change members of the realm, such as the lifetimes of sessions."""
        self.admin("PUT", "", members)

    # clients ----------------------------------------------------------------------------------------------

    def add_client(self, client_id: str, secret: str = "", site: str = "", back_channel: str = "", **more: Any) -> None:
        """Add a client: of people where there is a site, else of a machine. Without a secret it is public.

        ``back_channel`` is the address that is told of logouts. Further members are as the admin API names them.
        """
        client: dict[str, Any] = {
            "clientId": client_id,
            "publicClient": not secret,
            "secret": secret or None,
            "standardFlowEnabled": bool(site),
            "serviceAccountsEnabled": bool(secret) and not site,
            "directAccessGrantsEnabled": False,
        }
        if site:
            client["redirectUris"] = [f"{site}/_auth/callback"]
            client["attributes"] = {
                "post.logout.redirect.uris": f"{site}/_auth/signed-out",
                "backchannel.logout.url": back_channel,
                "backchannel.logout.session.required": "true",
                "pkce.code.challenge.method": "S256",
            }
        self.admin("POST", "/clients", {**client, **more})

    def add_mapper(self, client_id: str, mapper: str, **config: str) -> None:
        """Add a protocol mapper to a client, such as `oidc-group-membership-mapper`."""
        body = {"name": mapper, "protocol": "openid-connect", "protocolMapper": mapper, "config": config}
        self.admin("POST", f"/clients/{self._client(client_id)}/protocol-mappers/models", body)

    def add_groups_mapper(self, client_id: str, claim: str = "groups", *, full_path: bool = False) -> None:
        """Let a client's tokens carry the person's groups."""
        self.add_mapper(
            client_id,
            "oidc-group-membership-mapper",
            **{
                "claim.name": claim,
                "full.path": str(full_path).lower(),
                "id.token.claim": "true",
                "access.token.claim": "true",
                "userinfo.token.claim": "true",
            },
        )

    def add_audience_mapper(self, client_id: str, audience: str) -> None:
        """Let a client's access tokens be for this audience, too."""
        self.add_mapper(
            client_id,
            "oidc-audience-mapper",
            **{"included.custom.audience": audience, "access.token.claim": "true", "id.token.claim": "false"},
        )

    def change_client(self, client_id: str, **members: Any) -> None:
        """Change members of a client."""
        key = self._client(client_id)
        self.admin("PUT", f"/clients/{key}", {**self.admin("GET", f"/clients/{key}").json(), **members})

    def new_secret(self, client_id: str) -> str:
        """Let Keycloak generate another secret of a client, and return it."""
        return str(self.admin("POST", f"/clients/{self._client(client_id)}/client-secret").json()["value"])

    def token(self, client_id: str, secret: str, **form: str) -> str:
        """Return an access token by client credentials."""
        answer = httpx.post(self.token_url, auth=(client_id, secret), data={"grant_type": "client_credentials", **form})
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    # people -----------------------------------------------------------------------------------------------

    def add_person(self, name: str, *, groups: Sequence[str] = (), roles: Sequence[str] = (), **members: Any) -> None:
        """Add somebody with a verified e-mail address and PASSWORD, in groups and with realm roles that may be new."""
        person = {
            "username": name,
            "email": f"{name}@example.test",
            "emailVerified": True,
            "enabled": True,
            "firstName": name.title(),
            "lastName": "Example",
            "credentials": [{"type": "password", "value": PASSWORD, "temporary": False}],
        }
        self.admin("POST", "/users", {**person, **members})
        for group in groups:
            self.join(name, group)
        if roles:
            self.give_role(name, *roles)

    def give_role(self, name: str, *roles: str) -> None:
        """Give somebody roles of the realm, which may be new."""
        known = {one["name"] for one in self.admin("GET", "/roles").json()}
        for role in set(roles) - known:
            self.admin("POST", "/roles", {"name": role})
        self.admin("POST", f"/users/{self._person(name)}/role-mappings/realm", self._roles(roles))

    def take_role(self, name: str, *roles: str) -> None:
        """Take roles of the realm from somebody."""
        self.admin("DELETE", f"/users/{self._person(name)}/role-mappings/realm", self._roles(roles))

    def join(self, name: str, group: str) -> None:
        """Put somebody into a group, which may be new."""
        self.admin("PUT", f"/users/{self._person(name)}/groups/{self._group(group)}")

    def leave(self, name: str, group: str) -> None:
        """Take somebody out of a group."""
        self.admin("DELETE", f"/users/{self._person(name)}/groups/{self._group(group)}")

    def change_person(self, name: str, **members: Any) -> None:
        """Change members of a person, such as `enabled`."""
        key = self._person(name)
        self.admin("PUT", f"/users/{key}", {**self.admin("GET", f"/users/{key}").json(), **members})

    def log_out(self, name: str) -> None:
        """Log somebody out everywhere, as the button of the admin console does."""
        self.admin("POST", f"/users/{self._person(name)}/logout")

    def sessions(self, name: str, client_id: str = "") -> list[str]:
        """Return the ids of somebody's sessions, or of the offline sessions that a client holds."""
        offline = f"offline-sessions/{self._client(client_id)}" if client_id else "sessions"
        return [one["id"] for one in self.admin("GET", f"/users/{self._person(name)}/{offline}").json()]

    def delete_session(self, session_id: str) -> None:
        """End one session, as the console's list of sessions does."""
        self.admin("DELETE", f"/sessions/{session_id}")

    # keys -------------------------------------------------------------------------------------------------

    def rotate_keys(self, algorithm: str = "RS256") -> None:
        """Sign with a new RSA key from now on; those before stay published."""
        providers = self.admin("GET", "/components?type=org.keycloak.keys.KeyProvider").json()
        highest = max(int(one["config"].get("priority", ["0"])[0]) for one in providers)
        component = {
            "name": f"rotated-{highest + 1}",
            "providerId": "rsa-generated",
            "providerType": "org.keycloak.keys.KeyProvider",
            "config": {"priority": [str(highest + 1)], "algorithm": [algorithm], "keySize": ["2048"]},
        }
        self.admin("POST", "/components", component)

    def drop_old_keys(self) -> None:
        """Publish only the RSA key that signs."""
        path = "/components?type=org.keycloak.keys.KeyProvider"
        signing = [one for one in self.admin("GET", path).json() if one["providerId"] == "rsa-generated"]
        signing.sort(key=lambda one: int(one["config"].get("priority", ["0"])[0]))
        for old in signing[:-1]:
            self.admin("DELETE", f"/components/{old['id']}")

    # what names stand for ---------------------------------------------------------------------------------

    def _client(self, client_id: str) -> str:
        return self._only(f"/clients?clientId={client_id}")

    def _person(self, name: str) -> str:
        return self._only(f"/users?exact=true&username={name}")

    def _roles(self, names: Sequence[str]) -> list[Any]:
        return [self.admin("GET", f"/roles/{name}").json() for name in names]

    def _group(self, name: str) -> str:
        found = [one for one in self.admin("GET", f"/groups?exact=true&search={name}").json() if one["name"] == name]
        if found:
            return str(found[0]["id"])
        self.admin("POST", "/groups", {"name": name})
        return self._group(name)

    def _only(self, path: str) -> str:
        found: Sequence[Mapping[str, Any]] = self.admin("GET", path).json()
        assert len(found) == 1, f"{path}: {found}"
        return str(found[0]["id"])
