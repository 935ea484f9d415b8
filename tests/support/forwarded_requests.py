"""Builds forwarded requests, as the core receives them, from a method and a path or from a route."""

from __future__ import annotations

import re

from service.core.model import ForwardedRequest
from service.core.prefect.routes import Route
from service.core.request.headers import parse_target

ID = "6f0b3a52-1b6f-4c0f-9b1e-0a5a8a1b2c3d"
_PARAMETER = re.compile(r"\{(?P<name>\w+)[^}]*\}")


def call(method: str, target: str) -> ForwardedRequest:
    """Return a forwarded request with this request target; a WebSocket is a GET, as proxies send it."""
    path, query = parse_target(target.encode())
    return ForwardedRequest("GET" if method == "WS" else method, "https", "prefect.example.com", path, query, "")


def concrete(route: Route) -> ForwardedRequest:
    """Return a request for a route, with every parameter filled in."""
    return call(route.method, filled_in(route.path))


def filled_in(path: str) -> str:
    """Return a path for a template: UUIDs for ids, a word for every other parameter."""
    return _PARAMETER.sub(lambda match: ID if match["name"] in {"id", "schedule_id"} else f"some-{match['name']}", path)
