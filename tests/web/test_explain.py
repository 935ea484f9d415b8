"""`explain` and `routes`: an operator asks before, or after, somebody is refused."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from service.cli.main import main
from tests.support.issuer import Issuer as Provider
from tests.support.issuer import Reply

BLOCKS = "/api/block_documents/filter"
RESUME = "/api/flow_runs/6f0b3a52-1b6f-4c0f-9b1e-0a5a8a1b2c3d/resume"


@pytest.fixture
def configured(tmp_path: Path, provider: Provider, users_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("forward-auth.toml").write_text(
        f"""
        [issuer]
        url = "{provider.url}"
        audiences = "prefect"
        [users]
        file = "{users_file}"
        role = "viewer"
        [roles.resumer]
        routes = "POST /api/flow_runs/{{id}}/resume"
        [[grants]]
        issuer = "local"
        users = "bob"
        roles = "admin"
        [[grants]]
        issuer = "{provider.url}"
        claims = {{ team = ["data"] }}
        roles = "resumer"
        [[grants]]
        issuer = "{provider.url}"
        claims = {{ email = ["ceo@corp.example"] }}
        roles = "admin"
        """
    )
    return tmp_path


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Told:
    """What a command has said, and its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        said = self._capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    return Told(capsys)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--role", "viewer", "POST", BLOCKS, "--body", '{"include_secrets": true}'), 1, "needs 'read-secret'"),
        (("--role", "viewer", "POST", BLOCKS, "--body", "{}"), 0, "opened    by read of the role viewer"),
        (("--role", "viewer", "POST", BLOCKS), 1, "which the proxy does not send here"),
        (("--role", "worker", "POST", BLOCKS), 0, "allowed   as 'somebody'"),
        (("--role", "runner", "POST", RESUME), 0, "route     POST /api/flow_runs/{id}/resume, opened by run"),
        (("--role", "viewer", "--role", "runner", "post", RESUME), 0, "opened    by run of the role runner"),
        (("--role", "viewer", "WS", "/api/events/in"), 1, "WS /api/events/in needs 'emit'"),
        (("--role", "deployer", "GET", "/api/nothing"), 1, "route     none that is known: for the role admin only"),
        (("--role", "admin", "GET", "/api/../x"), 1, "400 invalid_request"),
        (("--role", "boss", "GET", "/"), 2, "there is no role boss"),
        (("--user", "alice", "GET", "/"), 2, "name it (--config)"),
        (("--role", "admin", "POST", "api/flows/filter"), 2, "a path begins with /: /api/flows/filter"),
        (("--role", "admin", "GET", "https://prefect.example/api/flows?x=1"), 2, "begins with /: /api/flows?x=1"),
    ],
)
def test_before_anything_is_configured_the_built_in_roles_explain_themselves(
    arguments: tuple[str, ...], code: int, sentence: str, told: Told
) -> None:
    ended, text = told("explain", *arguments)
    assert ended == code, text
    assert sentence in text


@pytest.mark.usefixtures("configured")
def test_a_user_is_explained_without_a_password(told: Told) -> None:
    code, text = told("explain", "--user", "alice", "POST", "/api/deployments/")
    assert code == 1
    assert "You are 'alice' of local, with the role viewer. POST /api/deployments/ needs 'deploy'." in text
    assert "viewer: users.role" in text
    assert "admin: grants.0, not given: its condition 'users' is not met" in text
    assert told("explain", "--user", "alice", "POST", "/api/flows/filter")[0] == 0
    assert told("explain", "--user", "mallory", "GET", "/")[0] == 2


def test_a_token_is_verified_as_the_gate_does_it(configured: Path, provider: Provider, told: Told) -> None:
    token = configured / "token"
    token.write_text(provider.mint(team="data") + "\n")
    code, text = told("explain", "--token-file", str(token), "POST", RESUME)
    assert code == 0, text
    assert "resumer: grants.1, given" in text
    assert "opened    by POST /api/flow_runs/{id}/resume of the role resumer" in text
    token.write_text(Provider("RS256").mint(iss=provider.url, team="data"))
    code, text = told("explain", "--token-file", str(token), "POST", RESUME)
    assert (code, "401 invalid_token" in text) == (1, True)
    assert token.read_text() not in text
    token.write_text("\x00\xff not a token")
    assert told("explain", "--token-file", str(token), "POST", RESUME)[0] == 1


