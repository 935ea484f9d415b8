"""The events that Prefect's clients send, and the runs that an event concerns.

A message on ``/events/in`` is read here as the server reads it. Two things are decided: whether a client sends such an
event at all, and of which runs its sender must prove that it reports them. Every event that a client would not send is
refused: the states of flow runs, of deployments and of automations come from the server alone, and automations act on
them.

The table names every event of the ``prefect.`` namespace that passes: the event's name, its resource, and where the run
stands that must be reported. ``*`` stands for any text; the resource ``-`` is one outside of the ``prefect.``
namespace. An event with a name outside of the namespace is an event of users.
"""

import json
import re
from collections.abc import Container, Iterable
from datetime import datetime
from enum import StrEnum, auto
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from unicodedata import normalize

from service.core.names import is_visible_name
from service.core.strict_json import no_constant, unique_members

# Read from Prefect 3.2.15, 3.4.8, 3.6.11, 3.6.29, 3.8.2, 3.8.8 and 3.9.1. Without a remark, all of them send it.
# fmt: off
CLIENT_EVENTS: Final = (
    ("prefect.task-run.*", "prefect.task-run.*", "flow-run"),  # the name is the state's
    ("prefect.flow-run.heartbeat", "prefect.flow-run.*", "resource"),  # runner up to 3.6, then the flow
    ("prefect.flow-run.pull-step.executed", "prefect.flow-run.*", "resource"),  # from 3.6
    ("prefect.flow-run.pull-step.failed", "prefect.flow-run.*", "resource"),  # from 3.6
    ("prefect.runner.cancelled-flow-run", "prefect.runner.*", "related"),
    ("prefect.worker.submitted-flow-run", "prefect.worker.*", "related"),
    ("prefect.worker.executed-flow-run", "prefect.worker.*", "related"),
    ("prefect.worker.started", "prefect.worker.*", "worker"),
    ("prefect.worker.stopped", "prefect.worker.*", "worker"),
    ("prefect.artifact.created", "prefect.artifact.*", "related"),  # from 3.6
    ("prefect.artifact.updated", "prefect.artifact.*", "related"),  # from 3.6
    ("prefect.asset.referenced", "-", "related"),  # from 3.4; prefect-dbt, too
    ("prefect.asset.materialization.succeeded", "-", "related"),  # from 3.4; prefect-dbt, too
    ("prefect.asset.materialization.failed", "-", "related"),  # from 3.4; prefect-dbt, too
    ("prefect.block.*.loaded", "prefect.block-document.*", "related"),
    ("prefect.concurrency-limit.acquired", "prefect.concurrency-limit.*", "related"),
    ("prefect.concurrency-limit.released", "prefect.concurrency-limit.*", "related"),
    ("prefect.concurrency-limit.v1.acquired", "prefect.concurrency-limit.v1.*", "related"),  # limits by tag
    ("prefect.concurrency-limit.v1.released", "prefect.concurrency-limit.v1.*", "related"),  # limits by tag
    ("prefect.kubernetes.pod.*", "prefect.kubernetes.pod.*", "related"),  # prefect-kubernetes
    ("prefect.ecs.task.*", "prefect.ecs.task.*", "related"),  # prefect-aws
    ("prefect.docker.container.*", "prefect.docker.container.*", "related"),  # prefect-docker
)
# fmt: on

MAX_MESSAGE: Final = 1_500_000  # bytes: the server's default
MAX_CONTAINERS: Final = 20_000  # arrays and objects in a message
MAX_DEPTH: Final = 150  # below the limit of the server's own reader, which is near 200
MAX_NAME: Final = 1024  # characters: the server's default
MAX_RELATED: Final = 500  # the server's default up to 3.2; since then 100
MAX_LABELS: Final = 500  # of one resource: the server's default
MAX_AHEAD: Final = 86_400.0  # seconds by which an event may lie ahead of the clock: a day, for clocks that are wrong

_RELATED_KINDS: Final = (  # what clients name as related; everything outside of the namespace may be named, too
    "prefect.flow-run.",
    "prefect.task-run.",
    "prefect.flow.",
    "prefect.deployment.",
    "prefect.work-pool.",
    "prefect.work-queue.",
    "prefect.worker.",
    "prefect.tag.",
    "prefect.block-type.",
    "prefect.concurrency-limit.",
)
_FLOW_RUN: Final = "prefect.flow-run."
_TASK_RUN: Final = "prefect.task-run."
_ID: Final = "prefect.resource.id"
_NAME: Final = "prefect.resource.name"
_ROLE: Final = "prefect.resource.role"
# What the server's recorder would take from the payload in place of the resource, the flow run and the event.
_NOT_IN_TASK_RUN: Final = frozenset({"id", "flow_run_id", "state", "state_id", "state_type", "state_name"})
_NOT_IN_STATE: Final = frozenset({"id", "timestamp"})

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)


