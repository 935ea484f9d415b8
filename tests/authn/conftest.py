import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import pytest

from service.adapters.discovery import KeySource
from service.authn.issuers import Issuer
from service.authn.oidc import RelyingParty
from service.authn.passwords import Passwords
from service.authn.tokens import Tokens
from service.core.model import ALGORITHMS, Bearer, Gate, IssuerTrust, Principal, Proof, Session
from service.state.issuer_keys import IssuerKeys, KeyPolicy
from service.state.verdicts import Verdicts
from tests.support.issuer import Issuer as Provider

QUICK = KeyPolicy(refresh=300, cooldown=30, timeout=2)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider("RS256", "ES256", "EdDSA") as running:
        yield running


@dataclass
class Remembering:
    """Tokens behind the memory of verdicts, as the gate has them."""

    tokens: Tokens
    verdicts: Verdicts

    async def authenticate(self, credential: Bearer) -> Proof:
        await self.tokens.authenticate(credential)  # its keys are at hand from here on: a fetch begins a new era
        era, key = self.verdicts.era, self.verdicts.key_of(Gate.API, credential.token)
        proof = await self.tokens.authenticate(credential)
        self.verdicts.remember(key, proof, era)
        return proof

    def recall(self, credential: Bearer) -> Proof | None:
        return self.verdicts.recall(self.verdicts.key_of(Gate.API, credential.token))


async def authenticate(of: Remembering | Passwords | Tokens, credential: Any) -> Principal:
    """Authenticate as the gate does, without a look at what is remembered."""
    return (await of.authenticate(credential)).principal


def recall(of: Remembering | Passwords, credential: Any) -> Principal | None:
    """Look whom this very credential is remembered to prove."""
    proof = of.recall(credential)
    return proof.principal if proof else None


def issuer_of(
    trust: IssuerTrust,
    client: httpx.AsyncClient,
    *,
    jwks_url: str = "",
    internal_url: str = "",
    policy: KeyPolicy = QUICK,
    allow_http: bool = False,
    on_change: Callable[[], None] = lambda: None,
) -> Issuer:
    """Return an issuer of whom nothing has been fetched yet."""
    source = KeySource.configured(trust.issuer, jwks_url=jwks_url, internal_url=internal_url, allow_http=allow_http)
    return Issuer(trust, IssuerKeys(source, client, on_change), policy)


def session_of(subject: str, refresh_token: str, **more: Any) -> Session:
    """Return a session that is due to be renewed."""
    known = {"name": subject, "email": "", "groups": (), "claims": {}, "check_at": 1.0, **more}
    return Session(
        id="a-session", issuer="", subject=subject, began=0.0, seen=0.0, refresh_token=refresh_token, **known
    )


async def renew(party: RelyingParty, refresh_token: str, *, subject: str) -> Session:
    """Renew a session of which nothing more is known."""
    return await party.renew(session_of(subject, refresh_token), 900)


class Keeping(Protocol):
    def __call__(
        self, provider: Provider, policy: KeyPolicy = ..., *, start: bool = ..., discovery: bool = ...
    ) -> AbstractAsyncContextManager[tuple[Issuer, Remembering]]: ...


@pytest.fixture
def keeping() -> Keeping:
    """Return a context that keeps a provider's keys, and verifies tokens by them."""

    @asynccontextmanager
    async def keep(
        provider: Provider, policy: KeyPolicy = QUICK, *, start: bool = True, discovery: bool = True
    ) -> AsyncIterator[tuple[Issuer, Remembering]]:
        trust = IssuerTrust(provider.url, frozenset({"prefect"}), ALGORITHMS)
        issuers: dict[str, Issuer] = {}
        verdicts = Verdicts()
        verdicts.renew(seconds=60, capacity=100)
        tokens = Remembering(Tokens(issuers), verdicts)
        async with httpx.AsyncClient() as client:
            url = "" if discovery else provider.jwks_url
            issuer = issuer_of(trust, client, jwks_url=url, policy=policy, on_change=verdicts.forget)
            issuers[provider.url] = issuer
            keeper = asyncio.create_task(issuer.keys.keep_fresh(policy)) if start else None
            yield issuer, tokens
            if keeper is not None:
                keeper.cancel()
            await issuer.keys.close()

    return keep
