"""How another version of Prefect differs: its OpenAPI document compared with the table."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from service.core.errors import UnusableError
from service.core.prefect.routes import Routes, shape_of
from service.core.prefect.secret_flags import FLAG
from service.core.problems import Problem

_METHODS: Final = frozenset({"get", "put", "post", "delete", "patch", "options", "head", "trace"})  # OpenAPI §4.8.9.1
_SUSPECT: Final = "secret"


class Changes(NamedTuple):
    """Routes that the table does not have, routes that the version does not have, and routes with new secret flags."""

    unknown: tuple[str, ...]
    gone: tuple[str, ...]
    secret_flags: tuple[str, ...]


def changes(document: Mapping[str, Any], routes: Routes, api_base: str = "/api") -> Changes:
    """Return how the routes of an OpenAPI document differ from the table; raises UnusableError for another document.

    Some versions write their paths with the API's base path, and some without.
    """
    unknown, secret_flags, seen = [], [], set()
    for method, path, operation in _operations(document):
        full = path if path.startswith(f"{api_base}/") else api_base + path
        shape = (method, shape_of(full))
        seen.add(shape)
        route = routes.all.get(shape)
        if route is None:
            unknown.append(f"{method} {full}")
        flagged = route is not None and route.secrets_in_body
        inputs = set(_query_names(operation)) - {FLAG} | (set() if flagged else set(_body_names(operation, document)))
        if any(_SUSPECT in name.lower() for name in inputs):
            secret_flags.append(f"{method} {full}")
    gone = [route.rule for shape, route in routes.all.items() if route.in_schema and shape not in seen]
    return Changes(tuple(sorted(unknown)), tuple(sorted(gone)), tuple(sorted(secret_flags)))


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    paths = document.get("paths")
    if "openapi" not in document or not isinstance(paths, dict) or not paths:
        raise UnusableError(Problem.OPENAPI_WITHOUT_PATHS)
    for path, methods in paths.items():
        for method, operation in methods.items():
            if method in _METHODS:
                yield method.upper(), path, operation


def _query_names(operation: Mapping[str, Any]) -> Iterator[str]:
    return (one["name"] for one in operation.get("parameters", ()) if one.get("in") == "query")


def _body_names(operation: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names at the top of the JSON bodies that an operation takes."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content.get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        yield from (document["components"]["schemas"][name] if name else schema).get("properties", {})
