"""`prefect events stream`: shows everything where the WebSocket carries a credential, and own runs where not."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.support.credential_forms import API_KEY, BASIC, CUSTOM_HEADERS, URL_USERINFO, CredentialForm
from tests.support.openid import OpenIDProvider
from tests.support.parts import SERVER_VERSION
from tests.support.prefect import Client, Server
from tests.support.raw_http import bearer, send
from tests.support.site import MACHINES, Site
from tests.support.waiting import wait_until

STREAM = ("-m", "prefect", "events", "stream", "--format", "text")


@pytest.mark.parametrize("form", [BASIC, CUSTOM_HEADERS, URL_USERINFO], ids=lambda form: form.name)
def test_events_stream_where_the_websocket_carries_the_credential(
    form: CredentialForm, folder: Path, site: Site, prefect_server: Server, openid_provider: OpenIDProvider
) -> None:
    settings = form.settings(f"{site.machines_url}/api", openid_provider.token())
    client = Client(SERVER_VERSION, folder / f"stream-{form.name}", settings)
    name = f"e2e.{form.name}"
    with client.start("stream", *STREAM) as stream:

        def streamed() -> bool:
            # An observer sees only what happens after it has subscribed, so the event is repeated until it does.
            prefect_server.emit(name)
            assert stream.returncode is None, stream.tail()
            return name in stream.text()

        wait_until(streamed, timeout=60, what="an event in the stream", log=stream.tail)


def test_events_stream_without_a_credential_on_the_websocket_shows_its_own_runs_alone(
    folder: Path, site: Site, prefect_server: Server, openid_provider: OpenIDProvider
) -> None:
    """With PREFECT_API_KEY alone the client sends no token there; its address vouches for it, event by event."""
    url, token = f"{site.machines_url}/api", openid_provider.token()
    alone = Client(SERVER_VERSION, folder / "stream-alone", API_KEY.settings(url, token))
    other = Client(SERVER_VERSION, folder / "stream-other", CUSTOM_HEADERS.settings(url, token))
    with alone.start("stream", *STREAM) as alone_stream, other.start("stream", *STREAM) as other_stream:
        run = str(uuid.uuid4())
        report(site, run, token)

        def streamed() -> bool:
            prefect_server.emit("e2e.of-nobody")
            prefect_server.emit("e2e.of-its-run", resource=f"prefect.flow-run.{run}")
            assert alone_stream.returncode is None, alone_stream.tail()
            return "e2e.of-its-run" in alone_stream.text() and "e2e.of-nobody" in other_stream.text()

        wait_until(
            streamed, timeout=60, what="an event of its run in one, of nobody in the other", log=alone_stream.tail
        )
        assert "e2e.of-nobody" not in alone_stream.text()


def report(site: Site, run: str, token: str) -> None:
    """Name a run in a request, as its flow does."""
    path = f"/api/flow_runs/{run}/set_state"
    assert send(site.port, MACHINES, path, [bearer(token)], method="POST", body=b"{}").status not in {401, 403}
