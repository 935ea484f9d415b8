"""A person's browser at any provider: it fills in the forms that it is shown, and stops where it is sent elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html.parser import HTMLParser
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urljoin, urlsplit

import httpx

MAX_STEPS = 20


class Form(NamedTuple):
    """A form of a page: where it leads, how, and the fields with the values that they have already."""

    action: str
    method: str
    fields: dict[str, str]


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Form] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.found.append(Form(said.get("action", ""), said.get("method", "get").lower(), {}))
        elif tag in {"input", "button"} and self.found and said.get("name"):
            if said.get("type") in {"checkbox", "radio"} and "checked" not in said:
                return
            self.found[-1].fields.setdefault(said["name"], said.get("value", ""))


def forms_of(page: httpx.Response) -> list[Form]:
    """Return the forms of a page."""
    parser = _Forms()
    parser.feed(page.text)
    return parser.found


class PageShownError(AssertionError):
    """The provider shows a page of its own, with no form that the person could fill in."""

    def __init__(self, page: httpx.Response) -> None:
        super().__init__(f"{page.request.method} {page.url} shows {page.status_code}:\n{page.text[:4000]}")
        self.page = page


class ProviderPages:
    """A browser at the provider. Its cookies stay, so whoever signed in is known there the next time."""

    def __init__(self, home: str) -> None:
        """Take the address that all of the provider's own pages begin with."""
        self._home = home
        self._client = httpx.Client(timeout=60, event_hooks={"response": [self._take_loopback_for_secure]})

    def walk(self, url: str, fields: Mapping[str, str] | None = None) -> str:
        """Begin at an address of the provider, and return the first one that is not.

        A form is filled in where it has one of ``fields``, or none that a person would have to fill in.
        """
        answer = self._client.get(url)
        for _ in range(MAX_STEPS):
            if answer.has_redirect_location:
                url = urljoin(str(answer.url), answer.headers["location"])
                if not url.startswith(self._home):
                    return url
                answer = self._client.get(url)
            else:
                answer = self._fill_in(answer, fields or {})
        raise AssertionError(f"still at the provider after {MAX_STEPS} steps: {answer.url}")

    def come_back(self, url: str, fields: Mapping[str, str] | None = None) -> dict[str, str]:
        """Walk, and return the query of the address that the person is sent back to."""
        return dict(parse_qsl(urlsplit(self.walk(url, fields)).query))

    def call(self, method: str, url: str, body: Any = None) -> httpx.Response:
        """Call what a page of the provider calls, where that page is a program; no redirect is followed."""
        return self._client.request(method, url, json=body)

    def open(self, url: str) -> httpx.Response:
        """Open a page of the provider, and follow where it leads."""
        return self._client.get(url, follow_redirects=True)

    def forget(self) -> None:
        """Lose all cookies, as another browser would have none."""
        self._client.cookies.clear()

    def _take_loopback_for_secure(self, _: httpx.Response) -> None:
        for cookie in self._client.cookies.jar:  # as browsers do
            cookie.secure = False

    def _fill_in(self, page: httpx.Response, fields: Mapping[str, str]) -> httpx.Response:
        for form in forms_of(page):
            given = {name: value for name, value in fields.items() if name in form.fields}
            asked = {"username", "login", "password"} & form.fields.keys()
            if asked and not asked & fields.keys():
                continue  # nobody has said who it is
            to = urljoin(str(page.url), form.action)
            return self._client.request(form.method, to, data={**form.fields, **given})
        raise PageShownError(page)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
