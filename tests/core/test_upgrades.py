"""What `routes diff` sees in an OpenAPI document."""

from typing import Any

import pytest

from service.core.errors import UnusableError
from service.core.prefect.routes import Routes, parse_table
from service.core.prefect.versions import Changes, changes
from tests.support.refusals import refused

ROUTES = Routes(
    [
        *parse_table("GET /flows/{flow} read\nPOST /block_documents/filter read\nWS /events/in emit", "/api"),
        *parse_table("GET /docs read", in_schema=False),
    ]
)
ASKS = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Filter"}}}}
SCHEMAS = {"components": {"schemas": {"Filter": {"properties": {"include_secrets": {}}}}}}


def document(**paths: dict[str, Any]) -> dict[str, Any]:
    named = {"flows": "/flows/{name}", "blocks": "/block_documents/filter", "new": "/new"}
    return {"openapi": "3.1.0", "paths": {named[name]: methods for name, methods in paths.items()}, **SCHEMAS}


def test_a_version_that_is_known_has_no_changes() -> None:
    same = document(flows={"get": {}}, blocks={"post": {"requestBody": ASKS}})
    assert changes(same, ROUTES) == Changes((), (), ())
    prefixed = {**same, "paths": {f"/api{path}": methods for path, methods in same["paths"].items()}}
    assert changes(prefixed, ROUTES) == Changes((), (), ())


def test_new_and_vanished_routes_are_listed() -> None:
    newer = document(flows={"get": {}, "delete": {}, "parameters": []}, new={"post": {}})
    assert changes(newer, ROUTES) == Changes(
        ("DELETE /api/flows/{name}", "POST /api/new"), ("POST /api/block_documents/filter",), ()
    )


def test_a_route_that_may_tell_secrets_in_a_new_way_is_listed() -> None:
    def asked_by(name: str) -> dict[str, Any]:
        return {"parameters": [{"in": "query", "name": name}, {"in": "header", "name": "x-secret"}]}

    blocks = {"post": {"requestBody": ASKS}}
    assert changes(document(flows={"get": asked_by("include_secrets")}, blocks=blocks), ROUTES).secret_flags == ()
    assert changes(document(flows={"get": asked_by("showSecrets")}, blocks=blocks), ROUTES).secret_flags == (
        "GET /api/flows/{name}",
    )
    assert changes(document(flows={"get": {"requestBody": ASKS}}, blocks=blocks), ROUTES).secret_flags == (
        "GET /api/flows/{name}",
    )


@pytest.mark.parametrize("other", [{}, {"openapi": "3.1.0"}, {"openapi": "3.1.0", "paths": {}}, {"paths": {"/x": {}}}])
def test_what_is_no_openapi_document_is_refused(other: dict[str, Any]) -> None:
    with refused(UnusableError, "not an OpenAPI document"):
        changes(other, ROUTES)
