"""Workers without an identity provider: two replicas, a token that one issues, a worker that runs a flow with it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.compose import DOCKER, MACHINES, Stack, copy_tree
from tests.support.parts import require
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

REPLICAS = ("forward-auth", "forward-auth-2")
# Where Compose's worker is, with nothing but a token.
WORKER = """
services:
  worker:
    environment:
      PREFECT_PROFILES_PATH: /tmp/profiles.toml
      PREFECT_API_KEY: ${WORKER_TOKEN:-}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, readme_lines: list[str]) -> Iterator[Stack]:
    docker = require(DOCKER)
    folder = copy_tree(tmp_path_factory.mktemp("tokens"))
    (folder / "worker.yml").write_text(WORKER)
    stack = Stack(docker, folder, project=f"gate-tokens-{os.getpid()}")
    stack.add_file("deploy/compose/replicas.yml")
    stack.add_file("worker.yml")
    try:
        stack.paste(readme_lines[0])
        yield stack
    finally:
        stack.down("--volumes")
        subprocess.run([docker, "image", "rm", f"{stack.project}:latest"], capture_output=True, check=False)


def test_a_worker_runs_with_an_issued_token_until_it_is_revoked(stack: Stack, readme_lines: list[str]) -> None:
    token = _token(stack, REPLICAS[0], "issue", "--name", "etl-worker", "--role", "worker").strip()
    stack.environment["WORKER_TOKEN"] = token
    shown = stack.paste(readme_lines[1])
    assert re.search(r"^flow run [\w-]+: Completed$", shown, re.MULTILINE), shown
    assert len(re.findall(r"│ count-.*│ COMPL", shown)) == 2, shown

    assert _answers(stack, token) == {200}
    _token(stack, REPLICAS[1], "revoke", "--name", "etl-worker")
    wait_until(lambda: _answers(stack, token) == {401}, timeout=5, what="the token refused by both replicas")
    wait_until(lambda: "401" in stack.compose("logs", "worker"), timeout=60, what="the worker refused")
    assert token not in stack.compose("logs")


def _token(stack: Stack, replica: str, *words: str) -> str:
    return stack.compose("exec", "-T", replica, "prefect-forward-auth", "token", *words)


def _answers(stack: Stack, token: str) -> set[int]:
    """Return the statuses of calls to both replicas, which take turns."""
    sent = {"Authorization": f"Bearer {token}"}
    return {stack.send("GET", MACHINES, "/api/health", headers=sent).status_code for _ in range(12)}
