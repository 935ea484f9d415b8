"""Problems and their sentences: each is raised, each has words, and each word has its fact."""

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from service.core import errors
from service.core.errors import Code, Refusal
from service.core.model import Principal
from service.core.prefect.roles import Lacking
from service.core.problems import Cause, Problem
from service.core.request.headers import parse_client_version
from service.rendering.catalogue import FOR_OPERATORS, FOR_PEOPLE, SENTENCES
from service.rendering.cures import Cure, cure_of
from service.rendering.forms import form_for
from service.rendering.sentences import log_reason, sentence, sentence_for_person
from tests.support.forwarded_requests import call

SERVICE = Path(__file__).resolve().parents[2] / "service"
OF_RENDERING = {  # where problems are only listed
    "core/problems.py",
    "rendering/catalogue.py",
    "rendering/close.py",
    "rendering/cures.py",
}
NOT_FACTS = {"retry_after", "subject", "name"}  # parameters of Later and NotPermitted
LACKING = Lacking(None, Problem.ROUTE_UNKNOWN, frozenset())
FACTS_OF_ROLES = set(LACKING.cause(call("GET", "/"), Principal("i", "n")).facts)


class Site(NamedTuple):
    """A place where a problem is said, and the facts that it has there."""

    problem: Problem
    facts: set[str]
    place: str
    said_by: str = ""  # what is called with the problem: a kind of refusal, or a cause


def problem_of(node: ast.AST) -> Problem | None:
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Problem"
    return Problem[node.attr] if named and isinstance(node, ast.Attribute) else None


def sites() -> Iterator[Site]:
    for module in sorted(SERVICE.rglob("*.py")):
        name = module.relative_to(SERVICE).as_posix()
        if name in OF_RENDERING:
            continue
        tree = ast.parse(module.read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
        first = {id(chosen): one for one in calls for chosen in alternatives(one.args[0])}
        for node in ast.walk(tree):
            problem = problem_of(node)
            if problem is None:
                continue
            place = f"{name}:{getattr(node, 'lineno', 0)}"
            if id(node) in first:
                by = first[id(node)].func
                yield Site(problem, facts_of(first[id(node)]), place, by.id if isinstance(by, ast.Name) else "")
            else:  # the problem is chosen here, and said elsewhere
                yield Site(problem, FACTS_OF_ROLES if name == "core/prefect/roles.py" else set(), place)


def alternatives(argument: ast.expr) -> list[ast.expr]:
    """Return what an argument may be: itself, or both sides of a conditional expression."""
    return [argument.body, argument.orelse] if isinstance(argument, ast.IfExp) else [argument]


def facts_of(called: ast.Call) -> set[str]:
    given = {keyword.arg or "**" for keyword in called.keywords} - NOT_FACTS
    for argument in called.args[1:]:
        if isinstance(argument, ast.Dict):
            given |= {str(key.value) for key in argument.keys if isinstance(key, ast.Constant)}
    return given


SITES = list(sites())


def fields_of(template: str) -> set[str]:
    """Return the facts that a template asks for; the form of a credential is always there."""
    names = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    return {name for name in names if not name.startswith("form.")}


def test_each_problem_has_a_sentence_and_is_said_somewhere() -> None:
    assert set(SENTENCES) == set(Problem)
    assert set(FOR_PEOPLE) <= set(Problem)
    assert set(FOR_OPERATORS) <= set(Problem)
    assert {site.problem for site in SITES} == set(Problem)


@pytest.mark.parametrize("problem", Problem)
def test_what_a_sentence_says_is_known_wherever_it_is_said(problem: Problem) -> None:
    wanted = fields_of(SENTENCES[problem]) | fields_of(FOR_PEOPLE.get(problem, ""))
    for site in SITES:
        if site.problem is problem:
            assert wanted <= site.facts, site


@pytest.mark.parametrize("problem", Problem)
def test_a_sentence_ends_as_one_and_has_no_gap(problem: Problem) -> None:
    facts = {"roles": ("viewer",), "needed": ["run"], "holders": ("runner", "admin"), "expected": ["a", "b"]}
    facts |= {"routes": ["GET /x"], "seconds": 720}  # type: ignore[dict-item]
    given = {name: facts.get(name, "what-was-got") for name in fields_of(SENTENCES[problem])}
    given |= {name: facts.get(name, "what-was-got") for name in fields_of(FOR_PEOPLE.get(problem, ""))}
    for text in (sentence(Cause(problem, given)), sentence_for_person(Cause(problem, given))):
        of_configuration = text[0].islower() or text[0] == "'"
        assert of_configuration or text.endswith((".", ")."))
        assert "{}" not in text
        assert "  " not in text


WAITING_HELPS = {
    Problem.ISSUER_OUT_OF_REACH,
    Problem.KEYS_OUT_OF_REACH,
    Problem.KEY_NOT_KNOWN_YET,
    Problem.TOKENS_OUT_OF_REACH,
    Problem.NO_USABLE_KEY,
    Problem.SESSION_NOT_RENEWABLE,
    Problem.PROVIDER_BUSY,
    Problem.PROVIDER_ERROR,
    Problem.TOO_MANY_GUESSES,
    Problem.PREFECT_OUT_OF_REACH,
    Problem.RELAY_FULL,
    Problem.RELAY_WITHOUT_PREFECT,  # said on WebSockets alone, which have no button
    Problem.INTERNAL,
}


def test_try_again_is_the_button_where_waiting_helps_and_nowhere_else() -> None:
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Refusal)}
    codes = {(site.problem, kinds[site.said_by].code) for site in SITES if site.said_by in kinds}
    codes |= {(problem, Code.SIGN_IN_FAILED) for problem in Problem if problem.startswith("provider_")}
    retried = {problem for problem, code in codes if cure_of(code, Cause(problem)) is Cure.RETRY}
    assert retried == WAITING_HELPS


