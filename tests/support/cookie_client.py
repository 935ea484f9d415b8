"""An HTTP client that fills in the sign-in form and keeps cookies, as a browser on this machine does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlencode

from tests.support.raw_http import Answer, send
from tests.support.site import PASSWORD, PEOPLE, USER

_CSRF = re.compile(rb'name="csrf" value="([^"]+)"')
SAME_ORIGIN = ("Sec-Fetch-Site", "same-origin")


class CookieClient:
    """A client of the people's host on one port, and its cookies by name."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookies: dict[str, str] = {}

    @property
    def cookie(self) -> tuple[str, str]:
        """Return the Cookie header."""
        return "Cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items())

    def send(
        self, path: str, headers: Sequence[tuple[str, str]] = (), *, method: str = "GET", body: bytes = b""
    ) -> Answer:
        """Send a request with the cookies, and keep those of the answer."""
        cookies = [self.cookie] if self.cookies else []
        answer = send(self.port, PEOPLE, path, [*cookies, *headers], method=method, body=body)
        self.keep(answer.values("Set-Cookie"))
        return answer

    def keep(self, set_cookies: Sequence[str]) -> None:
        """Keep cookies, and drop those with `Max-Age=0`."""
        for one in set_cookies:
            pair, *attributes = one.split("; ")
            name, _, value = pair.partition("=")
            if "Max-Age=0" in attributes:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value

    def sign_in(self, return_to: str = "/runs", *, user: str = USER, password: str = PASSWORD) -> Answer:
        """Fill in the sign-in form, and return the answer."""
        form = self.send(f"/_auth/login?{urlencode({'return_to': return_to})}", [("Accept", "text/html")])
        csrf = _CSRF.search(form.body)
        assert csrf is not None, form
        fields = {"username": user, "password": password, "csrf": csrf[1].decode(), "return_to": return_to}
        headers = [("Content-Type", "application/x-www-form-urlencoded"), SAME_ORIGIN]
        return self.send("/_auth/login", headers, method="POST", body=urlencode(fields).encode())
