"""Grants: which roles a principal gets, decided once, when it is authenticated.

A grant is for principals of one issuer who meet all of its conditions. Two issuers may both have an ``alice``, so no
grant is for more than one issuer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from service.core.errors import UnusableError
from service.core.globs import matches_any
from service.core.identity.claims import values_at
from service.core.model import Principal
from service.core.problems import Problem

NO_CLAIMS: Final[Mapping[str, Any]] = MappingProxyType({})  # of a user with a password
_CLIENT: Final = ("client_id", "azp", "appid")  # RFC 9068 §2.2, OIDC Core §2, Entra v1


@dataclass(frozen=True, slots=True)
class ClaimRule:
    """What the values of a claim must be. If several conditions are given, all must hold.

    ``equals``: the claim's only value. ``any_of``: one of these is among its values. ``all_of``: all of these are.
    ``glob``: a value matches one of these patterns. Numbers and booleans are compared as JSON writes them.
    """

    equals: str | None = None
    any_of: frozenset[str] = frozenset()
    all_of: frozenset[str] = frozenset()
    glob: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.equals is None and not (self.any_of or self.all_of or self.glob):
            raise UnusableError(Problem.CLAIM_RULE_EMPTY)

    def holds(self, values: list[str]) -> bool:
        """Tell whether the values of a claim, none if it is missing, meet the rule."""
        return (
            (self.equals is None or values == [self.equals])
            and (not self.any_of or not self.any_of.isdisjoint(values))
            and self.all_of.issubset(values)
            and (not self.glob or any(matches_any(self.glob, value) for value in values))
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """Roles for the principals of ``issuer`` that meet all conditions. Without conditions, for all of its principals.

    ``users``, ``clients`` and ``groups`` are patterns of which one must match; ``scopes`` must all be there.
    ``claims`` are rules by claim, with dots into nested claims. ``name`` is the grant's key in the configuration.
    """

    roles: tuple[str, ...]
    issuer: str
    users: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    scopes: frozenset[str] = frozenset()
    claims: Mapping[str, ClaimRule] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        if not self.roles or not self.issuer:
            raise UnusableError(Problem.GRANT_INCOMPLETE)

    def unmet(self, principal: Principal, claims: Mapping[str, Any] = NO_CLAIMS) -> str:
        """Return the name of the first condition that is not met, or an empty string if the grant holds."""
        if principal.issuer != self.issuer:
            return "issuer"
        if self.users and not matches_any(self.users, principal.name):
            return "users"
        if self.clients and not any(matches_any(self.clients, one) for one in client_of(claims)):
            return "clients"
        if self.groups and not any(matches_any(self.groups, one) for one in principal.groups):
            return "groups"
        if not self.scopes <= principal.scopes:
            return "scopes"
        return next((path for path, rule in self.claims.items() if not rule.holds(values_at(claims, path))), "")


def claims_asked_for(grants: Iterable[Grant]) -> frozenset[str]:
    """Return the names of the claims that grants look at, which a session has to keep."""
    asked = [(*grant.claims, *(_CLIENT if grant.clients else ())) for grant in grants]
    return frozenset(path for paths in asked for path in paths)


def claims_that_decide(grants: Iterable[Grant], groups_claim: str) -> frozenset[str]:
    """Return the names of the claims that give roles to people, the groups' own among them."""
    grants = list(grants)
    groups = {groups_claim} if any(one.groups for one in grants) else set()
    return frozenset(groups.union(*(one.claims for one in grants)) - {"", *_CLIENT})


def client_of(claims: Mapping[str, Any]) -> list[str]:
    """Return the client that a token was issued to, from the first claim that names it."""
    return next((values_at(claims, name) for name in _CLIENT if name in claims), [])
