"""The adapters, made from the settings: wired to one another, started and stopped together."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, Self

from httpx import AsyncClient

from service import __version__
from service.adapters.oauth_client_auth import ClientPolicy
from service.adapters.outbound import open_client
from service.adapters.store import Store, StoreError
from service.adapters.users_file import UsersFile
from service.authn.clients import Clients, GrantPolicy, Shared
from service.authn.guard import Guard
from service.authn.issuers import Issuer, KeyPolicy
from service.authn.oidc import RelyingParty
from service.authn.passwords import LOCAL_ISSUER, HashingPolicy, Passwords
from service.authn.seal import Seal
from service.authn.sessions import Sessions, Vouchers
from service.authn.tokens import Tokens
from service.core.identity.grants import claims_asked_for, with_roles
from service.core.identity.sessions import MAX_LIFETIME, SessionPolicy
from service.core.model import ForwardedRequest, Principal, Session
from service.core.request.cookies import keeps_secure
from service.core.request.proxies import TrustedProxies
from service.settings import ConfigError, Settings
from service.settings.clients import ClientCredentialsSettings
from service.settings.people import OIDCSettings, StoreSettings
from service.state.revocations import Revocations
from service.state.throttle import Throttle
from service.state.verdicts import Verdicts
from service.telemetry.events import Telemetry

PATIENCE: Final = 60.0  # seconds
SENDERS: Final = 10  # people who share an address, as in an office, and forget their passwords at the same time


class Wiring:
    """Everything outside the core that a decision needs; `with wiring:` keeps it from being stopped under a call."""

    def __init__(self, settings: Settings, before: "Wiring | None" = None) -> None:
        """Raise ConfigError for what the settings alone do not show: a key that is none, a package that is missing.

        What outlives a change of the settings is that of the wiring ``before``; start() takes over what it has learnt.
        """
        self.settings = settings
        self.telemetry: Telemetry = before.telemetry if before else Telemetry(settings.log.decisions)
        self.proxies = TrustedProxies(settings.trusted_proxies)
        self.verdicts: Verdicts = before.verdicts if before else _verdicts(settings)
        self.issuers: dict[str, Issuer] = {}
        self.grants = settings.all_grants
        self.access = settings.access()
        self.tokens = Tokens(self.issuers, self.grants)
        self.seal = Seal(tuple(one.get_secret_value() for one in settings.session.keys))
        self.store = _store(settings.store) if settings.store else None
        self.revocations = Revocations(self.store, keep=MAX_LIFETIME, on_change=self.verdicts.forget)
        self.throttle = Throttle(
            attempts=settings.sign_in.attempts * SENDERS,
            per_name=settings.sign_in.attempts,
            window=settings.sign_in.window,
            store=self.store,
        )
        self.clients: dict[str, Clients] = {}
        self.session_policy = SessionPolicy(settings.session.idle, settings.session.lifetime)
        self.provider: RelyingParty | None = None
        self.provider_keys: Issuer | None = None
        self.sessions: Sessions | None = None
        self.users: UsersFile | None = None
        self.passwords: Passwords | None = None
        self.ready = False
        self.client: AsyncClient = before.client if before else open_client(f"prefect-forward-auth/{__version__}")
        self._before = before
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._watcher: asyncio.Task[None] | None = None
        if settings.users is not None:
            self.users = UsersFile(
                settings.users.file, settings.users.max_cost, self._users_changed, max_size=settings.users.max_size
            )
            policy = HashingPolicy(settings.users.concurrency, settings.users.queue, settings.users.remember)
            self.passwords = Passwords(self.users, policy, settings.users.role, self.grants)
        self.guard = Guard(self.passwords, self.clients.values(), self.throttle, self.telemetry)
        if settings.people_sign_in:
            self._wire_sessions()

    def _wire_sessions(self) -> None:
        settings, vouchers = self.settings, {}
        if self.passwords is not None and settings.users is not None and settings.local_sign_in:
            admit = partial(self._admit, settings.users.role)
            vouchers[LOCAL_ISSUER] = Vouchers(stands=self.passwords.stands, admit=admit)
        if settings.oidc is not None:
            self.provider = self._relying_party(settings.oidc)
            renew = partial(self._renew, self.provider, settings.oidc)
            vouchers[settings.oidc.issuer] = Vouchers(renew=renew, admit=partial(self._admit, settings.oidc.role))
        claim = None if self.store is None else partial(self.revocations.first_use, "renewal")
        self.sessions = Sessions(self.seal, self.session_policy, vouchers, self.revocations, claim)

    def _relying_party(self, oidc: OIDCSettings) -> RelyingParty:
        """Return the relying party, with keys of its own: whoever may sign in is not whose tokens machines may send."""
        self.provider_keys = Issuer(
            oidc.trust(), policy=KeyPolicy(**oidc.keys.model_dump()), allow_http=oidc.allow_http, client=self.client
        )
        policy = ClientPolicy(
            client_id=oidc.client_id,
            client_secret=oidc.client_secret.get_secret_value() if oidc.client_secret else "",
            private_key=oidc.private_key.get_secret_value() if oidc.private_key else "",
            private_key_id=oidc.private_key_id or "",
            auth_method=oidc.auth_method,
            scopes=oidc.scopes,
            userinfo=oidc.userinfo,
            timeout=oidc.timeout,
            kept_claims=claims_asked_for(self.grants),
        )
        try:
            return RelyingParty(oidc.trust(), policy, self.provider_keys, self.client)
        except ValueError as problem:
            raise ConfigError([f"oidc.private_key: {problem}"]) from None

    @staticmethod
    async def _renew(provider: RelyingParty, oidc: OIDCSettings, session: Session) -> Session:
        """Return the session as the provider knows its person now."""
        who = await provider.renew(session.refresh_token, subject=session.subject)
        return session._replace(
            name=who.name,
            email=who.email,
            groups=who.groups,
            claims=who.claims,
            refresh_token=who.refresh_token or session.refresh_token,
            id_token=who.id_token or session.id_token,
            check_at=time.time() + oidc.check,
        )

    def _admit(self, role: str, principal: Principal, claims: Mapping[str, Any]) -> Principal:
        """Return a person with the roles of now: those of a session are never older than the configuration."""
        return with_roles(principal._replace(roles=(role,) if role else ()), self.grants, claims)

    def secure_cookies(self, request: ForwardedRequest) -> bool:
        """Tell whether cookies for this request's host are Secure: all are, unless plain http was permitted."""
        return not self.settings.session.allow_http or keeps_secure(request)

    async def start(self) -> None:
        """Read the users; begin to fetch keys, and do not wait for them."""
        if self.users is not None and self.settings.users is not None:
            await asyncio.to_thread(self.users.load)
            self._watcher = asyncio.create_task(self.users.watch(self.settings.users.reload))
        for one in self.settings.all_issuers:
            self.issuers[one.url] = Issuer(
                one.trust(),
                jwks_url=one.jwks_url,
                policy=KeyPolicy(**one.keys.model_dump()),
                allow_http=one.allow_http,
                client=self.client,
                on_change=self.verdicts.forget,
            )
            if one.client_credentials is not None:
                self.clients[one.url] = self._clients_of(self.issuers[one.url], one.client_credentials)
        if self._before is not None:
            self._succeed(self._before)
            self._before = None
        for issuer in self.issuers.values():
            issuer.start()
        if self.provider_keys is not None:
            self.provider_keys.start()
        await self.revocations.start()
        self.ready = True

    def _clients_of(self, issuer: Issuer, settings: ClientCredentialsSettings) -> Clients:
        """Return the clients of an issuer; replicas share them where they have a store and a key in common."""
        shared = Shared(self.store, self.seal) if self.store and self.settings.session.keys else None
        return Clients(issuer, GrantPolicy(**settings.model_dump()), self.client, self.grants, shared)

    def _succeed(self, before: "Wiring") -> None:
        """Take over what has been learnt so far, so that no call is worse off for a change of the settings."""
        self.revocations.succeed(before.revocations)
        self.throttle.succeed(before.throttle)
        for url in self.issuers.keys() & before.issuers.keys():
            self.issuers[url].succeed(before.issuers[url])
        for url in self.clients.keys() & before.clients.keys():
            self.clients[url].succeed(before.clients[url])
        self.guard.succeed(before.guard)
        if self.provider_keys is not None and before.provider_keys is not None:
            self.provider_keys.succeed(before.provider_keys)
        if self.sessions is not None and before.sessions is not None:
            self.sessions.succeed(before.sessions)
        if self.passwords is not None and before.passwords is not None:
            self.passwords.succeed(before.passwords)

    def take_effect(self) -> None:
        """Decide by these settings from now on: nothing that was decided by others is remembered."""
        self.telemetry.log(self.settings.log.decisions)
        self.verdicts.renew(seconds=self.settings.verdict_seconds, capacity=self.settings.verdict_count)

    def __enter__(self) -> Self:
        self._calls += 1
        self._idle.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._calls -= 1
        if not self._calls:
            self._idle.set()

    async def retire(self) -> None:
        """Stop once the calls that began with it have been answered, or ``PATIENCE`` seconds later."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), PATIENCE)
        await self.stop()

    async def close(self) -> None:
        """Stop for good, with all that a successor would have taken over."""
        await self.stop()
        await self.client.aclose()

    async def stop(self) -> None:
        """Stop what start() began; calls under way have been answered by now."""
        self.ready = False
        if self._watcher is not None:
            self._watcher.cancel()
        for issuer in (*self.issuers.values(), *((self.provider_keys,) if self.provider_keys else ())):
            await issuer.stop()
        await self.revocations.stop()
        if self.store is not None:
            await self.store.close()
        if self.passwords is not None:
            self.passwords.close()

    def state(self) -> dict[str, Any]:
        """Return what can be relied on now; a cold issuer does not make the whole unready."""
        issuers = {url: _state_of(one) for url, one in self.issuers.items()}
        provider = _state_of(self.provider_keys) if self.provider_keys else None
        users = {"count": len(self.users.users.hashes), "problem": self.users.problem} if self.users else None
        store = self.revocations.state()
        problem = self.telemetry.config_problem
        whole = (
            all(one["state"] == "warm" for one in (*issuers.values(), *((provider,) if provider else ())))
            and not (users and users["problem"])
            and not store["problem"]
            and not problem
        )
        status = ("ready" if whole else "degraded") if self.ready else "not ready"
        return {
            "status": status,
            "issuers": issuers,
            "provider": provider,
            "users": users,
            "store": store,
            "configuration": {"problem": problem},
        }

    def _users_changed(self) -> None:
        if self.passwords is not None:
            self.passwords.forget()
        self.verdicts.forget()


def _verdicts(settings: Settings) -> Verdicts:
    return Verdicts(seconds=settings.verdict_seconds, capacity=settings.verdict_count)


def _store(settings: StoreSettings) -> Store:
    try:
        return Store(settings.url.get_secret_value(), settings.prefix)
    except StoreError as problem:
        raise ConfigError([f"store.url: {problem}"]) from None


def _state_of(issuer: Issuer) -> dict[str, Any]:
    return {
        "state": "warm" if issuer.warm else "cold",
        "keys": issuer.key_count,
        "problem": issuer.last_problem,
    }
