"""The gate ui as a proxy asks it: sessions pass, browsers without one sign in, and nothing else ever passes."""

import time
from collections.abc import Callable
from functools import partial
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.authn.seal import Seal
from service.core.errors import Code
from service.core.model import Session
from service.gate.application import ForwardAuth
from service.rendering.answers import IDENTITY_HEADERS
from service.rendering.pages import Pages
from service.settings import Settings
from service.state.revocations import of_session
from service.web.app import create_app
from tests.web.conftest import (
    COOKIE,
    FORWARDED,
    ORIGIN,
    Caller,
    Person,
    basic,
    hidden,
    routes_of_pages,
    set_cookies,
    shown,
)

pytestmark = pytest.mark.anyio

NAVIGATION = {
    "accept": "text/html,application/xhtml+xml",
    "sec-fetch-mode": "navigate",
    "sec-fetch-site": "cross-site",
    "sec-fetch-dest": "document",
}
XHR = {"accept": "*/*", "sec-fetch-mode": "cors", "sec-fetch-site": "same-origin"}
ASSET = {"accept": "*/*", "sec-fetch-mode": "no-cors", "sec-fetch-site": "same-origin"}
OLD_NAVIGATION = {"accept": "text/html,application/xhtml+xml"}
OLD_XHR = {"accept": "application/json", "origin": ORIGIN}

OTHER_KEY = Seal(("an-older-secret-of-more-than-32-characters",))


def seal(site: ForwardAuth, **changes: object) -> str:
    """Return the cookie of a session of alice's that has just begun, but for what is given here."""
    now = time.time()
    passwords, sessions = site.wiring.passwords, site.wiring.sessions
    assert passwords is not None
    assert sessions is not None
    fresh = Session("s-1", "local", "alice", "alice", "", (), {}, now, now, float("inf"))
    fresh = fresh._replace(password_mark=passwords.password_mark("alice"))
    return sessions.seal(fresh._replace(**changes))  # type: ignore[arg-type]


def states(site: ForwardAuth) -> dict[str, tuple[str | None, str]]:
    """Return Cookie headers, and what each is worth: the code of the refusal, or nothing for a good session."""
    good, now = seal(site), time.time()
    twenty_kb = f"1.{'A' * 20_000}"
    return {
        "good": (f"{COOKIE}=1.{good}", ""),
        "good-among-others": (f"a=1; {COOKIE}=1.{good}; b=2", ""),
        "none": (None, "credential_required"),
        "only-others": ("a=1; prefect_ui_version=v2", "credential_required"),
        "row36-tossed-by-a-sibling": (f"prefect-gate=1.{good}", "credential_required"),
        "row18-truncated": (f"{COOKIE}=1.{good[:-3]}", "session_ended"),
        "row18-empty-seal": (f"{COOKIE}=1.", "session_ended"),
        "row18-no-part-count": (f"{COOKIE}={good}", "session_ended"),
        "row18-wrong-part-count": (f"{COOKIE}=2.{good}", "session_ended"),
        "row18-wrong-order": (f"{COOKIE}=2.{good[40:]}; {COOKIE}-1={good[:40]}", "session_ended"),
        "row18-repeated": (f"{COOKIE}=1.{good}; {COOKIE}=1.{good}", "session_ended"),
        "row18-20-kb": (f"{COOKIE}={twenty_kb}", "session_ended"),
        "row18-not-ascii": (f"{COOKIE}=1.{good[:-1]}\xff", "session_ended"),
        "row18-changed": (f"{COOKIE}=1.{good[:-6]}{'B' if good[-6] == 'A' else 'A'}{good[-5:]}", "session_ended"),
        "row18-plain-json": (f'{COOKIE}=1.["s-1","local","alice"]', "session_ended"),
        "row18-other-purpose": (f"{COOKIE}=1.{site.wiring.seal.seal('attempt', b'[]')}", "session_ended"),
        "other-key": (f"{COOKIE}=1.{OTHER_KEY.seal('session', b'[]')}", "session_ended"),
        "idle": (f"{COOKIE}=1.{seal(site, began=now - 40_000, seen=now - 28_801)}", "session_ended"),
        "over": (f"{COOKIE}=1.{seal(site, began=now - 57_601)}", "session_ended"),
        "from-the-future": (f"{COOKIE}=1.{seal(site, began=now + 900)}", "session_ended"),
        "user-removed": (f"{COOKIE}=1.{seal(site, subject='carol')}", "session_ended"),
        "password-changed": (f"{COOKIE}=1.{seal(site, password_mark='x')}", "session_ended"),
        "no-password-mark": (f"{COOKIE}=1.{seal(site, password_mark='')}", "session_ended"),
        "provider-removed": (f"{COOKIE}=1.{seal(site, issuer='https://idp.example')}", "session_ended"),
        "row18-more-than-can-be-read": (f"{COOKIE}=1.{good}; x={'x' * 30_000}", "invalid_request"),
    }


