"""deploy/workers: a process worker, started as its unit says with the shipped environment file, runs private flows."""

from __future__ import annotations

import base64
import getpass
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.deploy.conftest import PLAIN_PASSWORD, PLAIN_USER
from tests.support.git import HTTPServer, SSHServer, make_key, make_repository
from tests.support.issuer import Call, Issuer, Reply, SigningKey
from tests.support.parts import ROOT, SERVER_VERSION, SSHD, prefect_part, require
from tests.support.prefect import FLOWS, QUIET, Server
from tests.support.processes import Process, clean_environment
from tests.support.site import PASSWORD, USER, Site, replace_once
from tests.support.systemd_files import environment_file, unit
from tests.support.waiting import wait_until

WORKERS = ROOT / "deploy" / "workers"
INSTALLED = "/opt/prefect-worker/bin"
COMMAND = str(Path(sys.executable).with_name("prefect-forward-auth"))
CONFIGURED = "/etc/prefect-worker"
HOST = "prefect-m2m.example.com"


def environment(form: int, site: Site, issuer: Issuer) -> dict[str, str]:
    """Return the shipped variables in one of their forms, with this site's address and good credentials."""
    text = (WORKERS / "process" / "worker.env").read_text()
    if form > 1:
        text = re.sub(r"^(# 1\. .*\n)(PREFECT_)", r"\1#\2", text, count=1, flags=re.MULTILINE)
        text, found = re.subn(rf"^(# {form}\. .*\n(?:#  .*\n)*)#(PREFECT_)", r"\1\2", text, count=1, flags=re.MULTILINE)
        assert found == 1
    variables = environment_file(text)
    pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    credential = {"<JWT>": issuer.mint(), "<BASE64>": pair, "<USER>": PLAIN_USER, "<PASSWORD>": PLAIN_PASSWORD}
    for placeholder, secret in credential.items():
        variables = {name: value.replace(placeholder, secret) for name, value in variables.items()}
    assert not re.search("[<>]", " ".join(variables.values()))
    variables["PREFECT_API_URL"] = variables["PREFECT_API_URL"].replace("https://", "http://")
    variables["PREFECT_API_URL"] = replace_once(variables["PREFECT_API_URL"], HOST, f"127.0.0.1:{site.port}")
    return variables


@dataclass
class Forge:
    """Private repositories, and the folder of a worker that may fetch each in another way."""

    folder: Path  # in place of /etc/prefect-worker
    ssh: SSHServer
    http: HTTPServer
    app: SigningKey  # of the GitHub App
    asked: list[Call] = field(default_factory=list)

    def url(self, how: str) -> str:
        if how == "deploy-key":
            user = getpass.getuser()  # sshd lets the one in who started it
            return f"ssh://{user}@127.0.0.1:{self.ssh.port}{self.folder.parent}/repositories/acme/flows.git"
        return f"{self.http.url}/acme/{'flows' if how == 'token' else 'more-flows'}.git"


