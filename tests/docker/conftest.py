from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.compose import DOCKER, Stack, copy_tree
from tests.support.parts import ROOT, require


@pytest.fixture(scope="session")
def readme_lines() -> list[str]:
    """Return the blocks of the README that use docker compose, in their order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "docker compose" in block]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, readme_lines: list[str]) -> Iterator[Stack]:
    """Start what the README starts first, and share it: test_compose.py, then test_compose_production.py."""
    docker = require(DOCKER)
    stack = Stack(docker, copy_tree(tmp_path_factory.mktemp("compose")))
    try:
        stack.paste(readme_lines[0])
        yield stack
    finally:
        stack.down("--volumes")
        subprocess.run([docker, "image", "rm", f"{stack.project}:latest"], capture_output=True, check=False)
