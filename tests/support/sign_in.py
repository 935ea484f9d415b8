"""Signing in with a password, request by request, as a browser would."""

from __future__ import annotations

import re

import httpx

from tests.support.site import PASSWORD, USER, Site


def session_cookie(site: Site, user: str = USER, password: str = PASSWORD) -> str:
    """Return the Cookie header of a browser that has signed in."""
    page = httpx.get(f"{site.people_url}/_auth/login")
    state = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert state, page.text
    answer = httpx.post(
        f"{site.people_url}/_auth/login",
        data={"csrf": state[1], "username": user, "password": password},
        headers={"Sec-Fetch-Site": "same-origin", "Cookie": _cookies(page)},
    )
    assert answer.status_code == 303, answer.text
    return _cookies(answer)


def _cookies(answer: httpx.Response) -> str:
    """Return what a browser would send back; one that is set to nothing is deleted."""
    pairs = (one.split(";")[0] for one in answer.headers.get_list("set-cookie"))
    return "; ".join(pair for pair in pairs if not pair.endswith("="))
