"""`git-credential github-app` with a real Git. GitHub's API is a stand-in that gives out numbered tokens."""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from service.agent.token_cache import SPARE_SECONDS, TokenCache, cache_folder
from service.agent.tokens import Token
from service.cli.main import main
from tests.support.git import HTTPServer, make_repository
from tests.support.issuer import Call, Issuer, Reply
from tests.support.parts import ROOT
from tests.support.processes import clean_environment

PATH = "/app/installations/7891011/access_tokens"
LONG = 3_600
FLOW = ROOT / "tests" / "support" / "flows" / "proof.py"


def pem_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass
class GitHub:
    """A stand-in for GitHub's API, and a private repository that takes the tokens which it gave out."""

    api: Issuer
    git: HTTPServer
    lifetime: float = LONG
    given: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def answer(self, _: Call) -> Reply:
        token = f"ghs_{len(self.given)}"
        self.given.append(token)
        self.taken.add(token)
        ends = datetime.fromtimestamp(time.time() + self.lifetime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Reply({"token": token, "expires_at": ends}, status=201)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.git.port}"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repositories")
    for name in ("acme/flows", "acme/other", "mallory/flows"):
        bare = folder / f"{name}.git"
        bare.parent.mkdir(parents=True, exist_ok=True)
        make_repository(bare, FLOW)
    return folder


@pytest.fixture
def github(repositories: Path) -> Iterator[GitHub]:
    with Issuer("ES256") as api:

        def lets_in(user: str, password: str) -> bool:
            return user == "x-access-token" and password in found.taken

        with HTTPServer(repositories, lets_in) as git:
            found = GitHub(api, git)
            api.replies[PATH] = found.answer
            yield found


@dataclass
class Helper:
    """The helper of one user, whose home is a folder."""

    folder: Path
    github: GitHub
    options: list[str]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def argv(self) -> list[str]:
        always = ["--app", "123456", "--installation", "7891011", "--api", self.github.api.url]
        host = [] if "--host" in self.options else ["--host", self.github.host]
        return [sys.executable, "-m", "service", "git-credential", "github-app", *always, *host, *self.options]

    def environment(self) -> dict[str, str]:
        return clean_environment(self.folder / "home", {"PYTHONPATH": str(ROOT), **self.env})

    def ask(self, action: str = "get", **question: str) -> subprocess.CompletedProcess[str]:
        """Ask in this process, which is quicker than one of its own; Git starts one."""
        out, err = io.StringIO(), io.StringIO()
        asked = io.StringIO(self._question(question))
        with (
            mock.patch.dict(os.environ, self.environment(), clear=True),
            mock.patch.object(sys, "stdin", asked),
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main([*self.argv[3:], action])
        return subprocess.CompletedProcess(self.argv, int(ended.value.code or 0), out.getvalue(), err.getvalue())

    def answer(self) -> str:
        """Return the answer of a process."""
        argv = [*self.argv, "get"]
        env, asked = self.environment(), self._question({})
        return subprocess.run(argv, input=asked, env=env, capture_output=True, text=True, check=True).stdout

    def _question(self, question: Mapping[str, str]) -> str:
        asked = {"protocol": "http", "host": self.github.host, **question}
        return "".join(f"{name}={value}\n" for name, value in asked.items() if value) + "\n"

    def token(self, **question: str) -> str:
        """Return the token of an answer, or an empty string."""
        done = self.ask(**question)
        found = dict(line.split("=", 1) for line in done.stdout.splitlines())
        return found.get("password", "")

    def clone(self, name: str, *, per_path: bool = True) -> subprocess.CompletedProcess[str]:
        """Clone a repository with a real Git."""
        config = self.folder / "gitconfig"
        helper = shlex.join(self.argv).replace("\\", "\\\\").replace('"', '\\"')
        config.write_text(f'[credential "{self.github.git.url}"]\nhelper = "!{helper}"\nuseHttpPath = {per_path}\n')
        env = {**self.environment(), "GIT_CONFIG_GLOBAL": str(config), "GIT_TERMINAL_PROMPT": "0"}
        argv = [
            "git",
            "clone",
            "--quiet",
            f"{self.github.git.url}/{name}.git",
            self.folder / f"clone-{time.monotonic_ns()}",
        ]
        return subprocess.run([str(word) for word in argv], env=env, capture_output=True, text=True, check=False)

    @property
    def cache(self) -> Path:
        return self.folder / "home" / ".cache" / "prefect-forward-auth"


Make = Callable[..., Helper]


@pytest.fixture
def helper(tmp_path: Path, github: GitHub, key: rsa.RSAPrivateKey) -> Make:
    (tmp_path / "app.pem").write_text(pem_of(key))

    def make(*options: str, **env: str) -> Helper:
        named = {"--key", "--key-command"} & set(options) or "FORWARD_AUTH_GIT_APP_KEY" in env
        return Helper(tmp_path, github, [*([] if named else ["--key", str(tmp_path / "app.pem")]), *options], env)

    return make


# a token --------------------------------------------------------------------------------------------------


def test_git_clones_with_a_token_that_is_made_once(helper: Make, github: GitHub, key: rsa.RSAPrivateKey) -> None:
    made = helper("--owner", "acme")
    for name in ("acme/flows", "acme/other", "ACME/Flows".lower()):
        done = made.clone(name)
        assert done.returncode == 0, done.stderr
    assert github.given == ["ghs_0"]
    (call,) = github.api.calls
    scheme, proof = call.headers["Authorization"].split()
    signed, _, signature = proof.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    key.public_key().verify(raw, signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    claims = json.loads(base64.urlsafe_b64decode(signed.split(".")[1] + "=="))
    assert (scheme, claims["iss"]) == ("Bearer", "123456")
    assert claims["exp"] - claims["iat"] <= 600
    assert claims["iat"] < time.time() < claims["exp"]


def test_git_asks_anew_when_a_token_is_refused(helper: Make, github: GitHub) -> None:
    """Git calls `erase` for what did not work."""
    made = helper()
    assert made.clone("acme/flows").returncode == 0
    github.taken.clear()  # revoked
    assert made.clone("acme/flows").returncode != 0
    assert made.clone("acme/flows").returncode == 0
    assert len(github.given) == 2
    assert made.ask("erase", password="another").returncode == 0
    assert made.token() == "ghs_1"


def test_a_token_is_replaced_before_it_ends(helper: Make, github: GitHub) -> None:
    github.lifetime = SPARE_SECONDS - 10
    made = helper()
    assert [made.token(), made.token()] == ["ghs_0", "ghs_1"]
    github.lifetime = LONG
    assert [made.token(), made.token()] == ["ghs_2", "ghs_2"]
    assert helper("--no-cache").token() == "ghs_3"
    assert "password_expiry_utc=" in made.ask().stdout


def test_a_token_is_for_one_repository_where_one_is_named(helper: Make, github: GitHub) -> None:
    one, all_of_them = helper("--repository", "acme/Flows"), helper()
    assert one.token(path="acme/flows.git") == "ghs_0"
    assert all_of_them.token() == "ghs_1"  # another question, so another entry
    permissions = {"contents": "read"}
    assert [json.loads(call.body) for call in github.api.calls] == [
        {"permissions": permissions, "repositories": ["flows"]},
        {"permissions": permissions},
    ]


def test_many_at_once_make_one_token(helper: Make, github: GitHub) -> None:
    made = helper()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: made.answer(), range(6)))
    assert len(set(found)) == len(github.given) == 1


