"""One Prefect server, one OpenID Provider and one gated site for the whole session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.campaign import Campaign, Case
from tests.support.openid import AUDIENCE, OpenIDProvider
from tests.support.parts import SERVER_VERSION, TRAEFIK, prefect_part, require
from tests.support.prefect import Server
from tests.support.site import PASSWORD, USER, Site, add_user


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def openid_provider(folder: Path) -> Iterator[OpenIDProvider]:
    with OpenIDProvider(folder) as provider:
        yield provider


@pytest.fixture(scope="session")
def prefect_server(folder: Path) -> Iterator[Server]:
    require(prefect_part(SERVER_VERSION))
    with Server(folder / "server") as server:
        yield server


@pytest.fixture(scope="session")
def service_settings(folder: Path, openid_provider: OpenIDProvider) -> Mapping[str, str]:
    """Return settings with one issuer, and a users file with one user in it."""
    users = folder / "users.htpasswd"
    add_user(users, USER, PASSWORD)
    return {
        "FORWARD_AUTH_ISSUER__URL": openid_provider.url,
        "FORWARD_AUTH_ISSUER__AUDIENCES": AUDIENCE,
        "FORWARD_AUTH_ISSUER__ROLE": "admin",
        "FORWARD_AUTH_USERS__FILE": str(users),
        "FORWARD_AUTH_USERS__ROLE": "admin",
    }


@pytest.fixture(scope="session")
def site(folder: Path, prefect_server: Server, service_settings: Mapping[str, str]) -> Iterator[Site]:
    """Serve the gated site in front of the real Prefect server."""
    require(TRAEFIK)
    with Site(folder / "site", prefect_server.url, service_settings) as site:
        yield site


@pytest.fixture(scope="session")
def campaign(
    request: pytest.FixtureRequest,
    folder: Path,
    prefect_server: Server,
    site: Site,
    openid_provider: OpenIDProvider,
) -> Iterator[Campaign]:
    """Run all collected cases, two at a time from the start; each test waits for its own."""
    functions = [item for item in request.session.items if isinstance(item, pytest.Function)]
    wanted = [item.callspec.params.get("case") for item in functions if hasattr(item, "callspec")]
    with Campaign(folder / "campaign", prefect_server, site, openid_provider) as campaign:
        for case in wanted:
            if isinstance(case, Case):
                campaign.enlist(case)
        yield campaign
