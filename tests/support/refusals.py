"""What a refusal tells: the core raises problems, and the tests read the sentences that are made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from service.core.errors import Refusal, UnusableError
from service.core.problems import Problem
from service.rendering.sentences import log_reason, sentence

Raised = TypeVar("Raised", Refusal, UnusableError)


def told(refusal: Refusal) -> str:
    """Return what the caller reads."""
    return sentence(refusal.cause)


def logged(refusal: Refusal) -> str:
    """Return what the log has."""
    return log_reason(refusal.cause)


@contextmanager
def refused(
    kind: type[Raised], words: str = "", problem: Problem | None = None
) -> Iterator[pytest.ExceptionInfo[Raised]]:
    """Expect a refusal of this kind, for this problem, whose sentence has these words (a regular expression)."""
    with pytest.raises(kind) as raised:
        yield raised
    cause = raised.value.cause
    assert re.search(words, sentence(cause)), sentence(cause)
    assert problem is None or cause.problem is problem, log_reason(cause)