class EventProblem(StrEnum):
    """Why an event does not pass, whoever sends it."""

    TOO_LARGE = auto()  # longer, deeper or with more containers than any client sends
    NOT_JSON = auto()  # or ambiguous: repeated names, NaN, lone surrogates
    NOT_AN_EVENT = auto()  # the server could not read it either, or clients write it otherwise
    TOO_MANY_RESOURCES = auto()  # or labels
    NAME_NOT_OF_CLIENTS = auto()
    RESOURCE_NOT_OF_CLIENTS = auto()
    RELATED_NOT_OF_CLIENTS = auto()
    RUN_NOT_CANONICAL = auto()  # a run's id is not a lower-case UUID
    PAYLOAD_NOT_OF_CLIENTS = auto()  # a task run's payload that names another run or state
    NO_RUN = auto()  # it concerns no run at all


class Worker(NamedTuple):
    """A worker, as its own events name it: by itself and its work pool."""

    name: str
    work_pool: str


class ClientEvent(NamedTuple):
    """An event that a client may send, with what its sender must have proved to report.

    ``all_of`` and ``any_of`` are ids of flow runs and task runs. The event passes for whoever reports every run of
    ``all_of`` and, if there are any, one of ``any_of``. Both are empty for the start and the stop of a worker: these
    pass for whoever asks the work pool of ``worker`` for flow runs. Not every version sends heartbeats over HTTP.

    ``task_run`` is a task run without a flow run, as under ``task.serve``. It passes by itself or by the task run that
    started it. Once its event passed, it counts as reported: it may start further ones.
    """

    name: str
    resource: str
    occurred: float  # seconds since 1970
    all_of: frozenset[str]
    any_of: frozenset[str]
    task_run: str | None = None
    worker: Worker | None = None

    def is_reported(self, reported: Container[str], *, now: float) -> bool:
        """Tell whether the event passes for a sender that reports these runs; ``now`` in seconds since 1970.

        An event that lies more than ``MAX_AHEAD`` ahead passes for nobody. Neither does one with ``worker``: that is
        for the caller to judge.
        """
        if self.occurred > now + MAX_AHEAD or not (self.all_of or self.any_of):
            return False
        return all(run in reported for run in self.all_of) and (
            not self.any_of or any(run in reported for run in self.any_of)
        )


class _Row(NamedTuple):
    pattern: re.Pattern[str]
    resource: str | None  # how the resource's id begins; None for one outside of the namespace
    runs: str


def _row(name: str, resource: str, runs: str) -> _Row:
    pattern = re.compile(re.escape(name).replace(r"\*", ".+"))
    return _Row(pattern, None if resource == "-" else resource.removesuffix("*"), runs)


_EXACT: Final = MappingProxyType({row[0]: _row(*row) for row in CLIENT_EVENTS if "*" not in row[0]})
_PATTERNS: Final = tuple(_row(*row) for row in CLIENT_EVENTS if "*" in row[0])


def parse_event(message: str | bytes) -> ClientEvent | EventProblem:
    """Return the event in a message of ``/events/in``, or why no client sends it.

    What the server ignores is ignored: other members of the object and other labels. Stricter than the server is only
    the spelling: where it reads several, the one that clients write is accepted.
    """
    content = _parse_json(message)
    if isinstance(content, EventProblem):
        return content
    problem = _shape_problem(content)
    if problem:
        return problem
    occurred = _seconds(content.get("occurred"))
    if occurred is None:
        return EventProblem.NOT_AN_EVENT
    return _judge(content, occurred)


def runs_of_event(message: str | bytes) -> frozenset[str] | None:
    """Return the ids of the flow runs and task runs that an event of ``/events/out`` concerns.

    They stand in its resource and its related resources. Empty for an event that cannot be read; None for a message
    that is no event, such as the answer to the first message.
    """
    try:
        content = json.loads(message)
        if content["type"] != "event":
            return None
        event = content["event"]
        resources = [str(one[_ID]) for one in (event["resource"], *event["related"])]
    except (ValueError, RecursionError, LookupError, TypeError):
        return frozenset()
    return frozenset(run for run in _runs(_FLOW_RUN, resources) | _runs(_TASK_RUN, resources) if _UUID.fullmatch(run))


