"""The wiring: one configuration as a frozen value over the state of the process."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

from service import __version__
from service.adapters.discovery import KeySource
from service.adapters.oauth_client_auth import ClientPolicy
from service.adapters.outbound import open_client
from service.adapters.store import Store
from service.adapters.users_file import UsersFile
from service.authn.clients import Clients, Shared
from service.authn.guard import Guard
from service.authn.introspection import Introspection
from service.authn.issuers import Issuer, TokenIssuer
from service.authn.machines import Machines
from service.authn.oidc import RelyingParty
from service.authn.own_issuer import OwnIssuer
from service.authn.passwords import LOCAL_ISSUER, HashingPolicy, Passwords
from service.authn.seal import Seal
from service.authn.sessions import SessionAuthority, Sessions
from service.authn.tokens import Tokens, none_revoked
from service.core.identity.grant_index import GrantIndex, RoleAssignment
from service.core.identity.grants import claims_asked_for, claims_that_decide
from service.core.identity.sessions import SessionPolicy
from service.core.model import ForwardedRequest
from service.core.prefect.roles import Access
from service.core.request.cookies import keeps_secure
from service.core.request.proxies import TrustedProxies
from service.gate.shared_reports import SharedReports
from service.gate.shared_sightings import SharedSightings
from service.issuing.configured import ledger_of
from service.issuing.issued import IssuedTokens
from service.settings import IssuerSettings, Settings
from service.settings.people import OIDCSettings
from service.state.client_tokens import GrantPolicy
from service.state.concurrency import RefusalDelay
from service.state.introspections import IntrospectionPolicy
from service.state.issuer_keys import KeyPolicy
from service.state.process import ProcessState
from service.state.revocation_log import RevocationLog
from service.state.throttle import GuessLimits, Throttle
from service.telemetry.events import Telemetry

ATTEMPTS_PER_ADDRESS: Final = 10  # times the attempts per name: many people can share an address


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Everything that a decision needs under one configuration.

    It has no memory of its own. What is learnt is in ``state``, which the wirings before and after a reload share.
    """

    settings: Settings
    state: ProcessState
    proxies: TrustedProxies
    access: Access
    access_past_relay: Access  # what a proxy may let through to Prefect directly
    seal: Seal
    store: Store | None
    revocation_log: RevocationLog
    shared_reports: SharedReports | None
    shared_sightings: SharedSightings | None
    issuers: Mapping[str, Issuer]
    own_issuer: OwnIssuer | None
    tokens: Tokens
    clients: Mapping[str, Clients]
    users: UsersFile | None
    passwords: Passwords | None
    guard: Guard
    machines: Machines | None
    provider: RelyingParty | None
    provider_issuer: Issuer | None
    session_policy: SessionPolicy
    sessions: Sessions | None

    @property
    def telemetry(self) -> Telemetry:
        """Return the counters and the log of decisions."""
        return self.state.telemetry

    @property
    def all_issuers(self) -> tuple[Issuer, ...]:
        """Return the issuers of access tokens, and the provider for sign-in if there is one."""
        return (*self.issuers.values(), *((self.provider_issuer,) if self.provider_issuer else ()))

    @property
    def provider_fault(self) -> str:
        """Return why the provider does not take this service as its client, or an empty text."""
        return self.state.client_faults.get(self.provider.trust.issuer, "") if self.provider is not None else ""

    @property
    def takes_tokens(self) -> bool:
        """Tell whether there is anybody whose access tokens are accepted."""
        return bool(self.issuers) or self.own_issuer is not None

    @property
    def notes_reporters(self) -> bool:
        """Tell whether what a caller proves over HTTP may vouch for a WebSocket of its address."""
        settings = self.settings
        return settings.websockets.vouched and settings.websockets.relay != "off" and settings.prefect.url is not None

    def secure_cookies(self, request: ForwardedRequest) -> bool:
        """Tell whether cookies for this request's host are Secure. They are, unless ``session.allow_http`` is set."""
        return not self.settings.session.allow_http or keeps_secure(request)