async def ask(
    site: ForwardAuth,
    says: dict[str, str],
    cookie: str | None,
    *,
    face: str = "forward-auth",
    target: str = "/v2/runs?x=1",
    method: str = "GET",
) -> httpx.Response:
    """Ask one face about a request, exactly as its proxy does."""
    headers = {name.encode(): value.encode("latin-1") for name, value in says.items()}
    if cookie is not None:
        headers[b"cookie"] = cookie.encode("latin-1")
    path, call = f"/{face}/ui", "GET"
    if face == "forward-auth":
        own = {**FORWARDED, "X-Forwarded-Method": method, "X-Forwarded-Uri": target}
        headers |= {name.lower().encode(): value.encode() for name, value in own.items()}
    elif face == "auth-request":
        headers |= {b"x-original-method": method.encode(), b"x-original-url": f"{ORIGIN}{target}".encode()}
    else:
        headers |= {b"host": b"prefect.example.com", b"x-forwarded-proto": b"https"}
        path, call = f"{path}{target}", method
    answer = await Caller(site).raw(path, list(headers.items()), call)
    wire = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers]
    return httpx.Response(answer.status, headers=wire, content=answer.body)


def outcome(answer: httpx.Response, face: str) -> tuple[int, str]:
    """Return the real status and where the browser is sent, wherever the face tells them."""
    if face == "auth-request" and answer.status_code != 200:
        assert answer.status_code in {401, 403}
        return int(answer.headers["x-auth-status"]), answer.headers["x-auth-redirect"]
    return answer.status_code, answer.headers.get("location", "")


KINDS = {
    "navigation": (NAVIGATION, 302),
    "navigation-of-an-old-browser": (OLD_NAVIGATION, 302),
    "fetch": (XHR, 401),
    "fetch-of-an-old-browser": (OLD_XHR, 401),
    "asset": (ASSET, 401),
    "nothing-said": ({}, 401),
}


@pytest.mark.parametrize("face", ["forward-auth", "auth-request", "ext-authz"])
@pytest.mark.parametrize(("says", "refused_with"), KINDS.values(), ids=KINDS)
async def test_row18_only_a_good_session_passes_and_everybody_else_is_told_what_to_do(
    site: ForwardAuth, says: dict[str, str], refused_with: int, face: str
) -> None:
    for name, (cookie, code) in states(site).items():
        for _again in range(2):  # the second time from memory, where there is one
            answer = await ask(site, says, cookie, face=face)
            status, location = outcome(answer, face)
            expected = 200 if not code else 400 if code == "invalid_request" else refused_with
            assert status == expected, name
            assert [answer.headers.get_list(one.decode()) for one in IDENTITY_HEADERS] == (
                [["alice"], [""], [""], ["viewer"], ["local"]] if not code else [[""]] * 5
            ), name
            assert "www-authenticate" not in answer.headers, name
            assert bool(location) == (status == 302), name
            if status == 302:
                assert location == "/_auth/login?return_to=%2Fv2%2Fruns%3Fx%3D1", name
            if code:
                assert answer.headers["cache-control"] == "no-store"
                assert "set-cookie" not in answer.headers, name
            if code and answer.headers["content-type"] == "application/json":
                assert answer.json()["code"] == code, name
                assert answer.json()["detail"], name


