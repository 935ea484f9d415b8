"""Client credentials in the configuration: whose a name is stands beyond doubt before anybody calls."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.settings import ConfigError, load

ISSUER = {"FORWARD_AUTH_ISSUER__URL": "https://idp.example", "FORWARD_AUTH_ISSUER__AUDIENCES": "prefect"}
SECTION = "FORWARD_AUTH_ISSUER__CLIENT_CREDENTIALS__"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def problems(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as error:
        load({**ISSUER, **environ})
    return "\n".join(error.value.problems)


def test_it_is_off_unless_clients_are_named() -> None:
    assert load(ISSUER).settings.all_issuers[0].client_credentials is None
    found = load({**ISSUER, f"{SECTION}CLIENTS": "prefect-*, ci", f"{SECTION}SCOPES": "a,b"}).settings.all_issuers[0]
    assert found.client_credentials is not None
    assert (found.client_credentials.clients, found.client_credentials.scopes) == ({"prefect-*", "ci"}, {"a", "b"})
    assert "client_credentials.clients: this key is needed" in problems({f"{SECTION}SCOPES": "a"})


@pytest.mark.parametrize(
    ("given", "word"),
    [
        pytest.param({"TOKEN_ENDPOINT": "http://idp.example/token"}, "https", id="in clear"),
        pytest.param({"TOKEN_ENDPOINT": "idp.example/token"}, "https", id="no URL"),
        pytest.param({"CLIENT_AUTH": "none"}, "client_auth", id="no secret"),
        pytest.param({"CLIENTS": " , "}, "pattern", id="no clients"),
        pytest.param({"REMEMBER": "86400"}, "remember", id="remembered for a day"),
        pytest.param({"SECRET": "x"}, "no such key", id="an unknown key"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, str], word: str) -> None:
    found = problems({f"{SECTION}CLIENTS": "*", **{SECTION + name: value for name, value in given.items()}})
    assert word in found
    assert "client_credentials" in found.lower()


def test_with_a_jwks_url_nothing_is_discovered_so_the_endpoint_is_needed() -> None:
    jwks = {"FORWARD_AUTH_ISSUER__JWKS_URL": "https://idp.example/keys", f"{SECTION}CLIENTS": "*"}
    assert "token_endpoint is needed" in problems(jwks)
    assert load({**ISSUER, **jwks, f"{SECTION}TOKEN_ENDPOINT": "https://idp.example/token"})
    plain = {f"{SECTION}TOKEN_ENDPOINT": "http://idp.example/token", "FORWARD_AUTH_ISSUER__ALLOW_HTTP": "true"}
    assert load({**ISSUER, **jwks, **plain})


@pytest.mark.parametrize(
    ("first", "second", "clear"),
    [
        (["prefect-*"], ["ci-*"], True),
        (["a", "b"], ["c", "d"], True),
        (["prefect-*"], ["prefect-night"], False),
        (["*-night"], ["prefect-*"], False),
        (["*"], ["ci-*"], False),
        (["x", "same"], ["same"], False),
    ],
)
def test_no_name_is_of_two_issuers(first: list[str], second: list[str], clear: bool) -> None:  # noqa: FBT001
    def issuer(url: str, clients: list[str]) -> dict[str, Any]:
        return {"url": url, "audiences": ["prefect"], "client_credentials": {"clients": clients}}

    issuers = {
        "FORWARD_AUTH_ISSUERS": json.dumps([issuer("https://a.example", first), issuer("https://b.example", second)])
    }
    if clear:
        assert len(load(issuers).settings.all_issuers) == 2
        return
    with pytest.raises(ConfigError) as error:
        load(issuers)
    assert "are met by one name" in str(error.value)
    assert "https://a.example" in str(error.value)
