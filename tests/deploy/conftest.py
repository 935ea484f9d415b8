"""One Prefect server behind one gated site, which trusts machines, and GitHub as it is shipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.issuer import Issuer
from tests.support.parts import ROOT, SERVER_VERSION, TRAEFIK, prefect_part, require
from tests.support.prefect import Server
from tests.support.site import PASSWORD, USER, Site, add_user, replace_once

PLAIN_USER, PLAIN_PASSWORD = "worker-7", "correct-horse_battery.staple~1"  # as they may stand in a URL
GITHUB = "https://token.actions.githubusercontent.com"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deploy")


@pytest.fixture(scope="session")
def issuer() -> Iterator[Issuer]:
    with Issuer() as issuer:
        yield issuer


@pytest.fixture(scope="session")
def github() -> Iterator[Issuer]:
    """Stand in for GitHub's issuer: its claims are written down in the test, its keys are ours."""
    with Issuer() as github:
        yield github


@pytest.fixture(scope="session")
def prefect_server(folder: Path) -> Iterator[Server]:
    require(prefect_part(SERVER_VERSION))
    with Server(folder / "server") as server:
        yield server


@pytest.fixture(scope="session")
def site(folder: Path, prefect_server: Server, issuer: Issuer, github: Issuer) -> Iterator[Site]:
    """Serve the real Prefect through Traefik, with the shipped trust in GitHub but for its address."""
    require(TRAEFIK)
    add_user(folder / "users.htpasswd", USER, PASSWORD)
    add_user(folder / "users.htpasswd", PLAIN_USER, PLAIN_PASSWORD)
    shipped = (ROOT / "deploy" / "workers" / "github-actions" / "forward-auth.toml").read_text()
    (folder / "forward-auth.toml").write_text(replace_once(shipped, GITHUB, github.url))
    settings = {
        "FORWARD_AUTH_CONFIG": str(folder / "forward-auth.toml"),
        "FORWARD_AUTH_USERS__FILE": str(folder / "users.htpasswd"),
        "FORWARD_AUTH_USERS__ROLE": "worker",
        "FORWARD_AUTH_ISSUER__URL": issuer.url,
        "FORWARD_AUTH_ISSUER__AUDIENCES": "prefect",
        "FORWARD_AUTH_ISSUER__ROLE": "worker",
    }
    with Site(folder / "site", prefect_server.url, settings) as site:
        yield site
