"""The pages as bytes: their status and headers, what is escaped, what they refer to."""

import re
from functools import cache
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from service.core.errors import Code, OutOfReach
from service.core.model import Unavailable
from service.core.problems import Cause, Problem
from service.rendering.pages import Moment, Pages
from service.rendering.sentences import duration
from service.rendering.wire import Answer
from tests.support.sample_pages import LOCAL, NOW, every_page, every_refusal, headers_of, lacking

HELP = "Ask the data team: data@example.com or https://wiki.example.com/access."
NAMES = list(every_page(Pages("Prefect", HELP)))
VOID = {"meta", "link", "input", "path", "circle"}
PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' autofocus onfocus=alert(1) x='",
    "</title></textarea><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "\r\nSet-Cookie: a=b",
]


class Parsed(HTMLParser):
    """A page as a browser reads it: balanced elements with their attributes, and the text."""

    def __init__(self, response: Answer) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(response.body.decode())
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is given twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def skeleton(self) -> list[tuple[str, list[str]]]:
        return [(tag, sorted(attributes)) for tag, attributes in self.elements]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for one, attributes in self.elements if one == tag]

    def values(self, *names: str) -> list[str]:
        return [str(found[name]) for _, found in self.elements for name in names if name in found]


@pytest.fixture(scope="module")
def pages() -> Pages:
    return Pages("Prefect", HELP)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def policy_of(response: Answer) -> dict[str, list[str]]:
    parts = [one.split() for one in headers_of(response)["content-security-policy"].split(";")]
    return {one[0]: one[1:] for one in parts}


def test_a_page_is_kept_framed_and_fed_by_nobody(pages: Pages, name: str) -> None:
    response = every_page(pages)[name]
    assert headers_of(response)["content-type"] == "text/html; charset=utf-8"
    assert headers_of(response)["cache-control"] == "no-store"
    assert headers_of(response)["x-content-type-options"] == "nosniff"
    assert headers_of(response)["x-frame-options"] == "DENY"
    assert headers_of(response)["referrer-policy"] == "same-origin"
    assert headers_of(response)["cross-origin-opener-policy"] == "same-origin"
    form_action = ["'self'", "https://sso.example.com"] if name == "confirm-sign-out" else ["'self'"]
    assert policy_of(response) == {
        "default-src": ["'none'"],
        "style-src": ["'self'"],
        "script-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "form-action": form_action,
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
    }


def test_a_page_is_well_formed(pages: Pages, name: str) -> None:
    page = Parsed(every_page(pages)[name])
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("header")) == len(page.all("title")) == 1
    assert "· Prefect" in page.text
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(page.values("for", "aria-describedby", "aria-labelledby")) <= set(ids)
    assert len([one for one in page.elements if "autofocus" in one[1]]) <= 1


def test_a_page_fetches_only_what_is_served_beside_it(pages: Pages, name: str) -> None:
    page = Parsed(every_page(pages)[name])
    assert not page.values("style", "srcset", "onclick", "onload")
    assert not page.all("style")
    fetched = page.values("src") + [str(one["href"]) for one in page.all("link")]
    for one in fetched:
        place = urlsplit(one)
        assert (place.scheme, place.netloc) == ("", "")
        served = pages.static(place.path.removeprefix("/_auth/static/"), parse_qs(place.query)["v"][0])
        assert served.status == 200
        assert "immutable" in headers_of(served)["cache-control"]
    assert any(".css" in one for one in fetched)


@cache
def shown(payload: str) -> dict[str, Answer]:
    """Return all pages, with the payload in each text."""
    return every_page(Pages(f"Prefect{payload}", f"Ask.{payload}"), lambda text: text + payload)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_whatever_a_page_shows_is_text(payload: str, name: str) -> None:
    plain, hostile = Parsed(shown("")[name]), Parsed(shown(payload)[name])
    assert hostile.skeleton == plain.skeleton
    assert " ".join(payload.split()) in hostile.text
    assert hostile.values("href", "action", "src", "content") == plain.values("href", "action", "src", "content")
    assert "set-cookie" not in headers_of(shown(payload)[name])


def test_help_leads_where_it_says(pages: Pages) -> None:
    hrefs = Parsed(every_page(pages)["error"]).values("href")
    assert {"mailto:data@example.com", "https://wiki.example.com/access"} <= set(hrefs)


STATUSES = {"sign-in-wrong": 403, "sign-in-throttled": 429, "denied": 403, "error": 503, "loop": 400, "not-found": 404}
STATUSES |= {"access-denied": 400}
STATUSES |= {"tokens-problem": 400, "sessions-problem": 400}
STATUSES |= dict.fromkeys(("not-permitted", "unconfirmed", "no-role", "no-groups", "no-access"), 403)
STATUSES |= {f"gate-{name}": page.status for name, page in every_refusal(Pages("Prefect")).items()}


