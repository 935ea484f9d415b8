"""The Compose files as Compose reads them, without an engine: every combination, and what holds in each."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import load
from tests.support.compose import without_settings
from tests.support.parts import ROOT, Part, require

BASE = "docker-compose.yml"
OVERRIDES = {
    path.relative_to(ROOT).as_posix(): set(
        (re.findall(r"^#   COMPOSE_FILE=(.*)$", path.read_text(), re.MULTILINE) or [BASE])[0].split(":")
    )
    for path in sorted((ROOT / "deploy" / "compose").glob("*.yml"))
}
"""Each file that can be added, and which ones it says that it needs, itself included."""

AGENT = {"AGENT_ISSUER": "https://idp.test", "AGENT_CLIENT_ID": "worker", "AGENT_CLIENT_SECRET": "s3cret"}


def _compose() -> Path | None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        return None
    return Path(docker)


COMPOSE = Part("Docker's Compose v2", _compose, "install it (an engine is not needed)")


def _combinations() -> list[list[str]]:
    """Return every set of override files in which none lacks what it needs, those in front on which others stand."""
    ordered = sorted(OVERRIDES, key=lambda name: (len(OVERRIDES[name]), name))
    subsets = chain.from_iterable(combinations(ordered, count) for count in range(len(ordered) + 1))
    return [[BASE, *some] for some in subsets if all(OVERRIDES[one] <= {BASE, *some} for one in some)]


def _read(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    argv: list[str | Path] = [require(COMPOSE), "compose", *words]
    env = without_settings() | variables
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def _config(*words: str, **variables: str) -> dict[str, Any]:
    """Return what Compose understands."""
    done = _read(*words, "config", "--format", "json", **variables)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _example() -> dict[str, str]:
    lines = re.findall(r"^#([A-Z][A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert len(dict(lines)) == len(lines)
    return dict(lines)


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / BASE).read_text())
    return loaded


@pytest.mark.parametrize("files", _combinations(), ids=lambda files: "+".join(Path(one).stem for one in files))
def test_every_combination_is_read_and_as_closed_as_the_base(files: list[str]) -> None:
    variables = {"COMPOSE_FILE": ":".join(files), "GATE_ACME_EMAIL": "someone@example.com", **AGENT}
    plain = _config(**variables)["services"]
    assert not {"worker", "cli", "database", "postgres"} & set(plain)
    services = _config("--profile", "*", **variables)["services"]
    assert {name: one for name, one in services.items() if name in plain} == plain, "a profile changes other services"
    for name, one in services.items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"], name
        assert not one.get("cap_add"), name
        assert not one.get("privileged"), name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert not any(volume["source"].endswith(".sock") for volume in one.get("volumes", [])), name
        assert name == "traefik" or "ports" not in one, f"{name} publishes a port"
        ends = one["restart"] == "no"
        assert ends or one["restart"] == "unless-stopped", name
        assert ends or "healthcheck" in one, f"nobody asks {name} how it is"
    ports = {(one.get("host_ip", ""), one["published"], one["target"]) for one in services["traefik"]["ports"]}
    secure = "deploy/compose/tls.yml" in files
    assert ports == ({("", "443", 8443), ("", "80", 8080)} if secure else {("127.0.0.1", "80", 8000)})


def test_lets_encrypt_wants_an_address() -> None:
    done = _read("config", "--quiet", COMPOSE_FILE=f"{BASE}:deploy/compose/tls.yml:deploy/compose/letsencrypt.yml")
    assert done.returncode
    assert "GATE_ACME_EMAIL" in done.stderr


def _secret_volumes(one: dict[str, Any]) -> set[str]:
    secret = {"users", "tokens", "worker", "cli", "postgres-password"}
    return {volume["source"] for volume in one.get("volumes", [])} & secret


def test_each_secret_is_mounted_where_it_is_used_and_nowhere_else() -> None:
    services = _config("--profile", "*")["services"]
    assert {name: volumes for name, one in services.items() if (volumes := _secret_volumes(one))} == {
        "users": {"users", "worker", "cli"},
        "forward-auth": {"users", "tokens"},
        "worker": {"worker"},
        "cli": {"cli"},
        "database": {"postgres-password"},
        "postgres": {"postgres-password"},
    }


def test_a_worker_behind_the_agent_has_no_password() -> None:
    files = f"{BASE}:deploy/compose/agent.yml"
    services = _config("--profile", "*", COMPOSE_FILE=files, **AGENT)["services"]
    worker, before = services["worker"], _config("--profile", "*")["services"]["worker"]
    command = worker["command"]
    assert command[: command.index("--") + 1] == ["prefect-forward-auth", "run", "--allow-http", "--"]
    assert command[command.index("--") + 1 :] == before["command"]
    assert _secret_volumes(worker) == set()
    assert worker["environment"]["PREFECT_PROFILES_PATH"].startswith("/tmp/")
    told = {name.removeprefix("FORWARD_AUTH_"): value for name, value in worker["environment"].items()}
    assert {name: told[name] for name in AGENT} == AGENT
    others = json.dumps({name: one for name, one in services.items() if name != "worker"})
    assert "s3cret" not in others


def test_a_worker_behind_the_agent_needs_a_client() -> None:
    done = _read("config", "--quiet", COMPOSE_FILE=f"{BASE}:deploy/compose/agent.yml")
    assert done.returncode
    assert "AGENT_" in done.stderr


def test_the_worker_and_the_command_line_are_outside_the_gate() -> None:
    services = _config("--profile", "*")["services"]
    within = {name: set(one.get("networks", {})) for name, one in services.items()}
    assert within["worker"] == within["cli"] == {"front"}
    assert {name for name, networks in within.items() if "front" in networks} == {"traefik", "worker", "cli"}


# variables ----------------------------------------------------------------------------------------------------


def _flat(value: Any, name: str = "TRAEFIK") -> dict[str, str]:
    """Return static configuration as the variables that mean the same."""
    if value == {}:
        return {name: "true"}
    if isinstance(value, dict):
        return {key: one for below in value for key, one in _flat(value[below], f"{name}_{below.upper()}").items()}
    if isinstance(value, list):
        return {name: ",".join(value)} if value else {}
    return {name: str(value).lower() if isinstance(value, bool) else str(value)}


@pytest.mark.parametrize(("static", "added"), [("http.yml", []), ("https.yml", ["deploy/compose/tls.yml"])])
def test_traefik_is_set_up_as_in_its_own_file(static: str, added: list[str]) -> None:
    told = _config(COMPOSE_FILE=":".join([BASE, *added]))["services"]["traefik"]["environment"]
    told = {name: value for name, value in told.items() if name.startswith("TRAEFIK_") and value}
    file = _flat(yaml.safe_load((ROOT / "traefik" / static).read_text()))
    if added:  # in clear for the containers of this project, and so what only redirects has another port
        file["TRAEFIK_ENTRYPOINTS_CLEAR_ADDRESS"] = ":8080"
        told = {name: value for name, value in told.items() if not name.startswith("TRAEFIK_ENTRYPOINTS_PLAIN_")}
    assert {name: told.get(name) for name in file} == file
    for name in set(told) - set(file):
        assert re.search(r"_HEALTH_|_PING_|_ASDEFAULT$|_TRUSTEDIPS$", name), f"{name} is not in traefik/{static}"


def test_the_example_names_every_setting_and_no_other(composed: dict[str, Any]) -> None:
    taken = {"COMPOSE_FILE", "COMPOSE_PROFILES"}
    for name in (BASE, *OVERRIDES):
        taken |= set(re.findall(r"\$\{(\w+)", (ROOT / name).read_text()))
    for service in composed["services"].values():
        taken |= {name for name, value in service.get("environment", {}).items() if value is None}
    assert set(_example()) == taken


def test_the_example_is_what_the_service_understands() -> None:
    told = {name: value for name, value in _example().items() if name.startswith("FORWARD_AUTH_")}
    set_by_compose = {"FORWARD_AUTH_USERS__FILE": "users.htpasswd"}
    settings = load(told | set_by_compose).settings
    assert len(settings.all_issuers) == 3
    assert settings.all_issuers[0].required_claims == {"tenant": frozenset({"data", "science"})}
    assert settings.oidc is not None
    assert settings.oidc.required_claims == {"groups": frozenset({"data-engineers", "analysts"})}


def test_the_example_reaches_the_service(tmp_path: Path) -> None:
    example = _example()
    env_file = tmp_path / "example.env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in example.items()))
    told = _config("--env-file", str(env_file))["services"]
    service = told["forward-auth"]["environment"]
    assert {name: service[name] for name in example if name in service} == {
        name: value for name, value in example.items() if name.startswith("FORWARD_AUTH_")
    }
    assert set(example["COMPOSE_PROFILES"].split(",")) == {"worker", "postgres"} <= set(told)


def test_the_first_users_have_roles_and_whoever_is_added_may_look(composed: dict[str, Any]) -> None:
    told = composed["services"]["forward-auth"]["environment"]
    assert told["FORWARD_AUTH_USERS__ROLE"] == "${FORWARD_AUTH_USERS__ROLE-viewer}"
    grants = json.loads((ROOT / "deploy" / "compose" / "grants.json").read_text())
    settings = load({"FORWARD_AUTH_USERS__FILE": "users.htpasswd", "FORWARD_AUTH_GRANTS": json.dumps(grants)}).settings
    assert {one.users: one.roles for one in settings.all_grants} == {
        (name,): (name,) for name in ("admin", "worker", "deployer")
    }


def test_what_documents_take_away_is_everything() -> None:
    """Without the profiles, Compose leaves the worker running, and its volume."""
    documents = [ROOT / BASE, ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    commands = [line for path in documents for line in re.findall(r"docker compose .*?\bdown\b", path.read_text())]
    assert len(commands) > 2
    assert [one for one in commands if "--profile '*'" not in one] == []
