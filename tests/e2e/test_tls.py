"""The TLS variant of the shipped configuration: the same gate, and nothing but a redirect in clear."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.certificates import write_certificate
from tests.support.echo import Echo, Received
from tests.support.parts import TRAEFIK, require
from tests.support.raw_http import basic, send
from tests.support.site import MACHINES, PASSWORD, PEOPLE, USER, Site
from tests.support.waiting import free_port, wait_until


@dataclass(frozen=True)
class Secure:
    """Where the TLS variant listens, and how to trust it."""

    port: int
    clear_port: int
    cert_file: Path

    @property
    def context(self) -> ssl.SSLContext:
        """Trust its certificate alone."""
        return ssl.create_default_context(cafile=self.cert_file)

    def context_of_last_resort(self) -> ssl.SSLContext:
        """Trust the same, and speak nothing newer than TLS 1.1."""
        context = self.context
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        return context

    def get(self, host: str, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Send a request over TLS."""
        with httpx.Client(verify=self.context) as client:
            return client.get(f"https://{host}:{self.port}{path}", headers=dict(headers or {}))


def gated(where: Secure) -> bool:
    """Say whether routes and certificate are loaded: until then Traefik shows a certificate of its own."""
    try:
        return where.get(MACHINES, "/api").status_code == 401
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, service_settings: Mapping[str, str]) -> Iterator[Secure]:
    """Serve the TLS variant in front of the echo."""
    require(TRAEFIK)
    folder = tmp_path_factory.mktemp("tls")
    cert_file, key_file = write_certificate(folder)
    env = {"GATE_TLS_CERT_FILE": str(cert_file), "GATE_TLS_KEY_FILE": str(key_file)}
    where = Secure(free_port(), free_port(), cert_file)
    with Echo() as echo, Site(folder, echo.url, service_settings) as site:
        ports = {8443: where.port, 8000: where.clear_port}
        with site.start_traefik("https.yml", ports, env) as traefik:
            wait_until(
                lambda: gated(where),
                timeout=20,
                what="routes in Traefik over TLS",
                log=traefik.tail,
            )
            yield where


def test_machines_pass_the_gate_over_tls(secure: Secure) -> None:
    assert secure.get(MACHINES, "/api/flows").status_code == 401
    claims = {"X-Auth-Request-User": "mallory", "X_Auth_Request_Email": "mallory"}
    answer = secure.get(MACHINES, "/api/flows", {**dict([basic(USER, PASSWORD)]), **claims})
    assert answer.status_code == 200
    request = Received.from_json(answer.json())
    assert request.values("X-Auth-Request-User") == [USER]
    assert request.values("X-Forwarded-Proto") == ["https"]
    assert request.values("Authorization") == []
    assert "mallory" not in json.dumps(request.headers)


def test_people_meet_the_ui_gate_over_tls(secure: Secure) -> None:
    assert secure.get(PEOPLE, "/", dict([basic(USER, PASSWORD)])).status_code == 401
    assert secure.get(MACHINES, "/", dict([basic(USER, PASSWORD)])).status_code == 404


def test_machines_get_nothing_in_clear_and_no_redirect(secure: Secure) -> None:
    """A redirect would let a worker with an http:// address send its credential in clear for ever."""
    assert send(secure.clear_port, MACHINES, "/api/flows", [basic(USER, PASSWORD)]).status == 404


def test_people_are_sent_on_to_tls(secure: Secure) -> None:
    answer = send(secure.clear_port, PEOPLE, "/v2/runs?x=1")
    assert answer.status == 301
    assert (answer.header("Location") or "").startswith("https://localhost/v2/runs?x=1")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_old_tls_is_refused(secure: Secure) -> None:
    context = secure.context_of_last_resort()
    with httpx.Client(verify=context) as client, pytest.raises(httpx.ConnectError):
        client.get(f"https://{MACHINES}:{secure.port}/api")
