"""docs/providers/keycloak.md followed by the letter: its commands set Keycloak up, and its configuration lets in."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.keycloak import PASSWORD, Keycloak
from tests.support.parts import KEYCLOAK, ROOT, require
from tests.support.processes import clean_environment
from tests.support.provider_pages import ProviderPages
from tests.support.relay_gate import served
from tests.support.waiting import free_port
from tests.web.conftest import ORIGIN, SESSION_KEY, Person

pytestmark = [pytest.mark.anyio, pytest.mark.long]  # each of the page's commands starts a Java of its own
PAGE = ROOT / "docs" / "providers" / "keycloak.md"


def blocks(kind: str, addresses: Mapping[str, str]) -> list[str]:
    """Return the page's blocks of a kind, with the addresses of this test in place of the page's."""
    text = PAGE.read_text()
    for written, ours in addresses.items():
        assert written in text
        text = text.replace(written, ours)
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def run(script: str, keycloak: Keycloak, folder: Path) -> None:
    """Run a block as the page says, with Keycloak's command line at hand."""
    command = folder / "bin" / "kcadm.sh"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec sh {require(KEYCLOAK).parent}/kcadm.sh "$@"\n')
    command.chmod(0o755)
    # its session is in a file in the home that Java takes from the system: each test has its own
    java = f"-XX:TieredStopAtLevel=1 -Duser.home={folder}"
    environment = clean_environment(folder, {"KC_OPTS": java})
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert keycloak.admin("GET", "/data").json()["enabled"]


async def test_its_commands_and_its_configuration_let_people_and_machines_in(
    keycloak: Keycloak, tmp_path: Path
) -> None:
    port = free_port()
    ours = {
        "http://127.0.0.1:8180": keycloak.url,
        "http://localhost:8000/_auth/backchannel-logout": f"http://127.0.0.1:{port}/_auth/backchannel-logout",
        "http://localhost:8000/_auth": f"{ORIGIN}/_auth",
        "--user admin --password admin": f"--user admin --password '{PASSWORD}'",
    }
    _start, set_up, *_ = blocks("sh", ours)
    run(set_up, keycloak, tmp_path)
    (toml,) = [one for one in blocks("toml", ours) if one.startswith("[oidc]")]
    settings: dict[str, Any] = {**tomllib.loads(toml), "session": {"keys": SESSION_KEY}}
    for provider in (settings["oidc"], *settings["issuers"]):
        provider["keys"] = {"timeout": 60}  # this machine may be busy
    settings["oidc"]["timeout"] = 60
    async with served(settings, port) as gate, httpx.AsyncClient(timeout=60) as client:
        person = Person(gate.app)
        with ProviderPages(keycloak.url) as pages:
            leaves = await person.open("/_auth/start")
            back = pages.walk(leaves.headers["location"], {"username": "alice", "password": "alice"})
        assert (await person.open(back, sec_fetch_site="cross-site")).status_code == 303
        said = (await person.ask()).headers
        assert (said["x-auth-request-user"], said["x-auth-request-roles"]) == ("alice", "admin")

        async def ask(authorization: str) -> httpx.Response:
            routed = {
                "x-forwarded-method": "GET",
                "x-forwarded-uri": "/api/version",
                "x-forwarded-host": "prefect-m2m.example.com",
                "x-forwarded-proto": "https",
                "x-forwarded-for": "203.0.113.7",
            }
            url = f"http://127.0.0.1:{port}/forward-auth/api"
            return await client.get(url, headers={**routed, "authorization": authorization})

        form = {"grant_type": "client_credentials"}
        granted = await client.post(
            f"{keycloak.url}/realms/data/protocol/openid-connect/token", auth=("etl", "etl-secret"), data=form
        )
        pair = httpx.BasicAuth("etl", "etl-secret")
        basic = next(pair.auth_flow(httpx.Request("GET", "http://x"))).headers["authorization"]
        for authorization in (f"Bearer {granted.json()['access_token']}", basic):
            answer = await ask(authorization)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-auth-request-user"] == "service-account-etl"
            assert answer.headers["x-auth-request-roles"] == "worker,deployer"
