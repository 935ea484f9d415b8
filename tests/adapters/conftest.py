from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import httpx
import pytest

from service.adapters.fingerprints import Fingerprints
from service.adapters.issuers import Issuer, KeyPolicy
from service.adapters.passwords import Passwords
from service.adapters.tokens import Tokens
from service.core.model import ALGORITHMS, IssuerTrust, Principal
from tests.support.issuer import Issuer as Provider

QUICK = KeyPolicy(refresh=300, cooldown=30, timeout=2)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider("RS256", "ES256", "EdDSA") as running:
        yield running


FINGERPRINTS = Fingerprints()


async def authenticate(of: Tokens | Passwords, credential: Any) -> Principal:
    """Authenticate as the gate does, without a look at what is remembered."""
    return await of.authenticate(credential, FINGERPRINTS.of(credential))


def recall(of: Tokens | Passwords, credential: Any) -> Principal | None:
    """Look whom this very credential is remembered to prove."""
    fingerprint = FINGERPRINTS.of(credential)
    return of.recall(fingerprint) if isinstance(of, Tokens) else of.recall(credential, fingerprint)


class Keeping(Protocol):
    def __call__(
        self, provider: Provider, policy: KeyPolicy = ..., *, start: bool = ..., discovery: bool = ...
    ) -> AbstractAsyncContextManager[tuple[Issuer, Tokens]]: ...


@pytest.fixture
def keeping() -> Keeping:
    """Return a context that keeps a provider's keys, and verifies tokens by them."""

    @asynccontextmanager
    async def keep(
        provider: Provider, policy: KeyPolicy = QUICK, *, start: bool = True, discovery: bool = True
    ) -> AsyncIterator[tuple[Issuer, Tokens]]:
        trust = IssuerTrust(provider.url, frozenset({"prefect"}), ALGORITHMS)
        issuers: dict[str, Issuer] = {}
        tokens = Tokens(issuers, remember=60, capacity=100)
        async with httpx.AsyncClient() as client:
            url = None if discovery else provider.jwks_url
            issuer = Issuer(trust, jwks_url=url, policy=policy, client=client, on_change=tokens.forget)
            issuers[provider.url] = issuer
            if start:
                issuer.start()
            yield issuer, tokens
            await issuer.stop()

    return keep
