"""Which events a client without a credential may send: those that its own code sends, of the runs that it reports."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import compile_path

from service.core.prefect.client_events import (
    CLIENT_EVENTS,
    MAX_AHEAD,
    MAX_CONTAINERS,
    MAX_DEPTH,
    MAX_LABELS,
    MAX_MESSAGE,
    MAX_NAME,
    MAX_RELATED,
    ClientEvent,
    EventProblem,
    Worker,
    parse_event,
    run_handed_out,
    run_in_path,
    runs_of_event,
)

RUN = "5495233e-5a50-40f3-a51a-c9f7afc6a6b2"
OTHER = "b1bff1a9-7d2e-4ff1-9c8b-6ac0a2c5e1d0"
TASK = "01a219ef-dfec-7fad-98a2-d17d06e3d3ee"
NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z

RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "client-events.txt").read_text().splitlines()
    if not line.startswith("#")
]


def resource(name: str, role: str = "", **labels: str) -> dict[str, str]:
    return {"prefect.resource.id": name, **({"prefect.resource.role": role} if role else {}), **labels}


OF_RUN = resource(f"prefect.flow-run.{RUN}", "flow-run")
OF_OTHER = resource(f"prefect.flow-run.{OTHER}", "flow-run")
POOL = resource("prefect.work-pool.78de957b-6ee6-46d2-a846-0585e2f2b70f", "work-pool", **{"prefect.resource.name": "a"})
WORKER = resource("prefect.worker.process.w-1", **{"prefect.resource.name": "w 1"})
TASK_PAYLOAD = {"task_run": {"name": "add", "task_key": "add-1"}, "validated_state": {"type": "FAILED"}}


def event(name: str = "shop.order.placed", of: str = "shop.order.1", **members: Any) -> dict[str, Any]:
    return {
        "occurred": "2027-01-15T08:00:00.000001Z",
        "event": name,
        "resource": resource(of),
        "related": [OF_RUN],
        "payload": {},
        "id": TASK,
        "follows": None,
        **members,
    }


def task_event(**members: Any) -> dict[str, Any]:
    return event("prefect.task-run.Failed", f"prefect.task-run.{TASK}", **{"payload": TASK_PAYLOAD, **members})


def judged(content: object) -> ClientEvent | EventProblem:
    return parse_event(json.dumps(content))


def passed(content: object) -> ClientEvent:
    answer = judged(content)
    assert isinstance(answer, ClientEvent), answer
    return answer


def passes(content: object, *reported: str) -> bool:
    return passed(content).is_reported(reported, now=NOW)


def recorded_id(line: dict[str, Any]) -> str:
    return f"{line['client']}-{line['event']['event']}"


OF_RUNS = [line for line in RECORDED if line["reported"]]
OF_WORKERS = [line for line in RECORDED if line.get("work_pool")]
OF_NOTHING = [line for line in RECORDED if not line["reported"] and not line.get("work_pool")]


@pytest.mark.parametrize("line", OF_RUNS, ids=recorded_id)
def test_what_clients_really_sent_passes_for_who_reports_the_run(line: dict[str, Any]) -> None:
    answer = passed(line["event"])
    assert answer.is_reported(line["reported"], now=NOW)
    assert answer.worker is None
    assert not answer.is_reported([OTHER], now=NOW)
    assert not answer.is_reported([], now=NOW)


@pytest.mark.parametrize("line", OF_WORKERS, ids=recorded_id)
def test_a_worker_may_say_that_it_starts_and_stops(line: dict[str, Any]) -> None:
    answer = passed(line["event"])
    assert answer.worker == Worker(line["event"]["resource"]["prefect.resource.name"], line["work_pool"])
    assert not answer.is_reported([RUN, OTHER], now=NOW)


@pytest.mark.parametrize("line", OF_NOTHING, ids=recorded_id)
def test_what_clients_send_outside_of_any_run_passes_for_nobody(line: dict[str, Any]) -> None:
    assert judged(line["event"]) is EventProblem.NO_RUN


def test_the_recording_has_every_event_of_the_table_that_prefect_itself_sends() -> None:
    names = {line["event"]["event"] for line in RECORDED}
    names |= {f"{name.rpartition('.')[0]}.*" for name in names if name.startswith("prefect.task-run.")}
    names |= {"prefect.block.*.loaded" for name in names if name.startswith("prefect.block.")}
    table = {name for name, _, _ in CLIENT_EVENTS}
    of_integrations = {"prefect.kubernetes.pod.*", "prefect.ecs.task.*", "prefect.docker.container.*"}
    assert table - names == of_integrations | {"prefect.flow-run.pull-step.failed"}


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("prefect.kubernetes.pod.running", "prefect.kubernetes.pod.6b0d"),
        ("prefect.ecs.task.stopped", "prefect.ecs.task.0a1b"),
        ("prefect.docker.container.exited", "prefect.docker.container.0a1b"),
        ("prefect.flow-run.pull-step.failed", f"prefect.flow-run.{RUN}"),
        ("prefect.task-run.Awaiting Retry", f"prefect.task-run.{TASK}"),
        ("prefect.task-run.\u26a0\ufe0f late", f"prefect.task-run.{TASK}"),  # states may have any name
        ("shop.gr\u00f6\u00dfe", "shop.order.1"),
        ("shop.order.placed", "s3://bucket/a.csv"),
    ],
)
def test_other_events_of_clients_pass_for_who_reports_the_run(name: str, of: str) -> None:
    content = event(name, of, payload=TASK_PAYLOAD)
    assert passes(content, RUN)
    assert not passes(content, OTHER)


@pytest.mark.parametrize(
    "name",
    [
        "prefect.flow-run.Failed",
        "prefect.flow-run.Completed",
        "prefect.flow-run.heartbeat.x",
        "prefect.flow-run.Heartbeat",
        "prefect.deployment.ready",
        "prefect.deployment.created",
        "prefect.work-pool.not-ready",
        "prefect.work-queue.ready",
        "prefect.automation.triggered",
        "prefect.automation.action.executed",
        "prefect.artifact-collection.created",
        "prefect.block-document.updated",
        "prefect.variable.created",
        "prefect.workspace.transfer.started",
        "prefect.task-run",
        "prefect.task-run.",
        "prefect.task-runs.Failed",
        "prefect.worker.online",
        "prefect.unheard-of",
        "prefect.",
        "Prefect.flow-run.Failed",
        "PREFECT.FLOW-RUN.FAILED",
        "\uff50refect.flow-run.Failed",  # full-width p
        "p\u200brefect.flow-run.Failed",  # zero-width space
        "p\ufe0frefect.flow-run.Failed",  # variation selector
        "prefect\uff0eflow-run.Failed",  # full-width full stop
        " prefect.flow-run.Failed\u2028",
        "shop.order\nprefect.flow-run.Failed",
        "shop.\x00",
        "x" * (MAX_NAME + 1),
    ],
)
def test_a_name_that_no_client_gives_passes_for_nobody(name: str) -> None:
    assert judged(event(name, f"prefect.flow-run.{RUN}", payload=TASK_PAYLOAD)) is EventProblem.NAME_NOT_OF_CLIENTS


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("shop.order.placed", "prefect.automation.1"),
        ("shop.order.placed", "prefect.deployment.1"),
        ("shop.order.placed", "Prefect.Deployment.1"),
        ("prefect.flow-run.heartbeat", "shop.order.1"),
        ("prefect.flow-run.heartbeat", f"prefect.task-run.{TASK}"),
        ("prefect.task-run.Failed", f"prefect.flow-run.{RUN}"),
        ("prefect.worker.submitted-flow-run", f"prefect.flow-run.{RUN}"),
        ("prefect.asset.referenced", "prefect.deployment.1"),
        ("prefect.asset.referenced", "\uff50refect.deployment.1"),
        ("prefect.block.secret.loaded", "prefect.block-type.secret"),
        ("prefect.concurrency-limit.v1.acquired", "prefect.concurrency-limit.1"),
    ],
)
def test_a_resource_that_no_client_gives_passes_for_nobody(name: str, of: str) -> None:
    assert judged(event(name, of, payload=TASK_PAYLOAD)) is EventProblem.RESOURCE_NOT_OF_CLIENTS


@pytest.mark.parametrize(
    "related",
    [
        resource("prefect.automation.1", "automation"),
        resource("prefect.variable.1", "variable"),
        resource("Prefect.automation.1", "automation"),
        resource("shop.order.1", "flow-run"),
        resource(f"prefect.task-run.{TASK}", "flow-run"),
    ],
)
def test_a_related_resource_that_no_client_gives_passes_for_nobody(related: dict[str, str]) -> None:
    assert judged(event(related=[OF_RUN, related])) is EventProblem.RELATED_NOT_OF_CLIENTS


def test_in_prefects_own_events_a_flow_run_has_its_own_role() -> None:
    related = [resource(f"prefect.flow-run.{RUN}", "upstream")]
    assert judged(task_event(related=related)) is EventProblem.RELATED_NOT_OF_CLIENTS
    assert passes(event(related=related), RUN)


@pytest.mark.parametrize(
    "run", [RUN.upper(), RUN.replace("-", ""), f"{{{RUN}}}", f"urn:uuid:{RUN}", f"{RUN}.x", "x", ""]
)
def test_an_id_that_the_server_could_take_for_another_run_passes_for_nobody(run: str) -> None:
    assert judged(event(of=f"prefect.flow-run.{run}")) is EventProblem.RUN_NOT_CANONICAL
    assert judged(event(of=f"prefect.task-run.{run}")) is EventProblem.RUN_NOT_CANONICAL
    related = [resource(f"prefect.flow-run.{run}", "flow-run"), OF_RUN]
    assert judged(event(related=related)) is EventProblem.RUN_NOT_CANONICAL


def test_a_heartbeat_needs_the_run_that_it_is_for() -> None:
    own = event("prefect.flow-run.heartbeat", f"prefect.flow-run.{RUN}", related=[])
    foreign = event("prefect.flow-run.heartbeat", f"prefect.flow-run.{OTHER}", related=[OF_RUN])
    assert passes(own, RUN)
    assert not passes(foreign, RUN)


def test_a_users_event_about_a_run_needs_that_run() -> None:
    assert not passes(event(of=f"prefect.flow-run.{OTHER}"), RUN)
    assert passes(event(of=f"prefect.flow-run.{OTHER}"), OTHER)


def test_a_users_event_needs_one_of_its_related_runs() -> None:
    content = event(related=[OF_OTHER, resource(f"prefect.task-run.{TASK}", "task-run"), OF_RUN])
    assert passed(content).any_of == {RUN, OTHER, TASK}
    assert passes(content, RUN)
    assert passes(content, TASK)
    assert not passes(content, "")
    assert judged(event(related=[])) is EventProblem.NO_RUN
    assert judged({name: value for name, value in event().items() if name != "related"}) is EventProblem.NO_RUN


def test_prefects_own_events_need_every_flow_run_that_they_name() -> None:
    for content in (
        task_event(related=[OF_RUN, OF_OTHER]),
        event("prefect.worker.submitted-flow-run", "prefect.worker.process.w", related=[OF_OTHER, OF_RUN]),
    ):
        assert not passes(content, RUN)
        assert passes(content, RUN, OTHER)


def test_a_task_run_is_reported_by_its_flow_run_or_itself_if_it_has_none() -> None:
    assert passes(task_event(), RUN)
    assert not passes(task_event(), TASK)
    assert passes(task_event(related=[]), TASK)
    assert passed(task_event(related=[])).task_run == TASK
    assert passed(task_event()).task_run is None
    assert not passes(task_event(related=[]), RUN)
    of_user = event(of=f"prefect.task-run.{TASK}")
    assert passes(of_user, RUN)
    assert passes({**of_user, "related": []}, TASK)
    assert not passes({**of_user, "related": []}, RUN)


def test_a_task_run_without_a_flow_run_is_reported_by_the_task_run_that_started_it() -> None:
    """Under task.serve, the server hands out the outer task run; no request ever names the inner ones."""

    def started_by(parents: object) -> dict[str, Any]:
        task_run = {"name": "add", "task_inputs": {"a": [], "__parents__": parents}}
        return task_event(related=[], payload={**TASK_PAYLOAD, "task_run": task_run})

    content = started_by([{"input_type": "task_run", "id": OTHER}])
    assert passes(content, OTHER)
    assert not passes(content, RUN)
    assert not passes({**content, "related": [OF_RUN]}, OTHER)  # where there is a flow run, it alone counts
    unusable_parents: list[object] = [[{"id": OTHER.upper()}], [{"id": 1}], [{}], ["x"], {}, None]
    for unusable in unusable_parents:
        assert passed(started_by(unusable)).any_of == {TASK}


def test_an_event_of_prefect_without_a_run_passes_for_nobody() -> None:
    assert judged(event("prefect.artifact.created", "prefect.artifact.1", related=[])) is EventProblem.NO_RUN


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"task_run": {}},
        {"task_run": [], "validated_state": {}},
        {"task_run": {}, "validated_state": None},
        {"task_run": {"id": OTHER}, "validated_state": {}},
        {"task_run": {"flow_run_id": OTHER}, "validated_state": {}},
        {"task_run": {"state": {"type": "FAILED"}}, "validated_state": {}},
        {"task_run": {}, "validated_state": {"id": OTHER}},
        {"task_run": {}, "validated_state": {"timestamp": "9999-12-31T00:00:00Z"}},
    ],
)
def test_the_payload_of_a_task_run_cannot_name_another_run(payload: dict[str, Any]) -> None:
    """The server's recorder takes the payload's members before those of the resource."""
    assert judged(task_event(payload=payload)) is EventProblem.PAYLOAD_NOT_OF_CLIENTS


def test_a_task_run_needs_a_payload() -> None:
    content = task_event()
    del content["payload"]
    assert judged(content) is EventProblem.PAYLOAD_NOT_OF_CLIENTS


@pytest.mark.parametrize(
    ("worker", "related"),
    [
        (WORKER, []),
        (WORKER, [POOL, POOL]),
        (WORKER, [POOL, OF_RUN]),
        (WORKER, [OF_RUN]),
        (WORKER, [resource("prefect.work-pool.1", "work-pool")]),
        (resource("prefect.worker.process.w"), [POOL]),
    ],
)
def test_the_start_of_a_worker_names_the_worker_and_its_pool_alone(
    worker: dict[str, str], related: list[dict[str, str]]
) -> None:
    content = event("prefect.worker.started", resource=worker, related=related)
    assert judged(content) is EventProblem.RELATED_NOT_OF_CLIENTS
    assert passed({**content, "resource": WORKER, "related": [POOL]}).worker == Worker("w 1", "a")


@pytest.mark.parametrize(
    "content",
    [
        [],
        [event()],
        "x",
        1,
        None,
        {},
        {name.title(): value for name, value in event().items()},
        event(name=1),  # type: ignore[arg-type]
        event(resource=None),
        event(resource=[["prefect.resource.id", "a"]]),
        event(resource={}),
        event(resource={"Prefect.Resource.Id": "shop.order.1"}),
        event(resource=resource("")),
        event(resource={**resource("a"), "n": 1}),
        event(related=None),
        event(related={}),
        event(related=["x"]),
        event(related=[resource(f"prefect.flow-run.{RUN}")]),
        event(related=[{"prefect.resource.role": "flow-run"}]),
        event(payload=None),
        event(payload=[]),
        event(id=None),
        event(id="x"),
        event(id=TASK.upper()),
        event(follows="x"),
        event(follows=1),
        event(occurred=None),
        event(occurred=1_800_000_000),
        event(occurred="1800000000"),
        event(occurred="2027-01-15"),
        event(occurred="2027-01-15T08:00:00"),
        event(occurred="2027-01-15 08:00:00Z"),
        event(occurred="2027-13-15T08:00:00Z"),
        event(occurred="2027-01-15T08:00:0\u0660Z"),
    ],
)
def test_what_the_server_cannot_read_or_clients_write_otherwise_is_no_event(content: object) -> None:
    assert judged(content) is EventProblem.NOT_AN_EVENT


TEXT = json.dumps(event())


@pytest.mark.parametrize(
    "message",
    [
        "",
        "x",
        TEXT + "x",
        "\ufeff" + TEXT,
        TEXT.replace('"payload": {}', '"payload": {"a": NaN}'),
        TEXT.replace('"payload": {}', '"payload": {"a": -Infinity}'),
        TEXT.replace('"payload": {}', '"payload": {"a": 01}'),
        TEXT.replace('"payload": {}', '"payload": {"a": "\\ud800"}'),
        TEXT.replace('"payload": {}', '"payload": {"a": 1, "a": 2}'),
        TEXT[:-1] + ', "event": "prefect.flow-run.Failed"}',
        TEXT[:-1] + ', "\\u0065vent": "prefect.flow-run.Failed"}',
        TEXT.replace('"prefect.resource.id"', '"prefect.resource.id": "a", "prefect.resource.id"', 1),
        TEXT.encode("utf-16"),
        TEXT.encode() + b"\xff",
        "\ud800",
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_json_that_two_readers_could_read_differently_is_refused(message: str | bytes) -> None:
    assert parse_event(message) is EventProblem.NOT_JSON


def test_text_and_bytes_are_read_alike() -> None:
    assert parse_event(TEXT) == parse_event(TEXT.encode()) == passed(event())
    assert passes(json.loads(TEXT.replace("shop.order.1", "shop.\\ud83d\\ude00")), RUN)


def test_sizes_are_bounded() -> None:
    padded = {"a": "x" * MAX_MESSAGE}
    assert judged(event(payload=padded)) is EventProblem.TOO_LARGE
    assert parse_event("\u20ac" * (MAX_MESSAGE // 2)) is EventProblem.TOO_LARGE  # in bytes, not in characters
    assert judged(event(payload={"a": [[]] * MAX_CONTAINERS})) is EventProblem.TOO_LARGE
    assert isinstance(judged(event(payload={"a": [[]] * (MAX_CONTAINERS - 100)})), ClientEvent)
    assert judged(event(payload={"a": ["\\[" * 9, '"' * 3, [[]] * MAX_DEPTH]})) == passed(event())
    deep: list[Any] = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert judged(event(payload={"a": deep})) is EventProblem.TOO_LARGE
    assert judged(event(payload={"a": deep[0][0][0]})) == passed(event())
    assert judged(event(related=[OF_RUN] * (MAX_RELATED + 1))) is EventProblem.TOO_MANY_RESOURCES
    assert isinstance(judged(event(related=[OF_RUN] * MAX_RELATED)), ClientEvent)
    labels = {str(number): "x" for number in range(MAX_LABELS)}
    assert judged(event(resource=resource("a", **labels))) is EventProblem.TOO_MANY_RESOURCES


def test_an_event_of_the_far_future_passes_for_nobody() -> None:
    assert not passes(event(occurred="9999-12-31T23:59:59Z"), RUN)
    assert passed(event()).is_reported([RUN], now=NOW - MAX_AHEAD + 1)
    assert not passed(event()).is_reported([RUN], now=NOW - MAX_AHEAD - 1)
    assert passes(event(occurred="2027-01-15T10:00:00+02:00"), RUN)
    assert passed(event(occurred="2027-01-15T10:00:00+02:00")).occurred == NOW


def test_members_and_labels_that_the_server_ignores_do_not_matter() -> None:
    content = event(received="2020-01-01T00:00:00Z", Event="prefect.flow-run.Failed")
    content["resource"]["Prefect.Resource.Id"] = f"prefect.flow-run.{OTHER}"
    assert passed(content) == passed(event())


@given(st.text(max_size=80) | st.binary(max_size=80))
def test_any_message_gets_an_answer(message: str | bytes) -> None:
    assert isinstance(parse_event(message), EventProblem)
    assert runs_of_event(message) == frozenset()


def test_the_runs_of_an_event_of_the_server() -> None:
    of_server = event(
        "prefect.flow-run.Cancelling",
        f"prefect.flow-run.{RUN}",
        related=[resource(f"prefect.task-run.{TASK}", "task-run"), resource("prefect.flow.1", "flow")],
        payload={"mentions": f"prefect.flow-run.{OTHER}"},
    )
    assert runs_of_event(json.dumps({"type": "event", "event": of_server})) == {RUN, TASK}
    assert runs_of_event(json.dumps({"type": "event", "event": of_server}).encode()) == {RUN, TASK}


@pytest.mark.parametrize(
    "message",
    [
        '{"type": "event", "event": 1}',
        '{"type": "event", "event": {"resource": {"prefect.resource.id": "x"}, "related": null}}',
        '{"type": "event", "event": {"resource": {}, "related": []}}',
        '{"type": "event", "event": {"resource": {"prefect.resource.id": ["x"]}, "related": []}}',
        '{"type": "event", "event": {"resource": {"prefect.resource.id": "prefect.flow-run.x"}, "related": []}}',
        f'{{"type": "event", "event": {{"resource": {{"prefect.resource.id": "{RUN}"}}, "related": []}}}}',
        '{"event": {}}',
        "[]",
        "[" * 100_000,
    ],
)
def test_a_message_that_concerns_no_run(message: str) -> None:
    assert runs_of_event(message) == frozenset()


SPELLINGS = [RUN, RUN.upper(), RUN.replace("-", ""), RUN.replace("-", "").upper(), RUN.replace("-", "", 2)]


@pytest.mark.parametrize("run", SPELLINGS)
@pytest.mark.parametrize(
    "path",
    [
        "/flow_runs/{}",
        "/api/flow_runs/{}/set_state",
        "/api/task_runs/{}",
        "/prefect/api/task_runs/{}/",
        "/api/flow_runs/{}/input/flow_runs",
    ],
)
def test_the_run_that_a_path_names(path: str, run: str) -> None:
    assert run_in_path(path.format(run)) == RUN
    assert compile_path("/{rest:path}/{id:uuid}")[0].match(f"/x/{run}")  # the server's router takes it, too


@pytest.mark.parametrize(
    "path",
    [
        "/api/flow_runs/filter",
        "/api/flow_runs/",
        f"/api/flows/{RUN}",
        f"/api/flow_run_states/{RUN}",
        f"/api/flow_runs/{RUN}0",
        f"/api/flow_runs/{RUN}.x",
        f"/api/flow_runs/{RUN}\n",
        f"/api/flow_runs/{{{RUN}}}",
        f"/api/my_flow_runs/{RUN}",
        f"/api/deployments/name/flow_runs/{RUN}",  # a flow of that name, and its deployment
        f"/api/deployments/name/task_runs/{RUN}",
        "",
    ],
)
def test_a_path_that_names_no_run(path: str) -> None:
    assert run_in_path(path) is None


@given(st.uuids())
def test_a_run_in_a_path_is_as_events_name_it(run: uuid.UUID) -> None:
    assert run_in_path(f"/api/task_runs/{run.hex.upper()}") == str(run)
    assert passes(event(of=f"prefect.flow-run.{run}"), str(run))


@pytest.mark.parametrize("message", ['{"type": "auth_success"}', '{"type": "auth_failure", "event": {}}'])
def test_a_message_may_be_no_event(message: str) -> None:
    assert runs_of_event(message) is None


def test_a_server_hands_out_task_runs() -> None:
    assert run_handed_out(json.dumps({"id": TASK, "name": "served", "flow_run_id": None})) == TASK
    for message in ('{"type": "auth_success"}', '{"id": "x"}', '{"id": null}', "[]", b"\xff", "[" * 100_000):
        assert run_handed_out(message) is None