def test_claims_are_explained_as_if_they_were_signed(configured: Path, provider: Provider, told: Told) -> None:
    claims = configured / "claims.json"
    claims.write_text(json.dumps({"sub": "svc", "team": "ops"}))
    code, text = told("explain", "--claims-file", str(claims), "POST", RESUME)
    assert (code, "configured are" in text) == (2, True)
    code, text = told("explain", "--claims-file", str(claims), "--issuer", provider.url, "POST", RESUME)
    assert code == 1
    assert "resumer: grants.1, not given: its condition 'team' is not met" in text
    assert f"You are 'svc' of {provider.url}, without a role here" in text
    claims.write_text("[]")
    assert told("explain", "--claims-file", str(claims), "POST", RESUME)[0] == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, ""),
        ({"aud": "other"}, "401 invalid_token: This token is for another audience"),
        ({"aud": ["other", "prefect"]}, ""),
        ({"aud": []}, "401 invalid_token"),
        ({"exp": time.time() - 3600}, "401 invalid_token: This token expired"),
        ({"exp": "soon"}, "401 invalid_token"),
        ({"nbf": time.time() + 3600}, "401 invalid_token"),
        ({"iat": time.time() + 3600}, "401 invalid_token"),
        ({"iss": "https://other.example"}, "401 invalid_token"),
        ({"nonce": "x"}, "401 invalid_token"),
        ({"typ": "Refresh"}, "401 invalid_token"),
        ({"token_use": "id"}, "401 invalid_token"),
    ],
)
def test_claims_are_judged_as_the_gate_judges_them(
    changes: dict[str, Any], sentence: str, configured: Path, provider: Provider, told: Told
) -> None:
    claims = {"iss": provider.url, "aud": "prefect", "exp": time.time() + 60, "sub": "svc", "team": "data", **changes}
    (configured / "claims.json").write_text(json.dumps(claims))
    code, text = told("explain", "--claims-file", "claims.json", "--issuer", provider.url, "POST", RESUME)
    assert (code, "allowed" in text) == ((1, False) if sentence else (0, True)), text
    assert sentence in text
    assert "not checked" not in text


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("iss", "aud", "exp"), ""),
        (("iss", "aud"), "not checked: the file has no exp"),
        (("iss", "exp"), "not checked: the file has no aud"),
        ((), "not checked: the file has no iss, no aud, no exp"),
    ],
)
def test_what_the_claims_lack_is_told_as_unchecked(
    given: tuple[str, ...], sentence: str, configured: Path, provider: Provider, told: Told
) -> None:
    every = {"iss": provider.url, "aud": "prefect", "exp": time.time() + 60}
    claims = {name: every[name] for name in given} | {"sub": "svc", "team": "data"}
    (configured / "claims.json").write_text(json.dumps(claims))
    code, text = told("explain", "--claims-file", "claims.json", "--issuer", provider.url, "POST", RESUME)
    assert code == 0, text
    assert (sentence in text, "not checked" in text) == (True, bool(sentence))


def test_claims_of_a_client_are_judged_by_the_parties_too(configured: Path, provider: Provider, told: Told) -> None:
    config = Path("forward-auth.toml").read_text().replace("[users]", 'authorized_parties = "cli"\n[users]')
    Path("forward-auth.toml").write_text(config)
    claims = {"iss": provider.url, "aud": "prefect", "exp": time.time() + 60, "sub": "svc", "team": "data"}
    for party, code in (({"azp": "cli"}, 0), ({"client_id": "cli"}, 0), ({"azp": "other"}, 1), ({}, 0)):
        (configured / "claims.json").write_text(json.dumps(claims | party))
        ended, text = told("explain", "--claims-file", "claims.json", "POST", RESUME)
        assert (ended, "the file has no azp" in text) == (code, not party), text


def test_claims_of_a_person_are_those_of_an_id_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    monkeypatch.chdir(tmp_path)
    issuer = "https://idp.example"
    Path("forward-auth.toml").write_text(f'[oidc]\nissuer = "{issuer}"\nclient_id = "ui"\nrole = "viewer"')
    claims = {"iss": issuer, "aud": "ui", "exp": time.time() + 60, "sub": "alice", "nonce": "x"}
    for changes, code in (({}, 0), ({"aud": "other"}, 1), ({"exp": 1}, 1)):
        Path("claims.json").write_text(json.dumps(claims | changes))
        assert told("explain", "--claims-file", "claims.json", "POST", "/api/flows/filter")[0] == code