@pytest.fixture(scope="session")
def forge(folder: Path, github: Issuer) -> Iterator[Forge]:
    require(SSHD)
    home = folder / "forge"
    etc = home / "etc"
    shutil.copytree(WORKERS / "git", etc / "git")
    repositories = home / "repositories"
    (repositories / "acme").mkdir(parents=True)
    for name in ("flows", "more-flows"):
        make_repository(repositories / "acme" / f"{name}.git", FLOWS / "proof.py")

    public = make_key(etc / "git" / "deploy_key")
    (etc / "git" / "token").write_text("token-of-a-file\n")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    (etc / "git" / "app.pem").write_bytes(key.private_bytes(*pem))

    right = {"token-of-a-file", "token-of-the-app"}
    (home / "ssh").mkdir()
    with (
        SSHServer(home / "ssh", public) as ssh,
        HTTPServer(repositories, lambda user, password: user == "x-access-token" and password in right) as http,
    ):
        (etc / "git" / "known_hosts").write_text(f"[127.0.0.1]:{ssh.port} {ssh.host_key}\n")
        config = (etc / "git" / "gitconfig").read_text()
        config = config.replace(CONFIGURED, str(etc)).replace("https://github.com", http.url)
        config = replace_once(config, "/opt/prefect-agent/bin/prefect-forward-auth", COMMAND)
        config = replace_once(config, "--key ", f"--host 127.0.0.1:{http.port} --api {github.url} --key ")
        (etc / "git" / "gitconfig").write_text(config)
        ssh_config = (etc / "git" / "ssh_config").read_text().replace(CONFIGURED, str(etc))
        (etc / "git" / "ssh_config").write_text(ssh_config)
        forge = Forge(etc, ssh, http, SigningKey("RS256", "app", key))

        def token(call: Call) -> Reply:
            forge.asked.append(call)
            return Reply({"token": "token-of-the-app", "expires_at": "2099-01-01T00:00:00Z"}, status=201)

        github.replies["/app/installations/7891011/access_tokens"] = token
        yield forge


@dataclass
class Worker:
    """Starts workers of the shipped unit, and deploys flows for them."""

    folder: Path
    server: Server
    forge: Forge

    def start(self, pool: str, variables: dict[str, str]) -> Process:
        """Start what the unit starts for this pool, with what it sets."""
        shipped = unit(WORKERS / "process" / "prefect-worker@.service")
        assert shipped["Service.EnvironmentFile"] == [f"{CONFIGURED}/worker.env"]
        python = require(prefect_part(SERVER_VERSION))
        (command,) = shipped["Service.ExecStart"]
        argv = shlex.split(command.replace(INSTALLED, str(python.parent)).replace("%i", pool))
        home = self.folder / pool
        (told,) = shipped["Service.Environment"]
        own = dict(each.split("=", 1) for each in told.replace("%S/prefect-worker", str(home / "state")).split())
        (home / "state").mkdir(parents=True)
        pointed = {name: value.replace(CONFIGURED, str(self.forge.folder)) for name, value in variables.items()}
        fast = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5"}
        env = clean_environment(home, {**QUIET, **fast, **own, **pointed})
        return Process("worker", argv, env=env, log=home / "worker.log", cwd=home / "state")

    def flow_run(self, name: str, repository: str) -> str:
        """Deploy the flow of a repository to a pool of this name, and return a new run of it."""
        self.server.create_pool(name)
        deployment = {
            "name": name,
            "flow_id": self.server.ask("POST", "/flows/", {"name": name})["id"],
            "work_pool_name": name,
            "entrypoint": "proof.py:proof",
            "pull_steps": [{"prefect.deployments.steps.git_clone": {"repository": repository, "branch": "main"}}],
        }
        made = self.server.ask("POST", "/deployments/", deployment)["id"]
        body = {"parameters": {"marker": name}}
        return str(self.server.ask("POST", f"/deployments/{made}/create_flow_run", body)["id"])


@pytest.fixture(scope="session")
def worker(folder: Path, prefect_server: Server, forge: Forge) -> Worker:
    return Worker(folder / "workers", prefect_server, forge)


def ended(server: Server, flow_run: str) -> Callable[[], str | None]:
    def state() -> str | None:
        found = server.state_of(flow_run)
        return found if found in {"COMPLETED", "FAILED", "CRASHED"} else None

    return state


CASES = [
    pytest.param(1, "deploy-key", marks=pytest.mark.long),  # JWT in custom headers
    pytest.param(2, "token", marks=pytest.mark.long),  # password in custom headers
    pytest.param(3, "github-app"),  # JWT in the URL
    pytest.param(4, "deploy-key", marks=pytest.mark.long),  # password in the URL
]


