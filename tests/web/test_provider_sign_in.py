"""Signing in at a provider that plays by the rules, and at one that does not: who gets in, and what others are told."""

import base64
import hashlib
import html
import re
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
import pytest

from service.core.identity.sign_in import LOGOUT_EVENT
from service.core.model import Session, SessionCookie
from service.gate.application import ForwardAuth
from service.settings import Settings
from service.web.app import create_app
from service.web.attempts import MAX_SIGN_INS_PER_PAGE
from tests.support.issuer import Call, Issuer, Reply, SigningKey
from tests.web.conftest import COOKIE, ORIGIN, PASSWORD, SESSION_KEY, Caller, Person, hidden, set_cookies, shown

pytestmark = pytest.mark.anyio
DEEP = "/v2/runs/flow-run/0197?tab=Logs&q=a%20b"
CLIENT, SECRET = "gate", "client-secret-0123456789"
FOREIGN = SigningKey.generate("ES256", "ES256-1")


class Office(Issuer):
    """An OpenID provider where one person is signed in: it hands out codes, and redeems each once."""

    def __init__(self) -> None:
        super().__init__("ES256")
        self.claims: dict[str, Any] = {}  # of ID tokens, in place of the proper ones; None leaves one out
        self.signs: dict[str, Any] = {}  # how they are signed
        self.codes: dict[str, dict[str, str]] = {}  # code → the authorization request
        self.seen: set[str] = set()  # all that must never be logged
        self.metadata = {
            "authorization_endpoint": f"{self.url}/authorize?tenant=1",
            "token_endpoint": f"{self.url}/token",
            "userinfo_endpoint": f"{self.url}/userinfo",
            "end_session_endpoint": f"{self.url}/end",
            "revocation_endpoint": f"{self.url}/revoke",
        }
        self.replies = {"/token": self._token, "/revoke": Reply(), "/userinfo": Reply({"sub": "248"})}

    def authorize(self, url: str) -> str:
        """Do as the browser's request says, and return where it is sent back to."""
        asked = dict(parse_qsl(urlsplit(url).query))
        code = f"code-{secrets.token_urlsafe(16)}"
        self.codes[code] = asked
        self.seen |= {code, asked["nonce"], asked["state"]}
        return f"/_auth/callback?{urlencode({'code': code, 'state': asked['state'], 'iss': self.url})}"

    def id_token(self, **changes: Any) -> str:
        """Return an ID token for this service."""
        proper = {"sub": "248", "aud": CLIENT, "email": "alice@example.test", "groups": ["data"], "sid": "sid-1"}
        signs = {"header": {"typ": None}, **self.signs}
        return self.mint(**signs, **{**proper, **changes, **self.claims})

    def _token(self, call: Call) -> Reply:
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        assert call.headers["authorization"] == f"Basic {basic}"
        if call.form["grant_type"] == "refresh_token":
            return self._tokens(nonce=None)
        asked = self.codes.pop(call.form["code"], None)
        if asked is None or asked["redirect_uri"] != call.form["redirect_uri"]:
            return Reply({"error": "invalid_grant"}, 400)
        self.seen.add(call.form["code_verifier"])
        digest = hashlib.sha256(call.form["code_verifier"].encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != asked["code_challenge"]:
            return Reply({"error": "invalid_grant"}, 400)
        return self._tokens(nonce=asked["nonce"])

    def _tokens(self, nonce: str | None) -> Reply:
        tokens = {kind: f"{kind}-{secrets.token_urlsafe(16)}" for kind in ("access_token", "refresh_token")}
        tokens["id_token"] = self.id_token(nonce=nonce)
        self.seen |= set(tokens.values())
        return Reply({"token_type": "Bearer", "expires_in": 60, **tokens})

    def is_id_token(self, text: str) -> bool:
        """Tell whether this is an ID token that was given out."""
        return text in self.seen

    def logout_token(self, **changes: Any) -> str:
        """Return a logout token for the one session there is."""
        proper = {"aud": CLIENT, "sub": "248", "sid": "sid-1", "jti": secrets.token_urlsafe(8)}
        return self.mint(header={"typ": "logout+jwt"}, **{**proper, "events": {LOGOUT_EVENT: {}}, **changes})


def other_account(page: httpx.Response) -> str:
    """Return where a page leads those who want to sign in as somebody else."""
    found = re.search(r'href="([^"]+)"[^>]*>Use another account<', page.text)
    assert found, page.text
    return found[1]


@pytest.fixture
def office() -> Iterator[Office]:
    with Office() as running:
        yield running


@pytest.fixture
def people_settings(office: Office) -> dict[str, Any]:
    oidc = {"issuer": office.url, "client_id": CLIENT, "client_secret": SECRET, "timeout": 1, "role": "viewer"}
    return {
        "oidc": {**oidc, "name": "the Office", "keys": {"cooldown": 1, "timeout": 1}},
        "session": {"keys": SESSION_KEY},
    }


@pytest.fixture(autouse=True)
def nothing_secret_is_logged(office: Office, logged: Callable[[], str]) -> Iterator[None]:
    """Whatever happens in a test of this file, neither a secret nor a traceback stands in the log."""
    yield
    text = logged()
    assert "Traceback" not in text
    assert not [one for one in (*office.seen, SECRET, SESSION_KEY) if one in text]


async def begin(person: Person, target: str = "/") -> str:
    """Go to sign in as a browser does, and return the address at the provider."""
    page = await person.open(f"/_auth/login?{urlencode({'return_to': target})}")
    assert page.status_code == 200
    href = re.search(r'href="(/_auth/start[^"]*)"', page.text)
    assert href, page.text
    leaves = await person.open(html.unescape(href[1]))
    assert leaves.status_code == 302
    return leaves.headers["location"]


async def arrive(person: Person, callback: str) -> httpx.Response:
    """Come back from the provider."""
    return await person.open(callback, sec_fetch_site="cross-site")


async def sign_in(person: Person, office: Office, target: str = "/") -> httpx.Response:
    return await arrive(person, office.authorize(await begin(person, target)))


def refused(answer: httpx.Response, status: int = 400) -> str:
    """Return what the page says that signs nobody in, and that offers a way on."""
    assert answer.status_code == status
    assert not [one for one in answer.headers.get_list("set-cookie") if one.startswith(f"{COOKIE}=")]
    assert re.search(r'href="/_auth/(login|start)', answer.text)
    return shown(answer)


def way_back(answer: httpx.Response) -> str:
    """Return where one comes back to who tries again."""
    retry = re.search(r'href="(/_auth/login\?[^"]*)"', answer.text)
    assert retry, answer.text
    return parse_qs(urlsplit(html.unescape(retry[1])).query)["return_to"][0]


def session_of(person: Person) -> Session:
    sessions = person.app.wiring.sessions
    assert sessions is not None
    return sessions.read(SessionCookie(person.cookies[COOKIE].removeprefix("1.")))


def change_session(person: Person, **changes: Any) -> None:
    """Let the browser hold its session as it will be, or could have been."""
    sessions = person.app.wiring.sessions
    assert sessions is not None
    sealed = sessions.seal(session_of(person)._replace(**changes))
    person.client.cookies.set(COOKIE, f"1.{sealed}", domain="prefect.example.com", path="/")


# in -------------------------------------------------------------------------------------------------------


async def test_a_person_comes_in_through_the_provider_and_lands_where_they_wanted(
    person: Person, office: Office
) -> None:
    sent_away = await person.ask(DEEP)
    page = await person.open(sent_away.headers["location"])
    start = re.search(r'href="(/_auth/start[^"]*)"', page.text)
    assert start
    leaves = await person.open(f"{html.unescape(start[1])}&fragment=logs-17")  # a script adds what follows the #
    asked = parse_qs(urlsplit(leaves.headers["location"]).query)
    assert leaves.headers["location"].startswith(f"{office.url}/authorize?tenant=1&")
    assert asked["response_type"] == ["code"]
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["redirect_uri"] == [f"{ORIGIN}/_auth/callback"]
    assert leaves.headers["cache-control"] == "no-store"
    answer = await arrive(person, office.authorize(leaves.headers["location"]))
    assert answer.status_code == 303
    assert answer.headers["location"] == f"{DEEP}#logs-17"
    entered = await person.ask(DEEP)
    assert entered.status_code == 200
    told = [entered.headers[f"x-auth-request-{name}"] for name in ("user", "email", "groups", "issuer")]
    assert told == ["248", "alice@example.test", "data", office.url]
    assert not [name for name in person.cookies if "attempt" in name]


async def test_several_tabs_come_back_in_any_order(person: Person, office: Office) -> None:
    urls = [await begin(person, f"/v2/tab-{number}") for number in range(3)]
    states = {parse_qs(urlsplit(url).query)[name][0] for url in urls for name in ("state", "nonce", "code_challenge")}
    assert len(states) == 9
    for number in (1, 2, 0):
        answer = await arrive(person, office.authorize(urls[number]))
        assert (answer.status_code, answer.headers["location"]) == (303, f"/v2/tab-{number}")


@pytest.mark.parametrize("name", ["zoë", "日本 太郎", 'a"b, c%'], ids=range(3))
async def test_row16_any_name_comes_through_as_one_harmless_header(person: Person, office: Office, name: str) -> None:
    office.claims = {"sub": name, "groups": [name, "data"]}
    assert (await sign_in(person, office)).status_code == 303
    for _again in range(2):
        answer = await person.ask()
        assert answer.status_code == 200
        assert all(0x20 <= byte < 0x7F for _, value in answer.headers.raw for byte in value)
        assert answer.headers["x-auth-request-groups"].count(",") == 1


async def test_beside_a_provider_the_users_of_the_file_sign_in_where_that_is_wanted(
    people_settings: dict[str, Any], people_file: Any, office: Office
) -> None:
    for local, status in ((None, 400), (True, 303)):
        more = {"users": {"file": people_file}, "sign_in": {"local": local}}
        app = create_app(Settings(**people_settings | more))
        await app.start()
        assert (await Person(app).sign_in()).status_code == status
        assert (await sign_in(Person(app), office)).status_code == 303
        await app.stop()


# not in ---------------------------------------------------------------------------------------------------


async def test_row36_a_callback_that_this_browser_did_not_begin_signs_nobody_in(
    person: Person, site: ForwardAuth, office: Office
) -> None:
    attacker = Person(site, address="198.51.100.9")
    prepared = office.authorize(await begin(attacker))
    assert "not begun in this browser" in refused(await arrive(person, prepared))
    await begin(person)
    assert "not begun in this browser" in refused(await arrive(person, prepared))
    state = parse_qs(urlsplit(prepared).query)["state"][0]
    for query in (
        "",
        "code=x",
        "state=",
        f"code=x&state={state[:12]}",
        "code=x&state=%00%ff",
        "error=access_denied",
        f"code=x&state={'A' * 4_000}",
    ):
        assert "sign in again" in refused(await arrive(person, f"/_auth/callback?{query}"))
    assert not office.calls  # nothing was redeemed for any of them
    assert (await arrive(attacker, prepared)).status_code == 303


async def test_row36_a_callback_is_good_once(person: Person, office: Office) -> None:
    callback = office.authorize(await begin(person))
    assert (await arrive(person, callback)).status_code == 303
    assert "was used already" in refused(await arrive(person, callback))


async def test_row36_a_code_is_good_once_and_for_the_attempt_that_it_was_made_for(
    person: Person, site: ForwardAuth, office: Office
) -> None:
    first, second = await begin(person), await begin(person)
    code = parse_qs(urlsplit(office.authorize(first)).query)["code"][0]
    state = parse_qs(urlsplit(second).query)["state"][0]
    swapped = f"/_auth/callback?{urlencode({'code': code, 'state': state})}"
    assert "sign in again" in refused(await arrive(person, swapped))  # by PKCE
    stolen = office.authorize(await begin(person))
    used = parse_qs(urlsplit(stolen).query)["code"][0]
    assert (await arrive(person, stolen)).status_code == 303
    thief = Person(site, address="198.51.100.9")
    state = parse_qs(urlsplit(await begin(thief)).query)["state"][0]
    replayed = await arrive(thief, f"/_auth/callback?{urlencode({'code': used, 'state': state})}")
    assert "sign in again" in refused(replayed)


async def test_row36_the_state_of_one_way_in_is_nothing_to_the_other(
    people_settings: dict[str, Any], people_file: Any, office: Office
) -> None:
    app = create_app(Settings(**people_settings, users={"file": people_file}, sign_in={"local": True}))
    await app.start()
    person = Person(app)
    csrf = hidden(await person.open("/_auth/login"))["csrf"]
    answer = await arrive(person, f"/_auth/callback?{urlencode({'code': 'x', 'state': csrf, 'iss': office.url})}")
    assert answer.status_code == 400
    assert (await person.ask()).status_code == 302
    assert PASSWORD not in answer.text
    await app.stop()


ERRORS = {
    "access-denied": ("access_denied", "did not let you in"),
    "login-required": ("login_required", "sign in again"),
    "server-error": ("server_error", "has a problem just now"),
    "temporarily-unavailable": ("temporarily_unavailable", "has a problem just now"),
    "invalid-scope": ("invalid_scope", "tell whoever runs it"),
    "unknown": ("x" * 300, "try again"),
    "row16-markup": ("<script>alert(1)</script>", "try again"),
    "empty": ("", "try again"),
}


@pytest.mark.parametrize(("error", "sentence"), ERRORS.values(), ids=ERRORS)
async def test_an_error_of_the_provider_is_a_sentence_and_a_way_back(
    person: Person, office: Office, error: str, sentence: str
) -> None:
    state = parse_qs(urlsplit(await begin(person, DEEP)).query)["state"][0]
    query = {"error": error, "error_description": "<b>call the help desk</b>", "state": state, "iss": office.url}
    answer = await arrive(person, f"/_auth/callback?{urlencode(query)}")
    assert sentence in refused(answer)
    assert "help desk" not in answer.text  # whoever makes the link writes the description
    assert "<script>alert" not in answer.text
    assert way_back(answer) == DEEP
    assert not [name for name in person.cookies if "attempt" in name]


async def test_row36_an_answer_in_the_name_of_another_provider_is_none(person: Person, office: Office) -> None:
    for issuer in ("https://evil.example", f"{office.url}/", ""):
        callback = office.authorize(await begin(person))
        answer = await arrive(person, callback.rpartition("&iss=")[0] + f"&{urlencode({'iss': issuer})}")
        assert answer.status_code == (303 if not issuer else 400)  # a provider need not say it
        assert "evil.example" not in answer.text


async def test_row36_a_provider_that_names_itself_has_to(office: Office, people_settings: dict[str, Any]) -> None:
    office.metadata["authorization_response_iss_parameter_supported"] = True
    app = create_app(Settings(**people_settings))
    await app.start()
    person = Person(app)
    callback = office.authorize(await begin(person))
    refused(await arrive(person, callback.rpartition("&iss=")[0]))
    assert (await sign_in(person, office)).status_code == 303
    await app.stop()


UNTRUE = {
    "row36-nonce-of-another": ({"nonce": "another"}, {}),
    "row36-no-nonce": ({"nonce": None}, {}),
    "row34-other-client": ({"aud": "another"}, {}),
    "row34-several-clients": ({"aud": [CLIENT, "another"]}, {}),
    "row34-authorized-party": ({"azp": "another"}, {}),
    "row34-no-audience": ({"aud": None}, {}),
    "row34-other-issuer": ({"iss": "https://evil.example"}, {}),
    "row34-access-token": ({"typ": "Bearer"}, {}),
    "row33-expired": ({"exp": 1_700_000_000}, {}),
    "row33-no-expiry": ({"exp": None}, {}),
    "row33-from-the-future": ({"iat": 4_000_000_000}, {}),
    "row26-none": ({}, {"header": {"alg": "none", "typ": None}}),
    "row26-confused": ({}, {"header": {"alg": "HS256", "typ": None}}),
    "row27-foreign-key": ({}, {"key": FOREIGN, "header": {"typ": None}}),
    # issued before the keys were fetched: of a younger one, the key might not be known yet
    "row27-key-of-its-own": (
        {"iat": int(time.time()) - 60},
        {"key": FOREIGN, "header": {"typ": None, "jwk": FOREIGN.jwk(), "kid": "x"}},
    ),
    "row16-nobody": ({"sub": None}, {}),
    "row16-empty-name": ({"sub": ""}, {}),
    "row16-line-break": ({"sub": "alice\r\nX-Auth-Request-User: admin"}, {}),
    "row16-nul": ({"sub": "alice\x00"}, {}),
    "row16-lone-surrogate": ({"sub": "\ud800"}, {}),
    "row16-lone-surrogate-group": ({"groups": ["\ud800"]}, {}),
    "row16-no-string": ({"sub": {"a": 1}}, {}),
}


@pytest.mark.parametrize(("claims", "signs"), UNTRUE.values(), ids=UNTRUE)
async def test_an_id_token_that_is_not_true_signs_nobody_in(
    person: Person, office: Office, claims: dict[str, Any], signs: dict[str, Any]
) -> None:
    office.claims, office.signs = claims, signs
    assert "could not be verified" in refused(await sign_in(person, office))
    assert (await person.ask()).status_code == 302
    office.claims, office.signs = {}, {}
    assert (await sign_in(person, office)).status_code == 303


async def test_who_may_not_enter_is_told_who_they_are_and_can_switch(
    office: Office, people_settings: dict[str, Any]
) -> None:
    people_settings["oidc"]["required_claims"] = {"groups": "admins"}
    app = create_app(Settings(**people_settings, sign_in={"help": "Ask the data team."}))
    await app.start()
    person = Person(app)
    answer = await sign_in(person, office)
    text = refused(answer, 403)
    assert "not permitted to enter" in text
    assert "248" in text
    assert "Ask the data team." in text
    assert 'href="/"' not in answer.text  # it would lead here again
    switch = await person.open(html.unescape(other_account(answer)), sec_fetch_site="same-origin")
    asked = parse_qs(urlsplit(switch.headers["location"]).query)
    assert switch.headers["location"].startswith(f"{office.url}/end?")
    assert office.is_id_token(asked["id_token_hint"][0])
    assert asked["post_logout_redirect_uri"] == [f"{ORIGIN}/_auth/signed-out"]
    await sign_in(person, office)
    assert [name for name in person.cookies if name.endswith("-hint")]
    office.claims = {"groups": ["admins"]}
    assert (await sign_in(person, office)).status_code == 303
    assert not [name for name in person.cookies if name.endswith("-hint")]
    await app.stop()


async def test_somebody_else_signs_in_after_a_sign_out_at_the_provider_and_gets_where_they_wanted(
    person: Person, office: Office
) -> None:
    await sign_in(person, office)
    copied = f"{COOKIE}={person.cookies[COOKIE]}"
    href = f"/_auth/start?{urlencode({'switch': '1', 'return_to': DEEP})}"
    leaves = await person.open(href, sec_fetch_site="same-origin")
    asked = parse_qs(urlsplit(leaves.headers["location"]).query)
    assert office.is_id_token(asked["id_token_hint"][0])
    assert (await Person(person.app).ask(cookie=copied)).status_code == 302  # the session has ended here, too
    back = await person.open(f"/_auth/signed-out?{urlencode({'state': asked['state'][0]})}")
    again = await person.open(back.headers["location"])
    office.claims = {"sub": "249"}
    callback = office.authorize(again.headers["location"])
    arrived = await arrive(person, callback)
    assert arrived.headers["location"] == DEEP
    assert (await person.ask()).headers["x-auth-request-user"] == "249"


@pytest.mark.parametrize("state", ["", "x", "a.b", "zoë"])
async def test_a_state_that_is_not_ours_leads_nowhere(person: Person, state: str) -> None:
    page = await person.open(f"/_auth/signed-out?{urlencode({'state': state})}")
    assert "You are signed out" in shown(page)


@pytest.mark.parametrize("comes_from", ["cross-site", "same-site", "none"])
async def test_row37_another_site_signs_nobody_out_by_a_switch(person: Person, office: Office, comes_from: str) -> None:
    await sign_in(person, office)
    answer = await person.open("/_auth/start?switch=1", sec_fetch_site=comes_from)
    assert answer.headers["location"] == "/_auth/logout"
    assert (await person.ask()).status_code == 200


async def test_a_provider_that_lists_the_choice_of_an_account_is_asked_for_it(person: Person, office: Office) -> None:
    office.metadata["prompt_values_supported"] = ["none", "login", "select_account"]
    await sign_in(person, office)
    switch = await person.open("/_auth/start?switch=1")
    assert parse_qs(urlsplit(switch.headers["location"]).query)["prompt"] == ["select_account"]
    assert (await person.ask()).status_code == 200  # until somebody else has signed in


async def test_beside_the_form_the_button_of_the_provider_lets_somebody_else_sign_in(
    office: Office, people_settings: dict[str, Any], users_file: Any
) -> None:
    people_settings["oidc"]["required_claims"] = {"groups": "admins"}
    app = create_app(Settings(**people_settings, users={"file": users_file}, sign_in={"local": True}))
    await app.start()
    person = Person(app)
    answer = await sign_in(person, office)
    form = await person.open(html.unescape(other_account(answer)), sec_fetch_site="same-origin")
    button = re.search(r'href="(/_auth/start[^"]*)"', form.text)
    assert button, form.text
    leaves = await person.open(html.unescape(button[1]), sec_fetch_site="same-origin")
    assert leaves.headers["location"].startswith(f"{office.url}/end?")
    await app.stop()


async def test_who_was_denied_there_may_use_another_account_or_try_again(person: Person, office: Office) -> None:
    """A person may have clicked on Cancel, or be somebody whom the provider keeps out: only they know."""
    url = await begin(person, DEEP)
    state = parse_qs(urlsplit(url).query)["state"][0]
    answer = await arrive(person, f"/_auth/callback?{urlencode({'error': 'access_denied', 'state': state})}")
    refused(answer)
    assert parse_qs(urlsplit(html.unescape(other_account(answer))).query)["return_to"] == [DEEP]
    assert way_back(answer) == DEEP


async def test_who_has_no_groups_is_told_with_what_helps(office: Office, people_settings: dict[str, Any]) -> None:
    people_settings["oidc"] |= {"role": "", "preset": ""}
    grants = [{"issuer": office.url, "groups": "data", "roles": "viewer"}]
    app = create_app(Settings(**people_settings, grants=grants))
    await app.start()
    person = Person(app)
    office.claims = {"groups": None}
    await sign_in(person, office)
    for path in ("/_auth/denied", "/_auth/me"):
        page = await person.open(path, accept="text/html")
        assert "The identity provider sent no groups for you (claim groups)" in shown(page)
    office.claims = {}
    await sign_in(person, office)
    assert "sent no groups" not in shown(await person.open("/_auth/me", accept="text/html"))
    await app.stop()


async def test_more_groups_than_a_session_holds_are_said_to_be_too_many(person: Person, office: Office) -> None:
    office.claims = {"groups": [f"department-{number:04}-of-the-{'x' * 60}-company" for number in range(200)]}
    assert "groups do not fit" in refused(await sign_in(person, office))
    office.claims = {"groups": [f"department-{number:04}-of-the-company" for number in range(200)]}
    assert (await sign_in(person, office)).status_code == 303
    assert len([name for name in person.cookies if re.fullmatch(rf"{COOKIE}(-\d)?", name)]) > 1
    assert len((await person.ask()).headers["x-auth-request-groups"].split(",")) == 200


async def test_a_session_that_does_not_hold_stops_at_a_page_that_explains(person: Person, office: Office) -> None:
    for _ in range(MAX_SIGN_INS_PER_PAGE):
        assert (await sign_in(person, office, DEEP)).status_code == 303
        del person.client.cookies[COOKIE]
    for path in ("/_auth/login", "/_auth/start"):
        held = dict(person.cookies)
        stopped = await person.open(f"{path}?{urlencode({'return_to': DEEP})}")
        assert "did not keep the session" in refused(stopped)
        for name, value in held.items():
            person.client.cookies.set(name, value, domain="prefect.example.com", path="/")
    person.client.cookies.clear()
    assert (await sign_in(person, office, DEEP)).headers["location"] == DEEP


# a provider that is down, slow, or wrong ------------------------------------------------------------------

MISHAPS = {
    "down": ("/token", None, 503),
    "token-5xx": ("/token", Reply(status=502), 503),
    "token-busy": ("/token", Reply(status=429), 503),
    "token-slow": ("/token", Reply(delay=1.5), 503),
    "token-html": ("/token", Reply(b"<html>", content_type="text/html"), 400),
    "token-garbage": ("/token", Reply(b"\x00\xff{"), 400),
    "token-list": ("/token", Reply(b"[]"), 400),
    "token-empty": ("/token", Reply(b"{}"), 400),
    "token-nested": ("/token", Reply(b"[" * 100_000), 400),
    "token-huge": ("/token", Reply(b'{"a":"' + b"x" * 8_000_000), 400),
    "token-elsewhere": ("/token", Reply(status=307, headers={"Location": "/other"}), 400),
    "token-refuses-us": ("/token", Reply({"error": "invalid_client"}, 401), 400),
    "userinfo-5xx": ("/userinfo", Reply(status=500), 503),
    "userinfo-refused": ("/userinfo", Reply(status=403), 400),
    "userinfo-of-another": ("/userinfo", Reply({"sub": "249"}), 400),
    "userinfo-garbage": ("/userinfo", Reply(b"?"), 400),
}


@pytest.mark.parametrize(("endpoint", "reply", "status"), MISHAPS.values(), ids=MISHAPS)
async def test_whatever_goes_wrong_there_is_a_page_and_a_way_back(
    person: Person, office: Office, endpoint: str, reply: Reply | None, status: int
) -> None:
    office.claims = {"groups": None}  # so that userinfo is asked
    callback = office.authorize(await begin(person, DEEP))
    good = office.replies[endpoint]
    if reply is None:
        office.stop()
    else:
        office.replies[endpoint] = reply
    answer = await arrive(person, callback)
    refused(answer, status)
    assert ("retry-after" in answer.headers) == (status == 503)
    assert way_back(answer) == DEEP
    office.replies[endpoint] = good
    if reply is None:
        office.start()
    assert (await sign_in(person, office, DEEP)).headers["location"] == DEEP


@pytest.mark.parametrize("how", ["down", "error", "garbage", "no-endpoint", "elsewhere"])
async def test_a_provider_that_cannot_be_discovered_is_a_page_and_later_a_sign_in(
    office: Office, people_settings: dict[str, Any], how: str
) -> None:
    good = dict(office.metadata)
    if how == "down":
        office.stop()
    office.status = 500 if how == "error" else 200
    wrong: dict[str, dict[str, Any]] = {
        "garbage": {"issuer": "https://evil.example"},
        "no-endpoint": {"authorization_endpoint": None},
        "elsewhere": {"authorization_endpoint": "javascript:alert(1)"},
    }
    office.metadata |= wrong.get(how, {})
    app = create_app(Settings(**people_settings))
    await app.start()
    person = Person(app)
    assert (await person.ask(DEEP)).status_code == 302  # nothing but signing in needs the provider
    assert (await person.open("/_auth/login")).status_code == 200
    answer = await person.open(f"/_auth/start?{urlencode({'return_to': DEEP})}")
    said = "cannot be reached just now" if how in {"down", "error"} else "not the identity provider that it is set up"
    assert said in refused(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1
    assert way_back(answer) == DEEP
    assert not set_cookies(answer)
    office.status, office.metadata = 200, good
    if how == "down":
        office.start()
    assert app.wiring.provider_issuer is not None
    for _ in range(2):  # the first may but join a fetch that began before
        await app.wiring.provider_issuer.keys.refresh(app.wiring.provider_issuer.policy)
    assert (await sign_in(person, office, DEEP)).headers["location"] == DEEP
    await app.stop()


async def test_nobody_is_sent_to_a_provider_that_has_gone(
    office: Office, people_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is has been known since the start, and says nothing about whether it is there."""
    people_settings["oidc"]["keys"] |= {"min_refresh": 1}
    app = create_app(Settings(**people_settings))
    await app.start()
    person = Person(app)
    await sign_in(person, office)
    assert app.wiring.provider_issuer is not None
    keys = app.wiring.provider_issuer.keys
    office.stop()
    keys.fetched_at -= 2  # it was heard of two seconds ago
    answer = await person.open(f"/_auth/start?{urlencode({'return_to': DEEP})}")
    assert "cannot be reached just now" in refused(answer, 503)
    page = await person.submit("/_auth/logout", hidden(await person.open("/_auth/logout")))
    assert page.headers["location"] == "/_auth/signed-out?still=1"
    office.start()
    monkeypatch.setattr(keys, "_cool_until", 0.0)
    assert (await sign_in(person, office, DEEP)).headers["location"] == DEEP
    await app.stop()


# while it lasts -------------------------------------------------------------------------------------------


async def test_the_provider_is_asked_again_and_what_it_says_now_counts(person: Person, office: Office) -> None:
    await sign_in(person, office)
    change_session(person, check_at=time.time() - 1)
    office.claims = {"groups": ["data", "ops"]}
    answer = await person.ask()
    assert answer.status_code == 200
    assert answer.headers["x-auth-request-groups"] == "data,ops"
    assert COOKIE in set_cookies(answer)
    assert session_of(person).check_at > time.time() + 600
    refreshed = [one for one in office.calls if one.form.get("grant_type") == "refresh_token"]
    assert len(refreshed) == 1
    assert (await person.ask()).headers["x-auth-request-groups"] == "data,ops"
    assert len([one for one in office.calls if one.form.get("grant_type") == "refresh_token"]) == 1


async def test_who_lost_what_is_required_is_out_and_stays_out(office: Office, people_settings: dict[str, Any]) -> None:
    people_settings["oidc"]["required_claims"] = {"groups": "data"}
    app = create_app(Settings(**people_settings))
    await app.start()
    person = Person(app)
    await sign_in(person, office)
    change_session(person, check_at=time.time() - 1)
    office.claims = {"groups": ["others"]}
    assert (await person.ask()).status_code == 403
    assert [(await person.ask()).status_code for _ in range(3)] == [302] * 3
    assert (await person.fetch()).json()["code"] == "session_ended"
    refused(await sign_in(person, office), 403)
    await app.stop()


async def test_a_provider_that_is_down_ends_no_session_at_once(person: Person, office: Office) -> None:
    await sign_in(person, office)
    began = time.time() - 20_000
    office.stop()
    change_session(person, began=began, check_at=time.time() - 60)
    assert (await person.ask()).status_code == 200
    change_session(person, began=began, check_at=time.time() - 4_000)
    unavailable = await person.fetch()
    assert (unavailable.status_code, unavailable.json()["code"]) == (503, "issuer_unavailable")
    page = await person.ask()
    assert page.status_code == 503
    assert "cannot be reached" in shown(page)
    assert COOKIE in person.cookies  # nobody was signed out
    office.start()


@pytest.mark.parametrize(
    "said",
    [
        Reply(
            {"error": "unauthorized_client", "error_description": "Invalid client or Invalid client credentials"}, 401
        ),
        Reply({"error": "invalid_client"}, 401),
        Reply({"error": "unsupported_grant_type"}, 400),
    ],
    ids=["keycloak", "rfc6749", "grant-type"],
)
async def test_a_provider_that_does_not_take_the_client_any_more_ends_no_session(
    person: Person, office: Office, said: Reply, logged: Callable[[], str]
) -> None:
    await sign_in(person, office)
    good, office.replies["/token"] = office.replies["/token"], said
    change_session(person, check_at=time.time() - 1)
    assert (await person.ask()).status_code == 200
    assert '"level": "warning"' in logged()
    assert '"message": "a session was not renewed"' in logged()
    told = (await person.client.get("/readyz")).json()
    assert told["status"] == "degraded"
    assert "does not take this service as its client" in told["provider"]["problem"]
    assert "forward_auth_provider_refuses_client 1.0" in (await person.client.get("/metrics")).text
    office.replies["/token"] = good
    assert await sign_in(person, office)
    assert (await person.client.get("/readyz")).json()["provider"]["problem"] == ""


async def test_a_session_of_the_provider_is_no_credential_of_a_machine_and_none_of_its_tokens_is(
    person: Person, office: Office
) -> None:
    await sign_in(person, office)
    for gate in ("api", "jwt"):
        token = office.id_token(nonce="n")
        answer = await Caller(person.app)(f"Bearer {token}", f"/forward-auth/{gate}")
        assert answer.status == 401
        assert (await person.ask("/api/flows/filter", gate=gate)).status_code == 401


# out ------------------------------------------------------------------------------------------------------


async def test_signing_out_here_leads_on_to_the_provider(person: Person, office: Office) -> None:
    await sign_in(person, office)
    refresh_token = session_of(person).refresh_token
    answer = await person.submit("/_auth/logout", hidden(await person.open("/_auth/logout")))
    href = re.search(r'data-href="([^"]*)"', answer.text)
    assert href
    leads_to = urlsplit(html.unescape(href[1]))
    asked = parse_qs(leads_to.query)
    assert f"{leads_to.scheme}://{leads_to.netloc}{leads_to.path}" == f"{office.url}/end"
    assert asked["post_logout_redirect_uri"] == [f"{ORIGIN}/_auth/signed-out"]
    assert COOKIE not in person.cookies
    assert [one.form["token"] for one in office.calls if one.path == "/revoke"] == [refresh_token]


async def test_signing_out_works_while_the_provider_is_down(person: Person, office: Office) -> None:
    await sign_in(person, office)
    copied = f"{COOKIE}={person.cookies[COOKIE]}"
    page = await person.open("/_auth/logout")
    office.stop()
    await person.submit("/_auth/logout", hidden(page))
    assert COOKIE not in person.cookies
    assert (await person.ask(cookie=copied)).status_code == 302
    office.start()


async def notify(site: ForwardAuth, token: str) -> httpx.Response:
    """Tell the service of a logout, as a provider does: it is no browser, and has no cookie."""
    client = Person(site).client
    return await client.post("/_auth/backchannel-logout", data={"logout_token": token})


@pytest.mark.parametrize("named", [{"sid": "sid-1", "sub": None}, {"sid": None}, {}], ids=["sid", "sub", "both"])
async def test_the_provider_ends_a_session_behind_the_browsers_back(
    person: Person, site: ForwardAuth, office: Office, named: dict[str, Any], logged: Callable[[], str]
) -> None:
    await sign_in(person, office)
    office.claims = {"sub": "300", "sid": "sid-2"}
    bystander = Person(site)
    await sign_in(bystander, office)
    office.claims = {}
    assert [(await one.ask()).status_code for one in (person, bystander)] == [200, 200]
    told = await notify(site, office.logout_token(**named))
    assert told.status_code == 200
    assert told.headers["cache-control"] == "no-store"
    assert logged().count('"message": "signed out by the provider"') == 1
    assert [(await one.ask()).status_code for one in (person, bystander)] == [302, 200]
    assert (await person.fetch()).json()["code"] == "session_ended"
    await sign_in(person, office)
    assert (await person.ask()).status_code == 200  # a new session is none of those


OF_THE_SAME_PERSON = {  # what the logout token names: which of three sessions go on
    "sid": ({"sid": "sid-1", "sub": None}, ["without", "of-another-sid"]),
    "sub": ({"sid": None, "sub": "248"}, []),
    "both": ({"sid": "sid-1", "sub": "248"}, ["of-another-sid"]),
}


@pytest.mark.parametrize(("named", "go_on"), OF_THE_SAME_PERSON.values(), ids=OF_THE_SAME_PERSON)
async def test_a_session_of_which_the_provider_named_no_sid_ends_by_its_person(
    site: ForwardAuth, office: Office, named: dict[str, Any], go_on: list[str]
) -> None:
    sids = {"of-this-sid": "sid-1", "without": None, "of-another-sid": "sid-2"}
    devices = {name: Person(site) for name in sids}
    for name, sid in sids.items():
        office.claims = {"sid": sid}
        await sign_in(devices[name], office)
    office.claims = {"sub": "300", "sid": None}
    bystander = Person(site)
    await sign_in(bystander, office)
    office.claims = {}
    assert (await notify(site, office.logout_token(**named))).status_code == 200
    assert [name for name, one in devices.items() if (await one.ask()).status_code == 200] == go_on
    assert (await bystander.ask()).status_code == 200


NO_LOGOUT = {
    "row36-no-event": {"events": {}},
    "row36-other-event": {"events": {"https://example.test/x": {}}},
    "row36-nonce": {"nonce": "n"},
    "row36-no-id": {"jti": None},
    "row36-names-nobody": {"sub": None, "sid": None},
    "row34-other-client": {"aud": "another"},
    "row34-other-issuer": {"iss": "https://evil.example"},
    "row27-foreign-key": {"key": FOREIGN},
    "row33-old": {"iat": 1_700_000_000, "exp": 1_700_000_100},
}


@pytest.mark.parametrize("changes", NO_LOGOUT.values(), ids=NO_LOGOUT)
async def test_row36_what_is_no_logout_token_ends_nothing(
    person: Person, site: ForwardAuth, office: Office, changes: dict[str, Any]
) -> None:
    await sign_in(person, office)
    assert (await notify(site, office.logout_token(**changes))).status_code == 400
    assert (await person.ask()).status_code == 200


async def test_row36_a_logout_token_is_good_once_and_nothing_else_is_one(
    person: Person, site: ForwardAuth, office: Office
) -> None:
    token = office.logout_token()
    assert (await notify(site, token)).status_code == 200
    await sign_in(person, office)
    for again in (token, "", "x.y.z", "zoë", office.id_token(nonce="n"), "x" * 100_000):
        answer = await notify(site, again)
        assert answer.status_code == 400
        assert answer.json() == {"error": "invalid_request"}
    assert (await person.ask()).status_code == 200


# where the provider is reached elsewhere than by browsers -------------------------------------------------


@pytest.mark.parametrize("documented", ["public", "internal"])
async def test_the_service_reaches_the_provider_inside_and_the_browser_outside(
    office: Office, people_settings: dict[str, Any], documented: str
) -> None:
    """A provider behind a container network writes its public addresses into its document, or those it was asked at."""
    inside, outside = office.url, "https://login.example.com"  # which nobody can reach from here
    office.url = outside
    if documented == "public":
        office.metadata = {name: url.replace(inside, outside) for name, url in office.metadata.items()}
        office.jwks_url = office.jwks_url.replace(inside, outside)
    people_settings["oidc"] |= {"issuer": outside, "internal_url": f"{inside}/"}
    app = create_app(Settings(**people_settings))
    await app.start()
    try:
        person = Person(app)
        at_provider = await begin(person, "/runs")
        assert at_provider.startswith(f"{outside}/authorize?tenant=1&")
        signed_in = await arrive(person, office.authorize(at_provider))
        assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/runs")
        assert (await person.ask()).status_code == 200
        form = await person.open("/_auth/logout")
        leaving = await person.submit("/_auth/logout", hidden(form))
        assert f"{outside}/end?" in leaving.text
        assert inside not in leaving.text
        assert {call.path for call in office.calls} == {"/token", "/revoke"}
    finally:
        await app.stop()


async def test_a_document_of_another_issuer_is_not_accepted_because_it_came_from_inside(
    office: Office, people_settings: dict[str, Any]
) -> None:
    people_settings["oidc"] |= {"issuer": "https://login.example.com", "internal_url": office.url}
    app = create_app(Settings(**people_settings))
    await app.start()
    try:
        page = await Person(app).open("/_auth/start")
        assert page.status_code == 503
    finally:
        await app.stop()
