"""Prefect's server: a method and path → the route that it will execute, and the capabilities that open it.

The look-up is as exact as the server's own router: case, trailing slash and the form of a UUID count. A path that is
not in the table has no route, and is for ``admin`` only.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Final

from service.core.errors import UnusableError
from service.core.prefect.table import API, BESIDE_API, DOCS, PAGE_NAMES, PAGES, SECRETS_IN_BODY
from service.core.problems import Problem

MAX_REMEMBERED: Final = 512  # characters; long paths must not fill the memory
MAX_SHOWN: Final = 120  # characters of a route in a fact
_UUID: Final = re.compile("[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}").fullmatch
_BASE: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+").fullmatch
_PARAMETER: Final = re.compile(r"\{(?P<name>[a-z_]+)(?::(?P<kind>uuid|path))?\}").fullmatch
_CONVERTER: Final = re.compile(r":(?:uuid|path)(?=\})")
_NAME: Final = re.compile(r"\{[^/}]*\}")


class Capability(StrEnum):
    """What a route needs; a role is a set of these."""

    __hash__ = str.__hash__  # Enum's own is written in Python

    ANY = "any"
    READ = "read"
    READ_SECRET = "read-secret"  # noqa: S105 - a right, not a secret
    RUN = "run"
    REPORT = "report"
    EMIT = "emit"
    SLOTS = "slots"
    VARIABLES = "variables"
    WORK = "work"
    JOIN = "join"
    DEPLOY = "deploy"
    POOLS = "pools"
    BLOCKS = "blocks"
    ADMIN = "admin"


@dataclass(frozen=True, eq=False, slots=True)  # hashed by identity, which is fast: each call needs the hash
class Route:
    """One route of the server; any one of ``capabilities`` opens it.

    ``method`` is WS for a WebSocket; ``in_schema`` tells whether Prefect's OpenAPI document lists it.
    """

    method: str
    path: str
    capabilities: frozenset[Capability]
    why: str = ""
    secrets_in_body: bool = False
    in_schema: bool = True

    @property
    def rule(self) -> str:
        """Return how the route is written in configuration and in answers: ``POST /api/flow_runs/{id}/resume``."""
        return f"{self.method} {_CONVERTER.sub('', self.path)}"

    @property
    def shape(self) -> tuple[str, str]:
        """Return what tells routes apart: the method, and the path without the names of its parameters."""
        return self.method, shape_of(self.path)

    def names_in(self, path: str) -> dict[str, str]:
        """Return the values of the route's parameters in a path that matches it."""
        segments = path.split("/")
        return {name: segments[place] for name, place in _places(self)}


@lru_cache(maxsize=1024)
def _places(route: Route) -> tuple[tuple[str, int], ...]:
    matches = enumerate(map(_PARAMETER, route.path.split("/")))
    return tuple((match["name"], place) for place, match in matches if match is not None)


def shape_of(path: str) -> str:
    """Return a path template without the names of its parameters."""
    return _NAME.sub("{}", path)


def parse_table(text: str, base: str = "", *, in_schema: bool = True) -> Iterator[Route]:
    """Yield the routes of a table's text, each under the base path; raises UnusableError for a line that is wrong."""
    for line in text.strip().splitlines():
        row, _, why = line.partition("#")
        if not row.strip():
            continue
        method, path, *capabilities = (*row.split(), "")
        needed = frozenset(_capability(one) for one in capabilities if one)
        if not path.startswith("/") or not needed:
            raise UnusableError(Problem.ROUTE_INCOMPLETE, got=" ".join(row.split())[:MAX_SHOWN])
        yield Route(
            method,
            base + path,
            needed,
            why.strip(),
            secrets_in_body=in_schema and (method, path) == SECRETS_IN_BODY,
            in_schema=in_schema and method != "WS",
        )


def _capability(name: str) -> Capability:
    try:
        return Capability(name)
    except ValueError:
        known = sorted(str(one) for one in Capability)
        raise UnusableError(Problem.CAPABILITY_UNKNOWN, got=name[:MAX_SHOWN], expected=known) from None


def known_routes(api_base: str = "/api", ui_base: str = "") -> list[Route]:
    """Return every route of the server, as it is mounted.

    ``api_base`` is PREFECT_SERVER_API_BASE_PATH, and ``ui_base`` PREFECT_UI_SERVE_BASE, empty where that is ``/``.
    """
    if not _BASE(api_base) or (ui_base and not _BASE(ui_base)) or api_base == ui_base:
        raise UnusableError(Problem.BASE_PATH_INVALID)
    pages = [line for line in PAGES.splitlines() if "{page}" not in line]
    pages += [line.replace("{page}", page) for line in PAGES.splitlines() for page in PAGE_NAMES if "{page}" in line]
    under_ui = parse_table("\n".join(pages), ui_base, in_schema=False)
    return [
        *parse_table(API, api_base),
        *parse_table(BESIDE_API + DOCS, api_base, in_schema=False),
        *parse_table(DOCS, in_schema=False),
        *(page for page in under_ui if not page.path.startswith(f"{api_base}/")),
        *([Route("GET", ui_base, frozenset({Capability.ANY}), in_schema=False)] if ui_base else []),
    ]


