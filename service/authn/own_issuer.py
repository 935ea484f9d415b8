"""The service as an issuer of machines' tokens: its keys are at hand, and each token must be in its list."""

from collections.abc import Mapping
from typing import Any, Final

from jose.backends.base import Key

from service.core.errors import OutOfReach, Rejected
from service.core.identity.claims import MAX_SHOWN, text_at, values_at
from service.core.model import IssuerTrust, Principal
from service.core.problems import Problem
from service.issuing.issued import IssuedTokens
from service.issuing.signing import ALGORITHM, TYPE

CREDENTIAL_ID: Final = "credential_id"  # the claim with the id of the secret that a token was obtained with
OF_PEOPLE: Final = "/people"  # behind our name, where a person has issued the token: no grant can name that issuer
_RETRY_AFTER: Final = 5  # seconds


class OwnIssuer:
    """Trusts tokens that this service has issued and nobody has revoked."""

    def __init__(self, issuer: str, audience: str, issued: IssuedTokens) -> None:
        self.trust = IssuerTrust(issuer, frozenset({audience}), frozenset({ALGORITHM}), token_types=frozenset({TYPE}))
        self.issued = issued

    def key_at_hand(self, kid: str | None, algorithm: str) -> Key | None:
        """Return the key if it is known and the list of tokens is fresh enough, or None."""
        return self.issued.keys.find(kid, algorithm) if self.issued.is_fresh else None

    @staticmethod
    def may_be_replaced(kid: str | None) -> bool:
        """Tell that the key of an id is never another one."""
        return kid is None

    async def find_key(
        self, kid: str | None, algorithm: str, unverified_issued_at: Any, *, instead_of: Key | None = None
    ) -> Key:
        """Return a key that was not known before, or raise Rejected; OutOfReach if the list cannot be read."""
        del unverified_issued_at
        await self.issued.look_for_request()
        self.check_fresh()
        key = self.key_at_hand(kid, algorithm)
        if key is None or key is instead_of:
            raise Rejected(Problem.SIGNING_KEY_UNKNOWN, kid=kid, algorithm=algorithm)
        return key

    def has_listed(self, claims: Mapping[str, Any]) -> bool:
        """Tell whether the token, or the secret that it was obtained with, is known."""
        secret_id = text_at(claims, CREDENTIAL_ID)
        if secret_id:
            return self.issued.machine_of(secret_id) is not None
        return self.issued.find(text_at(claims, "jti")) is not None

    async def read_list(self) -> None:
        """Read what is new in the list, but not more often than once in a while."""
        await self.issued.look_for_request()

    def admit(self, principal: Principal, claims: Mapping[str, Any]) -> Principal:
        """Return the principal with the role of its token.

        The name of a token that a person has issued was chosen by that person, so no grant for a name may count:
        such principals have an issuer of their own.

        Raises Rejected if the token is not in the list or was revoked, or if the secret that it was obtained with was
        removed.
        """
        admitted = principal._replace(roles=tuple(values_at(claims, "roles")))
        secret_id = text_at(claims, CREDENTIAL_ID)
        self.check_fresh()
        if secret_id:
            if self.issued.machine_of(secret_id) is None:
                raise Rejected(Problem.TOKEN_REVOKED, token=secret_id[:MAX_SHOWN], name=principal.name)
            return admitted
        token_id = text_at(claims, "jti")
        found = self.issued.find(token_id)
        if found is None:
            raise Rejected(Problem.TOKEN_NOT_LISTED, token=token_id[:MAX_SHOWN], name=principal.name)
        if found.revoked is not None:
            raise Rejected(Problem.TOKEN_REVOKED, token=token_id, name=principal.name)
        self.issued.note_use(token_id)
        return admitted._replace(issuer=f"{admitted.issuer}{OF_PEOPLE}") if found.owner else admitted

    @property
    def believed_until(self) -> float:
        """Return until when a verdict that rests on the list is valid, in seconds since the epoch."""
        return self.issued.believed_until

    def check_fresh(self) -> None:
        """Raise OutOfReach unless the list was read lately."""
        if not self.issued.is_fresh:
            raise OutOfReach(Problem.TOKENS_OUT_OF_REACH, because=self.issued.problem, retry_after=_RETRY_AFTER)