# the table ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh")
def test_the_table_needs_no_settings(told: Told) -> None:
    """Not even after `config init`, which writes files that verify nobody yet."""
    _, before = told("routes")
    assert told("config", "init")[0] == 0
    code, text = told("routes")
    assert code == 0
    assert text.endswith("The configuration has problems (config check). This is without it.\n")
    assert text.startswith(before)
    assert told("routes", "--role", "viewer")[0] == 0
    assert told("explain", "--role", "viewer", "POST", "/api/flows/filter")[0] == 0
    for arguments in (
        ("routes", "--role", "night"),
        ("routes", "--config", "forward-auth.toml"),
        ("explain", "--role", "night", "GET", "/"),
        ("explain", "--user", "alice", "GET", "/"),
    ):
        code, text = told(*arguments)
        assert (code, "nobody could be verified" in text) == (2, True), arguments


@pytest.mark.usefixtures("configured")
def test_the_table_is_printed_whole_or_for_a_role_of_ones_own(told: Told) -> None:
    code, text = told("routes")
    assert (code, len(text.splitlines()) > 180) == (0, True)
    _, text = told("routes", "--role", "resumer", "--capability", "run")
    assert [line.split()[:2] for line in text.splitlines()] == [["POST", "/api/flow_runs/{id}/resume"]]
    assert told("routes", "--role", "boss")[0] == 2


@pytest.mark.usefixtures("fresh")
def test_another_version_is_compared_from_a_file_or_a_running_server(provider: Provider, told: Told) -> None:
    known = {"openapi": "3.1.0", "paths": {"/api/flows/filter": {"post": {}}}}
    Path("known.json").write_text(json.dumps(known))
    code, text = told("routes", "diff", "known.json")
    assert (code, "0 not known" in text, "  POST /api/flows/count" in text) == (0, True, True)
    newer = {**known, "paths": {**known["paths"], "/api/brand_new/": {"post": {}}}}  # type: ignore[dict-item]
    provider.replies["/openapi.json"] = Reply(newer)
    try:
        for url in (provider.url, f"{provider.url}/api", f"{provider.url}/openapi.json"):
            code, text = told("routes", "diff", url)
            assert (code, "1 not known, so for the role admin only:\n  POST /api/brand_new/" in text) == (1, True), text
    finally:
        del provider.replies["/openapi.json"]
    Path("known.json").write_text("{}")
    for mistake in ("known.json", "missing.json", "http://127.0.0.1:1"):
        assert told("routes", "diff", mistake)[0] == 2


def test_an_unverified_address_is_explained_as_the_gate_takes_it(
    configured: Path, provider: Provider, told: Told
) -> None:
    claims = configured / "claims.json"
    for verified, given in ((False, "not given"), (True, "given")):
        claims.write_text(json.dumps({"sub": "m", "email": "ceo@corp.example", "email_verified": verified}))
        _, text = told("explain", "--claims-file", str(claims), "--issuer", provider.url, "POST", RESUME)
        assert f"admin: grants.2, {given}" in text


@pytest.mark.parametrize(
    ("role", "path", "more", "says"),
    [
        ("worker", "/api/events/in", "", ["passes; the proxy", "passes through the relay", "for ten minutes after"]),
        ("viewer", "/api/events/in", "", ["refused, as above", "refused, as above", "may 'report' and 'emit'"]),
        ("worker", "/api/logs/out", "", ["passes; the proxy", "passes through the relay", "only events/in and"]),
        (
            "worker",
            "/api/events/out",
            'websockets = { relay = "always", vouched = false }',
            ["only where the proxy sends it to /relay/", "passes through the relay", "websockets.vouched is off"],
        ),
        (
            "worker",
            "/api/events/in",
            'websockets = { relay = "off" }',
            ["passes; the proxy", "websockets.relay is 'off'", "websockets.relay is 'off'"],
        ),
    ],
)
def test_a_websocket_is_explained_by_where_its_credential_is(
    role: str, path: str, more: str, says: list[str], configured: Path, told: Told
) -> None:
    toml = configured / "forward-auth.toml"
    toml.write_text(f'prefect = {{ url = "http://prefect:4200" }}\n{more}\n{toml.read_text()}')
    _, text = told("explain", "--role", role, "WS", path)
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("websocket with an Authorization"))
    for line, what in zip(lines[first:], says, strict=False):
        assert what in line, text


@pytest.mark.usefixtures("configured")
def test_a_websocket_that_cannot_be_relayed_is_explained(told: Told) -> None:
    code, text = told("explain", "--role", "worker", "WS", "/api/events/in")
    assert code == 0
    assert text.count("refused: the relay needs prefect.url") == 2
    assert "websocket" not in told("explain", "--role", "worker", "POST", "/api/flows/filter")[1]
