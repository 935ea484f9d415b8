"""Secrets managers of the clouds: the real SDKs, asking a fake on loopback (tests/support/clouds.py)."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import ConfigError, clouds, load
from tests.support.clouds import PROJECT, SECRET_ID, Clouds

KINDS = ["gcp", "aws", "azure"]
KEY = "k" * 32
ISSUER = {"FORWARD_AUTH_ISSUER__URL": "https://idp.example", "FORWARD_AUTH_ISSUER__AUDIENCES": "prefect"}


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clouds]:
    monkeypatch.chdir(tmp_path)
    with Clouds(tmp_path) as one:
        one.bend(monkeypatch)
        yield one


def problems(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as error:
        load(environ)
    return "\n".join(error.value.problems)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_come_from_a_cloud_and_only_ours_are_read(cloud: Clouds, kind: str) -> None:
    cloud.secrets = {
        "FORWARD_AUTH_SESSION__KEYS": f"{KEY}\n",
        "forward_auth_oidc__client_secret": "s3cret",
        **({} if kind == "aws" else {"somebody_elses": "password"}),
    }
    place = cloud.places[kind]
    environ = {
        **ISSUER,
        "FORWARD_AUTH_SECRETS_FROM": place,
        "FORWARD_AUTH_OIDC__ISSUER": "https://people.example",
        "FORWARD_AUTH_OIDC__CLIENT_ID": "prefect",
    }
    loaded = load(environ)
    assert loaded.settings.session.keys[0].get_secret_value() == KEY
    assert loaded.settings.oidc is not None
    assert loaded.settings.oidc.client_secret is not None
    assert loaded.settings.oidc.client_secret.get_secret_value() == "s3cret"
    assert loaded.sources["session.keys"] == f"{place}, FORWARD_AUTH_SESSION__KEYS"
    assert "somebody_elses" not in cloud.read


@pytest.mark.parametrize("kind", KINDS)
def test_a_cloud_is_weaker_than_what_is_near_and_stronger_than_the_file(
    cloud: Clouds, kind: str, tmp_path: Path
) -> None:
    cloud.secrets = dict.fromkeys(("FORWARD_AUTH_PORT", "FORWARD_AUTH_WORKERS", "FORWARD_AUTH_LOG__LEVEL"), "5")
    (tmp_path / "forward-auth.toml").write_text(f'port = 1\nsecrets_from = ["{cloud.places[kind]}"]\n')
    (tmp_path / "secrets.toml").write_text('workers = 2\n[log]\nlevel = "debug"\n')
    (tmp_path / "secrets.toml").chmod(0o600)
    settings = load({**ISSUER, "FORWARD_AUTH_LOG__LEVEL": "error"}).settings
    assert (settings.port, settings.workers, settings.log.level) == (5, 2, "error")


def test_of_two_clouds_the_first_is_the_strongest(cloud: Clouds, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"aws:a": {"FORWARD_AUTH_PORT": "1"}, "aws:b": {"FORWARD_AUTH_PORT": "2", "FORWARD_AUTH_WORKERS": "2"}}
    monkeypatch.setattr(clouds, "_ask", held.__getitem__)
    settings = load({**ISSUER, "FORWARD_AUTH_SECRETS_FROM": "aws:a, aws:b"}).settings
    assert (settings.port, settings.workers) == (1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cloud_that_is_out_of_reach_is_a_problem(cloud: Clouds, kind: str) -> None:
    cloud.secrets, cloud.down = {"FORWARD_AUTH_SESSION__KEYS": KEY}, True
    found = problems({**ISSUER, "FORWARD_AUTH_SECRETS_FROM": cloud.places[kind], "FORWARD_AUTH_PORT": "x"})
    assert f"secrets_from: {cloud.places[kind]}: " in found
    assert "port: " in found


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_that_may_not_be_read_is_a_problem_and_none_is_quoted(cloud: Clouds, kind: str) -> None:
    cloud.secrets = {"FORWARD_AUTH_SESSION__KEYS": KEY, "FORWARD_AUTH_STORE__URL": "redis://:s3cret@h"}
    cloud.forbidden = {"FORWARD_AUTH_SESSION__KEYS"}
    found = problems({**ISSUER, "FORWARD_AUTH_SECRETS_FROM": cloud.places[kind]})
    assert "secrets_from: " in found
    assert KEY not in found
    assert "s3cret" not in found


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_names_and_a_place_without_any_are_problems(cloud: Clouds, kind: str) -> None:
    environ = {**ISSUER, "FORWARD_AUTH_SECRETS_FROM": cloud.places[kind]}
    cloud.secrets = {"OTHER": "x"}
    assert "no secret whose name begins with FORWARD_AUTH_" in problems(environ)
    cloud.secrets = {"FORWARD_AUTH_TYPO": "x", "FORWARD_AUTH_LOG__LEVEL": "loud"}
    found = problems(environ)
    assert "FORWARD_AUTH_TYPO: no such key" in found
    assert "log.level: " in found


def test_the_same_key_in_two_spellings_is_a_problem(cloud: Clouds) -> None:
    cloud.secrets = {"FORWARD_AUTH_PORT": "1", "forward_auth_port": "2"}
    assert "are the same key" in problems({**ISSUER, "FORWARD_AUTH_SECRETS_FROM": f"gcp:{PROJECT}"})


@pytest.mark.parametrize("secrets", [["no", "object"], {"FORWARD_AUTH_SESSION__KEYS": [KEY, KEY]}])
def test_amazons_secret_is_an_object_of_texts(cloud: Clouds, secrets: object) -> None:
    cloud.secrets = secrets  # type: ignore[assignment]
    assert "secrets_from: aws:" in problems({**ISSUER, "FORWARD_AUTH_SECRETS_FROM": f"aws:{SECRET_ID}"})


def test_amazons_numbers_are_texts_too(cloud: Clouds) -> None:
    cloud.secrets = {"FORWARD_AUTH_PORT": 9_000, "FORWARD_AUTH_OIDC__LOGOUT": False}
    more = {"FORWARD_AUTH_OIDC__ISSUER": "https://people.example", "FORWARD_AUTH_OIDC__CLIENT_ID": "prefect"}
    settings = load({**ISSUER, **more, "FORWARD_AUTH_SECRETS_FROM": f"aws:{SECRET_ID}"}).settings
    assert settings.oidc is not None
    assert (settings.port, settings.oidc.logout) == (9_000, False)


def test_a_cloud_that_does_not_answer_is_waited_for_within_bounds(
    cloud: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clouds, "SECONDS", 0.2)
    cloud.secrets, cloud.delay = {"FORWARD_AUTH_PORT": "1"}, 1.0
    found = problems({**ISSUER, "FORWARD_AUTH_SECRETS_FROM": f"aws:{SECRET_ID}"})
    assert "no answer within 0.2 s" in found


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_named(cloud: Clouds, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in ("boto3", "azure.identity", "google.cloud.secretmanager"):
        monkeypatch.setitem(sys.modules, one, None)
    monkeypatch.setattr("pydantic_settings.sources.providers.gcp.SecretManagerServiceClient", None)
    found = problems({**ISSUER, "FORWARD_AUTH_SECRETS_FROM": cloud.places[kind]})
    assert f"pip install 'prefect-forward-auth[{kind}]'" in found


@pytest.mark.parametrize("place", ["vault:x", "aws:", "gcp", "azure:http://vault.example", "azure:vault.example"])
def test_what_names_no_place_is_a_problem(cloud: Clouds, place: str) -> None:
    assert "secrets_from: each member is gcp:PROJECT" in problems({**ISSUER, "FORWARD_AUTH_SECRETS_FROM": place})
