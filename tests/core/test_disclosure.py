"""Whether a request asks for secrets: held to what FastAPI itself reads."""

import json
import warnings
from typing import Annotated, Any

import pytest
from fastapi import Body, FastAPI, Query
from hypothesis import given
from hypothesis import strategies as st

from service.core.prefect.secret_flags import MAX_BODY, asked_in_body, asked_in_query

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of httpx, which is what we have
    from fastapi.testclient import TestClient

upstream = FastAPI()


@upstream.get("/")
def in_query(*, include_secrets: Annotated[bool, Query()] = False) -> bool:
    return include_secrets


@upstream.post("/")
def in_body(*, limit: Annotated[int, Body()] = 0, include_secrets: Annotated[bool, Body()] = False) -> bool:
    return include_secrets


SERVER = TestClient(upstream, raise_server_exceptions=False)


def told_by_query(query: str) -> bool:
    answer = SERVER.get(f"/?{query}")
    return answer.status_code == 200 and answer.json()


def told_by_body(body: bytes) -> bool:
    answer = SERVER.post("/", content=body, headers={"content-type": "application/json"})
    return answer.status_code == 200 and answer.json()


@pytest.mark.parametrize(
    "query",
    [
        "",
        "limit=1",
        "x=include_secrets",
        "include_secrets=false",
        "include_secrets=0",
        "include_secrets=off",
        "INCLUDE_SECRETS=true",
        "a;b=include_secrets",
        "a=%25",
    ],
)
def test_a_query_that_does_not_ask(query: str) -> None:
    assert not asked_in_query(query)
    assert not told_by_query(query)


@pytest.mark.parametrize("value", ["true", "True", "TRUE", "1", "yes", "Yes", "on", "t", "y", "%74rue", "tru%65"])
def test_a_query_that_asks_in_any_spelling(value: str) -> None:
    for before in (
        "include_secrets",
        "a=b&&include%5fsecrets",
        "include_%73ecrets",
        "include_secrets=0&include_secrets",
    ):
        query = f"{before}={value}"
        assert told_by_query(query)
        assert asked_in_query(query)


@pytest.mark.parametrize(
    "query",
    [
        "include_secrets",
        "include_secrets=",
        "include_secrets=2",
        "include_secrets=%20false",
        "include_secrets=true&include_secrets=false",
        "include_secrets=%ff",
        "include_secrets=false;",
        "a;include_secrets=true",
        "a=1;include%5fsecrets=1;b",
    ],
)
def test_a_query_of_which_the_server_makes_nothing_asks_all_the_same(query: str) -> None:
    assert asked_in_query(query)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"include_secrets": false}', b'{"limit": 5}', b' {"x": {"include_secrets": true}}']
)
def test_a_body_that_does_not_ask(body: bytes) -> None:
    assert not asked_in_body(body)
    assert not told_by_body(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"include_secrets": true}',
        b'{"include_secrets": 1}',
        b'{"include_secrets": 1.0}',
        b'{"include_secrets": "true"}',
        b'{"include_secrets": "Y"}',
        b'{"include_secrets": "on"}',
        b'{"include\\u005fsecrets": true}',
        b'{"include_secrets": false, "include_secrets": true}',
        b'\xef\xbb\xbf{"include_secrets": true}',
        '{"include_secrets": true}'.encode("utf-16"),
        '{"include_secrets": true}'.encode("utf-32-le"),
        b'{"include_secrets": true, "x": NaN}',
        b'{"include_secrets": true, "x": "\\ud800"}',
    ],
)
def test_a_body_that_asks_in_any_spelling(body: bytes) -> None:
    assert told_by_body(body)
    assert asked_in_body(body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty-or-not-sent"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="array"),
        pytest.param(b"{", id="cut"),
        pytest.param(b'{"include_secrets": false}x', id="more-behind-it"),
        pytest.param(b'{"include_secrets": null}', id="null-flag"),
        pytest.param(b'{"include_secrets": "false"}', id="false-as-text"),
        pytest.param(b'{"include_secrets": true, "include_secrets": false}', id="repeated"),
        pytest.param(b'{"x": {"a": 1, "a": 2}}', id="repeated-elsewhere"),
        pytest.param(b'{"x": "\xff"}', id="not-utf8"),
        pytest.param(b"[" * 50_000, id="deep"),
        pytest.param(b'{"x": ' + b"9" * 5000 + b"}", id="huge-number"),
        pytest.param(b'{"x": "' + b"a" * MAX_BODY + b'"}', id="too-long"),
    ],
)
def test_a_body_that_cannot_be_known_to_be_harmless_asks(body: bytes) -> None:
    assert asked_in_body(body)


SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["true", "TRUE", "1", "on", "yes", "no", "", " true", "T"]), st.text(max_size=4),
)  # fmt: skip


@given(SCALARS)
def test_whatever_the_server_takes_for_a_yes_is_one(value: Any) -> None:
    body = json.dumps({"include_secrets": value}).encode()
    assert asked_in_body(body) or not told_by_body(body)


@given(st.text("include_secrets=tru10&;%5fFT +", max_size=40))
def test_whatever_the_server_takes_for_a_yes_in_a_query_is_one(query: str) -> None:
    for one in (query, f"include_secrets={query}"):
        sent = one.replace(" ", "%20")
        assert asked_in_query(sent) or not told_by_query(sent)