async def test_row18_a_million_cookies_keep_nobody_waiting(site: ForwardAuth) -> None:
    for header in (";" * 1_000_000 + "prefect-gate", f"{COOKIE}-attempt-x=y; " * 30_000):
        began = time.process_time()
        assert (await ask(site, XHR, header)).status_code == 400
        assert time.process_time() - began < 2


async def test_a_refused_navigation_says_more_than_a_redirect_could(site: ForwardAuth) -> None:
    answer = await ask(site, NAVIGATION, f"x={'x' * 30_000}")
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "delete this site&#x27;s cookies" in answer.text


@pytest.mark.parametrize("cookie", [None, "broken"])
async def test_the_shell_gets_stand_in_settings_and_then_the_first_call_explains(
    person: Person, cookie: str | None
) -> None:
    headers = {"cookie": f"{COOKIE}=1.{cookie}"} if cookie else {}
    answer = await person.fetch("/ui-settings", "GET", **headers)
    assert answer.status_code == 302
    assert answer.headers["location"] == "/_auth/ui-settings"
    settings = await person.client.get(answer.headers["location"], headers=person._routed())
    assert settings.status_code == 200
    assert settings.json()["api_url"] == "/api"
    assert settings.headers["cache-control"] == "no-store"
    told = await person.fetch("/api/admin/version", "GET", **headers)
    assert told.status_code == 401
    assert "reload the page to sign in" in told.json()["detail"]


async def test_with_a_session_the_shell_gets_the_real_settings(person: Person) -> None:
    await person.sign_in()
    assert (await person.fetch("/ui-settings", "GET")).status_code == 200


# what else is sent ----------------------------------------------------------------------------------------

AUTHORIZATIONS = {
    "basic-of-the-uis-own": basic("admin:pass"),
    "good-elsewhere": basic("alice:correct horse battery staple"),
    "garbage": "\xff\x00garbage",
    "empty": "",
    "huge": "Bearer " + "x" * 20_000,
}


@pytest.mark.parametrize("authorization", AUTHORIZATIONS.values(), ids=AUTHORIZATIONS)
async def test_the_session_wins_over_any_authorization(site: ForwardAuth, authorization: str) -> None:
    says = {**XHR, "authorization": authorization}
    assert (await ask(site, says, f"{COOKIE}=1.{seal(site)}")).status_code == 200
    alone = await ask(site, says, None)
    assert alone.status_code == 401
    assert alone.json()["code"] == "credential_required"
    assert "www-authenticate" not in alone.headers


async def test_row14_two_authorizations_are_refused_here_too(site: ForwardAuth) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in FORWARDED.items()]
    headers += [(b"cookie", f"{COOKIE}=1.{seal(site)}".encode())]
    headers += [(b"authorization", b"Basic eA=="), (b"authorization", b"Basic eQ==")]
    answer = await Caller(site).raw("/forward-auth/ui", headers)
    assert answer.status == 400
    assert answer.json()["code"] == "invalid_request"


@pytest.mark.parametrize("name", ["cookie", "origin", "sec-fetch-mode", "sec-fetch-site"])
async def test_row14_what_decides_is_not_sent_twice(site: ForwardAuth, name: str) -> None:
    good = f"{COOKIE}=1.{seal(site)}"
    says = {**XHR, "origin": ORIGIN, "cookie": good}
    headers = [(key.lower().encode(), value.encode()) for key, value in {**FORWARDED, **says}.items()]
    assert (await Caller(site).raw("/forward-auth/ui", headers)).status == 200
    answer = await Caller(site).raw("/forward-auth/ui", [*headers, (name.encode(), says[name].encode())])
    assert answer.status == 400


async def test_a_session_is_nothing_to_machines_and_a_credential_nothing_to_people(person: Person) -> None:
    await person.sign_in()
    for gate in ("api", "jwt", "basic"):
        refused = await person.ask("/api/flows/filter", gate=gate)
        assert refused.status_code == 401, gate
        assert refused.headers["x-auth-request-user"] == ""
    session = person.cookies[COOKIE]
    for authorization in (f"Bearer {session}", basic(f"x:{session}"), basic(f"alice:{session}")):
        answer = await Caller(person.app)(authorization)
        assert answer.status in {400, 401}


