"""The state of the process: everything that is learnt while it runs."""

from dataclasses import dataclass, field
from typing import Self

import httpx

from service.state.client_tokens import ClientTokens
from service.state.introspections import Introspections
from service.state.issuer_keys import KeysByIssuer
from service.state.passwords import KnownPairs, VerifiedPasswords
from service.state.renewals import Renewals
from service.state.reporters import Reporters
from service.state.revocations import Revocations
from service.state.sightings import Sightings
from service.state.throttle import FailedAttempts
from service.state.verdicts import Verdicts
from service.telemetry.events import Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """State that outlives every configuration. No member depends on a setting, and each limits its own size.

    ``client`` makes all calls to issuers and providers.
    """

    client: httpx.AsyncClient
    verdicts: Verdicts
    revocations: Revocations
    keys: KeysByIssuer
    telemetry: Telemetry = field(default_factory=Telemetry)
    client_faults: dict[str, str] = field(default_factory=dict)  # why a provider does not take this client, by issuer
    client_tokens: ClientTokens = field(default_factory=ClientTokens)
    failed_attempts: FailedAttempts = field(default_factory=FailedAttempts)
    introspections: Introspections = field(default_factory=Introspections)
    known_pairs: KnownPairs = field(default_factory=KnownPairs)
    passwords: VerifiedPasswords = field(default_factory=VerifiedPasswords)
    renewals: Renewals = field(default_factory=Renewals)
    reporters: Reporters = field(default_factory=Reporters)
    sightings: Sightings = field(default_factory=Sightings)

    @classmethod
    def empty(cls, client: httpx.AsyncClient) -> Self:
        """Return the state of a process that has just started."""
        verdicts = Verdicts()
        return cls(
            client=client,
            verdicts=verdicts,
            revocations=Revocations(on_change=verdicts.forget),
            keys=KeysByIssuer(client, on_change=verdicts.forget),
        )

    async def close(self) -> None:
        """Cancel running renewals and fetches, and close all connections."""
        await self.renewals.under_way.cancel()
        await self.keys.close()
        await self.client.aclose()
