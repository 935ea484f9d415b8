"""The secrets file: a second TOML that nobody else may read."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from service.settings import ConfigError, load
from service.settings.files import exposure

KEY = "k" * 32
USERS = {"FORWARD_AUTH_USERS__FILE": "users"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def problems(environ: dict[str, str], **more: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load(environ, **more)
    return "\n".join(error.value.problems)


def test_it_lies_beside_the_configuration_file_and_is_stronger(tmp_path: Path) -> None:
    config = write(tmp_path / "etc" / "forward-auth.toml", 'port = 1\n[session]\nidle = 60\n[users]\nfile = "u"\n')
    write(tmp_path / "etc" / "secrets.toml", f'port = 2\n[session]\nkeys = ["{KEY}"]\n')
    loaded = load({}, config_file=config)
    assert (loaded.settings.port, loaded.settings.session.idle) == (2, 60)
    assert loaded.settings.session.keys[0].get_secret_value() == KEY
    assert loaded.source_of("session.keys") == str(tmp_path / "etc" / "secrets.toml")
    assert loaded.source_of("session.idle") == str(config)


def test_it_is_weaker_than_a_secrets_directory_and_the_environment(tmp_path: Path) -> None:
    write(tmp_path / "secrets.toml", "port = 1\nworkers = 1\nshutdown_grace = 1\n")
    write(tmp_path / "dir" / "forward_auth_port", "2")
    environ = {**USERS, "FORWARD_AUTH_SECRETS_DIR": "dir", "FORWARD_AUTH_WORKERS": "3"}
    settings = load(environ).settings
    assert (settings.port, settings.workers, settings.shutdown_grace) == (2, 3, 1)


def test_it_can_be_named_and_must_then_be_there(tmp_path: Path) -> None:
    named = write(tmp_path / "elsewhere.toml", "port = 5\n")
    assert load({**USERS, "FORWARD_AUTH_SECRETS_FILE": str(named)}).settings.port == 5
    assert load(USERS, secrets_file=named).settings.port == 5
    assert "no such configuration file" in problems({**USERS, "FORWARD_AUTH_SECRETS_FILE": "none.toml"})


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o660, 0o644, 0o777])
def test_one_that_others_may_read_is_refused_and_not_read(tmp_path: Path, mode: int) -> None:
    write(tmp_path / "secrets.toml", "port = 70000\n", mode)
    found = problems(USERS)
    assert f"secrets.toml: everybody may read or write it (mode {mode:04o})" in found or "its group may" in found
    assert "chmod 600 secrets.toml" in found
    assert "port: " not in found


@pytest.mark.parametrize(
    ("mode", "owner", "good"),
    [
        (0o400, 1000, True),
        (0o600, 1000, True),
        (0o640, 1000, False),
        (0o440, 0, True),  # as Kubernetes gives it to a group
        (0o640, 0, True),
        (0o660, 0, False),
        (0o444, 0, False),
        (0o604, 0, False),
    ],
)
def test_its_group_may_read_it_where_it_is_roots(mode: int, owner: int, good: bool) -> None:  # noqa: FBT001
    status = os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, 1000, 0, 0, 0, 0))
    assert (exposure(status) == "") is good


@pytest.mark.parametrize("text", ["keys = ", "[session\n", "\xff"])
def test_a_broken_one_is_a_problem_that_quotes_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path / "secrets.toml", "").write_bytes(b'[oidc]\nclient_secret = "s3cret"\n' + text.encode("latin-1"))
    found = problems(USERS)
    assert "secrets.toml is not TOML" in found
    assert "s3cret" not in found


def test_keys_that_are_none_are_refused_here_too(tmp_path: Path) -> None:
    write(tmp_path / "secrets.toml", "[session]\nkey = 's3cret'\n")
    found = problems(USERS)
    assert "session.key: no such key; did you mean session.keys? (secrets.toml)" in found
    assert "s3cret" not in found


def test_what_serve_made_up_is_the_weakest_of_all(tmp_path: Path) -> None:
    environ = {**USERS, "_FORWARD_AUTH_SESSION_KEY": "m" * 32}
    loaded = load(environ)
    assert loaded.settings.session.keys[0].get_secret_value() == "m" * 32
    assert loaded.source_of("session.keys") == "made at the start"
    write(tmp_path / "forward-auth.toml", f'[session]\nkeys = "{KEY}"\n')
    assert load(environ).settings.session.keys[0].get_secret_value() == KEY