PASSED_ON = {
    "ours-alone": ("{ours}", ""),
    "first": ("{ours}; a=1; b=2", "a=1; b=2"),
    "between": ("a=1; {ours}; b=2", "a=1; b=2"),
    "odd-values": ('a="x y"; {ours}; u=\xc3\xab\xff; e=; n', 'a="x y"; u=\xc3\xab\xff; e=; n'),
    "attempts": ("{ours}; __Host-prefect-gate-attempt-x=y; a=1; __Host-prefect-gate-sign-ins=z", "a=1"),
    "tossed": ("{ours}; prefect-gate=1.x; a=1", "a=1"),
}


@pytest.mark.parametrize(("cookies", "passed_on"), PASSED_ON.values(), ids=PASSED_ON)
async def test_the_upstream_gets_every_cookie_but_ours(site: ForwardAuth, cookies: str, passed_on: str) -> None:
    header = cookies.format(ours=f"{COOKIE}=1.{seal(site)}")
    for _again in range(2):
        answer = await ask(site, XHR, header)
        assert answer.status_code == 200
        (cookie,) = [value for name, value in answer.headers.raw if name == b"cookie"]
        assert cookie == passed_on.encode("latin-1")


# writes ---------------------------------------------------------------------------------------------------

WRITERS = {
    "row37-own-page": (XHR, True),
    "row37-own-page-of-an-old-browser": ({"accept": "*/*", "origin": ORIGIN}, True),
    "row37-other-site": ({**XHR, "sec-fetch-site": "cross-site", "origin": "https://evil.example"}, False),
    "row37-sibling-host": ({**XHR, "sec-fetch-site": "same-site", "origin": "https://x.example.com"}, False),
    "row37-form-of-another-site": ({**NAVIGATION, "origin": "https://evil.example"}, False),
    "row37-typed": ({**NAVIGATION, "sec-fetch-site": "none"}, False),
    "row37-claims-our-origin": ({**XHR, "sec-fetch-site": "cross-site", "origin": ORIGIN}, False),
    "row37-null-origin": ({"accept": "*/*", "origin": "null"}, False),
    "row37-empty-origin": ({"accept": "*/*", "origin": ""}, False),
    "row37-other-origin": ({"accept": "*/*", "origin": "https://evil.example"}, False),
    "row37-other-scheme": ({"accept": "*/*", "origin": "http://prefect.example.com"}, False),
    "row37-other-port": ({"accept": "*/*", "origin": f"{ORIGIN}:444"}, False),
    "row37-look-alike": ({"accept": "*/*", "origin": f"{ORIGIN}.evil.example"}, False),
    "row37-case": ({"accept": "*/*", "origin": "HTTPS://PREFECT.EXAMPLE.COM"}, False),
    "row37-referer-alone": ({"accept": "*/*", "referer": f"{ORIGIN}/v2/"}, False),
    "row37-neither": ({"accept": "*/*"}, False),
    "row37-odd-site": ({**XHR, "sec-fetch-site": "same-origin, cross-site"}, False),
    "row37-odd-case": ({**XHR, "sec-fetch-site": "Same-Origin"}, False),
}


@pytest.fixture
def as_admin(people_settings: dict[str, Any]) -> None:
    people_settings["users"]["role"] = "admin"
    people_settings["prefect"] = {"routes": {"WS /api/feeds/{id}": "read"}}


@pytest.mark.usefixtures("as_admin")
@pytest.mark.parametrize("face", ["forward-auth", "auth-request", "ext-authz"])
@pytest.mark.parametrize(("says", "passes"), WRITERS.values(), ids=WRITERS)
async def test_row37_only_this_sites_own_pages_write(
    site: ForwardAuth,
    says: dict[str, str],
    face: str,
    *,
    passes: bool,
) -> None:
    cookie = f"{COOKIE}=1.{seal(site)}"
    assert outcome(await ask(site, says, cookie, face=face), face)[0] == 200  # to read is harmless
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = await ask(site, says, cookie, face=face, method=method, target="/api/flows/1")
        assert outcome(answer, face)[0] == (200 if passes else 403), method
        if not passes:
            assert answer.json()["code"] == "cross_origin"
            assert answer.headers["x-auth-request-user"] == ""


