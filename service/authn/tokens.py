"""Verifies access tokens: the only module that accepts a signature, or an issuer's word, and makes VerifiedClaims.

A token in three segments is a JWT, and is never anything else. Every other token is opaque, and only its issuer knows
whose it is.

The checks of a JWT are in this order, and each must pass before the next one reads anything: size; three canonical
base64url segments; a small JSON header without repeated names; no unknown extension; an algorithm that the issuer may
use and that fits the key; the key, taken from the issuer's own key set by its id; the signature.
``core.identity.claims`` then checks the claims, of both kinds alike. Every exception is a refusal.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from service.authn.introspection import Introspection
from service.authn.issuers import TokenIssuer
from service.authn.steps import Steps, in_time
from service.core.errors import Refusal, Rejected
from service.core.identity.claims import MAX_SHOWN, groups_in_one_text, principal_from, with_verified_email
from service.core.identity.compact import decode_segment, parse_header, parse_json_object
from service.core.identity.grant_index import NO_GRANTS, GrantIndex
from service.core.model import Bearer, Proof, VerifiedClaims
from service.core.problems import Problem

log = logging.getLogger(__name__)

_SEGMENTS: Final = 3
_SEGMENTS_ENCRYPTED: Final = 5  # of a JWE (RFC 7516 §7.1)
_JSON_OBJECT: Final = b"eyJ"  # base64url of '{"': how every compact JWS and JWE begins

IsRevoked = Callable[[str, str], bool]


def none_revoked(issuer: str, jti: str) -> bool:
    """Tell that no token was revoked, where there is no ledger that could say so."""
    del issuer, jti
    return False


class Tokens:
    """Verifies access tokens of the given issuers, and assigns roles to their subjects.

    ``is_revoked`` tells whether an operator has revoked the token that an issuer gave this ``jti``.
    Without an ``introspection``, opaque tokens are refused.
    """

    def __init__(
        self,
        issuers: Mapping[str, TokenIssuer],
        grants: GrantIndex = NO_GRANTS,
        is_revoked: IsRevoked = none_revoked,
        introspection: Introspection | None = None,
    ) -> None:
        self._issuers = issuers
        self._grants = grants
        self._is_revoked = is_revoked
        self._introspection = introspection
        self._told_of_groups: set[str] = set()

    async def authenticate(self, credential: Bearer) -> Proof:
        """Return the principal of a token. The proof is valid until the token or the issuer's keys expire.

        Raises Rejected if the token is not valid, OutOfReach if the issuer's keys or its word cannot be had, and
        Throttled if too many callers wait for that.
        """
        return await in_time(self.authenticating(credential))

    def authenticating(self, credential: Bearer) -> Steps[Proof]:
        """Authenticate in steps.

        Waits only if the key, a token of our own, or what an issuer says is not known yet; otherwise none can change
        between the look-up and the return.
        """
        try:
            verified = yield from self._verifying(credential.token)
            issuer = self._issuers[verified.issuer]
            principal = principal_from(verified, issuer.trust, time.time())
            if not issuer.has_listed(verified.claims):
                yield issuer.read_list
            principal = issuer.admit(principal, verified.claims)
            self._refuse_revoked(verified, principal.name)
            principal = self._grants.with_roles(principal, with_verified_email(verified.claims, issuer.trust))
            if groups_in_one_text(verified.claims, issuer.trust):
                self._tell_of_groups(verified.issuer)
        except Refusal:
            raise
        except Exception as problem:  # noqa: BLE001 - hostile bytes may raise anything: it is no proof
            raise Rejected(Problem.TOKEN_UNREADABLE, error=type(problem).__name__) from None
        vouched_until = verified.vouched_until
        return Proof(
            principal, min(principal.expires, issuer.believed_until if vouched_until is None else vouched_until)
        )

    def _tell_of_groups(self, issuer: str) -> None:
        """Log, once for each issuer, that the groups of its tokens count as one."""
        if issuer not in self._told_of_groups:
            self._told_of_groups.add(issuer)
            log.warning(
                "issuer %s: the groups of a token are one text with commas, which counts as one group: set its "
                "groups_separator",
                issuer,
            )

    def _refuse_revoked(self, verified: VerifiedClaims, name: str) -> None:
        """Refuse a token that was revoked by its id (RFC 7519 §4.1.7). One without an id cannot be revoked."""
        jti = verified.claims.get("jti")
        if isinstance(jti, str) and self._is_revoked(verified.issuer, jti):
            raise Rejected(Problem.TOKEN_REVOKED, token=jti[:MAX_SHOWN], name=name)

    async def verify(self, token: bytes) -> VerifiedClaims:
        """Return the claims of a token that one of the issuers signed or vouches for; raises as authenticate() does."""
        return await in_time(self._verifying(token))

    def _verifying(self, token: bytes) -> Steps[VerifiedClaims]:
        segments = token.split(b".")
        if len(segments) != _SEGMENTS:
            if self._introspection is None:
                encrypted = len(segments) == _SEGMENTS_ENCRYPTED and token.startswith(_JSON_OBJECT)
                problem = Problem.TOKEN_ENCRYPTED if encrypted else Problem.TOKEN_NOT_A_JWT
                raise Rejected(problem, segments=len(segments))
            active = yield partial(self._introspection.ask, token)
            return VerifiedClaims(self._introspection.url, "", active.answer, active.until)
        header_segment, payload_segment, signature_segment = segments
        header = parse_header(header_segment)
        signature = decode_segment(signature_segment)
        unverified_claims = parse_json_object(decode_segment(payload_segment))
        unverified_issuer = unverified_claims.get("iss")
        issuer = self._issuers.get(unverified_issuer) if isinstance(unverified_issuer, str) else None
        if issuer is None:
            raise Rejected(Problem.ISSUER_NOT_TRUSTED, got=unverified_issuer, expected=frozenset(self._issuers))
        if header.algorithm not in issuer.trust.algorithms:
            raise Rejected(Problem.ALGORITHM_NOT_ACCEPTED, got=header.algorithm, expected=issuer.trust.algorithms)
        signed, issued_at = token[: -len(signature_segment) - 1], unverified_claims.get("iat")
        key = issuer.key_at_hand(header.kid, header.algorithm)
        genuine = key is not None and key.verify(signed, signature) is True
        if not genuine and (key is None or issuer.may_be_replaced(header.kid)):
            key = yield partial(issuer.find_key, header.kid, header.algorithm, issued_at, instead_of=key)
            genuine = key.verify(signed, signature) is True
        if not genuine:
            raise Rejected(Problem.SIGNATURE_INVALID, algorithm=header.algorithm, kid=header.kid)
        return VerifiedClaims(issuer.trust.issuer, header.token_type, unverified_claims)
