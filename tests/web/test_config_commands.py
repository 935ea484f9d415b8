"""`config init` and `config edit-secrets`, with editors that are small scripts."""

import os
import pty
import re
import signal
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from service.settings import Settings, load
from tests.support.command import COMMAND, environment, run
from tests.support.waiting import wait_until

SECRET = "s3cret-" + "k" * 32
GOOD = f'[session]\nkeys = ["{SECRET}"]\n'


@pytest.fixture
def editor(tmp_path: Path) -> Callable[[str], str]:
    """Return an editor that does what a line of shell says, with the draft as $1."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()

    def write(line: str) -> str:
        path = scripts / "editor"
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o700)
        return str(path)

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where a good configuration lies."""
    path = tmp_path / "etc"
    path.mkdir()
    (path / "forward-auth.toml").write_text('[users]\nfile = "users"\n')
    (path / "secrets.toml").write_text(GOOD)
    (path / "secrets.toml").chmod(0o600)
    return path


def edit(folder: Path, editor: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return run("config", "edit-secrets", cwd=folder, stdin=stdin, EDITOR=editor)


def unchanged(folder: Path) -> bool:
    files = sorted(path.name for path in folder.iterdir())
    return files == ["forward-auth.toml", "secrets.toml"] and (folder / "secrets.toml").read_text() == GOOD


# init -----------------------------------------------------------------------------------------------------


def test_init_writes_both_files_once(tmp_path: Path) -> None:
    os.umask(umask := os.umask(0o022))
    done = run("config", "init", cwd=tmp_path)
    config, secrets = tmp_path / "forward-auth.toml", tmp_path / "secrets.toml"
    assert (done.returncode, done.stdout.count("written")) == (0, 2)
    assert config.stat().st_mode & 0o777 == 0o644 & ~umask
    assert secrets.stat().st_mode & 0o777 == 0o600
    key = tomllib.loads(secrets.read_text())["session"]["keys"][0]
    assert len(key) >= 32
    assert key not in done.stdout
    assert "is there already" in run("config", "init", cwd=tmp_path).stdout
    assert tomllib.loads(secrets.read_text())["session"]["keys"] == [key]
    assert run("config", "init", "--config", "other/none.toml", cwd=tmp_path).returncode == 2


def test_what_init_writes_says_what_is_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("config", "init", cwd=tmp_path)
    config = (tmp_path / "forward-auth.toml").read_text()
    plain = load({"FORWARD_AUTH_USERS__FILE": "u"}, secrets_file=tmp_path / "secrets.toml").settings
    assert plain.session.keys
    uncommented = re.sub(r"^#(?=[\w\[])", "", config, flags=re.MULTILINE)
    uncommented = re.sub(r'^(\w+ = ""|local = true)$', "", uncommented, flags=re.MULTILINE)  # those without a default
    for needed in ("issuer]\n", "oidc]\n", "tokens]\n", "users]\n"):
        assert f"[{needed}" in uncommented
    (tmp_path / "forward-auth.toml").write_text(
        re.sub(r"^audiences = \[\]", 'audiences = ["x"]', uncommented, flags=re.MULTILINE)
    )
    given = {
        "FORWARD_AUTH_ISSUER__URL": "https://a.example",
        "FORWARD_AUTH_ISSUER__CLIENT_CREDENTIALS__CLIENTS": "*",
        "FORWARD_AUTH_ISSUER__INTROSPECTION__CLIENT_ID": "x",
        "FORWARD_AUTH_ISSUER__INTROSPECTION__CLIENT_SECRET": "x",
        "FORWARD_AUTH_USERS__FILE": "u",
        "FORWARD_AUTH_OIDC__ISSUER": "https://b.example",
        "FORWARD_AUTH_OIDC__CLIENT_ID": "x",
        "FORWARD_AUTH_STORE__URL": "redis://h",
        "FORWARD_AUTH_TOKENS__FOLDER": "t",
    }
    full = load(given).settings
    (tmp_path / "forward-auth.toml").unlink()
    assert full == load({**given, "FORWARD_AUTH_ISSUER__AUDIENCES": "x"}).settings


def test_init_tells_every_key_and_secrets_stand_apart(tmp_path: Path) -> None:
    run("config", "init", cwd=tmp_path)
    config, secrets = ((tmp_path / name).read_text() for name in ("forward-auth.toml", "secrets.toml"))
    for name in Settings.model_fields:
        told = re.search(rf"^#({name} =|\[{name}\])|\[\[{name}\]\]|`\[{name}\.", config, re.MULTILINE)
        assert told or name == "store", name
    for secret in ("client_secret", "private_key", "keys", "url"):
        assert re.search(rf"^#?{secret} = ", secrets, re.MULTILINE)
    assert "client_secret =" not in config
    assert "#url" in config


# edit-secrets ---------------------------------------------------------------------------------------------


def test_a_good_draft_replaces_the_file_whole(folder: Path, editor: Callable[[str], str]) -> None:
    before = (folder / "secrets.toml").stat().st_ino
    look = 'stat -c "%a %n" "$1" "$(dirname "$1")"; touch "$1~"; echo "idle = 60" >> "$1"'
    done = edit(folder, editor(look))
    assert done.returncode == 0, done.stderr
    assert "replaced" in done.stdout
    assert done.stdout.startswith("600 ")
    assert "\n700 " in done.stdout
    after = (folder / "secrets.toml").stat()
    assert (after.st_mode & 0o777, after.st_ino != before) == (0o600, True)
    assert (folder / "secrets.toml").read_text() == GOOD + "idle = 60\n"
    assert sorted(path.name for path in folder.iterdir()) == [".secrets.toml.lock", "forward-auth.toml", "secrets.toml"]
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('echo "typo = 1" >> "$1"', "session.typo: no such key (see docs/configuration.md) (secrets.toml)"),
        ('echo "[session" >> "$1"', "secrets.toml is not TOML"),
        ("printf \"[oidc]\nissuer = 'https://a.example'\nclient_id = 'x'\nprivate_key = 'x'\n\" >> \"$1\"", "oidc."),
        ('rm "$1"', "the editor left no file: secrets.toml stays as it was"),
        ('echo "idle = 60" >> "$1"; exit 1', "ended with 1: nothing was changed"),
        ("kill -9 $$", "ended with -9: nothing was changed"),
        ('echo "# another" >> secrets.toml; echo "idle = 60" >> "$1"', "changed by somebody else"),
    ],
    ids=["key", "toml", "private key", "removed", "gave up", "killed", "meanwhile"],
)
def test_what_is_not_good_replaces_nothing(folder: Path, editor: Callable[[str], str], line: str, told: str) -> None:
    done = edit(folder, editor(line))
    assert done.returncode == 2
    assert told in done.stderr
    assert ".secrets-" not in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if "somebody else" not in told:
        assert unchanged(folder)