@pytest.mark.usefixtures("as_admin")
@pytest.mark.parametrize(("says", "passes"), WRITERS.values(), ids=WRITERS)
async def test_row37_only_this_sites_own_pages_open_websockets(
    person: Person,
    says: dict[str, str],
    *,
    passes: bool,
) -> None:
    await person.sign_in()
    alone = {"accept": "", "sec_fetch_mode": "", "sec_fetch_site": ""}
    given_headers = {**alone, **{name.replace("-", "_"): value for name, value in says.items()}}
    signs = {  # what some proxies tell, and others do not
        "scheme": ("/v2/anything", {"scheme": "wss"}),
        "upgrade": ("/v2/anything", {"upgrade": "websocket"}),
        "mode": ("/v2/anything", {"sec_fetch_mode": "websocket"}),
        "known-route": ("/api/events/out", {}),
        "route-of-the-settings": ("/api/feeds/1", {}),
    }
    for sign, (target, told) in signs.items():
        answer = await person.ask(target, **{**given_headers, **told})
        assert answer.status_code == (200 if passes else 403), sign
    unknown = await person.ask("/anything", **{**given_headers, "accept": "*/*", "sec_fetch_mode": ""})
    assert unknown.status_code == (200 if passes else 403)


# while it lasts -------------------------------------------------------------------------------------------


async def test_a_session_that_is_used_is_sealed_anew_and_says_so_on_the_answer_that_lets_pass(
    site: ForwardAuth, person: Person
) -> None:
    now = time.time()
    before = seal(site, began=now - 3_600, seen=now - 301)
    person.client.cookies.set(COOKIE, f"1.{before}", domain="prefect.example.com", path="/")
    answer = await person.ask()
    assert answer.status_code == 200
    morsel = SimpleCookie(set_cookies(answer)[COOKIE])[COOKIE]
    assert morsel["secure"]
    assert morsel["httponly"]
    assert int(morsel["max-age"]) == pytest.approx(57_600 - 3_600, abs=5)  # its lifetime is not prolonged
    assert person.cookies[COOKIE] != f"1.{before}"
    assert (await person.ask()).headers.get("set-cookie") is None


async def test_signing_out_ends_a_session_that_is_remembered_at_once(person: Person, site: ForwardAuth) -> None:
    await person.sign_in()
    copied = f"{COOKIE}={person.cookies[COOKIE]}"
    thief = Person(site, address="198.51.100.9")
    for _ in range(3):
        assert (await thief.ask(cookie=copied)).status_code == 200
    page = await person.open("/_auth/logout")
    await person.submit("/_auth/logout", hidden(page))
    assert (await thief.ask(cookie=copied)).status_code == 302
    assert (await thief.fetch(cookie=copied)).json()["code"] == "session_ended"


async def test_a_sign_out_while_a_session_is_being_looked_at_is_not_forgotten(person: Person) -> None:
    await person.sign_in()
    wiring = person.app.wiring
    sessions = wiring.sessions
    assert sessions is not None
    opening = sessions.opening

    def slowly(cookie: Any) -> Any:
        found = yield from opening(cookie)
        yield partial(wiring.revocation_log.revoke, of_session(found.session.id))  # just after it was found to be good
        return found

    sessions.opening = slowly  # type: ignore[method-assign]
    assert (await person.ask()).status_code == 200
    sessions.opening = opening  # type: ignore[method-assign]
    assert (await person.ask()).status_code == 302


async def test_what_one_host_believed_of_a_cookie_is_nothing_to_another(people_settings: dict[str, Any]) -> None:
    people_settings["session"] |= {"allow_http": True}
    app = create_app(Settings(**people_settings))
    await app.start()
    plain = Person(app, "http://prefect.lan")
    await plain.sign_in()
    cookie = f"prefect-gate={plain.cookies['prefect-gate']}"
    assert (await plain.ask(cookie=cookie)).status_code == 200
    assert (await plain.ask(cookie=cookie)).status_code == 200
    over_tls = Person(app, "https://prefect.lan")  # there, the name lacks the prefix that keeps siblings out
    assert (await over_tls.ask(cookie=cookie)).status_code == 302
    await app.stop()


