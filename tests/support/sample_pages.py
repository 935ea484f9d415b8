"""Every page that people see, with sample content in every place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import HTMLResponse

from service.rendering.pages import Moment, Pages

NOW = 1_790_000_000.0
REQUEST_ID = "9f2c4d1e8a7b6c5d"
START = "/_auth/start?return_to=%2Fruns"
LOCAL: dict[str, Any] = {"action": "/_auth/login", "csrf": "a-csrf-value", "return_to": "/runs"}

Say = Callable[[str], str]


def every_page(pages: Pages, say: Say = str, groups: int = 3) -> dict[str, HTMLResponse]:
    """Return all pages by name; `say` may replace each text that a page shows."""
    name, provider = say("Ada Lovelace"), say("Acme SSO")
    teams = [say(f"/organisation/team-{number}") for number in range(groups)]
    return {
        "sign-in": pages.sign_in(local=True, provider=None, **LOCAL),
        "sign-in-either": pages.sign_in(local=True, provider=provider, provider_href=START, **LOCAL),
        "sign-in-provider": pages.sign_in(
            local=False, provider=provider, provider_href=START, notice=say("Your session has ended.")
        ),
        "sign-in-wrong": pages.sign_in(
            local=True,
            provider=None,
            action="/_auth/login",
            csrf=say("csrf"),
            return_to=say("/runs"),
            username=name,
            problem=say("The user name or the password is wrong."),
            status=403,
        ),
        "sign-in-throttled": pages.sign_in(
            local=True, provider=provider, provider_href=START, problem=say("Too many."), status=429, retry_after=240
        ),
        "sign-in-nobody": pages.sign_in(local=False, provider=None),
        "redirecting": pages.redirecting(href=START, provider=provider),
        "signed-out": pages.signed_out(sign_in_href="/_auth/login"),
        "signed-out-everywhere": pages.signed_out(
            sign_in_href="/_auth/login", everywhere=True, provider_still=provider
        ),
        "confirm-sign-out": pages.confirm_sign_out(
            action="/_auth/logout", csrf=say("csrf"), who=name, provider_origin="https://sso.example.com"
        ),
        "denied": pages.denied(
            who={
                "name": name,
                "subject": say("f3a1c0de"),
                "email": say("ada@example.com"),
                "issuer": say("https://sso.example.com/realms/data"),
                "groups": teams,
                "roles": [say("viewer")],
            },
            needed=say("This needs the role deployer."),
            have=say("viewer"),
            request_id=say(REQUEST_ID),
            switch_href="/_auth/start?switch=1",
            back_href="/",
        ),
        "error": pages.error(
            status=503,
            heading=say("Acme SSO does not answer"),
            detail=say("You could not be signed in: try again in a moment."),
            request_id=say(REQUEST_ID),
            retry_href="/_auth/login",
            code=say("issuer_unavailable"),
            checks=[say("Cookies are allowed for this site."), say("The address begins with https://.")],
            retry_after=5,
        ),
        "me": pages.me(
            who=[
                ("Name", name),
                ("E-mail", say("ada@example.com")),
                (say("Groups"), teams),
                ("Signed in", Moment(NOW - 3 * 3_600, NOW)),
                ("Ends at the latest", Moment(NOW + 13 * 3_600, NOW)),
            ],
            sign_out_href="/_auth/logout",
            home_href="/",
        ),
    }
