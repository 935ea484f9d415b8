"""deploy/workers: what Prefect, Kubernetes and Compose make of the files that are not run for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.agent_gate import AgentGate
from tests.support.parts import (
    KUBECTL,
    OLDER_CLIENTS,
    PREFECT_KUBERNETES,
    ROOT,
    SERVER_VERSION,
    VALIDATE,
    Part,
    by_age,
    prefect_part,
    require,
)
from tests.support.processes import Process, clean_environment
from tests.support.systemd_files import environment_file
from tests.support.waiting import free_port

WORKERS = ROOT / "deploy" / "workers"
API, UI = "https://prefect-m2m.example.com/api", "https://prefect.example.com"
SETTINGS = """
import json
from prefect.settings import get_current_settings
s = get_current_settings()
print(json.dumps([s.api.url, s.ui_url, s.client.custom_headers]))
"""
# What the worker submits for a flow run: by its own code, and no cluster is asked.
JOB = """
import asyncio, json, sys, uuid
from prefect.client.schemas.objects import FlowRun
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration as Configuration

async def submitted(values):
    template = json.load(open(sys.argv[1]))
    job = await Configuration.from_template_and_values(base_job_template=template, values=values)
    job.prepare_for_flow_run(FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="a-run"))
    return job.job_manifest

async def main():
    print(json.dumps([await submitted(json.loads(values)) for values in sys.argv[2:]]))

asyncio.run(main())
"""


def ask_prefect(version: str, code: str, *words: str | Path, home: Path, **told: str) -> Any:
    """Run Python beside one version of Prefect, in the folder `home`, and return the JSON it prints."""
    env = clean_environment(home, {"PREFECT_HOME": str(home / ".prefect"), **told})
    argv: list[str | Path] = [require(prefect_part(version)), "-c", code, *words]
    done = subprocess.run(argv, cwd=home, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("version", by_age(SERVER_VERSION, *OLDER_CLIENTS))
@pytest.mark.parametrize("name", ["prefect.toml", "pyproject.toml"])
def test_a_project_s_file_is_understood(name: str, version: str, tmp_path: Path) -> None:
    shutil.copy(WORKERS / "profiles" / name, tmp_path)
    assert ask_prefect(version, SETTINGS, home=tmp_path) == [API, UI, {}]


@pytest.mark.parametrize("version", by_age(SERVER_VERSION, *OLDER_CLIENTS))
def test_profiles_are_understood(version: str, tmp_path: Path) -> None:
    (tmp_path / ".prefect").mkdir()
    shutil.copy(WORKERS / "profiles" / "profiles.toml", tmp_path / ".prefect")
    basic = {"Authorization": "Basic <BASE64>"}
    assert ask_prefect(version, SETTINGS, home=tmp_path) == [API, UI, basic]
    by_token = ask_prefect(version, SETTINGS, home=tmp_path, PREFECT_PROFILE="gated-by-token")
    assert by_token == [API.replace("://", "://jwt:<JWT>@"), UI, {}]


def test_what_a_worker_is_told_is_what_prefect_knows(tmp_path: Path) -> None:
    told = environment_file((WORKERS / "process" / "worker.env").read_text())
    assert ask_prefect(SERVER_VERSION, SETTINGS, home=tmp_path, **told) == [
        API,
        UI,
        {"Authorization": "Bearer <JWT>"},
    ]


# Kubernetes ---------------------------------------------------------------------------------------------------

FROM_SECRET = {"secretKeyRef": {"name": "prefect-worker", "key": "custom-headers"}}


def validate(folder: Path, *objects: dict[str, Any]) -> None:
    """Have each object judged strictly by the schemas of Kubernetes."""
    (folder / "all.yml").write_text(yaml.safe_dump_all(objects))
    argv: list[str | Path] = [require(VALIDATE), "--strict", folder / "all.yml"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed ") == len(objects)


@pytest.mark.parametrize(
    "credential",
    [
        {"PREFECT_CLIENT_CUSTOM_HEADERS": '{"Authorization": "Bearer very-secret"}'},
        {"PREFECT_API_AUTH_STRING": "user:very-secret", "PREFECT_API_KEY": "very-secret"},
    ],
    ids=["headers", "other"],
)
def test_pods_of_flow_runs_get_the_credential_from_the_secret_alone(credential: dict[str, str], tmp_path: Path) -> None:
    told = {"PREFECT_API_URL": API, "PYTHONPATH": str(require(PREFECT_KUBERNETES)), **credential}
    more: dict[str, Any] = {"env": {"LEVEL": "debug"}, "image": "acme/flows:1"}
    words = (WORKERS / "kubernetes" / "base-job-template.json", json.dumps({}), json.dumps(more))
    jobs = ask_prefect(SERVER_VERSION, JOB, *words, home=tmp_path, **told)
    assert "very-secret" not in json.dumps(jobs)
    for job, variables in zip(jobs, ({}, more), strict=True):
        (container,) = job["spec"]["template"]["spec"]["containers"]
        env = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
        assert env["PREFECT_API_URL"] == API
        assert env["PREFECT_CLIENT_CUSTOM_HEADERS"] == FROM_SECRET
        assert env.get("LEVEL") == variables.get("env", {}).get("LEVEL")
        assert variables.get("image") in {None, container["image"]}
    named = [job | {"metadata": job["metadata"] | {"name": "a-run-1"}} for job in jobs]  # which Kubernetes makes up
    validate(tmp_path, *named)


def test_the_kubernetes_worker_is_as_kubernetes_wants_it(tmp_path: Path) -> None:
    objects = list(yaml.safe_load_all((WORKERS / "kubernetes" / "worker.yml").read_text()))
    validate(tmp_path, *objects)
    (deployment,) = (each for each in objects if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    env = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
    assert env["PREFECT_CLIENT_CUSTOM_HEADERS"] == FROM_SECRET
    assert env["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"] == deployment["metadata"]["namespace"]
    template = json.loads((WORKERS / "kubernetes" / "base-job-template.json").read_text())
    assert template["variables"]["properties"]["namespace"]["default"] == deployment["metadata"]["namespace"]


BEHIND = WORKERS / "kubernetes-agent"
ITS_OWN = "http://127.0.0.1:4201/of-this-pod/api"
AUDIENCE = {"audience": "prefect", "expirationSeconds": 3600, "path": "token"}


@pytest.fixture(scope="module")
def worker_behind_its_agent() -> dict[str, Any]:
    """Return the pod of the worker, as kubectl builds it without a cluster."""
    argv: list[str | Path] = [require(KUBECTL), "kustomize", BEHIND]
    objects = list(yaml.safe_load_all(subprocess.run(argv, check=True, capture_output=True, timeout=60).stdout))
    (deployment,) = (each for each in objects if each["kind"] == "Deployment")
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return {"objects": objects, "pod": pod}


@pytest.fixture(scope="module")
def job_behind_its_agent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the worker submits for a flow run: its own address is that of its agent."""
    told = {"PREFECT_API_URL": ITS_OWN, "PYTHONPATH": str(require(PREFECT_KUBERNETES))}
    folder = tmp_path_factory.mktemp("job")
    words = (BEHIND / "base-job-template.json", json.dumps({"env": {"LEVEL": "debug"}}))
    (job,) = ask_prefect(SERVER_VERSION, JOB, *words, home=folder, **told)
    return dict(job)


