"""The page for people who are refused at the gate: made once for a configuration, and never in the way."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.core.errors import Code
from service.core.model import Deny
from service.core.problems import Cause, Problem
from service.gate.refusals import RefusalPages
from service.settings import Settings

pytestmark = pytest.mark.anyio

REFUSED = Deny(403, Code.CROSS_ORIGIN, Cause(Problem.CROSS_SITE_REQUEST))


def settings(users_file: Path, **sign_in: Any) -> Settings:
    return Settings(users={"file": users_file}, sign_in=sign_in)


async def test_it_is_made_once_and_anew_when_the_settings_have_changed(users_file: Path) -> None:
    pages, before = RefusalPages(), settings(users_file, title="Before")
    first, second = await asyncio.gather(pages.page(before), pages.page(before))
    assert first is not None
    assert first is second
    assert b"Before" in first.fill(REFUSED, "r1")
    after = await pages.page(settings(users_file, title="After", help="Ask us."))
    assert after is not None
    body = after.fill(REFUSED, "r1")
    assert b"After" in body
    assert b"Ask us." in body
    assert b"Before" not in body


async def test_where_it_cannot_be_made_that_is_said_once(
    users_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.rendering.pages.Pages.refusal_page", lambda *_, **__: 1 / 0)
    pages, one = RefusalPages(), settings(users_file)
    assert [await pages.page(one) for _ in range(3)] == [None] * 3
    assert caplog.text.count("cannot be made") == 1


async def test_whoever_waits_for_it_does_not_hold_up_others(users_file: Path) -> None:
    pages, one = RefusalPages(), settings(users_file)
    impatient = asyncio.create_task(pages.page(one))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await pages.page(one) is not None
