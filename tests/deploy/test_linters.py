"""What has no compiler is read by its linter: the Dockerfile, and every shell script of the tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.parts import HADOLINT, ROOT, SHELLCHECK, require


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def _complaints(linter: Path, files: list[Path]) -> str:
    done = subprocess.run([linter, *files], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or done.stdout, done.stderr
    return done.stdout


def test_hadolint_finds_nothing_in_a_dockerfile() -> None:
    files = [path for path in _tracked() if path.name.endswith("Dockerfile")]
    assert ROOT / "Dockerfile" in files
    assert _complaints(require(HADOLINT), files) == ""


def test_shellcheck_finds_nothing_in_a_script() -> None:
    shells = tuple(f"#!{start}{shell}" for start in ("/bin/", "/usr/bin/env ") for shell in ("sh", "bash"))
    files = [
        path
        for path in _tracked()
        if path.suffix in {".sh", ".bash"} or path.read_bytes()[:40].decode(errors="replace").startswith(shells)
    ]
    assert files
    assert _complaints(require(SHELLCHECK), files) == ""
