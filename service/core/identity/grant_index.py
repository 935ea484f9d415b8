"""An index of grants, so that not every grant has to be checked for every principal.

Each grant is indexed by one of its conditions: by the exact values, or the literal prefixes of the patterns, that can
meet it. The values of a principal lead to a few candidates, and ``Grant.unmet()`` decides about those.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from service.core.globs import literal_prefix
from service.core.identity.claims import values_at
from service.core.identity.grants import NO_CLAIMS, Grant, client_of
from service.core.model import Principal

_USERS, _CLIENTS, _CLAIMS, _GROUPS, _SCOPES = "users", "clients", "claims", "groups", "scopes"

_Condition = tuple[str, str]  # which condition, and for a claim its path


class _Prefix(NamedTuple):
    text: str
    whole: bool  # a value that meets the condition is exactly this; otherwise it begins with this


@dataclass(slots=True)
class _Candidates:
    """Numbers of the grants that are indexed by one condition, by the values that can meet it."""

    exact: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    prefixes: dict[int, dict[str, list[int]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def add(self, number: int, prefixes: Iterable[_Prefix]) -> None:
        for text, whole in prefixes:
            (self.exact if whole else self.prefixes[len(text)])[text].append(number)

    def find(self, values: Iterable[str]) -> Iterator[int]:
        for value in values:
            yield from self.exact.get(value, ())
            for length, by_prefix in self.prefixes.items():
                yield from by_prefix.get(value[:length], ())


@dataclass(slots=True)
class _IssuerGrants:
    """The grants of one issuer."""

    always: list[int] = field(default_factory=list)  # grants without a usable condition
    by_condition: dict[_Condition, _Candidates] = field(default_factory=lambda: defaultdict(_Candidates))


class GrantIndex:
    """All grants of a configuration."""

    def __init__(self, grants: Iterable[Grant] = ()) -> None:
        self.grants = tuple(grants)
        self._by_issuer: dict[str, _IssuerGrants] = defaultdict(_IssuerGrants)
        for number, grant in enumerate(self.grants):
            of_issuer = self._by_issuer[grant.issuer]
            indexed = _indexed_by(grant)
            if indexed is None:
                of_issuer.always.append(number)
            else:
                condition, prefixes = indexed
                of_issuer.by_condition[condition].add(number, prefixes)

    def roles_of(self, principal: Principal, claims: Mapping[str, Any] = NO_CLAIMS) -> tuple[str, ...]:
        """Return the roles that a principal is granted, each once, in the order of the grants.

        ``claims`` are those of the principal's token; without them no rule for a claim holds.
        """
        of_issuer = self._by_issuer.get(principal.issuer)
        if of_issuer is None:
            return ()
        numbers = set(of_issuer.always)
        for condition, candidates in of_issuer.by_condition.items():
            numbers.update(candidates.find(_values(condition, principal, claims)))
        granted = [
            role
            for number in sorted(numbers)
            if not self.grants[number].unmet(principal, claims)
            for role in self.grants[number].roles
        ]
        return tuple(dict.fromkeys(granted))

    def with_roles(self, principal: Principal, claims: Mapping[str, Any] = NO_CLAIMS) -> Principal:
        """Return the principal with the roles it has and those it is granted, each once."""
        granted = self.roles_of(principal, claims)
        return principal._replace(roles=tuple(dict.fromkeys((*principal.roles, *granted)))) if granted else principal


def _values(condition: _Condition, principal: Principal, claims: Mapping[str, Any]) -> Iterable[str]:
    kind, path = condition
    if kind == _CLAIMS:
        return values_at(claims, path)
    if kind == _CLIENTS:
        return client_of(claims)
    if kind == _GROUPS:
        return principal.groups
    return principal.scopes if kind == _SCOPES else (principal.name,)


def _indexed_by(grant: Grant) -> tuple[_Condition, Sequence[_Prefix]] | None:
    """Return the best condition for the index and the prefixes of its values, or None if no condition is usable."""
    usable = [one for one in _conditions(grant) if all(prefix.text or prefix.whole for prefix in one[1])]
    return max(usable, key=lambda one: all(prefix.whole for prefix in one[1]), default=None)


def _conditions(grant: Grant) -> Iterator[tuple[_Condition, list[_Prefix]]]:
    """Yield each condition with the prefixes of the values that can meet it, the most selective kind first."""
    for kind, patterns in ((_USERS, grant.users), (_CLIENTS, grant.clients)):
        if patterns:
            yield (kind, ""), _of_patterns(patterns)
    for path, rule in grant.claims.items():
        if rule.equals is not None:
            yield (_CLAIMS, path), [_Prefix(rule.equals, whole=True)]
        elif rule.any_of:
            yield (_CLAIMS, path), [_Prefix(value, whole=True) for value in rule.any_of]
        elif rule.all_of:
            yield (_CLAIMS, path), [_Prefix(min(rule.all_of), whole=True)]
        else:
            yield (_CLAIMS, path), _of_patterns(rule.glob)
    if grant.groups:
        yield (_GROUPS, ""), _of_patterns(grant.groups)
    if grant.scopes:
        yield (_SCOPES, ""), [_Prefix(min(grant.scopes), whole=True)]


def _of_patterns(patterns: Iterable[str]) -> list[_Prefix]:
    return [_Prefix(literal_prefix(pattern), whole="*" not in pattern) for pattern in patterns]


NO_GRANTS: Final = GrantIndex()


@dataclass(frozen=True, slots=True)
class RoleAssignment:
    """The roles that the principals of one issuer get: ``role``, if any, for all of them, and what ``grants`` add."""

    role: str = ""
    grants: GrantIndex = NO_GRANTS

    def assign(self, principal: Principal, claims: Mapping[str, Any] = NO_CLAIMS) -> Principal:
        """Return the principal with these roles and no others; ``claims`` are those of its token or session."""
        return self.grants.with_roles(principal._replace(roles=(self.role,) if self.role else ()), claims)
