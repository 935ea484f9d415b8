"""`prefect events stream`: works where the WebSocket carries the credential, and says 401 where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.credential_forms import BASIC, CUSTOM_HEADERS, URL_USERINFO, CredentialForm
from tests.support.metrics import websocket_refusals
from tests.support.openid import OpenIDProvider
from tests.support.parts import SERVER_VERSION
from tests.support.prefect import Client, Server
from tests.support.site import Site
from tests.support.waiting import wait_until

STREAM = ("-m", "prefect", "events", "stream", "--format", "text")


@pytest.mark.parametrize("form", [CUSTOM_HEADERS, URL_USERINFO], ids=lambda form: form.name)
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


def test_events_stream_with_an_auth_string_is_refused_loudly(folder: Path, site: Site, prefect_server: Server) -> None:
    """Prefect sends no header on events/out with AUTH_STRING; the refusal is counted and shown."""
    before = websocket_refusals(site)["events/out"]
    client = Client(SERVER_VERSION, folder / "stream-refused", BASIC.settings(f"{site.machines_url}/api", ""))
    with client.start("stream", *STREAM) as stream:
        wait_until(
            lambda: websocket_refusals(site)["events/out"] > before,
            timeout=60,
            what="a refusal in the service's metrics",
        )
        stream.wait_for_line("401", timeout=60)