def run_handed_out(message: str | bytes) -> str | None:
    """Return the task run that a message of ``/task_runs/subscriptions/scheduled`` hands to the client, if it does."""
    try:
        content = json.loads(message)
    except (ValueError, RecursionError):
        return None
    run = content.get("id") if isinstance(content, dict) else None
    return run if _is_uuid(run) else None


# As the server's router matches {id:uuid}. A flow may be named like a collection of runs, and its deployment by a UUID.
_search_run: Final = re.compile(
    r"(?<!/name)/(?:flow|task)_runs/"
    r"([0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12})(?![^/])"
).search
_LENGTH: Final = 36


def run_in_path(path: str) -> str | None:
    """Return the canonical id of the flow run or task run that an allowed path names; None if it names none."""
    found = _search_run(path)
    if found is None:
        return None
    run = found[1].lower()
    if len(run) == _LENGTH:
        return run
    digits = run.replace("-", "")
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _parse_json(message: str | bytes) -> dict[str, Any] | EventProblem:
    if len(message) > MAX_MESSAGE:
        return EventProblem.TOO_LARGE
    try:
        document = message.encode() if isinstance(message, str) else message
        containers = document.count(b"[") + document.count(b"{")
        if len(document) > MAX_MESSAGE or containers > MAX_CONTAINERS:
            return EventProblem.TOO_LARGE
        if containers > MAX_DEPTH and _depth(document) > MAX_DEPTH:
            return EventProblem.TOO_LARGE
        content = _DECODER.decode(document.decode())
        if rb"\u" in document:
            json.dumps(content, ensure_ascii=False).encode()  # fails for a lone surrogate, as the server does
    except ValueError:
        return EventProblem.NOT_JSON
    return content if isinstance(content, dict) else EventProblem.NOT_AN_EVENT


