"""What a valid configuration should not leave as it is: a sentence each, for ``config check``."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple

from service.core.identity.grants import ClaimRule
from service.core.identity.presets import PRESETS
from service.settings.access import GrantSettings
from service.settings.load import Loaded
from service.settings.schema import IssuerSettings, Settings


class _Shared(NamedTuple):
    """An issuer that vouches for everybody's CI: the claims that name one repository, and an example of them."""

    claims: frozenset[str]
    example: str


_SHARED: Final[Mapping[str, _Shared]] = {
    "https://token.actions.githubusercontent.com": _Shared(
        frozenset({"repository", "repository_id", "workflow_ref", "sub"}), 'repository_id = ["123456789"]'
    ),
    "https://gitlab.com": _Shared(frozenset({"project_id", "project_path", "sub"}), 'project_id = ["12345678"]'),
}
_BY_PRESET: Final = {  # an instance of one's own has another URL
    "github-actions": _SHARED["https://token.actions.githubusercontent.com"],
    "gitlab-ci": _SHARED["https://gitlab.com"],
}
_KEYCLOAKS_OWN: Final = frozenset(PRESETS["keycloak"].refused_audiences)
_END_OF_NAME: Final = re.compile(r"/[^/:@]+[:@]")  # of a repository, as in repo:acme/flows:ref:…


def warnings_about(loaded: Loaded) -> Iterator[str]:
    """Yield the warnings."""
    settings = loaded.settings
    if not loaded.source_of("trusted_proxies"):
        yield "Every private address counts as a proxy's: set trusted_proxies where clients have such addresses, too."
    if settings.people_sign_in and not settings.session.keys:
        yield "Sessions end with the process: set session.keys to keep them."
    if settings.people_sign_in and settings.workers > 1 and settings.store is None:
        yield "Each worker knows only its own sign-outs: set store.url so that all know them."
    if settings.prefect.url is None and settings.websockets.relay != "off":
        yield (
            "WebSockets are not relayed, and clients with PREFECT_API_KEY or PREFECT_API_AUTH_STRING alone lose task "
            "runs: set prefect.url."
        )
    if settings.oidc is not None and settings.oidc.preset == "keycloak" and "offline_access" in settings.oidc.scopes:
        yield (
            "oidc.scopes: with offline_access, Keycloak keeps a session that signing out there, an administrator's "
            "sign-out and its idle time do not end. Leave it out: refresh tokens come without it."
        )
    for key, issuer in _issuers(settings):
        shared = sorted(_KEYCLOAKS_OWN.intersection(issuer.audiences))
        if shared and not issuer.preset:  # the preset refuses it
            yield (
                f"{key}.audiences: '{shared[0]}' is in nearly every token of a Keycloak realm, so tokens for any "
                "client are accepted. Add an audience mapper to the client, and name its audience (docs/providers)."
            )
    yield from _roles_for_any_repository(settings)


def _issuers(settings: Settings) -> Iterator[tuple[str, IssuerSettings]]:
    """Yield each issuer with its key."""
    yield from ((f"issuers.{number}", one) for number, one in enumerate(settings.issuers))
    if settings.issuer is not None:
        yield "issuer", settings.issuer


def _roles_for_any_repository(settings: Settings) -> Iterator[str]:
    for key, issuer in _issuers(settings):
        shared = _SHARED.get(issuer.url.rstrip("/")) or _BY_PRESET.get(issuer.preset)
        if shared is None or not shared.claims.isdisjoint(issuer.required_claims):
            continue
        advice = f"Pin the repository, such as with required_claims = {{ {shared.example} }}."
        if issuer.role:
            yield f"{key}.role: a token of any repository that meets required_claims gets this role. {advice}"
        for number, grant in enumerate(settings.grants):
            if _is_for(grant, issuer, settings) and not _names_one(grant, issuer, shared.claims):
                yield f"grants.{number}: a token of any repository that meets the conditions gets its roles. {advice}"


def _is_for(grant: GrantSettings, issuer: IssuerSettings, settings: Settings) -> bool:
    return grant.issuer == issuer.url or (not grant.issuer and settings.all_issuers == (issuer,))


def _names_one(grant: GrantSettings, issuer: IssuerSettings, claims: Collection[str]) -> bool:
    """Tell whether a grant holds for one repository, or for several that it lists."""
    if issuer.principal_claim in claims and _are_exact(grant.users):
        return True
    return any(_pins(one.rule()) for name, one in grant.claims.items() if name in claims)


def _pins(rule: ClaimRule) -> bool:
    return rule.equals is not None or bool(rule.any_of or rule.all_of) or _are_exact(rule.glob)


def _are_exact(patterns: Collection[str]) -> bool:
    """Tell whether each pattern has no wildcard, or none before the end of the repository's name."""
    return bool(patterns) and all("*" not in one or _END_OF_NAME.search(one.partition("*")[0]) for one in patterns)
