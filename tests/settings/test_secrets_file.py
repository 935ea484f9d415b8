"""Secrets in files: the secrets file, files that variables name, the secrets directory; nobody else may read them."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from service.adapters.files import exposure
from service.settings import ConfigError, load

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


# files that variables name, and the secrets directory ----------------------------------------------------


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o660, 0o666])
@pytest.mark.parametrize(
    "key", ["SESSION__KEYS", "OIDC__CLIENT_SECRET", "OIDC__PRIVATE_KEY", "STORE__URL", "OIDC", "SESSION", "STORE"]
)
def test_a_file_that_holds_a_secret_is_refused_unread_if_others_may_read_or_write_it(
    tmp_path: Path, key: str, mode: int
) -> None:
    path = write(tmp_path / "file", "s3cret", mode)
    found = problems({**USERS, f"FORWARD_AUTH_{key}_FILE": str(path)})
    assert f"FORWARD_AUTH_{key}_FILE: {path}: " in found
    assert f"may read or write it (mode {mode:04o}); it was not read: chmod 600" in found
    assert "s3cret" not in found


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_that_holds_a_secret_is_its_owners(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "file", KEY, mode)
    settings = load({**USERS, "FORWARD_AUTH_SESSION__KEYS_FILE": str(path)}).settings
    assert settings.session.keys[0].get_secret_value() == KEY


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files of root")
def test_a_secret_that_root_gives_to_a_group_is_read(tmp_path: Path) -> None:
    """Kubernetes: a Secret that is mounted with defaultMode 0440 and an fsGroup."""
    path = write(tmp_path / "file", KEY, 0o440)
    assert load({**USERS, "FORWARD_AUTH_SESSION__KEYS_FILE": str(path)}).settings.session.keys
    os.chown(path, 4711, 0)
    assert "its group may read" in problems({**USERS, "FORWARD_AUTH_SESSION__KEYS_FILE": str(path)})


@pytest.mark.parametrize("key", ["PORT", "USERS__ROLE", "GRANTS", "ISSUERS", "USERS__FILE"])
def test_a_file_without_a_secret_may_be_read_by_all(tmp_path: Path, key: str) -> None:
    """Such as the grants of a checked-out tree, which is mounted into a container."""
    value = {"PORT": "1", "GRANTS": "[]", "ISSUERS": "[]"}.get(key, "viewer")
    path = write(tmp_path / "file", value, 0o644)
    assert load({**USERS, f"FORWARD_AUTH_{key}_FILE": str(path)}).settings


@pytest.mark.parametrize("mode", [0o666, 0o602, 0o777])
def test_no_file_that_everybody_may_write_to_is_read(tmp_path: Path, mode: int) -> None:
    write(tmp_path / "forward-auth.toml", "port = 70000\n", mode)
    grants = write(tmp_path / "grants.json", "[]", mode)
    environ = {**USERS, "FORWARD_AUTH_GRANTS_FILE": str(grants)}
    found = problems(environ)
    for path in ("forward-auth.toml", grants):
        assert f"{path}: everybody may write to it (mode {mode:04o}); it was not read: chmod o-w {path}" in found
    assert "port: " not in found
    (tmp_path / "forward-auth.toml").chmod(0o664)  # as an editor makes it where the umask is 002
    grants.chmod(0o664)
    assert "port: " in problems(environ)


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o660])
def test_each_file_of_the_secrets_directory_is_its_owners_alone(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "dir" / "forward_auth_session__keys", "s3cret", mode)
    write(tmp_path / "dir" / "forward_auth_port", "70000", mode)
    write(tmp_path / "dir" / "something else", "", mode)
    found = problems({**USERS, "FORWARD_AUTH_SECRETS_DIR": "dir"})
    assert f"dir/forward_auth_session__keys: {'everybody' if mode & 7 else 'its group'} may read or write it" in found
    assert "dir/forward_auth_port: " in found
    assert "something" not in found
    assert "s3cret" not in found
    assert "port: " not in found.replace("forward_auth_port: ", "")
    assert path.exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o730])
def test_a_secrets_directory_that_others_may_write_to_is_not_looked_into(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may put files there sets whatever there is to be set."""
    write(tmp_path / "dir" / "forward_auth_port", "70000")
    (tmp_path / "dir").chmod(mode)
    environ = {**USERS, "FORWARD_AUTH_SECRETS_DIR": "dir"}
    found = problems(environ)
    assert "FORWARD_AUTH_SECRETS_DIR: dir: " in found
    assert f"may write to it (mode {mode:04o})" in found
    assert "port: " not in found

    def read_only(*_: object) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 1, 1, 1, 1, 1, 1, os.ST_RDONLY, 255))

    monkeypatch.setattr(os, "statvfs", read_only)
    assert "port: " in problems(environ)  # a Secret of Kubernetes is mounted so: drwxrwxrwt, and read-only


def test_a_file_that_is_too_large_for_a_secret_is_not_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "file", "[" + " " * 70_000 + "]")
    assert f"FORWARD_AUTH_GRANTS_FILE: {path} has more than 65536 bytes" in problems(
        {**USERS, "FORWARD_AUTH_GRANTS_FILE": str(path)}
    )
