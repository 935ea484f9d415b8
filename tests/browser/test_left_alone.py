"""A minute passes: who uses a page stays signed in, who does not has to sign in again."""

from __future__ import annotations

import time

import pytest

from tests.browser.conftest import GrownOld, session_of
from tests.support.waiting import wait_until

IDLE = 60  # seconds


@pytest.fixture
def a_minute_later(grown_old: GrownOld) -> None:
    """Wait for what has not passed yet; most tests of this folder have run meanwhile."""
    then = grown_old.since + IDLE + 2
    wait_until(lambda: time.monotonic() > then, timeout=IDLE + 5, what="a session older than its idle time")


def test_a_page_in_use_stays_signed_in(grown_old: GrownOld, a_minute_later: None) -> None:
    """Its session is sealed anew and, after new keys at the provider, vouched for anew; both reach the browser."""
    assert grown_old.asking.evaluate("fetch('/api/health').then(answer => answer.status)") == 200
    assert session_of(grown_old.asking, grown_old.site) != grown_old.held


def test_a_page_out_of_use_says_so_and_comes_back(grown_old: GrownOld, a_minute_later: None) -> None:
    page, address = grown_old.silent, grown_old.silent.url

    status, told = page.evaluate("fetch('/api/health').then(async answer => [answer.status, await answer.json()])")

    assert (status, told["code"]) == (401, "session_ended")
    assert told["detail"] == "Your session ended while it was not used: reload the page to sign in."
    page.reload()  # the provider still knows the person, and asks for nothing
    page.wait_for_url(address)
    assert page.evaluate("fetch('/api/health').then(answer => answer.status)") == 200
