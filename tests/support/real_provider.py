"""What the tests of real providers need of each: how it is started, set up here, used, and administered."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from tests.support.processes import Startable
from tests.support.provider_pages import ProviderPages

PASSWORD = "correct horse battery staple"
SECRET = "client-secret-0123456789"
GROUP = "operators"

# what is tried at each, as the table of docs/providers/README.md has it
ROWS: Mapping[str, str] = {
    "sign-in": "people sign in",
    "roles": "roles by groups",
    "refresh": "the session is renewed",
    "groups": "groups that change arrive at the next check",
    "another-account": "somebody else signs in",
    "sign-out": "signing out ends the provider's session, too",
    "back-channel": "back-channel logout",
    "logged-out": "an administrator logs somebody out",
    "disabled": "an administrator disables somebody",
    "secret": "the client's secret changes",
    "odd-secret": "the secret has characters such as `+`, `/` and `%`",
    "keys": "signing keys change: people sign in, machines go on",
    "keys-renewal": "… and sessions are renewed",
    "away": "the provider is away",
    "machine-token": "machines come with a token",
    "machine-secret": "machines come with id and secret",
}


class RealProvider(Startable):
    """A provider as a process on loopback, with `alice` in GROUP, and `bob`, who is in none.

    Whatever an administrator can do there and a row needs is a method; ``limits`` has, by row, what cannot be done.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    pause: ClassVar[float] = 0.0  # seconds that it needs between two of its tokens
    for_odd_secrets: ClassVar[Mapping[str, str]] = MappingProxyType({})  # settings that it needs for them
    limits: ClassVar[Mapping[str, str]] = MappingProxyType({})
    home: str  # what all addresses of its pages begin with
    issuer: str

    @abstractmethod
    def people(self) -> dict[str, Any]:
        """Return the settings of `[oidc]`."""

    def machines(self) -> dict[str, Any]:
        """Return the settings of `[issuer]`; the client id of the machine is `etl`, its secret is SECRET."""
        raise NotImplementedError

    def sign_in(self, pages: ProviderPages, url: str, name: str) -> str:
        """Walk from an authorization URL back to the service; somebody without a name is known there already."""
        return pages.walk(url, {"username": name, "password": PASSWORD} if name else None)

    def sign_out(self, pages: ProviderPages, url: str) -> str:
        """Walk from a logout URL back to the service."""
        return pages.walk(url)

    def machine_token(self) -> str:
        """Return an access token of the machine."""
        raise NotImplementedError

    def leave_group(self, name: str) -> None:
        """Take somebody out of GROUP."""
        raise NotImplementedError

    def join_group(self, name: str) -> None:
        """Put somebody into GROUP."""
        raise NotImplementedError

    def log_out(self, name: str) -> None:
        """Log somebody out, as an administrator."""
        raise NotImplementedError

    def end_session(self, pages: ProviderPages, name: str, id_token: str) -> None:
        """End somebody's session there in a way that others are told of; ``pages`` is their browser."""
        del pages, id_token
        self.log_out(name)

    def disable(self, name: str) -> None:
        """Disable somebody."""
        raise NotImplementedError

    def enable(self, name: str) -> None:
        """Enable somebody again."""
        raise NotImplementedError

    def change_secret(self, secret: str) -> None:
        """Give the people's client another secret."""
        raise NotImplementedError

    def rotate_keys(self) -> None:
        """Sign with a new key from now on."""
        raise NotImplementedError
