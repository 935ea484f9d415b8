"""Who gets which roles: proof → roles, once, when it is proved.

A grant holds for the principals of one issuer, of which every condition that it names must be met. Two issuers may
both know an ``alice``: no grant is for more than one of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from service.core.globs import matches_any
from service.core.identity.claims import values_at
from service.core.model import Principal

NO_CLAIMS: Final[Mapping[str, Any]] = MappingProxyType({})  # a password has none
_CLIENT: Final = ("client_id", "azp", "appid")  # RFC 9068 §2.2, OIDC Core §2, Entra v1


@dataclass(frozen=True, slots=True)
class ClaimRule:
    """What a claim must hold; of several demands, each.

    ``equals`` is its only value, ``any_of`` and ``all_of`` are among its values, one of which meets a pattern of
    ``glob``. Numbers and booleans count as JSON writes them.
    """

    equals: str | None = None
    any_of: frozenset[str] = frozenset()
    all_of: frozenset[str] = frozenset()
    glob: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.equals is None and not (self.any_of or self.all_of or self.glob):
            raise ValueError("a rule for a claim says equals, any_of, all_of or glob: an empty one would always hold")

    def holds(self, values: list[str]) -> bool:
        """Tell whether the values of a claim, none if it is missing, are what is demanded."""
        return (
            (self.equals is None or values == [self.equals])
            and (not self.any_of or not self.any_of.isdisjoint(values))
            and self.all_of.issubset(values)
            and (not self.glob or any(matches_any(self.glob, value) for value in values))
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """Roles for the principals of ``issuer`` that meet every condition given; without any, for all of them.

    ``users``, ``clients`` and ``groups`` are patterns, of which one is to be met; ``scopes`` must all be there.
    ``claims`` are rules by claim, with dots into nested ones. ``name`` is how configuration calls the grant.
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
            raise ValueError("a grant names the roles it gives, and the issuer of those it gives them to")

    def unmet(self, principal: Principal, claims: Mapping[str, Any] = NO_CLAIMS) -> str:
        """Return the first condition that a principal does not meet, or nothing where the grant holds."""
        if principal.issuer != self.issuer:
            return "issuer"
        if self.users and not matches_any(self.users, principal.name):
            return "users"
        if self.clients and not any(matches_any(self.clients, one) for one in _client_of(claims)):
            return "clients"
        if self.groups and not any(matches_any(self.groups, one) for one in principal.groups):
            return "groups"
        if not self.scopes <= principal.scopes:
            return "scopes"
        return next((path for path, rule in self.claims.items() if not rule.holds(values_at(claims, path))), "")


def with_roles(principal: Principal, grants: Iterable[Grant], claims: Mapping[str, Any] = NO_CLAIMS) -> Principal:
    """Return the principal with the roles it has and those that it is granted, each once, in the order of the grants.

    ``claims`` are those that proved it; without them no rule for a claim holds.
    """
    granted = [role for grant in grants if not grant.unmet(principal, claims) for role in grant.roles]
    return principal._replace(roles=tuple(dict.fromkeys((*principal.roles, *granted)))) if granted else principal


def claims_asked_for(grants: Iterable[Grant]) -> frozenset[str]:
    """Return the claims that grants ask for: all of them that a session has to keep."""
    asked = [(*grant.claims, *(_CLIENT if grant.clients else ())) for grant in grants]
    return frozenset(path for paths in asked for path in paths)


def _client_of(claims: Mapping[str, Any]) -> list[str]:
    """Return the client that a token was issued to, by the first of the names that issuers have for it."""
    return next((values_at(claims, name) for name in _CLIENT if name in claims), [])
