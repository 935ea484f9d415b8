"""`config show`: the settings in force, as a file that means the same."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from service.settings import Loaded, load
from service.settings.show import shown

ISSUERS = """
port = 9000
shutdown_grace = 60.0
[[issuers]]
url = "https://one.example"
audiences = ["prefect"]
required_claims = { "https://claims.example/team" = ["data", "a \\"b\\" \\u007f"] }
[issuers.keys]
refresh = 60
[[issuers]]
url = "https://two.example"
audiences = ["prefect"]
allow_http = true
[issuers.client_credentials]
clients = ["prefect-*"]
[users]
file = "users"
[roles.night-shift]
capabilities = ["read", "run"]
[roles."a.b"]
routes = ["POST /api/flow_runs/{id}/resume"]
[[grants]]
issuer = "local"
users = ["alice", "ops-*"]
roles = ["admin"]
[[grants]]
issuer = "https://one.example"
roles = ["night-shift", "a.b"]
[grants.claims]
ref = { glob = ["refs/heads/*"] }
"repo.owner" = { equals = "acme" }
[prefect]
routes = { "POST /api/new/{id}" = "run" }
"""
KEY = "s3cret-" + "k" * 32


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def loaded(toml: str, **environ: str) -> Loaded:
    Path("forward-auth.toml").write_text(toml)
    return load({f"FORWARD_AUTH_{name}": value for name, value in environ.items()})


def show(toml: str, **environ: str) -> str:
    return "\n".join(shown(loaded(toml, **environ)))


@pytest.mark.parametrize(
    "toml", ["[users]\nfile = 'u'\n", ISSUERS, "[oidc]\nissuer = 'https://a.example'\nclient_id = 'x'\nname = ''\n"]
)
def test_what_is_shown_means_the_same(toml: str) -> None:
    given = loaded(toml)
    assert loaded("\n".join(shown(given))).settings == given.settings


def test_secrets_are_masked_and_nothing_else_changes() -> None:
    toml = (
        f"[oidc]\nissuer = 'https://a.example'\nclient_id = 'x'\nclient_secret = '{KEY}'\n[store]\nurl = 'redis://h'\n"
    )
    text = show(toml, SESSION__KEYS=f"{KEY},{KEY}")
    assert "s3cret" not in text
    found: dict[str, Any] = tomllib.loads(text)
    assert found["oidc"].pop("client_secret") == "********"
    assert found["session"].pop("keys") == ["********", "********"]
    assert found.pop("store")["url"] == "********"
    assert found["oidc"] == {
        key: value
        for key, value in json.loads(loaded(toml).settings.model_dump_json())["oidc"].items()
        if value not in (None, "", [], {}) and key != "client_secret"
    } | {"algorithms": sorted(loaded(toml).settings.oidc.algorithms)}  # type: ignore[union-attr]


def test_what_is_not_set_is_a_comment() -> None:
    text = show("[users]\nfile = 'u'\n")
    assert "# uds is not set\n" in text
    assert "# oidc is not set\n" in text
    assert '""' not in text.replace('token_types = ["", ', "")


def test_numbers_are_written_alike() -> None:
    text = show(ISSUERS)
    assert "shutdown_grace = 60  #" in text
    assert "verdict_seconds = 60  #" in text
    assert "reload = 1  #" in text
    assert "reload = 0.5  #" in show("[users]\nfile = 'u'\nreload = 0.5\n")


def test_each_value_has_its_own_source() -> None:
    lines = show(ISSUERS, HOST="::1", LOG__LEVEL="debug").splitlines()
    first = lines.index("[[issuers]]")
    table = lines[first : lines.index("[[issuers]]", first + 1)]
    assert 'url = "https://one.example"  # forward-auth.toml' in table
    assert "leeway = 30  # default" in table
    assert "allow_http = false  # default" in table
    assert "refresh = 60  # forward-auth.toml" in table
    assert "cooldown = 5  # default" in table
    assert 'host = "::1"  # environment, FORWARD_AUTH_HOST' in lines
    assert "port = 9000  # forward-auth.toml" in lines
    assert 'routes = { "POST /api/new/{id}" = "run" }  # forward-auth.toml' in lines
    assert 'level = "debug"  # environment, FORWARD_AUTH_LOG__LEVEL' in lines