@pytest.mark.parametrize(("form", "how"), CASES)
def test_a_flow_run_completes_with_its_task_runs(
    form: int, how: str, worker: Worker, site: Site, issuer: Issuer, prefect_server: Server, forge: Forge
) -> None:
    name = f"form-{form}"
    flow_run = worker.flow_run(name, forge.url(how))
    with worker.start(name, environment(form, site, issuer)) as process:
        state = wait_until(ended(prefect_server, flow_run), timeout=120, what="an end", log=process.tail)
        assert state == "COMPLETED", process.tail(200)
        done = wait_until(
            lambda: [row for row in prefect_server.of_flow_run("task_runs", flow_run) if row["end_time"]][1:],
            timeout=30,
            what="two task runs",
            log=process.tail,
        )
        assert {row["state_type"] for row in done} == {"COMPLETED"}
        if how == "github-app":
            assert_the_app_proved_itself(forge)


def assert_the_app_proved_itself(forge: Forge) -> None:
    """The JWT is what GitHub asks for: RS256 by the app's key, and ten minutes at most."""
    scheme, proof = forge.asked[-1].headers["Authorization"].split()
    signed, _, signature = proof.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    public = forge.app.private.public_key()
    assert isinstance(public, rsa.RSAPublicKey)
    public.verify(raw, signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    claims = json.loads(base64.urlsafe_b64decode(signed.split(".")[1] + "=="))
    assert scheme == "Bearer"
    assert claims["iss"] == "123456"
    assert claims["exp"] - claims["iat"] <= 600


def fetch(forge: Forge, address: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Clone as a worker would."""
    env = clean_environment(folder / "home", {"GIT_CONFIG_GLOBAL": f"{forge.folder}/git/gitconfig"})
    argv: list[str | Path] = ["git", "clone", "--quiet", address, folder / "clone"]
    env["GIT_TERMINAL_PROMPT"] = "0"
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_git_server_with_another_key_is_not_trusted(forge: Forge, tmp_path: Path) -> None:
    known = forge.folder / "git" / "known_hosts"
    right = known.read_text()
    known.write_text(f"[127.0.0.1]:{forge.ssh.port} {make_key(tmp_path / 'key')}\n")
    try:
        done = fetch(forge, forge.url("deploy-key"), tmp_path)
        assert done.returncode != 0
        assert "Host key verification failed" in done.stderr
    finally:
        known.write_text(right)


def test_a_token_is_sent_to_its_own_repository_alone(forge: Forge, tmp_path: Path) -> None:
    before = forge.http.refused
    done = fetch(forge, f"{forge.http.url}/mallory/flows.git", tmp_path)
    assert done.returncode != 0
    assert "terminal prompts disabled" in done.stderr
    assert forge.http.refused == before + 1, "asked once, without a credential"


def test_an_app_that_github_does_not_know_is_told(forge: Forge, github: Issuer, tmp_path: Path) -> None:
    path = "/app/installations/7891011/access_tokens"
    right = github.replies[path]
    github.replies[path] = Reply({"message": "Bad credentials"}, status=401)
    try:
        done = fetch(forge, forge.url("github-app"), tmp_path)
    finally:
        github.replies[path] = right
    assert done.returncode != 0
    assert f"no token from the GitHub App 123456: {github.url} answered 401 (Bad credentials)" in done.stderr


def test_a_worker_with_a_wrong_credential_ends_and_says_why(worker: Worker, site: Site, issuer: Issuer) -> None:
    """So the unit starts it again, for ever, with whatever stands in the file by then."""
    variables = environment(2, site, issuer)
    variables["PREFECT_CLIENT_CUSTOM_HEADERS"] = '{"Authorization": "Basic eDp5"}'
    with worker.start("wrong", variables) as process:
        assert process.wait(timeout=60) != 0
        assert "401" in process.text()
    shipped = unit(WORKERS / "process" / "prefect-worker@.service")
    assert shipped["Service.Restart"] == ["always"]
    assert shipped["Unit.StartLimitIntervalSec"] == ["0"]