def test_a_page_has_the_status_of_what_it_says(pages: Pages, name: str) -> None:
    assert every_page(pages)[name].status == STATUSES.get(name, 200)


@pytest.mark.parametrize(
    ("name", "seconds", "words"), [("error", "5", "5 seconds"), ("sign-in-throttled", "240", "4 minutes")]
)
def test_a_page_says_when_to_try_again(pages: Pages, name: str, seconds: str, words: str) -> None:
    response = every_page(pages)[name]
    assert headers_of(response)["retry-after"] == seconds
    assert f"try again in about {words}." in Parsed(response).text


DOWN = OutOfReach(Problem.ISSUER_OUT_OF_REACH)
HOSTILE_LINKS = [
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    " javascript:alert(1)",
    "data:text/html,x",
    "//evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "/\t/evil.example",
    "/ok\nrefresh",
    "http://evil.example/",
    "http://127.0.0.1.evil.example/",
    "http://localhost@evil.example/",
    "http://127.0.0.1:80@evil.example/",
    "evil.example",
    "https:evil",
    "https://a b/",
]


@pytest.mark.parametrize("href", HOSTILE_LINKS)
@pytest.mark.parametrize(
    ("page", "links"),
    [
        ("sign_in", {"local": True, "provider": "P", "provider_href": "/ok", "action": None}),
        ("sign_in", {"local": True, "provider": "P", "provider_href": None, "action": "/ok"}),
        ("redirecting", {"provider": "P", "href": None}),
        ("signed_out", {"sign_in_href": None}),
        ("confirm_sign_out", {"action": None, "csrf": "", "who": ""}),
        ("confirm_sign_out", {"action": "/ok", "back_href": None, "csrf": "", "who": ""}),
        ("denied", {"who": {}, "cause": lacking(), "again_href": "/", "switch_href": None}),
        ("denied", {"who": {}, "cause": lacking(), "again_href": None, "switch_href": "/"}),
        ("refused", {"refusal": DOWN, "request_id": "", "again_href": None, "switch_href": "/"}),
        ("refused", {"refusal": DOWN, "request_id": "", "again_href": "/", "switch_href": None}),
    ],
)
def test_a_link_that_leads_to_no_page_is_not_shown(pages: Pages, page: str, links: dict[str, Any], href: str) -> None:
    given = {name: href if value is None else value for name, value in links.items()}
    response = getattr(pages, page)(**given)
    assert response.status == 503
    assert href.strip() not in response.body.decode()
    assert "This page could not be shown" in Parsed(response).text


@pytest.mark.parametrize("href", ["/", "/runs?a=b%20c", "https://sso.example.com/out?x=1", "http://127.0.0.1:8080/out"])
def test_a_link_that_leads_to_a_page_is_shown(pages: Pages, href: str) -> None:
    assert href in Parsed(pages.redirecting(href=href, provider="P")).values("href")


def test_plain_http_is_led_to_only_if_permitted() -> None:
    href = "http://sso.lan/out"
    assert Pages("Prefect").redirecting(href=href, provider="P").status == 503
    assert Pages("Prefect", allow_http=True).redirecting(href=href, provider="P").status == 200
    assert Pages("Prefect", allow_http=True).redirecting(href="javascript:1", provider="P").status == 503


@pytest.mark.parametrize("origin", ["https://a.example; script-src *", "*", "https://a.example/", "https:", "'none'"])
def test_an_origin_cannot_change_the_policy(pages: Pages, origin: str) -> None:
    response = pages.confirm_sign_out(action="/", csrf="", who="", provider_origin=origin)
    assert response.status == 503
    assert policy_of(response)["form-action"] == ["'self'"]


# what each page does without a script ---------------------------------------------------------------------


def fields(page: Parsed) -> dict[str, dict[str, str | None]]:
    return {str(one["name"]): one for one in page.all("input")}


def test_the_form_is_one_that_password_managers_know(pages: Pages) -> None:
    page = Parsed(pages.sign_in(local=True, provider=None, **LOCAL))
    assert [(one["method"], one["action"]) for one in page.all("form")] == [("post", "/_auth/login")]
    found = fields(page)
    assert list(found) == ["csrf", "return_to", "fragment", "username", "password"]
    assert (found["csrf"]["value"], found["return_to"]["value"]) == ("a-csrf-value", "/runs")
    assert found["username"]["autocomplete"] == "username"
    assert (found["password"]["type"], found["password"]["autocomplete"]) == ("password", "current-password")
    assert "value" not in found["password"]
    assert set(page.values("for")) == {"username", "password"}


