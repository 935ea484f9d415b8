"""Keycloak as one of the real providers that are all tried in the same way."""

from __future__ import annotations

from typing import Any

from tests.support.keycloak import Keycloak
from tests.support.real_provider import GROUP, SECRET, RealProvider


class KeycloakRealm(RealProvider):
    """A realm of a running Keycloak."""

    name = "Keycloak"
    version = "26.7.3"

    def __init__(self, keycloak: Keycloak, site: str, back_channel: str) -> None:
        """Set up a realm whose people come from ``site``."""
        self._keycloak = keycloak
        self.home = keycloak.url
        self._realm = realm = keycloak.realm("matrix")
        self.issuer = realm.issuer
        realm.add_client("prefect", SECRET, site, back_channel)
        realm.add_person("alice", roles=[GROUP])
        realm.add_person("bob")
        realm.add_client("etl", SECRET)
        realm.add_audience_mapper("etl", "prefect-api")

    def start(self) -> None:
        self._keycloak.start()

    def stop(self) -> None:
        self._keycloak.stop()

    def people(self) -> dict[str, Any]:
        return {"preset": "keycloak", "issuer": self.issuer, "client_id": "prefect", "client_secret": SECRET}

    def machines(self) -> dict[str, Any]:
        issuer = {"preset": "keycloak", "url": self.issuer, "audiences": "prefect-api", "role": "worker"}
        return {**issuer, "principal_claim": "preferred_username", "client_credentials": {"clients": ["etl"]}}

    def machine_token(self) -> str:
        return self._realm.token("etl", SECRET)

    def leave_group(self, name: str) -> None:
        self._realm.take_role(name, GROUP)

    def join_group(self, name: str) -> None:
        self._realm.give_role(name, GROUP)

    def log_out(self, name: str) -> None:
        self._realm.log_out(name)

    def disable(self, name: str) -> None:
        self._realm.change_person(name, enabled=False)

    def enable(self, name: str) -> None:
        self._realm.change_person(name, enabled=True)

    def change_secret(self, secret: str) -> None:
        self._realm.change_client("prefect", secret=secret)

    def rotate_keys(self) -> None:
        self._realm.rotate_keys()
        self._realm.drop_old_keys()