# whom it answers ------------------------------------------------------------------------------------------

OTHERS = {
    "another host": {"host": "evil.example"},
    "another port": {"host": "127.0.0.1:1"},
    "a host with more": {"host": "127.0.0.1.evil.example"},
    "no host": {"host": ""},
    "another protocol": {"protocol": "ssh"},
    "somebody's password": {"username": "alice"},
    "another owner": {"path": "mallory/flows.git"},
    "a way out": {"path": "acme/../mallory/flows.git"},
    "an owner alone": {"path": "acme"},
    "an owner and a slash": {"path": "acme/"},
    "a longer path": {"path": "acme/flows/mallory"},
    "an empty path": {"path": "/"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_silent_about_others(name: str, helper: Make, github: GitHub) -> None:
    done = helper("--owner", "acme").ask(**{"path": "acme/flows.git", **OTHERS[name]})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert github.given == []


def test_plain_http_is_for_loopback_alone(helper: Make, github: GitHub) -> None:
    made = helper("--host", "github.example.com")
    assert made.token(host="github.example.com", protocol="http") == ""
    assert made.token(host="GitHub.example.com", protocol="https") == "ghs_0"


def test_git_gets_nothing_for_another_owner_or_repository(helper: Make, github: GitHub) -> None:
    assert helper("--owner", "acme").clone("mallory/flows").returncode != 0
    assert helper("--repository", "acme/flows").clone("acme/other").returncode != 0
    assert github.given == []
    done = helper("--owner", "acme").clone("acme/flows", per_path=False)
    assert done.returncode != 0
    assert "useHttpPath" in done.stderr


@pytest.mark.parametrize("action", ["store", "capability", "approve"])
def test_other_actions_are_ignored(action: str, helper: Make, github: GitHub) -> None:
    done = helper().ask(action, password="x")
    assert (done.returncode, done.stdout, done.stderr, github.given) == (0, "", "", [])


# the key --------------------------------------------------------------------------------------------------


def test_the_key_may_come_from_a_variable_or_a_command(
    helper: Make, tmp_path: Path, key: rsa.RSAPrivateKey, github: GitHub
) -> None:
    pem = pem_of(key)
    for number, made in enumerate(
        (
            helper("--no-cache", FORWARD_AUTH_GIT_APP_KEY=pem),
            helper("--no-cache", FORWARD_AUTH_GIT_APP_KEY=pem.replace("\n", "\\n")),
            helper("--no-cache", "--key-command", f"cat {tmp_path / 'app.pem'}"),
        )
    ):
        assert made.token() == f"ghs_{number}"


def test_a_key_that_cannot_be_used_is_told_and_not_shown(helper: Make, tmp_path: Path, github: GitHub) -> None:
    (tmp_path / "ec.pem").write_text(pem_of(ec.generate_private_key(ec.SECP256R1())))
    (tmp_path / "broken.pem").write_text("-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n")
    for made, status, word in (
        (helper("--key", str(tmp_path / "none.pem")), 2, "No such file"),
        (helper("--key", str(tmp_path / "broken.pem")), 1, "PEM is needed"),
        (helper("--key", str(tmp_path / "ec.pem")), 1, "is no RSA key"),
        (helper("--key-command", "false"), 1, "ended with 1"),
        (helper("--key-command", "no-such-command"), 1, "No such file"),
        (helper("--key-command", ""), 1, "--key-command"),
        (helper(FORWARD_AUTH_GIT_APP_KEY=""), 2, "name the app's key"),
    ):
        done = made.ask()
        assert (done.returncode, word in done.stderr, done.stdout) == (status, True, ""), done.stderr
        assert "hunter2" not in done.stderr
        assert "Traceback" not in done.stderr
    assert github.given == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--api", "http://github.example.com"], "https://"),
        (["--api", "https://user:pw@github.example.com"], "https://"),
        (["--repository", "flows"], "owner and the name"),
        (["--repository", "acme/flows", "--owner", "mallory"], "two owners"),
        (["--app", "../../users"], "--app"),
        (["--installation", "1/2"], "--installation"),
    ],
)
def test_a_mistake_is_told(options: list[str], word: str, helper: Make) -> None:
    done = helper(*options).ask(path="acme/flows")
    assert (done.returncode, word in done.stderr, done.stdout) == (2, True, "")