class _Node:
    """What may come next in a path: fixed segments are tried first, then parameters."""

    __slots__ = ("here", "open", "rest", "words")

    def __init__(self) -> None:
        self.here: dict[str, Route] = {}  # by method
        self.rest: dict[str, Route] = {}
        self.words: dict[str, _Node] = {}
        self.open: list[tuple[Callable[[str], object], _Node]] = []

    def below(self, segment: str) -> "_Node":
        """Return the node after a segment of a template; makes it if there is none."""
        if "{" not in segment:
            return self.words.setdefault(segment, _Node())
        parameter = _PARAMETER(segment)
        if parameter is None:
            raise UnusableError(Problem.PATH_PARAMETER_INVALID, got=segment[:MAX_SHOWN])
        accepts: Callable[[str], object] = _UUID if parameter["kind"] == "uuid" else bool
        for known, node in self.open:
            if known is accepts:
                return node
        node = _Node()
        self.open.append((accepts, node))
        return node

    def find(self, method: str, segments: list[str], at: int) -> Route | None:
        if at == len(segments):
            return self.here.get(method)
        segment = segments[at]
        node = self.words.get(segment)
        found = node.find(method, segments, at + 1) if node is not None else None
        if found is None:
            for accepts, node in self.open:
                if accepts(segment) and (found := node.find(method, segments, at + 1)) is not None:
                    return found
            return self.rest.get(method)
        return found


class Routes:
    """The table, compiled once. Of two routes of one shape the later wins, but ``secrets_in_body`` stays set.

    Below ``api_base`` the server has no pages, so the wildcards of the UI's pages do not match there.
    """

    def __init__(self, routes: Iterable[Route], api_base: str = "/api") -> None:
        self.all: dict[tuple[str, str], Route] = {}
        for route in routes:
            known = self.all.get(route.shape)
            asks = route.secrets_in_body or (known is not None and known.secrets_in_body)
            self.all[route.shape] = replace(route, secrets_in_body=asks) if asks != route.secrets_in_body else route
        self._api = f"{api_base}/"
        self._root = _Node()
        self._fixed: dict[tuple[str, str], Route] = {}
        for route in self.all.values():
            self._add(route)
        self._remembered = lru_cache(maxsize=4096)(self._walk)

    def _add(self, route: Route) -> None:
        method = "GET" if route.method == "WS" else route.method  # a proxy shows a WebSocket as a GET
        if "{" not in route.path:
            self._fixed[method, route.path] = route
            return
        node = self._root
        *parents, last = route.path.split("/")
        for segment in parents:
            node = node.below(segment)
        if last == "{rest:path}":
            node.rest[method] = route
        else:
            node.below(last).here[method] = route

    def find(self, method: str, path: str) -> Route | None:
        """Return the route that the server executes for a path (percent-decoded, unambiguous), or None.

        HEAD is looked up as GET, of which it is the same without a body (RFC 9110 §9.3.2).
        """
        if method == "HEAD":
            method = "GET"
        route = self._fixed.get((method, path))
        if route is not None:
            return route
        return self._remembered(method, path) if len(path) <= MAX_REMEMBERED else self._walk(method, path)

    def _walk(self, method: str, path: str) -> Route | None:
        route = self._root.find(method, path.split("/"), 0)
        of_a_page = route is not None and path.startswith(self._api) and not route.path.startswith(self._api)
        return None if of_a_page else route

    def named(self, rule: str) -> Route | None:
        """Return the route that configuration writes as ``METHOD /path/{parameter}``, or None."""
        method, _, path = rule.strip().partition(" ")
        return self.all.get((method.upper(), shape_of(path.strip())))


_WEBSOCKETS: Final = tuple(
    (_NAME.sub("{name}", route.path).removeprefix("/"), re.compile(_NAME.sub("[^/]+", route.path) + r"\Z"))
    for route in parse_table(API)
    if route.method == "WS"
)
_LAST_SEGMENTS: Final = frozenset(name.rpartition("/")[2] for name, _ in _WEBSOCKETS)  # none is a parameter


def websocket_endpoint(path: str) -> str | None:
    """Return which WebSocket of Prefect's API ``path`` ends in, from a closed set, or None.

    For counting and advice only, never for permission: an API under another prefix matches too.
    """
    if path.rpartition("/")[2] in _LAST_SEGMENTS:  # few paths do
        for name, pattern in _WEBSOCKETS:
            if pattern.search(path):
                return name
    return None
