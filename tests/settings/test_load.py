"""Configuration speaks once, at the door: where each value comes from, and every problem at once."""

from pathlib import Path
from typing import Any

import pytest

from service.settings import ConfigError, load

ISSUER = {"FORWARD_AUTH_ISSUER__URL": "https://idp.example", "FORWARD_AUTH_ISSUER__AUDIENCES": "prefect, other"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def problems(environ: dict[str, str], **more: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load(environ, **more)
    return "\n".join(error.value.problems)


def test_one_issuer_and_one_users_file_by_environment_alone() -> None:
    loaded = load(
        {
            **ISSUER,
            "FORWARD_AUTH_HOST": "0.0.0.0",
            "FORWARD_AUTH_PORT": "9000",
            "FORWARD_AUTH_ISSUER__JWKS_URL": "https://idp.example/keys",
            "FORWARD_AUTH_ISSUER__ROLE": "worker",
            "FORWARD_AUTH_USERS__FILE": "/run/secrets/users.htpasswd",
            "FORWARD_AUTH_USERS__ROLE": "worker",
            "FORWARD_AUTH_TRUSTED_PROXIES": "10.0.0.0/8, 192.0.2.1",
        }
    )
    settings = loaded.settings
    assert (settings.host, settings.port) == ("0.0.0.0", 9000)
    assert settings.users is not None
    assert settings.users.file == Path("/run/secrets/users.htpasswd")
    assert [str(one) for one in settings.trusted_proxies] == ["10.0.0.0/8", "192.0.2.1/32"]
    trust = settings.all_issuers[0].trust()
    assert (trust.issuer, trust.audiences, trust.role) == ("https://idp.example", {"prefect", "other"}, "worker")


def test_the_same_keys_stand_in_toml_and_several_issuers_are_tables(tmp_path: Path) -> None:
    (tmp_path / "forward-auth.toml").write_text(
        """
        port = 9001
        [issuer]
        url = "https://one.example"
        audiences = ["prefect"]
        required_claims = { repository_owner = ["acme", "umbrella"] }
        [[issuers]]
        url = "https://two.example"
        audiences = ["prefect"]
        algorithms = ["ES256"]
        [issuers.keys]
        refresh = 60
        [users]
        file = "users"
        """
    )
    loaded = load({})
    assert [one.url for one in loaded.settings.all_issuers] == ["https://one.example", "https://two.example"]
    assert loaded.settings.issuers[0].keys.refresh == 60
    assert loaded.settings.all_issuers[0].trust().required_claims == {"repository_owner": {"acme", "umbrella"}}
    assert loaded.sources["port"] == "forward-auth.toml"


def test_the_strongest_source_wins_and_each_value_knows_its_own(tmp_path: Path) -> None:
    (tmp_path / "forward-auth.toml").write_text('host = "toml"\nport = 1\nworkers = 1\nshutdown_grace = 1\n')
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name, value in (
        ("forward_auth_port", "2"),
        ("FORWARD_AUTH_WORKERS", "2"),
        ("forward_auth_shutdown_grace", "2\n"),
    ):
        (secrets / name).write_text(value)
        (secrets / name).chmod(0o600)
    (tmp_path / "workers").write_text("3\n")
    environ = {
        **ISSUER,
        "FORWARD_AUTH_SECRETS_DIR": str(secrets),
        "FORWARD_AUTH_WORKERS_FILE": str(tmp_path / "workers"),
        "FORWARD_AUTH_PORT": "4",
    }
    loaded = load(environ, {"port": "5"})
    settings = loaded.settings
    assert (settings.host, settings.shutdown_grace, settings.workers, settings.port) == ("toml", 2, 3, 5)
    assert loaded.sources["host"] == "forward-auth.toml"
    assert loaded.sources["shutdown_grace"].startswith("secrets directory")
    assert loaded.sources["workers"] == "file named by FORWARD_AUTH_WORKERS_FILE"
    assert loaded.sources["port"] == "command line"
    assert loaded.sources["issuer.url"] == "environment, FORWARD_AUTH_ISSUER__URL"
    assert load(environ).settings.port == 4


def test_every_problem_is_listed_at_once_by_its_key_and_source(tmp_path: Path) -> None:
    (tmp_path / "forward-auth.toml").write_text("port = 70000\nfoo = 1\n[issuer]\nleeway = 9999\nbar = 2\n")
    found = problems(
        {
            "FORWARD_AUTH_ISSUER__URL": "http://idp.example",
            "FORWARD_AUTH_ISSUER__AUDIENCES": ",",
            "FORWARD_AUTH_ISSUER__ALGORITHMS": "RS256,HS256",
            "FORWARD_AUTH_USERS__ROLE": "the boss",
            "FORWARD_AUTH_TRUSTED_PROXIES": "everyone",
            "FORWARD_AUTH_TYPO": "1",
            "FORWARD_AUTH_LOG__LEVEL_FILE": "/nowhere",
        }
    )
    for expected in (
        "port: ",
        "foo: no such key",
        "issuer.leeway: ",
        "issuer.bar: no such key",
        "issuer.url: over plain http",
        "issuer.audiences: name at least one",
        "issuer.algorithms: accepted are",
        "users.file: this key is needed",
        "users.role: ",
        "trusted_proxies: each member is an address",
        "FORWARD_AUTH_TYPO: no such key",
        "FORWARD_AUTH_LOG__LEVEL_FILE: /nowhere cannot be read",
        "(environment, FORWARD_AUTH_USERS__ROLE)",
        "(forward-auth.toml)",
    ):
        assert expected in found


def test_row19_a_configuration_that_could_verify_nobody_is_refused() -> None:
    assert "nobody could be verified" in problems({})


@pytest.mark.parametrize("algorithms", ["HS256", "none", "RS256,none", "", "rs256", "*"])
def test_row26_only_asymmetric_algorithms_can_be_configured(algorithms: str) -> None:
    environ = {**ISSUER, "FORWARD_AUTH_ISSUER__ALGORITHMS": algorithms or ","}
    assert "issuer.algorithms" in problems(environ)


@pytest.mark.parametrize("name", ["FORWARD_AUTH_ISSUER__URL", "FORWARD_AUTH_ISSUER__JWKS_URL"])
@pytest.mark.parametrize(
    "url", ["http://idp.example", "file:///etc/passwd", "idp.example", "https://", "https://u:p@h/"]
)
def test_row27_keys_come_over_https_alone(name: str, url: str) -> None:
    assert "issuer." in problems({**ISSUER, name: url})


def test_plain_http_needs_to_be_asked_for_beyond_loopback() -> None:
    assert load({**ISSUER, "FORWARD_AUTH_ISSUER__URL": "http://127.0.0.1:9/"})
    assert load({**ISSUER, "FORWARD_AUTH_ISSUER__URL": "http://idp", "FORWARD_AUTH_ISSUER__ALLOW_HTTP": "true"})


def test_an_issuer_stands_once(tmp_path: Path) -> None:
    (tmp_path / "forward-auth.toml").write_text('[[issuers]]\nurl = "https://idp.example"\naudiences = ["x"]\n')
    assert "more than once" in problems(ISSUER)


@pytest.mark.parametrize(
    ("content", "word"), [("port = ", "is not TOML"), ("\xff", "port"), ("[issuer", "is not TOML")]
)
def test_a_broken_file_is_a_problem(content: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "forward-auth.toml").write_bytes(content.encode("latin-1"))
    assert "forward-auth.toml" in problems(ISSUER)


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    assert "no such configuration file" in problems(ISSUER, config_file=tmp_path / "none.toml")
    assert "no such configuration file" in problems({**ISSUER, "FORWARD_AUTH_CONFIG": "none.toml"})


def test_what_kubernetes_adds_for_a_service_named_forward_auth_is_not_ours() -> None:
    links = {
        "FORWARD_AUTH_SERVICE_HOST": "10.0.0.1",
        "FORWARD_AUTH_SERVICE_PORT_HTTP": "8080",
        "FORWARD_AUTH_PORT": "tcp://10.0.0.1:8080",
        "FORWARD_AUTH_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert load({**ISSUER, **links}).settings.port == 8080


def test_an_empty_variable_is_not_given() -> None:
    assert load({**ISSUER, "FORWARD_AUTH_USERS__FILE": "", "FORWARD_AUTH_PORT": ""}).settings.users is None


def test_problems_quote_no_value() -> None:
    found = problems({**ISSUER, "FORWARD_AUTH_PORT": "s3cret", "FORWARD_AUTH_ISSUER__URL": "https://u:s3cret@h/"})
    assert "s3cret" not in found


def test_the_settings_are_frozen() -> None:
    settings = load(ISSUER).settings
    with pytest.raises(Exception, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def test_several_issuers_fit_into_one_variable() -> None:
    loaded = load({"FORWARD_AUTH_ISSUERS": '[{"url": "https://a.example", "audiences": ["x"]}]'})
    assert loaded.settings.issuers[0].url == "https://a.example"


def test_a_byte_order_mark_is_no_part_of_a_value(tmp_path: Path) -> None:
    """Editors on Windows put one in front of a file."""
    mark = b"\xef\xbb\xbf"
    (tmp_path / "forward-auth.toml").write_bytes(mark + b"port = 1\n")
    (tmp_path / "host").write_bytes(mark + b"::1\r\n")
    settings = load({**ISSUER, "FORWARD_AUTH_HOST_FILE": str(tmp_path / "host")}).settings
    assert (settings.port, settings.host) == (1, "::1")


# the place of our own tokens ----------------------------------------------------------------------------------

SECRET = "never-shown"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://gate:{SECRET}@db/gate",
        f"postgres://gate:{SECRET}%40x@db.example.com:5432/gate?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        f"postgresql://gate:{SECRET}@[::1]:5432/gate",
        f"postgresql://gate:{SECRET}@one:5432,two:5432/gate?target_session_attrs=read-write",
        "postgresql://gate@%2Fvar%2Frun%2Fpostgresql/gate",
        "postgresql:///gate?host=/var/run/postgresql",
    ],
)
def test_the_url_of_a_postgresql_database_is_taken(url: str) -> None:
    tokens = load({"FORWARD_AUTH_TOKENS__DATABASE": url}).settings.tokens
    assert tokens is not None
    assert tokens.database is not None
    assert tokens.database.get_secret_value() == url
    assert SECRET not in repr(tokens)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+asyncpg://gate:{SECRET}@db/gate",
        f"mysql://gate:{SECRET}@db/gate",
        f"gate:{SECRET}@db/gate",
        f"postgresql://gate:{SECRET}@db",
        f"postgresql://gate:p@{SECRET}@db/gate",  # libpq would take a part of each password for a host or a port
        f"postgresql://gate:p/{SECRET}@db/gate",
        f"postgresql://gate:p?{SECRET}@db/gate",
        f"postgresql://gate:p#{SECRET}@db/gate",
        f"postgresql://gate:p {SECRET}@db/gate",
        f"postgresql://gate:{SECRET}/gate",
        f"postgresql://gate@db:{SECRET}/gate",
        f"host=db user=gate password={SECRET}",
    ],
)
def test_what_is_no_such_url_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        load({"FORWARD_AUTH_TOKENS__DATABASE": url})
    (told,) = error.value.problems
    assert told.startswith("tokens.database: expected postgresql://user:password@host:port/database")
    assert SECRET not in told


@pytest.mark.parametrize(
    "given",
    [{"FOLDER": "t", "DATABASE": f"postgresql://gate:{SECRET}@db/gate"}, {"ISSUER": "us"}],
    ids=["both", "none"],
)
def test_tokens_are_in_exactly_one_place(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as error:
        load({f"FORWARD_AUTH_TOKENS__{name}": value for name, value in given.items()})
    (told,) = [one for one in error.value.problems if one.startswith("tokens: ")]
    assert told.startswith("tokens: needs either folder or database (PostgreSQL): set exactly one of them")
    assert SECRET not in str(error.value)
