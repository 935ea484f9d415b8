"""Rules of the house that no linter knows."""

import ast
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
def test_a_module_is_one_thought(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= 300
    assert module.stem not in {"utils", "helpers", "manager", "common"}