@pytest.mark.parametrize(
    ("shown", "focused"),
    [
        ({"provider": None}, "username"),
        ({"provider": None, "problem": "No."}, "username"),
        ({"provider": None, "username": "ada"}, "password"),
        ({"provider": "Acme", "provider_href": "/x", "problem": "No.", "username": "ada"}, "password"),
        ({"provider": "Acme", "provider_href": "/x"}, None),  # whoever has a choice is not led past it
    ],
)
def test_the_first_field_to_fill_in_has_the_focus(pages: Pages, shown: dict[str, Any], focused: str | None) -> None:
    page = Parsed(pages.sign_in(local=True, **LOCAL, **shown))
    assert [one["name"] for _, one in page.elements if "autofocus" in one] == ([focused] if focused else [])


def test_a_problem_is_announced_and_belongs_to_the_fields(pages: Pages) -> None:
    page = Parsed(every_page(pages)["sign-in-wrong"])
    assert [one["id"] for _, one in page.elements if one.get("role") == "alert"] == ["told"]
    assert page.values("aria-describedby") == ["told", "told"]
    assert page.text.startswith("Error: Sign in · Prefect")


def test_without_a_script_one_is_led_on_too(pages: Pages) -> None:
    page = Parsed(pages.redirecting(href="/_auth/start?return_to=%2Fruns&x=1", provider="Acme"))
    assert {"http-equiv": "refresh", "content": "0; url=/_auth/start?return_to=%2Fruns&x=1"} in page.all("meta")
    assert [one["href"] for one in page.all("a")] == ["/_auth/start?return_to=%2Fruns&x=1"]


def test_signing_out_is_a_choice_of_two_buttons(pages: Pages) -> None:
    page = Parsed(pages.confirm_sign_out(action="/_auth/logout", csrf="c", who="Ada"))
    assert page.all("form")[0]["method"] == "post"
    assert [(one.get("name"), one.get("value")) for one in page.all("button")] == [(None, None), ("everywhere", "1")]
    only_here = Parsed(pages.confirm_sign_out(action="/_auth/logout", csrf="c", who="Ada", everywhere=False))
    assert len(only_here.all("button")) == 1


def test_a_refusal_says_who_one_is_what_is_needed_and_whom_to_ask(pages: Pages) -> None:
    text = Parsed(every_page(pages)["denied"]).text
    for one in (
        "Ada Lovelace",
        "ada@example.com",
        "the right to start, cancel, retry, pause and resume runs",
        "Ask for the role runner.",
        "Ask the data team",
        "9f2c4d1e8a7b6c5d",
    ):
        assert one in text


WAYS = {  # page: its button, and the one beside it
    "not-permitted": [("Use another account", "/_auth/start?switch=1"), ("Try again", "/_auth/login")],
    "unconfirmed": [("Sign in again", "/_auth/login")],
    "no-role": [("Use another account", "/_auth/start?switch=1")],
    "no-access": [("Use another account", "/_auth/start?switch=1"), ("Open Prefect", "/")],
    "me": [("Open Prefect", "/"), ("Sign out", "/_auth/logout")],
    "me-without-role": [("Whom can I ask?", "/_auth/denied"), ("Sign out", "/_auth/logout")],
}


@pytest.mark.parametrize(("name", "ways"), WAYS.items(), ids=WAYS)
def test_no_page_leads_back_to_where_one_is_refused(pages: Pages, name: str, ways: list[tuple[str, str]]) -> None:
    body = every_page(pages)[name].body.decode()
    assert re.findall(r'<a class="button(?: quiet)?" href="([^"]*)">([^<]*)</a>', body) == [
        (href, label) for label, href in ways
    ]


def test_what_is_not_known_of_a_person_is_left_out(pages: Pages) -> None:
    who = {"name": "Ada", "email": "", "groups": ()}
    cause = Cause(Problem.PERSON_NOT_PERMITTED)
    response = pages.denied(who, cause, request_id="1", again_href="/b", switch_href="/a")
    assert response.status == 403
    labels = re.findall("<dt>(.*?)</dt>", response.body.decode())
    assert labels == ["Signed in as", "Request"]


def test_many_groups_are_all_there(pages: Pages) -> None:
    page = Parsed(every_page(pages, groups=40)["me"])
    assert "32 more" in page.text
    assert all(f"/organisation/team-{number}" in page.text for number in range(40))