def test_a_worker_and_its_runs_behind_agents_are_as_kubernetes_wants_them(
    worker_behind_its_agent: dict[str, Any], job_behind_its_agent: dict[str, Any], tmp_path: Path
) -> None:
    job = job_behind_its_agent | {"metadata": job_behind_its_agent["metadata"] | {"name": "a-run-1"}}
    validate(tmp_path, *worker_behind_its_agent["objects"], job)
    for pod in (worker_behind_its_agent["pod"], job["spec"]["template"]["spec"]):
        (agent,), (container,) = pod["initContainers"], pod["containers"]
        assert agent["restartPolicy"] == "Always"
        env = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
        assert env["PREFECT_API_URL"] == ITS_OWN
        assert not {"PREFECT_CLIENT_CUSTOM_HEADERS", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"} & set(env)
        assert not any("token" in mount["name"] for mount in container.get("volumeMounts", [])), "the agent's alone"
        sources = [each["projected"]["sources"] for each in pod["volumes"] if each["name"] == "token"]
        assert sources == [[{"serviceAccountToken": AUDIENCE}]]


@pytest.mark.parametrize("whose", ["the worker's", "a flow run's"])
def test_the_agent_of_a_pod_serves_what_its_neighbour_calls(
    whose: str, worker_behind_its_agent: dict[str, Any], job_behind_its_agent: dict[str, Any], tmp_path: Path
) -> None:
    job = job_behind_its_agent["spec"]["template"]["spec"]
    (agent,) = (worker_behind_its_agent["pod"] if whose == "the worker's" else job)["initContainers"]
    (tmp_path / "token").write_text("good")
    arguments = [word.replace("/var/run/secrets/prefect", str(tmp_path)) for word in agent["args"]]
    port = free_port()  # another test may have 4201
    with AgentGate("good") as gate:
        (url,) = agent["env"]
        assert url == {"name": "FORWARD_AUTH_AGENT_URL", "value": API}
        env = clean_environment(tmp_path / "home", {url["name"]: f"{gate.url}/api"})
        argv = [sys.executable, "-m", "service", *arguments, "--listen", f"127.0.0.1:{port}"]
        with Process("the agent", argv, env=env, log=tmp_path / "log", cwd=ROOT) as process:
            process.wait_for_line("PREFECT_API_URL=", timeout=30)
            probe = [word.replace("4201", str(port)) for word in agent["startupProbe"]["exec"]["command"]]
            subprocess.run([sys.executable, *probe[1:]], check=True, timeout=30)
            answer = httpx.get(f"{ITS_OWN.replace('4201', str(port))}/flows")
            assert answer.status_code == 200, process.tail()


# Docker -------------------------------------------------------------------------------------------------------


def _compose() -> Path | None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        return None
    return Path(docker)


COMPOSE = Part("Docker's Compose v2", _compose, "install it (an engine is not needed)")


def test_compose_reads_the_worker_and_its_environment_file(tmp_path: Path) -> None:
    docker = require(COMPOSE)
    shutil.copy(WORKERS / "docker" / "compose.yml", tmp_path)
    shutil.copy(WORKERS / "process" / "worker.env", tmp_path)
    argv: list[str | Path] = [docker, "compose", "config", "--format", "json"]
    done = subprocess.run(
        argv, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    env = json.loads(done.stdout)["services"]["worker"]["environment"]
    told = environment_file((WORKERS / "process" / "worker.env").read_text())
    assert {name: env[name] for name in told} == told
