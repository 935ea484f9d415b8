"""Every page that people see, with sample content in every place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from service.core.errors import Broken, Code, MalformedRequest, NotFound, OutOfReach, SignInFailed, Throttled
from service.core.model import Deny, Session, Unavailable
from service.core.problems import Cause, Problem
from service.rendering.pages import OwnSession, OwnToken, Pages
from service.rendering.wire import Answer, Head

NOW = 1_790_000_000.0
REQUEST_ID = "9f2c4d1e8a7b6c5d"
START = "/_auth/start?return_to=%2Fruns"
LOCAL: dict[str, Any] = {"action": "/_auth/login", "csrf": "a-csrf-value", "return_to": "/runs"}

Say = Callable[[str], str]


def headers_of(answer: Answer) -> dict[str, str]:
    """Return the headers of an answer by name; none is there twice."""
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    assert len(headers) == len(answer.headers)
    return headers


def every_page(pages: Pages, say: Say = str, groups: int = 3) -> dict[str, Answer]:
    """Return all pages by name; `say` may replace each text that a page shows."""
    name, provider = say("Ada Lovelace"), say("Acme SSO")
    teams = [say(f"/organisation/team-{number}") for number in range(groups)]
    session = Session(
        id="1",
        issuer=say("https://sso.example.com/realms/data"),
        subject=say("f3a1c0de"),
        name=name,
        email=say("ada@example.com"),
        groups=tuple(teams),
        claims={},
        began=NOW - 3 * 3_600,
        seen=NOW,
        check_at=NOW,
    )
    me: dict[str, Any] = {
        "provider": provider,
        "claims": {"user": say("sub"), "groups": say("groups")},
        "ends": NOW + 13 * 3_600,
        "ends_when_idle": NOW + 8 * 3_600,
        "now": NOW,
        "tokens_href": "/_auth/tokens",
    }
    own = [
        OwnToken("1f", say("laptop"), say("deployer"), int(NOW) - 86_400, int(NOW) + 90 * 86_400, int(NOW) - 600),
        OwnToken("2e", say("notebook server"), say("viewer"), int(NOW) - 60, int(NOW) + 86_400, None),
    ]
    seen = [
        OwnSession("1", say("Firefox on Linux"), say("203.0.113.7"), NOW - 3 * 3_600, NOW, is_this=True),
        OwnSession("2", say("Safari on iPhone"), "", NOW - 7 * 3_600, NOW - 600, is_this=False),
    ]
    no_groups = Cause(Problem.NO_GROUPS, {"claim": say("realm_access.roles"), "preset": "keycloak"})
    sessions: dict[str, Any] = {"action": "/_auth/sessions", "csrf": say("csrf"), "now": NOW}
    tokens: dict[str, Any] = {
        "action": "/_auth/tokens",
        "csrf": say("csrf"),
        "roles": [say("viewer"), say("deployer")],
        "lifetimes": [86_400, 30 * 86_400],
        "lifetime": 86_400,
        "now": NOW,
    }
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
            {
                "name": name,
                "subject": say("f3a1c0de"),
                "email": say("ada@example.com"),
                "issuer": say("https://sso.example.com/realms/data"),
                "groups": teams,
                "roles": [say("viewer")],
            },
            lacking(say),
            request_id=say(REQUEST_ID),
            again_href="/_auth/login",
            switch_href="/_auth/start?switch=1",
        ),
        **{
            page: pages.denied(
                {"name": name, "subject": say("f3a1c0de")},
                Cause(problem),
                request_id=say(REQUEST_ID),
                again_href="/_auth/login",
                switch_href="/_auth/start?switch=1",
            )
            for page, problem in (
                ("not-permitted", Problem.PERSON_NOT_PERMITTED),
                ("unconfirmed", Problem.EMAIL_NOT_VERIFIED),
            )
        },
        "no-role": pages.no_access(session, (), switch_href="/_auth/start?switch=1"),
        "no-groups": pages.no_access(
            session._replace(groups=()), (), switch_href="/_auth/start?switch=1", no_groups=no_groups
        ),
        "no-access": pages.no_access(session, (say("viewer"),), switch_href="/_auth/start?switch=1", home_is_open=True),
        "access-denied": pages.refused(
            SignInFailed(Problem.PROVIDER_DENIED),
            request_id=say(REQUEST_ID),
            again_href="/_auth/login",
            switch_href="/_auth/start?switch=1",
        ),
        "error": pages.refused(
            OutOfReach(Problem.ISSUER_OUT_OF_REACH, retry_after=5),
            request_id=say(REQUEST_ID),
            again_href="/_auth/login",
            switch_href="/_auth/login",
        ),
        "loop": pages.refused(
            SignInFailed(Problem.SIGN_IN_LOOPS),
            request_id=say(REQUEST_ID),
            again_href="/_auth/login",
            switch_href="/_auth/login",
        ),
        "not-found": pages.refused(
            NotFound(Problem.NOT_FOUND), request_id=say(REQUEST_ID), again_href="", switch_href=""
        ),
        "me": pages.me(session, [say("viewer")], **me),
        "sessions": pages.sessions(seen, shared=False, notice=say("That session has ended."), **sessions),
        "sessions-one": pages.sessions(seen[:1], shared=True, **sessions),
        "sessions-problem": pages.sessions(seen, shared=True, problem=say("No."), status=400, **sessions),
        "tokens-none": pages.tokens([], **{**tokens, "roles": []}),
        "tokens": pages.tokens(own, notice=say("The token is revoked."), **tokens),
        "tokens-issued": pages.tokens(own, issued=(say("laptop"), say("eyJ" + "A" * 700)), **tokens),
        "tokens-problem": pages.tokens(own, problem=say("No."), name=say("laptop"), status=400, **tokens),
        "me-without-role": pages.me(session, [], home_is_open=False, **me),
        "me-without-groups": pages.me(session._replace(groups=()), [], home_is_open=False, no_groups=no_groups, **me),
        **{f"gate-{name}": page for name, page in every_refusal(pages, say).items()},
    }


def lacking(say: Say = str) -> Cause:
    """Return what a person lacks."""
    facts = {
        "name": say("ada"),
        "issuer": say("https://sso.example.com/realms/data"),
        "roles": (say("viewer"),),
        "route": say("POST /api/deployments/{id}/create_flow_run"),
        "needed": ["run"],
        "holders": (say("runner"), "admin"),
    }
    return Cause(Problem.CAPABILITY_MISSING, facts)


def every_refusal(pages: Pages, say: Say = str) -> dict[str, Answer]:
    """Return the page that a person sees at the gate, for each thing that can help."""
    role = lacking(say)
    later, throttled = Broken(Problem.INTERNAL), Throttled(Problem.TOO_MANY_GUESSES, retry_after=240, seconds=240)
    repeated = MalformedRequest(Problem.HEADER_REPEATED, header=say("x-forwarded-uri"))
    decisions: dict[str, Deny | Unavailable] = {
        "role": Deny(403, Code.INSUFFICIENT_SCOPE, role),
        "unknown-page": Deny(403, Code.INSUFFICIENT_SCOPE, role._replace(problem=Problem.ROUTE_UNKNOWN)),
        "account": Deny(403, Code.INSUFFICIENT_SCOPE, Cause(Problem.PERSON_NOT_PERMITTED)),
        "unconfirmed": Deny(403, Code.INSUFFICIENT_SCOPE, Cause(Problem.EMAIL_NOT_VERIFIED)),
        "cross-site": Deny(403, Code.CROSS_ORIGIN, Cause(Problem.CROSS_SITE_REQUEST)),
        "cookies": Deny(400, Code.INVALID_REQUEST, Cause(Problem.COOKIES_TOO_LARGE)),
        "malformed": Deny(400, Code.INVALID_REQUEST, repeated.cause),
        "peer": Deny(403, Code.UNTRUSTED_PROXY, Cause(Problem.PEER_NOT_TRUSTED)),
        "broken": Unavailable(503, later.code, later.cause, later.retry_after),
        "throttled": Unavailable(429, throttled.code, throttled.cause, throttled.retry_after),
    }
    page = pages.refusal_page(switch_href="/_auth/start?switch=1")
    return {
        name: Answer(Head(one.status, page.headers), page.fill(one, say(REQUEST_ID))) for name, one in decisions.items()
    }