def new_state() -> ProcessState:
    """Return the state of a process that has just started; call close() at the end."""
    return ProcessState.empty(open_client(f"prefect-forward-auth/{__version__}"))


def wire(settings: Settings, state: ProcessState) -> Wiring:
    """Return the wiring for these settings. Nothing is started, read or fetched."""
    access, grants, delay = settings.access(), GrantIndex(settings.all_grants), RefusalDelay()
    seal = Seal(tuple(one.get_secret_value() for one in settings.session.keys))
    store = _store(settings)
    revocation_log = RevocationLog(state.revocations, store)
    issuers = {one.url: _issuer(one, state) for one in settings.all_issuers}
    own_issuer = _own_issuer(settings, state)
    is_revoked = own_issuer.issued.is_revoked if own_issuer is not None else none_revoked
    introspection = _introspection(settings, issuers, state, delay)
    shared = Shared(store, seal) if store is not None and settings.session.keys else None
    clients = {
        one.url: Clients(
            issuers[one.url],
            GrantPolicy(**one.client_credentials.model_dump()),
            Tokens({one.url: issuers[one.url]}, grants, is_revoked, introspection if one.introspection else None),
            state.client,
            state.client_tokens,
            delay,
            shared=shared,
        )
        for one in settings.all_issuers
        if one.client_credentials is not None
    }
    users = passwords = None
    if settings.users is not None:
        users = UsersFile(
            settings.users.file, settings.users.max_cost, state.verdicts.forget, max_size=settings.users.max_size
        )
        policy = HashingPolicy(settings.users.concurrency, settings.users.queue, settings.users.remember)
        passwords = Passwords(users, policy, RoleAssignment(settings.users.role, grants), state.passwords, delay)
    machines = None
    if own_issuer is not None and settings.tokens is not None:
        lifetime = settings.tokens.machine_lifetime
        machines = Machines(own_issuer, HashingPolicy(), state.passwords, delay, lifetime)
    attempts = settings.sign_in.attempts
    limits = GuessLimits(attempts * ATTEMPTS_PER_ADDRESS, settings.sign_in.window, per_name=attempts)
    throttle = Throttle(state.failed_attempts, limits, store)
    provider = provider_issuer = None
    if settings.oidc is not None:
        provider_issuer = _provider_issuer(settings.oidc, state)
        provider = _relying_party(settings.oidc, provider_issuer, grants, state)
    session_policy = SessionPolicy(settings.session.idle, settings.session.lifetime)
    sessions = None
    if settings.people_sign_in:
        sessions = Sessions(
            seal,
            session_policy,
            _authorities(settings, grants, passwords, provider),
            revocation_log,
            state.renewals,
            None if store is None else partial(revocation_log.first_use, "renewal"),
        )
    return Wiring(
        settings=settings,
        state=state,
        proxies=TrustedProxies(settings.trusted_proxies, unix_socket=settings.uds is not None),
        access=access,
        access_past_relay=settings.access(only_relayed=True) if settings.websockets.relay == "always" else access,
        seal=seal,
        store=store,
        revocation_log=revocation_log,
        shared_reports=(
            SharedReports(store, seal, state.reporters) if store is not None and settings.session.keys else None
        ),
        shared_sightings=(
            SharedSightings(store, seal, state.sightings, session_policy.lifetime)
            if store is not None and settings.session.keys and sessions is not None
            else None
        ),
        issuers=MappingProxyType(issuers),
        own_issuer=own_issuer,
        tokens=Tokens(_token_issuers(issuers, own_issuer), grants, is_revoked, introspection),
        clients=MappingProxyType(clients),
        users=users,
        passwords=passwords,
        guard=Guard(passwords, clients.values(), throttle, state.known_pairs, state.telemetry, delay, machines),
        machines=machines,
        provider=provider,
        provider_issuer=provider_issuer,
        session_policy=session_policy,
        sessions=sessions,
    )