# nothing else passes --------------------------------------------------------------------------------------


async def test_row38_pages_believe_only_proxies_and_operations_are_not_among_them(site: ForwardAuth) -> None:
    stranger = Person(site)
    stranger.client = httpx.AsyncClient(
        transport=httpx.ASGITransport(site, client=("198.51.100.9", 4711)), base_url=ORIGIN
    )
    for path in ("/_auth/login", "/_auth/me", "/_auth/logout", "/_auth/static/pages.css", "/metrics", "/openapi.json"):
        refused = await stranger.open(path)
        assert refused.status_code == 403, path
        assert refused.json()["code"] == "untrusted_proxy"
    for path in ("metrics", "openapi.json", "healthz", "readyz", "../metrics", "%2e%2e/metrics", "/metrics", "docs"):
        answer = await Caller(site).raw(f"/_auth/{path}", [(b"host", b"h")])
        assert answer.status == 404, path
    for path in ("/metrics", "/openapi.json"):
        assert (await Person(site).open(path)).status_code == 200


@pytest.mark.parametrize("path", ["/_auth", "/_auth/"])
@pytest.mark.parametrize("accept", ["text/html", "application/json"])
async def test_the_address_of_the_pages_leads_to_who_one_is(person: Person, path: str, accept: str) -> None:
    answer = await person.open(path, accept=accept)
    assert (answer.status_code, answer.headers["location"]) == (303, "/_auth/me")
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("signed_in", [True, False])
@pytest.mark.parametrize("face", ["forward-auth", "auth-request", "ext-authz"])
async def test_at_the_gate_too_where_proxies_do_not_route_it(site: ForwardAuth, face: str, *, signed_in: bool) -> None:
    cookie = f"{COOKIE}=1.{seal(site)}" if signed_in else None
    for says in (NAVIGATION, OLD_NAVIGATION):
        answer = await ask(site, says, cookie, face=face, target="/_auth")
        assert outcome(answer, face) == (302, "/_auth/me")
        assert answer.headers["x-auth-request-user"] == ""
    for says, target in ((XHR, "/_auth"), (NAVIGATION, "/_authentic"), (NAVIGATION, "/_auth.html")):
        answer = await ask(site, says, cookie, face=face, target=target)
        assert outcome(answer, face)[1] != "/_auth/me", (says, target)
        assert answer.status_code != 200, (says, target)


MISTAKES = {  # method, path, headers: status, code, and what a person reads
    "unknown": ("GET", "/_auth/nix", {}, 404, "not_found", "There is nothing here"),
    "unknown-form": ("POST", "/_auth/nix", {}, 404, "not_found", "There is nothing here"),
    "slash": ("GET", "/_auth/login/", {}, 404, "not_found", "There is nothing here"),
    "below": ("GET", "/_auth/me/nix", {}, 404, "not_found", "There is nothing here"),
    "no-page": ("GET", "/_auth/backchannel-logout", {}, 405, "invalid_request", "No page has this address"),
    "no-form": ("POST", "/_auth/me", {}, 405, "invalid_request", "No page has this address"),
    "multipart": ("POST", "/_auth/login", {"content-type": "multipart/form-data"}, 415, "invalid_request", "go back"),
    "too-long": ("POST", "/_auth/login", {}, 413, "invalid_request", "This form is too long"),
}