_NOT_STRUCTURE: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[^\[\]{}"]+', re.DOTALL)


def _depth(document: bytes) -> int:
    """Return how deep arrays and objects lie in each other; what is in strings does not count."""
    depth = deepest = 0
    for bracket in _NOT_STRUCTURE.sub(b"", document):
        if bracket in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


_DECODER: Final = json.JSONDecoder(object_pairs_hook=unique_members, parse_constant=no_constant)


def _is_uuid(value: object) -> bool:
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def _shape_problem(content: dict[str, Any]) -> EventProblem | None:
    """Return what the server would stumble over."""
    name, related = content.get("event"), content.get("related", [])
    if not isinstance(name, str) or not isinstance(content.get("payload", {}), dict) or not isinstance(related, list):
        return EventProblem.NOT_AN_EVENT
    follows = content.get("follows")
    if not _is_uuid(content.get("id")) or not (follows is None or _is_uuid(follows)):
        return EventProblem.NOT_AN_EVENT
    if len(related) > MAX_RELATED:
        return EventProblem.TOO_MANY_RESOURCES
    for resource in (content.get("resource"), *related):
        if not isinstance(resource, dict) or not all(isinstance(label, str) for label in resource.values()):
            return EventProblem.NOT_AN_EVENT
        if len(resource) > MAX_LABELS:
            return EventProblem.TOO_MANY_RESOURCES
        if not resource.get(_ID):
            return EventProblem.NOT_AN_EVENT
    if not all(one.get(_ROLE) for one in related):
        return EventProblem.NOT_AN_EVENT
    return None


def _seconds(occurred: object) -> float | None:
    """Return the time in seconds since 1970; None for what clients do not write (RFC 3339 §5.6)."""
    if not isinstance(occurred, str) or not _TIME.fullmatch(occurred):
        return None
    try:
        return datetime.fromisoformat(occurred).timestamp()
    except (ValueError, OverflowError):
        return None


def _judge(content: dict[str, Any], occurred: float) -> ClientEvent | EventProblem:
    event = ClientEvent(content["event"], content["resource"][_ID], occurred, frozenset(), frozenset())
    if len(event.name) > MAX_NAME or not event.name.isprintable():
        return EventProblem.NAME_NOT_OF_CLIENTS
    related: list[dict[str, str]] = content.get("related", [])
    if not all(_is_run_or_none(one) for one in (event.resource, *(one[_ID] for one in related))):
        return EventProblem.RUN_NOT_CANONICAL
    for one in related:
        if _in_namespace(one[_ID]) and not one[_ID].startswith(_RELATED_KINDS):
            return EventProblem.RELATED_NOT_OF_CLIENTS
        if one[_ROLE] == "flow-run" and not one[_ID].startswith(_FLOW_RUN):
            return EventProblem.RELATED_NOT_OF_CLIENTS  # the server's recorder takes the run from the role
    return _of_prefect(event, content, related) if _in_namespace(event.name) else _of_user(event, related)


def _in_namespace(name: str) -> bool:
    """Tell whether a name is in Prefect's namespace, or could be taken for it by a reader or a database."""
    if not name.isascii():
        name = "".join(character for character in normalize("NFKC", name) if is_visible_name(character))
    return name[:8].casefold() == "prefect."


def _is_run_or_none(resource: str) -> bool:
    """Tell whether a resource is a run in the one spelling of its id that clients write, or no run."""
    if not resource.startswith((_FLOW_RUN, _TASK_RUN)):
        return True
    return _UUID.fullmatch(resource, len(_FLOW_RUN)) is not None


def _runs(kind: str, resources: Iterable[str]) -> frozenset[str]:
    return frozenset(one.removeprefix(kind) for one in resources if one.startswith(kind))


def _of_user(event: ClientEvent, related: list[dict[str, str]]) -> ClientEvent | EventProblem:
    """Judge an event of a name that users chose."""
    resources = [one[_ID] for one in related]
    flow_runs, task_runs = _runs(_FLOW_RUN, resources), _runs(_TASK_RUN, resources)
    if event.resource.startswith(_FLOW_RUN) or (event.resource.startswith(_TASK_RUN) and not flow_runs):
        return event._replace(all_of=frozenset({event.resource[len(_FLOW_RUN) :]}))
    if _in_namespace(event.resource) and not event.resource.startswith(_TASK_RUN):
        return EventProblem.RESOURCE_NOT_OF_CLIENTS
    return event._replace(any_of=flow_runs | task_runs) if flow_runs or task_runs else EventProblem.NO_RUN


def _of_prefect(
    event: ClientEvent, content: dict[str, Any], related: list[dict[str, str]]
) -> ClientEvent | EventProblem:
    """Judge an event of a name that Prefect's own code gives."""
    row = _EXACT.get(event.name) or next((row for row in _PATTERNS if row.pattern.fullmatch(event.name)), None)
    if row is None:
        return EventProblem.NAME_NOT_OF_CLIENTS
    if _in_namespace(event.resource) if row.resource is None else not event.resource.startswith(row.resource):
        return EventProblem.RESOURCE_NOT_OF_CLIENTS
    if not all(one[_ROLE] == "flow-run" for one in related if one[_ID].startswith(_FLOW_RUN)):
        return EventProblem.RELATED_NOT_OF_CLIENTS
    if row.runs == "worker":
        return _of_worker(event, content["resource"].get(_NAME), related)
    if row.runs == "flow-run" and not _is_task_run_payload(content.get("payload", {})):
        return EventProblem.PAYLOAD_NOT_OF_CLIENTS
    # Clients name one flow run here. They do not name task runs on HTTP: the flow run stands for its task runs.
    runs = _runs(_FLOW_RUN, [one[_ID] for one in related])
    own = event.resource[len(_FLOW_RUN) :]
    if row.runs == "resource":
        runs |= {own}
    if row.runs == "flow-run" and not runs:
        return event._replace(any_of=frozenset({own, *_parents(content["payload"]["task_run"])}), task_run=own)
    return event._replace(all_of=runs) if runs else EventProblem.NO_RUN


def _of_worker(event: ClientEvent, name: str | None, related: list[dict[str, str]]) -> ClientEvent | EventProblem:
    """Judge the start or the stop of a worker, which concerns no run; its related resource is its work pool alone."""
    pools = [one.get(_NAME) for one in related if one[_ID].startswith("prefect.work-pool.")]
    if not name or len(related) != 1 or len(pools) != 1 or not pools[0]:
        return EventProblem.RELATED_NOT_OF_CLIENTS
    return event._replace(worker=Worker(name, pools[0]))


def _parents(task_run: dict[str, Any]) -> list[str]:
    """Return the task runs in which this one was started, as far as clients write them."""
    inputs = task_run.get("task_inputs")
    parents = inputs.get("__parents__") if isinstance(inputs, dict) else None
    if not isinstance(parents, list):
        return []
    return [one["id"] for one in parents if isinstance(one, dict) and _is_uuid(one.get("id"))]


def _is_task_run_payload(payload: dict[str, Any]) -> bool:
    """Tell whether the server takes the task run, its flow run and its state from the event itself."""
    task_run, state = payload.get("task_run"), payload.get("validated_state")
    if not isinstance(task_run, dict) or not isinstance(state, dict):
        return False
    return not (_NOT_IN_TASK_RUN & task_run.keys()) and not (_NOT_IN_STATE & state.keys())
