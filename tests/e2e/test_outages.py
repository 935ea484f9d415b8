"""Pieces that go away and come back: the service itself, an issuer at a cold start."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from tests.support.echo import Echo
from tests.support.issuer import Issuer
from tests.support.parts import TRAEFIK, require
from tests.support.raw_http import Answer, basic, bearer, send
from tests.support.site import MACHINES, PASSWORD, PEOPLE, USER, Site
from tests.support.waiting import wait_until


def trusting(issuer: Issuer) -> dict[str, str]:
    """Return the settings of a service that takes this issuer's tokens."""
    told = {"URL": issuer.url, "AUDIENCES": "prefect", "ROLE": "admin"}
    return {f"FORWARD_AUTH_ISSUER__{name}": value for name, value in told.items()}


def issuer_state(site: Site, issuer: Issuer) -> str:
    """Return what the service's readiness says of an issuer."""
    state = json.loads(send(site.service_port, "127.0.0.1", "/readyz").body)
    return str(state["issuers"][issuer.url]["state"])


@pytest.mark.long
def test_calls_wait_for_a_service_that_is_away_and_get_a_503_if_it_stays_away(
    folder: Path, service_settings: Mapping[str, str]
) -> None:
    """Prefect's client repeats a 503. It does not repeat a 500, and a worker exits on a 4xx."""
    require(TRAEFIK)
    credential = [basic(USER, PASSWORD)]
    with Echo() as echo, Site(folder / "away-site", echo.url, service_settings) as site, ThreadPoolExecutor(8) as pool:

        def ask(method: str = "GET", path: str = "/api/health") -> Answer:
            return send(site.port, MACHINES, path, credential, method=method, body=b"{}" if method == "POST" else b"")

        assert ask().status == 200
        site.service.kill()
        began = time.monotonic()
        waiting = [pool.submit(ask) for _ in range(2)]
        waiting += [pool.submit(ask, "POST", f"/api/{path}/filter") for path in ("flows", "block_documents")]
        page = pool.submit(send, site.port, PEOPLE, "/_auth/login")
        assert not wait(waiting, timeout=3).done, "nobody is refused while the service is away"
        site.start_service()
        assert [one.result().status for one in waiting] == [200] * len(waiting)
        assert page.result().status == 200

        site.service.kill()
        began = time.monotonic()
        refused = pool.submit(ask)
        page = pool.submit(send, site.port, PEOPLE, "/_auth/login")
        for answer in (refused.result(), page.result()):
            assert answer.status == 503
            assert int(answer.header("Retry-After") or 0) > 0
        assert 10 < time.monotonic() - began < 30


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
