"""A cause in words: for a machine, for a person, and for the log."""

import string
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from service.core.problems import Cause
from service.rendering.capabilities import MEANING
from service.rendering.catalogue import FOR_OPERATORS, FOR_PEOPLE, SENTENCES
from service.rendering.forms import ANY_VERSION, Form
from service.rendering.presets import cure_for_groups, words_of

MAX_FACT: Final = 200  # characters of a fact in the log
MAX_SOME: Final = 3  # of the accepted values that a caller is told


def sentence(cause: Cause, form: Form = ANY_VERSION) -> str:
    """Return what a machine, or an operator, reads about a cause. ``form`` is that of the version that asked."""
    return _filled_in(SENTENCES[cause.problem], cause, form)


def sentence_for_person(cause: Cause) -> str:
    """Return what a person reads about a cause on a page."""
    return _filled_in(FOR_PEOPLE.get(cause.problem) or SENTENCES[cause.problem], cause)


def _filled_in(template: str, cause: Cause, form: Form = ANY_VERSION) -> str:
    return _FORMATTER.vformat(template, (), {**cause.facts, "form": form}) if cause.facts else _constant(template, form)


@lru_cache(maxsize=1024)  # more than there are templates and forms
def _constant(template: str, form: Form) -> str:
    """Return a template that has no fact in it but the form, filled in once: most refusals need no other."""
    return _FORMATTER.vformat(template, (), {"form": form})


def log_reason(cause: Cause) -> str:
    """Return what the log has of a cause: the problem, its facts in short, and the setting that helps if one does."""
    shown = (f"{name}={_short(value)}" for name, value in cause.facts.items())
    said = " ".join((cause.problem, *shown))
    cure = FOR_OPERATORS.get(cause.problem)
    return f"{said} ({cure})" if cure else said


def duration(seconds: float) -> str:
    """Return a length of time in the largest unit that fits."""
    unit, size = next((one for one in _UNITS if seconds >= one[1]), _UNITS[-1])
    count = max(1, round(seconds / size))
    return f"{count} {unit}{'s' if count > 1 else ''}"


_UNITS: Final = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


def _short(value: Any) -> str:
    if isinstance(value, Cause):
        return f"({log_reason(value)})"
    if isinstance(value, frozenset):
        value = sorted(value)
    text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    return text if len(text) <= MAX_FACT else f"{text[:MAX_FACT]}…"


# how the facts of a refusal for roles are written -------------------------------------------------------------


def _held(roles: Sequence[str]) -> str:
    *others, one = roles or ("",)
    if not one:
        return "without a role here"
    return f"with the roles {', '.join(others)} and {one}" if others else f"with the role {one}"


def _either(needed: Sequence[str]) -> str:
    return " or ".join(f"'{one}'" for one in needed)


def _some(expected: Sequence[str]) -> str:
    """Return a few of the accepted values; an empty one stands for none."""
    return " or ".join(f"'{one}'" if one else "missing" for one in sorted(expected, key=bool, reverse=True)[:MAX_SOME])


def _right(needed: Sequence[str]) -> str:
    return next(meaning for capability, meaning in MEANING.items() if capability in needed)


def _ask(holders: Sequence[str]) -> str:
    if not holders:
        return "No role here has that."
    *others, one = holders
    return f"Ask for the role {', '.join(others)} or {one}." if others else f"Ask for the role {one}."


def _ask_least(holders: Sequence[str]) -> str:
    return _ask(holders[:1])


def _or(claims: Sequence[str]) -> str:
    *others, one = claims or ("",)
    return f"{', '.join(others)} or {one}" if others else one


def _of_preset(attribute: str) -> Callable[[str], str]:
    """Return what writes one of the texts about the preset of that name."""

    def write(preset: str) -> str:
        return str(getattr(words_of(preset), attribute, preset))

    return write


_SPECS: Final[Mapping[str, Callable[[Any], str]]] = {
    "duration": duration,
    "list": ", ".join,
    "held": _held,
    "either": _either,
    "some": _some,
    "right": _right,
    "ask": _ask,
    "ask-least": _ask_least,
    "or": _or,
    "groups": cure_for_groups,
    **{name: _of_preset(name) for name in ("url", "audience", "strangers", "pin", "refused")},
}


class _Formatter(string.Formatter):
    """``str.format`` with the format specifications of ``_SPECS``."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """Return a fact as its specification says."""
        write = _SPECS.get(format_spec)
        return write(value) if write is not None else str(super().format_field(value, format_spec))


_FORMATTER: Final = _Formatter()