def _store(settings: Settings) -> Store | None:
    if settings.store is None:
        return None
    return Store(settings.store.url.get_secret_value(), settings.store.prefix)


def _issuer(settings: IssuerSettings, state: ProcessState) -> Issuer:
    source = KeySource.configured(
        settings.url,
        jwks_url=settings.jwks_url or "",
        allow_http=settings.allow_http,
        token_file=str(settings.jwks_token_file or ""),
        ca_file=str(settings.jwks_ca_file or ""),
    )
    return Issuer(settings.trust(), state.keys.of_tokens(source), KeyPolicy(**settings.keys.model_dump()))


def _introspection(
    settings: Settings, issuers: Mapping[str, Issuer], state: ProcessState, delay: RefusalDelay
) -> Introspection | None:
    """Return what asks about opaque tokens. The settings name at most one issuer for that."""
    for one in settings.all_issuers:
        if one.introspection is not None:
            secret = one.introspection.client_secret.get_secret_value()
            policy = IntrospectionPolicy(**{**one.introspection.model_dump(), "client_secret": secret})
            return Introspection(issuers[one.url], policy, state.client, state.introspections, delay)
    return None


def _provider_issuer(oidc: OIDCSettings, state: ProcessState) -> Issuer:
    source = KeySource.configured(oidc.issuer, internal_url=oidc.internal_url or "", allow_http=oidc.allow_http)
    return Issuer(oidc.trust(), state.keys.of_sign_in(source), KeyPolicy(**oidc.keys.model_dump()))


def _relying_party(oidc: OIDCSettings, issuer: Issuer, grants: GrantIndex, state: ProcessState) -> RelyingParty:
    of_people = [one for one in grants.grants if one.issuer == oidc.issuer]
    policy = ClientPolicy(
        client_id=oidc.client_id,
        client_secret=oidc.client_secret.get_secret_value() if oidc.client_secret else "",
        private_key=oidc.private_key.get_secret_value() if oidc.private_key else "",
        private_key_id=oidc.private_key_id or "",
        auth_method=oidc.auth_method,
        scopes=oidc.scopes,
        userinfo=oidc.userinfo,
        access_token_claims=oidc.access_token_claims,
        other_audiences=oidc.other_audiences,
        another_account=oidc.another_account,
        logout_needs_hint=oidc.logout_needs_hint,
        preset=oidc.preset,
        timeout=oidc.timeout,
        decisive_claims=claims_that_decide(of_people, oidc.groups_claim),
        kept_claims=claims_asked_for(of_people),
    )
    return RelyingParty(issuer, policy, state.client, state.client_faults)


def _own_issuer(settings: Settings, state: ProcessState) -> OwnIssuer | None:
    ledger = ledger_of(settings)
    if ledger is None or settings.tokens is None:
        return None
    name = settings.tokens.issuer
    return OwnIssuer(name, settings.tokens.audience, IssuedTokens(ledger, name, state.verdicts.forget))


def _token_issuers(issuers: Mapping[str, Issuer], own: OwnIssuer | None) -> dict[str, TokenIssuer]:
    """Return everybody whose access tokens are accepted, by name."""
    return {**issuers, **({own.trust.issuer: own} if own is not None else {})}


def _authorities(
    settings: Settings, grants: GrantIndex, passwords: Passwords | None, provider: RelyingParty | None
) -> dict[str, SessionAuthority]:
    """Return how sessions are confirmed, by issuer."""
    authorities = {}
    if passwords is not None and settings.users is not None and settings.local_sign_in:
        roles = RoleAssignment(settings.users.role, grants)
        authorities[LOCAL_ISSUER] = SessionAuthority(roles, is_current=passwords.is_current)
    if provider is not None and settings.oidc is not None:
        renew = partial(provider.renew, check_every=settings.oidc.check)
        authorities[settings.oidc.issuer] = SessionAuthority(RoleAssignment(settings.oidc.role, grants), renew=renew)
    return authorities
