"""Proves the machines that obtain tokens here, and issues these tokens (RFC 6749 §4.4).

A request needs the copy of the ledger alone, but for a secret that is not known yet: it may have been made a moment ago
by another process.
"""

import secrets
import time
from typing import Any, NamedTuple

from service.authn.own_issuer import CREDENTIAL_ID, OwnIssuer
from service.authn.passwords import HashingPolicy, Passwords
from service.core.errors import OutOfReach, Rejected
from service.core.identity.grant_index import RoleAssignment
from service.core.model import Basic, Proof
from service.core.problems import Problem
from service.issuing.issued import user_of
from service.issuing.machine_secrets import split_secret
from service.state.concurrency import RefusalDelay
from service.state.passwords import VerifiedPasswords


class Granted(NamedTuple):
    """An access token that was just issued, and its lifetime in seconds."""

    access_token: str
    expires_in: int

    def __repr__(self) -> str:
        return f"Granted(expires_in={self.expires_in})"


class Machines:
    """The machines of the ledger. Their tokens live for ``lifetime`` seconds, and end with the secret or the machine.

    Secrets are verified as passwords are: a wrong one costs a whole hash, whether there is such a machine or not.
    """

    def __init__(
        self,
        issuer: OwnIssuer,
        policy: HashingPolicy,
        verified: VerifiedPasswords,
        delay: RefusalDelay,
        lifetime: int,
    ) -> None:
        self._issuer = issuer
        self._issued = issuer.issued
        self._passwords = Passwords(self._issued, policy, RoleAssignment(), verified, delay)
        self._lifetime = lifetime

    async def authenticate(self, credential: Basic) -> Proof:
        """Return the proof of a machine's name and secret.

        Raises Rejected if either is wrong, Throttled if too many are being checked, and OutOfReach if the ledger has
        not been read for too long.
        """
        secret_id, random = split_secret(credential.password)
        kept = Basic(user_of(credential.username, secret_id), random)
        if kept.username not in self._issued.users.hashes:
            await self._issued.look_for_request()
        self._issuer.check_fresh()
        return await self._passwords.authenticate(kept)

    def issue(self, credential: Basic) -> Granted:
        """Return a token for a machine that ``authenticate()`` has just proved.

        Raises Rejected if the secret was removed meanwhile, and OutOfReach if there is no key to sign with.
        """
        secret_id, _ = split_secret(credential.password)
        machine, key = self._issued.machine_of(secret_id), self._issued.signer()
        if machine is None or machine.name != credential.username:
            raise Rejected(Problem.PAIR_WRONG, user=None)
        if key is None:
            raise OutOfReach(Problem.TOKENS_OUT_OF_REACH, because="no signing key can be decrypted")
        trust, now = self._issuer.trust, int(time.time())
        (audience,) = trust.audiences
        claims: dict[str, Any] = {
            "iss": trust.issuer,
            "aud": audience,
            "sub": machine.name,
            "client_id": machine.name,
            "jti": secrets.token_hex(16),
            "iat": now,
            "exp": now + self._lifetime,
            "roles": [machine.role],
            CREDENTIAL_ID: secret_id,
        }
        self._issued.note_use(secret_id)
        return Granted(key.sign(claims), self._lifetime)

    def close(self) -> None:
        """Stop the threads that verify secrets."""
        self._passwords.close()
