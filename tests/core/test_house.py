"""Rules of the house that no linter knows."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.adapters.jwks import _FITTING
from service.core.model import ALGORITHMS

SERVICE = Path(__file__).resolve().parents[2] / "service"
MODULES = sorted(SERVICE.rglob("*.py"))


def calls(module: Path) -> set[str]:
    tree = ast.parse(module.read_text())
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {one.id for one in functions if isinstance(one, ast.Name)}


def test_only_a_verified_signature_makes_verified_claims() -> None:
    makers = [module.relative_to(SERVICE).as_posix() for module in MODULES if "VerifiedClaims" in calls(module)]
    assert makers == ["authn/tokens.py"]


def test_only_the_policy_allows() -> None:
    makers = [module.relative_to(SERVICE).as_posix() for module in MODULES if "Allow" in calls(module)]
    assert makers == ["core/policy.py"]


def test_each_accepted_algorithm_fits_some_key() -> None:
    assert {one for fitting in _FITTING.values() for one in fitting} == ALGORITHMS


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.relative_to(SERVICE).as_posix())
def test_a_module_is_named_for_what_it_does(module: Path) -> None:
    assert module.stem not in {"utils", "helpers", "manager", "common"}


CORE = [module for module in MODULES if module.is_relative_to(SERVICE / "core") and module.name != "table.py"]
WORDS = re.compile(r"[A-Za-z]{2,} [A-Za-z]{2,}")
HTML = re.compile(r"(?<!\?P)</?[a-zA-Z][^>]*>")  # and no named group of a regular expression


def literals(module: Path) -> Iterator[ast.Constant]:
    """Yield the strings of a module, docstrings left out."""
    tree = ast.parse(module.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in docstrings:
            yield node


@pytest.mark.parametrize("module", CORE, ids=lambda module: module.relative_to(SERVICE).as_posix())
def test_the_core_has_no_words(module: Path) -> None:
    for literal in literals(module):
        text = literal.value if isinstance(literal.value, str) else bytes(literal.value).decode("latin-1")  # type: ignore[arg-type]
        assert not WORDS.search(text), f"line {literal.lineno}: {text!r}"
        assert not HTML.search(text), f"line {literal.lineno}: {text!r}"


def test_the_gate_does_not_wait_for_what_makes_pages() -> None:
    """Importing them takes longer than all the rest, and the gate answers its first calls without."""
    script = "import sys, service.gate.verify; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jinja2", "starlette", "fastapi"} & set(loaded)