VERSIONS = [None, (3, 2, 15), (3, 4, 7), (3, 4, 8), (3, 6, 11), (3, 8, 3), (3, 9, 1), (4, 0, 0)]


@pytest.mark.parametrize("version", VERSIONS)
def test_no_sentence_recommends_a_form_that_loses_task_runs(version: tuple[int, int, int] | None) -> None:
    """Which form works on which version was run for real, and stands in the README."""
    knows_headers = version is not None and version >= (3, 4, 8)
    form = form_for(version)
    advised = 0
    for problem, template in SENTENCES.items():
        text = sentence(Cause(problem, dict.fromkeys(fields_of(template), ())), form) if "{form" in template else ""
        assert not re.search("(set|Set|to) PREFECT_API_(KEY|AUTH_STRING)", text or template), problem
        if text:
            advised += 1
            assert ("PREFECT_CLIENT_CUSTOM_HEADERS" in text) == knows_headers
            assert ("PREFECT_API_URL" in text) != knows_headers
    assert advised >= 5


@pytest.mark.parametrize(
    ("user_agent", "version"),
    [
        (b"prefect/3.9.1 (API 0.8.4)", (3, 9, 1)),
        (b"prefect/3.4.8 (API 0.8.4)", (3, 4, 8)),
        (b"prefect/3.10.0 (API 0.9)", (3, 10, 0)),
        (b"prefect/3.4.8rc1 (API 0.8.4)", None),  # it need not have what the release has
        (b"prefect/3.9.2.dev4+1.g1a2b3c (API 0.8.4)", None),
        (b"Python/3.11 websockets/16.1.1", None),  # Prefect's WebSockets
        (b"curl/8.5.0 prefect/3.9.1 (API 0.8.4)", None),
        (b"prefect/3.9 (API 0.8.4)", None),
        (b"prefect/99999.9.1 (API 0.8.4)", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_the_version_of_a_client_is_read_from_its_user_agent(
    user_agent: bytes, version: tuple[int, int, int] | None
) -> None:
    assert parse_client_version(user_agent) == version


def test_the_log_has_a_problem_and_short_facts() -> None:
    cause = Cause(Problem.AUDIENCE_OTHER, {"got": ["x" * 1000], "expected": ["prefect"]})
    assert log_reason(cause).startswith("audience_other got=['xxx")
    assert log_reason(cause).endswith("expected=['prefect']")
    assert len(log_reason(cause)) < 300
    assert "\n" not in log_reason(Cause(Problem.HOST_INVALID, {"got": b"a\nb"}))
