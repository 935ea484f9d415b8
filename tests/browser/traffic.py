"""What the pages of a browser asked a site for, and what went wrong."""

from __future__ import annotations

import time

from playwright.sync_api import BrowserContext, Page, Request, Response

ABANDONED = "net::ERR_ABORTED"  # a page was left while it still asked for something
QUIET = 0.5  # seconds without a question, after which a page is taken to have asked for all that it shows
BOUND = 20.0  # seconds


class Traffic:
    """Notes, from now on, all requests that a browser sends to one origin; what goes elsewhere is not ours."""

    def __init__(self, context: BrowserContext, origin: str) -> None:
        self._origin = f"{origin}/"
        self.asked: list[str] = []
        self.failed: list[str] = []
        self.prompts: list[str] = []  # answers upon which a browser opens its own password prompt
        self._open: set[Request] = set()
        self._last = time.monotonic()
        context.on("request", self._asks)
        context.on("response", self._answered)
        context.on("requestfailed", self._failed)

    def _asks(self, request: Request) -> None:
        if request.url.startswith(self._origin):
            self._open.add(request)
            self._last = time.monotonic()

    def _answered(self, response: Response) -> None:
        if not response.url.startswith(self._origin):
            return
        self._open.discard(response.request)
        self._last = time.monotonic()
        words = f"{response.status} {response.request.method} {response.url}"
        self.asked.append(words)
        if response.status >= 400:
            self.failed.append(words)
        if "basic" in response.headers.get("www-authenticate", "").lower():
            self.prompts.append(words)

    def _failed(self, request: Request) -> None:
        self._open.discard(request)
        if request.url.startswith(self._origin) and request.failure != ABANDONED:
            self.failed.append(f"{request.failure} {request.method} {request.url}")

    def wait_until_quiet(self, page: Page) -> None:
        """Wait until all that was asked for is answered and nothing more is asked.

        Playwright's own "networkidle" waits for the end of bodies, too, and the newer UI leaves one unread.
        """
        bound = time.monotonic() + BOUND
        while self._open or time.monotonic() - self._last < QUIET:
            assert time.monotonic() < bound, [request.url for request in self._open]
            page.wait_for_timeout(50)

    def to(self, path: str) -> list[str]:
        """Return what was asked for under this path."""
        return [words for words in self.asked if words.split(maxsplit=2)[2].startswith(self._origin + path[1:])]


def landed_at(page: Page) -> str:
    """Return the address that this page was opened with, fragment included, whatever its scripts have made of it."""
    return str(page.evaluate("performance.getEntriesByType('navigation')[0].name"))
