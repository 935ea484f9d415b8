"""The commands of machines: what an operator reads, and what no output ever has."""

from pathlib import Path

import pytest

from service.issuing.ledger import Ledger
from service.issuing.sqlite import SQLite
from tests.support.operator import Operator


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator({"FORWARD_AUTH_TOKENS__FOLDER": str(tmp_path / "tokens")}, monkeypatch, capsys)


def test_a_machine_from_its_first_secret_to_its_end(operator: Operator) -> None:
    assert "machines add" in operator("machines", "list").err
    added = operator("machines", "add", "etl", "--role", "worker")
    assert (added.code, added.out.count("\n")) == (0, 1)
    assert added.out.startswith("pfa_")
    assert "not shown again" in added.err
    rotated = operator("machines", "rotate", "etl")
    assert (rotated.code, rotated.out[:4]) == (0, "pfa_")
    old, new = (one.out.split("_")[1] for one in (added, rotated))
    assert f"`machines remove-secret etl {old}`" in rotated.err
    third = operator("machines", "rotate", "etl")
    assert (third.code, third.out) == (2, "")
    assert "remove the one that is not used any more with `machines remove-secret etl ID`" in third.err
    listed = operator("machines", "list").out
    heads, *rows = listed.splitlines()
    assert heads.split()[:3] == ["NAME", "ROLE", "SECRET"]
    assert [row.split()[:3] for row in rows] == [["etl", "worker", old], ["etl", "worker", new]]
    assert all(row.endswith("never") for row in rows)
    for shown in (added, rotated):
        assert shown.out.strip().split("_", 2)[2] not in listed + added.err + rotated.err
    assert operator("machines", "remove-secret", "etl", old).code == 0
    again = operator("machines", "remove-secret", "etl", old)
    assert (again.code, again.out) == (1, "")
    assert operator("machines", "remove-secret", "etl", new).code == 0
    assert operator("machines", "list").out.splitlines()[1].split()[:3] == ["etl", "worker", "none"]
    assert operator("machines", "remove", "etl").code == 0
    assert operator("machines", "remove", "etl").code == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("add", "etl", "--role", "wroker"), "there is no role 'wroker': there are admin, deployer,"),
        (("add", "a:b", "--role", "worker"), "a machine's name has no colon"),
        (("add", " etl", "--role", "worker"), "visible characters"),
        (("rotate", "nobody"), "there is no machine 'nobody': see `machines list`"),
    ],
    ids=["role", "colon", "name", "unknown"],
)
def test_what_is_not_done_and_why(operator: Operator, arguments: tuple[str, ...], told: str) -> None:
    done = operator("machines", *arguments)
    assert (done.code, done.out) == (2, "")
    assert told in done.err


def test_a_second_machine_of_a_name_is_refused(operator: Operator, tmp_path: Path) -> None:
    operator("machines", "add", "etl", "--role", "worker")
    done = operator("machines", "add", "etl", "--role", "admin")
    assert (done.code, done.out) == (2, "")
    assert "there is a machine 'etl' already" in done.err
    with Ledger(SQLite(tmp_path / "tokens"), rotate=86_400) as ledger:
        assert [(one.name, one.role, len(one.secrets)) for one in ledger.machines()] == [("etl", "worker", 1)]
