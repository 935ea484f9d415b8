"""Presets: what is known of a provider's tokens, as data, and the rules without which strangers would get in.

A preset fills in the settings of an issuer of machine tokens, or of the provider where people sign in. Whoever
configures it may change those, but not the rules: a claim that must be required, an audience, a claim or an issuer that
cannot be trusted. ``rendering.presets`` has the words.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from service.core.model import IssuerTrust
from service.core.problems import Cause, Problem

_GUID: Final = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_PERSONAL: Final = "9188040d-6c67-4c5b-b112-36a304b66dad"  # Entra's tenant of everybody's personal accounts
_RS256: Final = frozenset({"RS256"})
_JWT: Final = frozenset({"jwt"})
_ANY_TYPE: Final = frozenset({"at+jwt", "jwt", ""})


@dataclass(frozen=True, slots=True)
class Preset:
    """What is known of one provider.

    ``defaults`` are keys of an issuer's settings, or of those of the provider where people sign in: ``people`` tells
    which. ``claims`` are those that grants may look at. One of ``pins``, if there are any, must be a required claim;
    one of ``pins_for_all`` only if a role is for every token of the issuer, and an authorized party is as good, and
    with ``scopes_suffice`` a required scope: the provider does not give it to whoever asks. No decision may rest on a
    ``refused`` claim.
    ``refused_audiences`` are those of tokens for something else; ``{issuer}`` stands for the issuer's URL. ``issuer``
    is a regular expression for that URL; its named groups are claims that each token must have. So are ``required``.
    ``complete_groups`` and ``groups_from_names`` are as with IssuerTrust.
    """

    name: str
    defaults: Mapping[str, Any]
    claims: tuple[str, ...]
    pins: tuple[str, ...] = ()
    pins_for_all: tuple[str, ...] = ()
    scopes_suffice: bool = False
    refused: frozenset[str] = frozenset()
    refused_audiences: tuple[str, ...] = ()
    issuer: str = ".*"
    required: Mapping[str, frozenset[str]] = field(default_factory=dict)
    complete_groups: bool = False
    groups_from_names: bool = False
    people: bool = False

    @property
    def key(self) -> str:
        """Return what tells it from one of the same name for the other purpose."""
        return f"oidc.{self.name}" if self.people else self.name

    def strengthen(self, trust: IssuerTrust) -> IssuerTrust:
        """Return the trust with what this preset demands of each token; no setting takes that away."""
        matched = re.fullmatch(self.issuer, trust.issuer)
        of_issuer = {} if matched is None else {name: frozenset({one}) for name, one in matched.groupdict().items()}
        return replace(
            trust,
            required_claims={**trust.required_claims, **self.required, **of_issuer},
            complete_groups=self.complete_groups,
            groups_from_names=self.groups_from_names,
        )

    def broken_rules(self, trust: IssuerTrust, *, for_all: bool) -> Iterator[tuple[str, Cause]]:
        """Yield what lets strangers in: the key of the issuer's settings, and the cause.

        ``for_all`` tells whether a role is for every token of the issuer.
        """
        if not re.fullmatch(self.issuer, trust.issuer):
            yield "issuer" if self.people else "url", Cause(Problem.PRESET_ISSUER_OTHER, {"preset": self.key})
        refused = {one.replace("{issuer}", trust.issuer) for one in self.refused_audiences}
        for audience in sorted(refused.intersection(trust.audiences)):
            yield "audiences", Cause(Problem.PRESET_AUDIENCE_SHARED, {"preset": self.key, "got": audience})
        pinned = {name for name, accepted in trust.required_claims.items() if accepted}
        if self.pins and pinned.isdisjoint(self.pins):
            yield "required_claims", Cause(Problem.PRESET_CLAIM_NEEDED, {"preset": self.key, "claims": self.pins})
        narrowed = trust.authorized_parties or (self.scopes_suffice and trust.required_scopes)
        if for_all and self.pins_for_all and not narrowed and pinned.isdisjoint(self.pins_for_all):
            yield "role", Cause(Problem.PRESET_ROLE_FOR_ALL, {"preset": self.key, "claims": self.pins_for_all})
        for key, claims in (
            ("required_claims", sorted(trust.required_claims)),
            ("principal_claim", [trust.principal_claim]),
            ("groups_claim", [trust.groups_claim]),
        ):
            yield from ((key, cause) for cause in self.refusals(claims))

    def refusals(self, claims: Iterable[str]) -> Iterator[Cause]:
        """Yield the cause for each of these claims that no decision may rest on."""
        for claim in claims:
            if claim in self.refused:
                yield Cause(Problem.PRESET_CLAIM_REFUSED, {"preset": self.key, "claim": claim})


PRESETS: Final[Mapping[str, Preset]] = {
    one.name: one
    for one in (
        Preset(
            "github-actions",
            {
                "url": "https://token.actions.githubusercontent.com",
                "algorithms": _RS256,
                "token_types": _JWT,
                "email_claim": "",
                "groups_claim": "",
            },
            claims=(
                "repository",
                "repository_id",
                "repository_owner",
                "repository_owner_id",
                "repository_visibility",
                "ref",
                "ref_type",
                "environment",
                "event_name",
                "workflow_ref",
                "job_workflow_ref",
                "actor_id",
                "runner_environment",
            ),
            pins=("repository", "repository_id", "repository_owner", "repository_owner_id"),
            refused=frozenset({"workflow", "head_ref", "base_ref"}),
        ),
        Preset(
            "gitlab-ci",
            {
                "url": "https://gitlab.com",
                "algorithms": _RS256,
                "token_types": _JWT,
                "email_claim": "",
                "groups_claim": "",
            },
            claims=(
                "project_path",
                "project_id",
                "namespace_path",
                "namespace_id",
                "ref",
                "ref_type",
                "ref_path",
                "ref_protected",
                "environment",
                "environment_protected",
                "deployment_tier",
                "pipeline_source",
                "user_id",
                "runner_environment",
            ),
            pins=("project_path", "project_id", "namespace_path", "namespace_id"),
        ),
        Preset(
            "kubernetes",
            {
                "algorithms": frozenset({"RS256", "ES256", "ES384", "ES512"}),
                "token_types": frozenset({"jwt", ""}),
                "email_claim": "",
                "groups_claim": "",
            },
            claims=(
                "sub",
                "kubernetes.io.namespace",
                "kubernetes.io.serviceaccount.name",
                "kubernetes.io.serviceaccount.uid",
                "kubernetes.io.pod.name",
                "kubernetes.io.node.name",
            ),
            pins=("kubernetes.io.namespace", "kubernetes.io.serviceaccount.uid", "sub"),
            refused_audiences=(
                "{issuer}",
                "https://kubernetes.default.svc",
                "https://kubernetes.default.svc.cluster.local",
            ),
        ),
        Preset(
            "google",
            {
                "url": "https://accounts.google.com",
                "algorithms": _RS256,
                "token_types": _JWT,
                "groups_claim": "",
            },
            claims=(
                "email",
                "sub",
                "azp",
                "hd",
                "google.compute_engine.project_id",
                "google.compute_engine.project_number",
                "google.compute_engine.instance_id",
                "google.compute_engine.zone",
            ),
            pins=(
                "email",
                "sub",
                "hd",
                "google.compute_engine.project_id",
                "google.compute_engine.project_number",
            ),
        ),
        Preset(
            "entra",
            {
                "algorithms": _RS256,
                "token_types": _JWT,
                "principal_claim": "oid",
                "email_claim": "",
                "groups_claim": "roles",
            },
            claims=("roles", "groups", "oid", "sub", "tid", "azp", "appid", "idtyp", "scp"),
            pins_for_all=("roles", "groups", "oid", "sub", "azp", "appid"),
            refused=frozenset({"email", "preferred_username", "upn", "unique_name", "name"}),
            refused_audiences=("00000003-0000-0000-c000-000000000000", "https://graph.microsoft.com"),
            issuer=f"https?://[^/]+/(?P<tid>(?!{_PERSONAL}){_GUID})(?:/v2\\.0|/)",
            complete_groups=True,
        ),
        Preset(
            "keycloak",
            {"token_types": _ANY_TYPE, "groups_claim": "realm_access.roles"},
            claims=("realm_access.roles", "resource_access.prefect.roles", "groups", "azp", "sub", "scope"),
            refused_audiences=("account", "account-console", "admin-cli", "broker", "realm-management"),
            issuer="https?://.+/realms/[^/]+",
        ),
        Preset(
            "auth0",
            {"token_types": _ANY_TYPE, "email_claim": "", "groups_claim": "permissions"},
            claims=("permissions", "https://example.com/groups", "gty", "azp", "client_id", "org_id", "sub", "scope"),
            pins_for_all=("permissions", "gty", "azp", "client_id", "org_id", "sub"),
            refused_audiences=("{issuer}api/v2/", "{issuer}userinfo"),
            issuer="https?://[^/]+/",
        ),
        Preset(
            "okta",
            {"algorithms": _RS256, "token_types": _ANY_TYPE, "email_claim": ""},
            claims=("groups", "cid", "uid", "sub", "scp"),
            pins_for_all=("groups", "cid", "uid", "sub"),
            scopes_suffice=True,
            issuer="https?://[^/]+/oauth2/[^/]+",
        ),
        Preset(
            "authentik",
            {"token_types": _ANY_TYPE},
            claims=("groups", "azp", "sub", "preferred_username", "scope"),
            issuer="https?://.+/",
        ),
        Preset(
            "cognito",
            {
                "algorithms": _RS256,
                "token_types": _ANY_TYPE,
                "client_id_as_audience": True,
                "email_claim": "",
                "groups_claim": "cognito:groups",
            },
            claims=("client_id", "scope", "cognito:groups", "sub", "username"),
            required={"token_use": frozenset({"access"})},
        ),
        Preset(
            "zitadel",
            {"algorithms": _RS256, "token_types": _ANY_TYPE, "email_claim": "", "groups_claim": ""},
            claims=("urn:zitadel:iam:org:project:PROJECT-ID:roles", "sub", "client_id", "azp"),
            pins_for_all=("sub", "client_id", "azp", "urn:zitadel:iam:user:resourceowner:id"),
            refused=frozenset({"urn:zitadel:iam:org:project:roles"}),
            groups_from_names=True,
        ),
    )
}

_OPENID: Final = frozenset({"openid", "profile", "email"})
_WITH_REFRESH: Final = _OPENID | {"offline_access"}  # where there is no refresh token without that scope
_NAME: Final = "preferred_username"

PRESETS_FOR_PEOPLE: Final[Mapping[str, Preset]] = {
    one.name: replace(one, people=True)
    for one in (
        Preset(
            "keycloak",
            {
                "scopes": _OPENID,  # offline_access would replace the session there by one that nobody ends
                "principal_claim": _NAME,
                "groups_claim": "realm_access.roles",
                "access_token_claims": True,
                "another_account": "sign_out",
            },
            claims=(_NAME, "email", "realm_access.roles", "resource_access.prefect.roles", "groups"),
            issuer="https?://.+/realms/[^/]+",
        ),
        Preset(
            "dex",
            {
                "scopes": _WITH_REFRESH | {"groups"},
                "principal_claim": "email",
                "another_account": "sign_out",
                "logout_needs_hint": True,
            },
            claims=("email", "groups", _NAME, "name", "sub"),
        ),
        Preset(
            "hydra",
            {"scopes": frozenset({"openid", "offline_access"}), "another_account": "login", "logout_needs_hint": True},
            claims=("sub", "email", "groups"),
        ),
        Preset(
            "authentik",
            {"scopes": _WITH_REFRESH, "principal_claim": _NAME, "another_account": "login"},
            claims=(_NAME, "email", "groups"),
            issuer="https?://.+/",
        ),
        Preset(
            "zitadel",
            {
                "scopes": _WITH_REFRESH | {"urn:zitadel:iam:org:projects:roles"},
                "algorithms": _RS256,
                "principal_claim": _NAME,
                "groups_claim": "urn:zitadel:iam:org:project:roles",
                "another_account": "select_account",
            },
            claims=(_NAME, "email", "urn:zitadel:iam:org:project:roles", "sub"),
            groups_from_names=True,
        ),
        Preset(
            "entra",
            {
                "scopes": _WITH_REFRESH,
                "algorithms": _RS256,
                "principal_claim": _NAME,
                "groups_claim": "roles",
                "another_account": "select_account",
            },
            claims=("roles", "groups", _NAME, "oid", "sub", "tid"),
            refused=frozenset({"email", "upn", "unique_name", "name"}),
            issuer=f"https?://[^/]+/(?P<tid>(?!{_PERSONAL}){_GUID})/v2\\.0",
            complete_groups=True,
        ),
        Preset(
            "google",
            {
                "issuer": "https://accounts.google.com",
                "scopes": _OPENID,
                "algorithms": _RS256,
                "principal_claim": "email",
                "groups_claim": "",
                "another_account": "select_account",
            },
            claims=("email", "hd", "sub"),
            pins_for_all=("hd", "email", "sub"),
        ),
        Preset(
            "okta",
            {
                "scopes": _WITH_REFRESH | {"groups"},
                "algorithms": _RS256,
                "principal_claim": _NAME,
                "another_account": "login",
                "logout_needs_hint": True,
            },
            claims=(_NAME, "email", "groups"),
            issuer="https?://[^/]+(?:/oauth2/[^/]+)?",
        ),
        Preset(
            "auth0",
            {
                "scopes": _WITH_REFRESH,
                "client_auth": "client_secret_post",
                "principal_claim": "email",
                "groups_claim": "",
                "another_account": "login",
            },
            claims=("email", "https://example.com/groups", "org_id", "sub"),
            pins_for_all=("https://example.com/groups", "org_id", "email", "sub"),
            issuer="https?://[^/]+/",
        ),
        Preset(
            "cognito",
            {
                "scopes": _OPENID,
                "algorithms": _RS256,
                "principal_claim": "cognito:username",
                "groups_claim": "cognito:groups",
                "another_account": "login",
                "logout": False,
            },
            claims=("cognito:username", "cognito:groups", "email", "sub"),
            pins_for_all=("cognito:groups", "email", "sub"),
            issuer="https?://cognito-idp\\..+/.+",
        ),
        Preset(
            "gitlab",
            {
                "issuer": "https://gitlab.com",
                "scopes": _OPENID,
                "algorithms": _RS256,
                "principal_claim": _NAME,
                "another_account": "login",
            },
            claims=(_NAME, "email", "groups", "groups_direct", "sub"),
            pins_for_all=("groups", "groups_direct", "email", "sub"),
        ),
        Preset(
            "authelia",
            {"scopes": _WITH_REFRESH | {"groups"}, "principal_claim": _NAME, "another_account": "login"},
            claims=(_NAME, "email", "groups"),
        ),
    )
}