def test_a_problem_that_was_there_before_is_none_of_the_draft(folder: Path, editor: Callable[[str], str]) -> None:
    (folder / "forward-auth.toml").write_text("typo = 1\n")
    assert edit(folder, editor('echo "idle = 60" >> "$1"')).returncode == 0
    assert "idle" in (folder / "secrets.toml").read_text()


def test_a_draft_that_was_left_alone_changes_nothing(folder: Path, editor: Callable[[str], str]) -> None:
    done = edit(folder, editor("true"))
    assert (done.returncode, "nothing was changed" in done.stdout, unchanged(folder)) == (0, True, True)


def test_a_file_that_others_could_read_is_private_afterwards(folder: Path, editor: Callable[[str], str]) -> None:
    (folder / "secrets.toml").chmod(0o644)
    assert edit(folder, editor('echo "idle = 60" >> "$1"')).returncode == 0
    assert (folder / "secrets.toml").stat().st_mode & 0o777 == 0o600


def test_a_new_file_begins_with_every_secret(folder: Path, editor: Callable[[str], str]) -> None:
    (folder / "secrets.toml").unlink()
    done = edit(folder, editor('grep -q "^#client_secret" "$1" && echo "# mine" >> "$1"'))
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "secrets.toml").stat().st_mode & 0o777 == 0o600