# the API --------------------------------------------------------------------------------------------------

ANSWERS = {
    "unknown": (Reply({"message": "Bad credentials"}, 401), "answered 401 (Bad credentials)"),
    "suspended": (Reply({"message": "x\ny"}, 403), "answered 403\n"),
    "a redirect": (Reply(b"", 302, headers={"Location": "http://127.0.0.1:9/"}), "answered 302"),
    "no token": (Reply({}, 201), "gave no token"),
    "a token with lines": (Reply({"token": "a\nhost=evil.example"}, 201), "gave no token"),
    "not created": (Reply({"token": "a"}, 200), "gave no token"),
    "a page": (Reply(b"<html>", 201), "gave no token"),
    "no time": (Reply({"token": "a", "expires_at": "soon"}, 201), "is not a time"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_no_token(name: str, helper: Make, github: GitHub) -> None:
    github.api.replies[PATH], word = ANSWERS[name]
    done = helper().ask()
    assert (done.returncode, word in done.stderr, done.stdout) == (1, True, ""), done.stderr
    assert "Traceback" not in done.stderr


def test_an_api_that_is_away(helper: Make, github: GitHub) -> None:
    github.api.stop()
    done = helper().ask()
    assert (done.returncode, "cannot be called" in done.stderr) == (1, True)


# what is kept ---------------------------------------------------------------------------------------------


def test_what_is_kept_is_its_owners_alone(helper: Make, github: GitHub, tmp_path: Path) -> None:
    made = helper()
    assert made.token() == "ghs_0"
    assert stat.S_IMODE(made.cache.stat().st_mode) == 0o700
    (entry,) = [path for path in made.cache.iterdir() if path.suffix != ".lock"]
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert "acme" not in entry.name
    entry.chmod(0o644)  # somebody else may have read it
    assert made.token() == "ghs_1"
    entry.write_text("{")
    assert made.token() == "ghs_2"
    entry.write_text('["forged", 9e99]')
    entry.rename(tmp_path / "elsewhere")
    entry.symlink_to(tmp_path / "elsewhere")
    assert made.token() == "ghs_3"


def test_a_folder_that_others_may_write_to_is_not_used(helper: Make, github: GitHub) -> None:
    made = helper()
    made.cache.mkdir(parents=True)
    made.cache.chmod(0o777)
    done = made.ask()
    assert (done.returncode, "password=ghs_0" in done.stdout) == (0, True)
    assert "is not kept for the next time" in done.stderr
    assert list(made.cache.iterdir()) == []
    assert made.token() == "ghs_1"


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/prefect-forward-auth")
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache" / "prefect-forward-auth"

    def nobody() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", nobody)
    assert cache_folder(os.environ | {"XDG_CACHE_HOME": ""}) is None
    cache = TokenCache.of(tmp_path, "a")
    cache.keep(Token("without an end"))
    assert list(tmp_path.iterdir()) == []
