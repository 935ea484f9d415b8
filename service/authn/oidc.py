"""The relying party: signs people in at an OpenID provider, and renews their sessions.

Authorization code flow with PKCE (OpenID Connect Core 1.0). The provider is only contacted when needed, so the service
starts and recovers without it. Its answers are limited in size and time, their types are checked, and ID tokens must be
signed by its keys.

OutOfReach means that nothing was decided and the call may be repeated. The exception is redeem(): a code is valid once.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, Literal

import httpx

from service.adapters.oauth_client_auth import ClientPolicy
from service.adapters.oauth_endpoints import MAX_TOKEN, Endpoints, NoTokenError, TokenError, TokenResponse, out_of_reach
from service.adapters.outbound import FetchError
from service.authn.issuers import Issuer
from service.authn.tokens import Tokens
from service.core.errors import NotPermitted, OutOfReach, Refusal, Rejected, SessionEnded, SignInFailed
from service.core.identity.claims import groups_in_one_text
from service.core.identity.compact import parse_header
from service.core.identity.sign_in import (
    LogoutNotice,
    SignedIn,
    check_response_issuer,
    lacks_groups,
    merge_access_token,
    merge_userinfo,
    needs_userinfo,
    provider_error,
    signed_in_from,
    validate_at_hash,
    validate_id_token,
    validate_logout_token,
    validate_userinfo,
)
from service.core.model import IssuerTrust, Session, VerifiedClaims
from service.core.problems import Cause, Problem
from service.rendering.presets import cure_for_groups
from service.rendering.sentences import log_reason

log = logging.getLogger(__name__)

DEFAULT_SCOPES: Final = ("openid", "profile", "email", "groups")
MAX_HINT: Final = 4096  # characters of an ID token that a URL may carry past every proxy
REVOKE_SECONDS: Final = 3.0  # somebody waits to be signed out
_UNAUTHENTICATED: Final = frozenset({401, 403})  # statuses of a refusal without an error response


class RelyingParty:
    """Signs people in at one OpenID provider.

    ``issuer`` says what ID tokens must carry, and has the keys and the discovery document: so its keys must come from
    discovery. Raises ValueError for a private key that cannot be used.
    """

    def __init__(
        self, issuer: Issuer, policy: ClientPolicy, client: httpx.AsyncClient, faults: MutableMapping[str, str]
    ) -> None:
        """``faults`` has, by issuer, why a provider does not take this service as its client."""
        self.trust: IssuerTrust = issuer.trust
        self.policy = policy
        self._issuer = issuer
        self._faults = faults
        self._provider = Endpoints(issuer.as_provider(), policy, client)
        self._tokens = Tokens({issuer.trust.issuer: issuer})
        self._told_of_refresh = False

    # the browser's way there and back ---------------------------------------------------------------------

    async def authorization_url(
        self, *, state: str, nonce: str, code_challenge: str, redirect_uri: str, prompt: str = ""
    ) -> str:
        """Return where to send the browser (OIDC Core §3.1.2.1, RFC 7636 §4.3), or raise OutOfReach.

        The provider has just answered this service, so that nobody is sent to a host that is down.

        ``offline_access`` is requested only where that is configured: some providers then replace their session by one
        that does not end with it. Consent is not forced for it (§11 would have it): a provider that insists leaves the
        scope out, and the session then lasts until its own end without being asked about.
        """
        await self._issuer.reach()
        query = {
            "response_type": "code",
            "client_id": self.policy.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self._scopes(await self._provider.discover())),
            "state": state,
            "nonce": nonce,
            "code_challenge": code_challenge,
            "code_challenge_method": "S256",
        }
        if prompt:
            query["prompt"] = prompt
        try:
            return await self._provider.browser_url("authorization_endpoint", query)
        except FetchError as problem:
            raise OutOfReach(Problem.ISSUER_MISCONFIGURED, issuer=self.trust.issuer, because=str(problem)) from None

    async def redeem(
        self, code: str, *, code_verifier: str, nonce: str, redirect_uri: str, response_issuer: str = ""
    ) -> SignedIn:
        """Return who signed in (RFC 6749 §4.1.3, OIDC Core §3.1.3).

        ``response_issuer`` is the ``iss`` that came back beside the code (RFC 9207). Raises SignInFailed,
        NotPermitted or OutOfReach.
        """
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": code_verifier,
        }
        try:
            metadata = await self._provider.discover()
            required = metadata.get("authorization_response_iss_parameter_supported") is True
            check_response_issuer(response_issuer, self.trust, required=required)
            return await self._signed_in(await self._ask_for_tokens(form), nonce=nonce)
        except TokenError as problem:
            raise self._error(problem) from None
        except (NotPermitted, OutOfReach):
            raise
        except Exception as problem:  # noqa: BLE001 - whatever a provider's answer raises, nobody is signed in
            encrypted = isinstance(problem, Refusal) and problem.problem is Problem.TOKEN_ENCRYPTED
            failed = Problem.PROVIDER_ENCRYPTS if encrypted else Problem.SIGN_IN_UNPROVEN
            hint = self._provider.hint if isinstance(problem, NoTokenError) else {}
            raise SignInFailed(failed, because=_because(problem), **hint) from None

    async def way_to_another_account(self, *, has_hint: bool) -> Literal["select_account", "login", "sign_out"]:
        """Return how somebody else signs in: by a value of ``prompt`` (OIDC Core §3.1.2.1), or after a sign-out there.

        A provider that lists its values is believed. One that lists none and has a sign-out may not know
        ``select_account``. ``has_hint`` tells whether there is an ID token for the sign-out. Raises OutOfReach.
        """
        metadata = await self._provider.discover()
        listed, way = metadata.get("prompt_values_supported"), self.policy.another_account
        ends_sessions = "end_session_endpoint" in metadata
        if way == "auto":
            knows = "select_account" in listed if isinstance(listed, list) else not ends_sessions
            way = "select_account" if knows else "sign_out"
        can_sign_out = ends_sessions and (has_hint or not self.policy.logout_needs_hint)
        return "login" if way == "sign_out" and not can_sign_out else way

    # while the session lasts ------------------------------------------------------------------------------

    async def renew(self, session: Session, check_every: float) -> Session:
        """Return a session as the provider knows its person now, to be checked again in ``check_every`` seconds.

        RFC 6749 §6, OIDC Core §12. What the provider does not say stays as it was known. A session that is returned
        with its old ``check_at`` is still due: the provider took the refresh token, which may be used up, but then
        could not be asked about the person.

        Raises SessionEnded, NotPermitted, or OutOfReach where nothing was decided about the person. Each failure is
        one line of the log.
        """
        try:
            return await self._renew(session, check_every)
        except Refusal as refusal:
            level = logging.WARNING if isinstance(refusal, OutOfReach) else logging.INFO
            self._log(level, "a session was not renewed", session, refusal.cause)
            raise

    async def _renew(self, session: Session, check_every: float) -> Session:
        form = {"grant_type": "refresh_token", "refresh_token": session.refresh_token}
        try:
            tokens = await self._ask_for_tokens(form)
        except TokenError as problem:
            cause = self._error(problem).cause
            if problem.about_client or cause.problem is Problem.PROVIDER_BUSY:
                raise OutOfReach(Problem.ISSUER_OUT_OF_REACH, because=cause) from None
            raise SessionEnded(Problem.SESSION_ENDED_BY_PROVIDER, because=cause) from None
        except FetchError as problem:
            raise out_of_reach(str(problem)) from None
        renewed = session._replace(refresh_token=tokens.refresh_token or session.refresh_token)
        known = renewed._replace(check_at=time.time() + check_every)
        try:
            says_something = tokens.id_token or self.policy.access_token_claims
            if not says_something and not await self._asks_userinfo({"sub": session.subject}):
                return known  # OIDC Core §12.2: a refresh need not say anything about the person
            who = await self._signed_in(tokens, subject=session.subject)
        except NotPermitted:
            raise
        except (FetchError, OutOfReach) as problem:
            because = problem.cause if isinstance(problem, OutOfReach) else out_of_reach(str(problem)).cause
            self._log(logging.WARNING, "a session was renewed in part, and is still due", session, because)
            return renewed
        except Exception as problem:  # noqa: BLE001 - as in redeem()
            raise SessionEnded(Problem.SESSION_ENDED_BY_PROVIDER, because=_because(problem)) from None
        return known._replace(
            name=who.name,
            email=who.email,
            groups=who.groups,
            claims=who.claims,
            id_token=who.id_token or session.id_token,
        )

    @staticmethod
    def _log(level: int, message: str, session: Session, cause: Cause) -> None:
        who = {"user": session.name, "subject": session.subject, "issuer": session.issuer, "session": session.id[:8]}
        log.log(level, message, extra={"fields": {**who, "reason": log_reason(cause)}})

    # the end of it ----------------------------------------------------------------------------------------

    async def logout_url(self, *, id_token: str, return_to: str, state: str = "") -> str | None:
        """Return where the provider ends its own session (RP-Initiated Logout §2), or None if that cannot be told.

        A provider that needs the ID token is not asked to send anybody back without it: it would show an error.
        """
        query = {"client_id": self.policy.client_id}
        has_hint = bool(id_token) and len(id_token) <= MAX_HINT
        if has_hint:
            query["id_token_hint"] = id_token
        if has_hint or not self.policy.logout_needs_hint:
            query["post_logout_redirect_uri"] = return_to
            if state:
                query["state"] = state
        try:
            await self._issuer.reach()
            return await self._provider.browser_url("end_session_endpoint", query)
        except (FetchError, OutOfReach):
            return None

    async def verify_logout_token(self, token: bytes, now: float) -> LogoutNotice:
        """Return what the provider says has ended (Back-Channel Logout §2.6), or raise Rejected or OutOfReach.

        A token that was seen before is for the caller to refuse.
        """
        try:
            verified, _ = await self._verify(token)
            return validate_logout_token(verified, self.trust, now)
        except Refusal:
            raise
        except Exception as problem:  # noqa: BLE001 - hostile bytes may raise anything: it is no proof
            raise Rejected(Problem.LOGOUT_TOKEN_UNREADABLE, because=_because(problem)) from None

    async def revoke(self, refresh_token: str) -> None:
        """Ask the provider to forget a refresh token, if it can; wait a moment at most, and never fail."""
        try:
            async with asyncio.timeout(REVOKE_SECONDS):
                await self._provider.revoke(refresh_token)
        except Exception as problem:  # noqa: BLE001 - the session here has ended all the same
            log.warning("issuer %s: a refresh token was not revoked: %s", self.trust.issuer, _text(_because(problem)))

    def misses_groups(self, session: Session) -> bool:
        """Tell whether a person has no groups here although groups give roles."""
        of_provider = session.issuer == self.trust.issuer
        return of_provider and not session.groups and self.trust.groups_claim in self.policy.decisive_claims

    # what makes it true -----------------------------------------------------------------------------------

    async def _ask_for_tokens(self, form: dict[str, str]) -> TokenResponse:
        """Return the tokens that a grant brings, and remember whether the provider still takes this client."""
        try:
            tokens = await self._provider.ask_for_tokens(form)
        except TokenError as problem:
            if problem.about_client:
                self._faults[self.trust.issuer] = log_reason(self._error(problem).cause)
            raise
        except NoTokenError as problem:
            if problem.status in _UNAUTHENTICATED:
                self._faults[self.trust.issuer] = str(problem)
            raise
        self._faults.pop(self.trust.issuer, None)
        return tokens

    def _error(self, problem: TokenError) -> SignInFailed:
        hint = self._provider.hint if problem.about_client else {}
        return provider_error(problem.error, problem.description, **hint)

    async def _signed_in(self, tokens: TokenResponse, *, nonce: str | None = None, subject: str = "") -> SignedIn:
        """Return whom verified claims name: those of the ID token, and of the userinfo endpoint where it is asked."""
        claims: Mapping[str, Any] = {"sub": subject}
        if tokens.id_token:
            verified, algorithm = await self._verify(tokens.id_token.encode())
            claims = validate_id_token(
                verified,
                self.trust,
                self.policy.client_id,
                time.time(),
                nonce=nonce,
                other_audiences=self.policy.other_audiences,
            )
            validate_at_hash(claims, tokens.access_token, algorithm)
            if subject and claims["sub"] != subject:
                raise Rejected(Problem.SUBJECT_OTHER)
        elif not subject:
            raise Rejected(Problem.ID_TOKEN_MISSING)
        if self.policy.access_token_claims:
            access, _ = await self._verify(tokens.access_token.encode())
            claims = merge_access_token(claims, access, self.trust, self.policy.client_id, time.time())
        if await self._asks_userinfo(claims):
            claims = merge_userinfo(claims, await self._userinfo(tokens.access_token))
        try:
            who = signed_in_from(claims, self.trust, self.policy.kept_claims)
        except NotPermitted as refusal:
            refusal.id_token = tokens.id_token
            raise
        if nonce is not None:
            self._note_what_is_missing(claims, who, tokens)
        return who._replace(id_token=tokens.id_token, refresh_token=tokens.refresh_token)

    async def _userinfo(self, access_token: str) -> Mapping[str, Any]:
        answer = await self._provider.userinfo(access_token)
        if isinstance(answer, bytes):
            verified, _ = await self._verify(answer)
            return validate_userinfo(verified, self.trust, time.time())
        return answer

    async def _verify(self, token: bytes) -> tuple[VerifiedClaims, str]:
        """Return verified claims, and the algorithm that the token is signed with."""
        if len(token) > MAX_TOKEN:
            raise Rejected(Problem.TOKEN_TOO_LONG, limit=MAX_TOKEN)
        verified = await self._tokens.verify(token)
        return verified, parse_header(token.split(b".", 1)[0]).algorithm

    async def _asks_userinfo(self, claims: Mapping[str, Any]) -> bool:
        if self.policy.userinfo == "auto":
            return "userinfo_endpoint" in await self._provider.discover() and needs_userinfo(
                claims, self.trust, self.policy.decisive_claims
            )
        return self.policy.userinfo == "always"

    def _note_what_is_missing(self, claims: Mapping[str, Any], who: SignedIn, tokens: TokenResponse) -> None:
        """Log what a sign-in lacks that the configuration counts on, with the setting that helps."""
        fields = {"user": who.name, "issuer": who.issuer, "claim": self.trust.groups_claim}
        if self.trust.groups_claim in self.policy.decisive_claims and lacks_groups(claims, self.trust):
            log.warning(
                "a person signed in without any groups, although groups give roles: %s",
                cure_for_groups(self.policy.preset),
                extra={"fields": fields},
            )
        elif groups_in_one_text(claims, self.trust):
            log.warning(
                "the groups of a person are one text with commas, which counts as one group: set oidc.groups_separator",
                extra={"fields": fields},
            )
        if not tokens.refresh_token and not self._told_of_refresh:
            self._told_of_refresh = True
            log.warning(
                "the provider sends no refresh token, so sessions last until their own end and nobody is asked about "
                "them: add offline_access to oidc.scopes if the provider has that scope (docs/providers)",
                extra={"fields": {"issuer": who.issuer}},
            )

    def _scopes(self, metadata: Mapping[str, Any]) -> list[str]:
        if self.policy.scopes:
            return sorted(self.policy.scopes | {"openid"})
        listed = metadata.get("scopes_supported")
        return [one for one in DEFAULT_SCOPES if one == "openid" or not isinstance(listed, list) or one in listed]


def _because(problem: Exception) -> Cause | str:
    return problem.cause if isinstance(problem, Refusal) else f"{type(problem).__name__}: {problem!s:.200}"


def _text(because: Cause | str) -> str:
    return log_reason(because) if isinstance(because, Cause) else because
