"""Pieces that go away and come back: the service under a polling worker, an issuer at a cold start."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from tests.support.credential_forms import CUSTOM_HEADERS
from tests.support.echo import Echo
from tests.support.issuer import Issuer
from tests.support.openid import OpenIDProvider
from tests.support.parts import SERVER_VERSION, TRAEFIK, require
from tests.support.prefect import Client, Server
from tests.support.raw_http import bearer, send
from tests.support.site import MACHINES, Site
from tests.support.waiting import wait_until

POOL = "restart"
POLL = re.compile(rf'"POST /api/work_pools/{POOL}/get_scheduled_flow_runs HTTP/1.1" (\d+)')


def trusting(issuer: Issuer) -> dict[str, str]:
    """Return the settings of a service that takes this issuer's tokens."""
    told = {"URL": issuer.url, "AUDIENCES": "prefect", "ROLE": "admin"}
    return {f"FORWARD_AUTH_ISSUER__{name}": value for name, value in told.items()}


def polls(site: Site) -> list[str]:
    """Return the status of every poll of the worker, as Traefik answered it."""
    return POLL.findall(site.traefik.text())


def issuer_state(site: Site, issuer: Issuer) -> str:
    """Return what the service's readiness says of an issuer."""
    state = json.loads(send(site.service_port, "127.0.0.1", "/readyz").body)
    return str(state["issuers"][issuer.url]["state"])


def test_worker_survives_a_restart_of_the_service(
    folder: Path, prefect_server: Server, service_settings: Mapping[str, str], openid_provider: OpenIDProvider
) -> None:
    require(TRAEFIK)
    prefect_server.create_pool(POOL)
    deployment = prefect_server.create_deployment(POOL, entrypoint="proof.py:proof", pool=POOL)
    with Site(folder / "restart-site", prefect_server.url, service_settings) as site:
        settings = CUSTOM_HEADERS.settings(f"{site.machines_url}/api", openid_provider.token())
        client = Client(SERVER_VERSION, folder / "restart-worker", settings)
        with client.start_worker(POOL) as worker:
            wait_until(lambda: "200" in polls(site), timeout=60, what="a poll that is let through")
            site.service.kill()
            missed = len(polls(site))
            wait_until(lambda: polls(site)[missed + 1 :], timeout=30, what="two polls without the service")
            assert {status[0] for status in polls(site)[missed:]} == {"5"}, "a 4xx would end the worker"
            site.start_service()
            run = prefect_server.ask("POST", f"/deployments/{deployment}/create_flow_run", {})["id"]
            wait_until(
                lambda: worker.returncode is not None or prefect_server.state_of(run) == "COMPLETED",
                timeout=90,
                what="the end of a run by a worker that saw the restart",
                log=worker.tail,
            )
            assert worker.returncode is None, worker.tail()
            rows = wait_until(
                lambda: prefect_server.of_flow_run("task_runs", run)[1:], timeout=20, what="both task runs"
            )
            assert rows


def test_cold_start_without_the_issuer_is_503_and_mends_itself(folder: Path) -> None:
    """503 with Retry-After is retried by Prefect's client; a 401 would end every worker."""
    require(TRAEFIK)
    issuer = Issuer("RS256")
    settings = trusting(issuer)
    with Echo() as echo, Site(folder / "cold-site", echo.url, settings, cold=True) as site:
        credential = [bearer(issuer.mint(lifetime=300))]
        answer = send(site.port, MACHINES, "/api/health", credential)
        assert answer.status == 503, answer
        assert int(answer.header("Retry-After") or 0) > 0
        assert issuer_state(site, issuer) == "cold", "readiness names the issuer that is out of reach"

        with issuer:
            wait_until(
                lambda: send(site.port, MACHINES, "/api/health", credential).status == 200,
                timeout=60,
                what="the service finding its issuer by itself",
            )
            assert issuer_state(site, issuer) == "warm"

        # And the other way round: keys that are known outlive their issuer.
        assert send(site.port, MACHINES, "/api/health", [bearer(issuer.mint(sub="another"))]).status == 200


def test_new_keys_are_found_when_a_token_names_them(folder: Path) -> None:
    require(TRAEFIK)
    with Issuer("ES256") as issuer, Echo() as echo:
        settings = trusting(issuer)
        with Site(folder / "rotating-site", echo.url, settings) as site:
            assert send(site.port, MACHINES, "/api/health", [bearer(issuer.mint())]).status == 200
            issuer.rotate()
            credential = [bearer(issuer.mint())]
            wait_until(
                lambda: send(site.port, MACHINES, "/api/health", credential).status == 200,
                timeout=60,
                what="the key of the second generation being accepted",
            )