def test_a_link_stays_one_and_its_target_is_replaced(folder: Path, editor: Callable[[str], str]) -> None:
    (folder / "secrets.toml").rename(folder / "target.toml")
    (folder / "secrets.toml").symlink_to("target.toml")
    assert edit(folder, editor('echo "idle = 60" >> "$1"')).returncode == 0
    assert (folder / "secrets.toml").is_symlink()
    assert "idle" in (folder / "target.toml").read_text()


def test_an_editor_that_is_none_is_told(folder: Path) -> None:
    done = edit(folder, "/nowhere/editor --wait")
    assert (done.returncode, "set EDITOR" in done.stderr, unchanged(folder)) == (2, True, True)


def test_a_folder_without_room_for_a_draft_is_told_by_the_files_name(tmp_path: Path) -> None:
    done = run("config", "edit-secrets", "--secrets", "none/secrets.toml", cwd=tmp_path, EDITOR="true")
    assert done.returncode == 2
    told = "none/secrets.toml cannot be edited: its folder cannot be written to: No such file or directory"
    assert done.stderr == f"prefect-forward-auth: {told}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_edit_leaves_nothing_behind(
    folder: Path, editor: Callable[[str], str], number: signal.Signals
) -> None:
    env = environment(EDITOR=editor('echo "idle = 60" >> "$1"; touch ../begun; exec sleep 60'))
    process = subprocess.Popen([*COMMAND, "config", "edit-secrets"], cwd=folder, env=env, stdin=subprocess.DEVNULL)
    wait_until((folder.parent / "begun").exists, timeout=15, what="the editor")
    process.send_signal(number)
    assert process.wait(15) == 128 + number
    assert unchanged(folder)


def test_ctrl_c_is_the_editors(folder: Path, editor: Callable[[str], str]) -> None:
    waiting = 'echo "idle = 60" >> "$1"; touch ../begun; while [ ! -e ../go ]; do sleep 0.05; done'
    env = environment(EDITOR=editor(waiting))
    process = subprocess.Popen([*COMMAND, "config", "edit-secrets"], cwd=folder, env=env, stdin=subprocess.DEVNULL)
    wait_until((folder.parent / "begun").exists, timeout=15, what="the editor")
    process.send_signal(signal.SIGINT)
    (folder.parent / "go").touch()
    assert process.wait(15) == 0
    assert "idle" in (folder / "secrets.toml").read_text()


@pytest.mark.parametrize(("answers", "code"), [("d\n", 2), ("what?\nw\n", 0), ("e\nd\n", 2), ("\x04", 2)])
def test_whoever_is_there_is_asked(folder: Path, editor: Callable[[str], str], answers: str, code: int) -> None:
    ours, theirs = pty.openpty()
    env = environment(EDITOR=editor('echo "typo = 1" >> "$1"; echo x >> ../edits'))
    process = subprocess.Popen(
        [*COMMAND, "config", "edit-secrets"], cwd=folder, env=env, stdin=theirs, stderr=subprocess.PIPE, text=True
    )
    os.write(ours, answers.encode())
    _, told = process.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == code
    assert "session.typo: no such key" in told
    assert ("typo" in (folder / "secrets.toml").read_text()) is (code == 0)
    assert len((folder.parent / "edits").read_text().splitlines()) == answers.count("e\n") + 1


def test_show_masks_what_the_secrets_file_holds(folder: Path) -> None:
    more = f'[store]\nurl = "redis://:{SECRET}@h"\n[oidc]\nclient_secret = "{SECRET}"\n'
    (folder / "secrets.toml").write_text(GOOD + more)
    (folder / "forward-auth.toml").write_text('[oidc]\nissuer = "https://a.example"\nclient_id = "x"\n')
    done = run("config", "show", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert 'client_secret = "********"  # secrets.toml' in done.stdout
    assert 'keys = ["********"]  # secrets.toml' in done.stdout
