"""Commands as an operator types them, without the second that a process of its own takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from service.cli.main import main


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Operator:
    """Runs commands in this process, with these environment variables."""

    variables: Mapping[str, str]
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str, **variables: str) -> Done:
        """Run one command to its end."""
        self.capsys.readouterr()
        with self.monkeypatch.context() as patched:
            for name, value in {**self.variables, **variables}.items():
                patched.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main(list(arguments))
        out, err = self.capsys.readouterr()
        return Done(int(ended.value.code or 0), out, err)
