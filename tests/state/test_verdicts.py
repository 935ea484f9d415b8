"""The memory of verdicts: what it forgets, and what it never mixes up."""

import time

import pytest

from service.core.model import Gate, Principal, Proof
from service.state.verdicts import Verdicts

ALICE = Principal("local", "alice")
HEADER = b"Basic YWxpY2U6c2VjcmV0"


def verdicts_of(*, seconds: float, capacity: int) -> Verdicts:
    made = Verdicts()
    made.renew(seconds=seconds, capacity=capacity)
    return made


@pytest.fixture
def verdicts() -> Verdicts:
    return verdicts_of(seconds=60, capacity=3)


def remember(verdicts: Verdicts, header: bytes = HEADER, gate: Gate = Gate.API, until: float = float("inf")) -> bytes:
    key = verdicts.key_of(gate, header)
    verdicts.remember(key, Proof(ALICE, until), verdicts.era)
    return key


def test_what_was_proved_is_recalled_for_the_very_same_bytes_alone(verdicts: Verdicts) -> None:
    proof = verdicts.recall(remember(verdicts))
    assert proof is not None
    assert proof.principal is ALICE
    for other in (HEADER + b" ", HEADER.lower(), HEADER[:-1], b""):
        assert verdicts.recall(verdicts.key_of(Gate.API, other)) is None


def test_what_one_gate_believed_is_nothing_to_another(verdicts: Verdicts) -> None:
    remember(verdicts)
    for gate in (Gate.JWT, Gate.BASIC, Gate.UI):
        assert verdicts.recall(verdicts.key_of(gate, HEADER)) is None


def test_the_memory_holds_no_header(verdicts: Verdicts) -> None:
    remember(verdicts)
    assert HEADER not in repr(vars(verdicts)).encode()
    assert verdicts.key_of(Gate.API, HEADER) != verdicts_of(seconds=60, capacity=3).key_of(Gate.API, HEADER)


@pytest.mark.parametrize(("until", "ends"), [(30.0, 30.0), (3600.0, 60.0)])
def test_a_verdict_ends_with_its_proof_or_after_the_bound(
    verdicts: Verdicts, monkeypatch: pytest.MonkeyPatch, until: float, ends: float
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    key = remember(verdicts, until=now + until)
    monkeypatch.setattr(time, "time", lambda: now + ends - 0.001)
    assert verdicts.recall(key)
    monkeypatch.setattr(time, "time", lambda: now + ends)
    assert verdicts.recall(key) is None


def test_a_proof_that_was_begun_before_a_change_is_not_remembered(verdicts: Verdicts) -> None:
    key, era = verdicts.key_of(Gate.API, HEADER), verdicts.era
    verdicts.forget()  # the users file changed while bcrypt was at work
    verdicts.remember(key, Proof(ALICE, float("inf")), era)
    assert verdicts.recall(key) is None


def test_a_change_ends_all_verdicts(verdicts: Verdicts) -> None:
    key = remember(verdicts)
    verdicts.forget()
    assert verdicts.recall(key) is None


def test_the_oldest_goes_first_and_none_is_kept_where_the_bound_is_nought(verdicts: Verdicts) -> None:
    keys = [remember(verdicts, str(number).encode()) for number in range(4)]
    assert [verdicts.recall(key) is not None for key in keys] == [False, True, True, True]
    none = verdicts_of(seconds=0, capacity=3)
    assert none.recall(remember(none)) is None