def test_a_time_is_told_in_full_and_from_now(pages: Pages) -> None:
    page = Parsed(every_page(pages)["me"])
    times = [one["datetime"] for one in page.all("time")]
    assert times == ["2026-09-21T11:13:20Z", "2026-09-22T03:13:20Z", "2026-09-21T22:13:20Z"]
    assert "21 September 2026, 11:13 UTC 3 hours ago" in page.text
    assert "22 September 2026, 03:13 UTC in 13 hours" in page.text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "1 second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "1 minute"),
        (300, "5 minutes"),
        (3_600, "1 hour"),
        (200_000, "2 days"),
    ],
)
def test_a_length_of_time(seconds: float, words: str) -> None:
    assert duration(seconds) == words
    assert Moment(NOW + seconds, NOW).relative == (f"in {words}" if seconds else "1 second ago")


# refusals at the gate ---------------------------------------------------------------------------------------

HELPS = ("mailto:", "https://wiki")
ONLY_LINK = {  # name: the button's words and address, and the link beside it
    "role": ("Use another account", "/_auth/start?switch=1", "/_auth/denied"),
    "unknown-page": ("Open Prefect", "/", "/_auth/me"),
    "account": ("Use another account", "/_auth/start?switch=1", ""),
    "unconfirmed": ("Sign in again", "/_auth/login", None),
    "cross-site": ("Open Prefect", "/", "/_auth/me"),
    "cookies": (None, None, ""),
    "malformed": ("Open Prefect", "/", "/_auth/me"),
    "peer": (None, None, ""),
    "broken": ("Try again", "", None),
    "throttled": ("Try again", "", None),
}


def test_each_refusal_has_the_mark_the_title_the_help_and_the_button_that_helps(pages: Pages) -> None:
    refusals = every_refusal(pages)
    assert refusals.keys() == ONLY_LINK.keys()
    for name, answer in refusals.items():
        page = Parsed(answer)
        words, href, aside = ONLY_LINK[name]
        assert [one["class"] for one in page.all("svg")] == ["mark"], name
        assert "Prefect" in page.text, name
        assert "Ask the data team: data@example.com" in page.text, name
        buttons = [one["href"] for one in page.all("a") if one.get("class") == "button"]
        assert buttons == ([] if words is None else [href]), name
        assert words is None or page.text.count(words) == 1, name
        others = [
            one["href"] for one in page.all("a") if not one.get("class") and not str(one["href"]).startswith(HELPS)
        ]
        assert others == ([] if aside is None else [aside]), name


def test_a_refusal_says_when_to_try_again_only_if_that_is_known(pages: Pages) -> None:
    refusals = {name: Parsed(answer).text for name, answer in every_refusal(pages).items()}
    waits = {name for name, text in refusals.items() if "You can try again in about" in text}
    assert waits == {"broken", "throttled"}
    assert "in about 4 minutes." in refusals["throttled"]


def test_a_refusal_is_plain_ascii_so_that_nginx_can_carry_it_in_a_header() -> None:
    page = every_refusal(Pages("Prëfect", "Frag Zoë."), lambda text: f"{text}…")["role"].body
    assert page.isascii()
    assert b"Pr&#235;fect" in page
    assert b"ada&#8230;" in page


def test_a_refusal_is_not_rendered_anew(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    page = pages.refusal_page(switch_href="/_auth/login")
    monkeypatch.setattr("jinja2.environment.Template.render", None)
    broken = Unavailable(503, Code.INTERNAL_ERROR, Cause(Problem.INTERNAL), 5)
    assert b"<code>r1</code>" in page.fill(broken, "r1")


# what pages refer to --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("pages.css", "text/css; charset=utf-8"),
        ("pages.js", "text/javascript; charset=utf-8"),
        ("onward.js", "text/javascript; charset=utf-8"),
        ("mark.svg", "image/svg+xml"),
    ],
)
def test_a_file_is_served_and_kept_only_as_the_version_it_is(pages: Pages, name: str, media_type: str) -> None:
    response = pages.static(name, "0" * 16)
    assert response.status == 200
    assert headers_of(response)["content-type"] == media_type
    assert headers_of(response)["x-content-type-options"] == "nosniff"
    assert headers_of(response)["cache-control"] == "no-store"
    assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", response.body)


@pytest.mark.parametrize(
    "name", ["", "..", "../pages.py", "..%2fpages.py", "/etc/passwd", "pages.css/", "PAGES.CSS", "base.html"]
)
def test_there_is_no_other_file(pages: Pages, name: str) -> None:
    response = pages.static(name)
    assert (response.status, response.body) == (404, b"")
    assert headers_of(response)["cache-control"] == "no-store"