@pytest.mark.parametrize(("method", "path", "headers", "status", "code", "words"), MISTAKES.values(), ids=MISTAKES)
async def test_a_mistake_is_a_page_with_a_way_home_for_a_person_and_json_for_a_program(
    person: Person, method: str, path: str, headers: dict[str, str], status: int, code: str, words: str
) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"} if method == "POST" else {}
    body = b"a=" + b"x" * 140_000 if status == 413 else b""
    for says in (NAVIGATION, OLD_NAVIGATION):
        sent = {**person._routed(), **says, **form, **headers}
        page = await person.client.request(method, path, headers=sent, content=body)
        assert page.status_code == status
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert words in shown(page)
        assert '<a class="button" href="/">Open Prefect</a>' in page.text
        assert f"<code>{code}</code>" in page.text
    for says in (XHR, {}):
        sent = {**person._routed(), **says, **form, **headers}
        told = await person.client.request(method, path, headers=sent, content=body)
        assert (told.status_code, told.json()["code"]) == (status, code)
        assert told.headers["cache-control"] == "no-store"
        assert told.json()["detail"]


async def test_a_fault_of_a_page_is_a_page_that_can_be_tried_again(
    person: Person, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str]
) -> None:
    monkeypatch.setattr(Pages, "sign_in", lambda *_, **__: 1 / 0)
    page = await person.open("/_auth/login")
    assert (page.status_code, page.headers["retry-after"]) == (503, "5")
    assert "Temporarily unavailable" in shown(page)
    assert '<a class="button" href="">Try again</a>' in page.text
    told = await person.open("/_auth/login", sec_fetch_mode="cors")
    assert (told.status_code, told.headers["retry-after"], told.json()["code"]) == (503, "5", "internal_error")
    assert "ZeroDivisionError" not in page.text + told.text
    assert "ZeroDivisionError" in logged()


async def test_a_slash_too_many_leads_nowhere(person: Person, site: ForwardAuth) -> None:
    paths = {path for path, _ in routes_of_pages(site)} | {"/metrics", "/openapi.json"}
    for path in paths - {"/_auth"}:
        for method in ("GET", "POST"):
            form = {"content-type": "application/x-www-form-urlencoded"}
            answer = await person.client.request(method, f"{path}/", headers=person._routed() | form)
            assert (answer.status_code, "location" in answer.headers) == (404, False), (method, path)


@pytest.mark.parametrize("path", ["/_auth/login", "/_auth/me", "/_auth/callback", "/_auth/logout", "/_auth/start"])
async def test_row38_a_page_asked_for_ambiguously_is_refused(site: ForwardAuth, path: str) -> None:
    good = [(b"host", b"h"), (b"x-forwarded-proto", b"https"), (b"x-forwarded-host", b"prefect.example.com")]
    odd = [
        [*good, (b"x-forwarded-host", b"evil.example")],
        [*good, (b"x-forwarded-proto", b"http")],
        [(b"host", b"prefect.example.com/@evil.example")],
        [(b"host", b"evil.example\r\nx: y")],
        [(b"x-forwarded-proto", b"https")],
        [(b"host", b"h"), (b"x-forwarded-proto", b"javascript")],
        [*good, (b"x-forwarded-for", b"not an address")],
    ]
    for headers in odd:
        answer = await Caller(site).raw(path, headers)
        assert answer.status == 400, headers
        assert b"cannot be understood" in answer.body


@hypothesis_settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cookie=st.binary(max_size=60),
    frame=st.sampled_from(["{}", f"{COOKIE}={{}}", f"{COOKIE}=1.{{}}", f"{COOKIE}=2.A; {COOKIE}-1={{}}", "a={}"]),
    endpoint=st.sampled_from(["/forward-auth/ui", "/forward-auth/api", "/_auth/login", "/_auth/me", "/_auth/logout"]),
)
async def test_row18_no_cookie_at_all_lets_pass_or_breaks_anything(
    person: Person, cookie: bytes, frame: str, endpoint: str
) -> None:
    header = frame.encode().replace(b"{}", cookie)
    headers = [(name.lower().encode(), value.encode()) for name, value in FORWARDED.items()]
    answer = await Caller(person.app).raw(endpoint, [*headers, (b"host", b"h"), (b"cookie", header)])
    if endpoint.startswith("/forward-auth"):
        assert answer.status in {302, 400, 401, 403}
        assert answer.json()["code"] in set(Code)
    else:
        assert answer.status in {200, 303, 400, 401}
    assert all("prefect-gate=1." not in value for name, value in answer.headers if name == "set-cookie")
