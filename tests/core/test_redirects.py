"""Where a browser may be sent back to: this host, whatever was asked for."""

import re
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.core.request.redirects import (
    HOME,
    MAX_RETURN_TO,
    parse_return_to,
    sign_in_href,
    switch_account_href,
    with_fragment,
)

ORIGIN = "https://prefect.example.com"

ELSEWHERE = {
    "row35-two-slashes": "//evil.example",
    "row35-three-slashes": "///evil.example",
    "row35-back-slash": "/\\evil.example",
    "row35-back-slashes": "\\\\evil.example",
    "row35-slash-later": "/v2//evil.example",
    "row35-encoded-slash": "/%2fevil.example",
    "row35-encoded-back-slash": "/%5cevil.example",
    "row35-encoded-tab": "/%09/evil.example",
    "row35-tab": "/\t/evil.example",
    "row35-newline": "/\n/evil.example",
    "row35-carriage-return": "/v2\r\nSet-Cookie: a=b",
    "row35-encoded-newline": "/v2%0d%0aSet-Cookie:%20a=b",
    "row35-nul": "/v2\x00",
    "row35-encoded-nul": "/v2%00",
    "row35-leading-space": " /v2",
    "row35-leading-space-and-slashes": " //evil.example",
    "row35-absolute": "https://evil.example/",
    "row35-own-origin": f"{ORIGIN}/v2",  # it would be ours, but a host has many spellings
    "row35-look-alike-suffix": f"{ORIGIN}.evil.example/",
    "row35-userinfo": f"{ORIGIN}@evil.example/",
    "row35-scheme-without-slashes": "https:evil.example",
    "row35-scheme-one-slash": "https:/evil.example",
    "row35-javascript": "javascript:alert(1)",
    "row35-data": "data:text/html,x",
    "row35-relative": "v2",
    "row35-suffix": ".evil.example",
    "row35-at": "@evil.example",
    "row35-port": ":8443/v2",
    "row35-query-alone": "?a=b",
    "row35-nothing": "",
    "row35-dot-then-slashes": "/.//evil.example",
    "row35-dots-then-slashes": "/..//evil.example",
    "row35-dot-segment": "/v2/../_auth/login",
    "row35-encoded-dots": "/v2/%2e%2e/_auth/login",
    "row35-parameters": "/;/evil.example",
    "row35-double-encoding": "/%252fevil.example",
    "row35-non-ascii-slash": "/\uff0fevil.example",  # a full-width solidus becomes a slash by NFKC
    "row35-non-ascii": "/zoë",
    "row35-overlong": "/%c0%afevil.example",
    "row35-fragment": "/v2#//evil.example",
    "row35-fragment-crlf": "/v2#\r\nSet-Cookie: a=b",
    "row35-lone-surrogate": "/\udcff",
    "row35-too-long": "/" + "a" * MAX_RETURN_TO,
    "row35-loop-login": "/_auth/login",
    "row35-loop-start": "/_auth/start?return_to=/_auth/start",
    "row35-loop-logout": "/_auth/logout",
    "row35-loop-encoded": "/%5fauth/logout",
    "row35-loop-without-slash": "/_auth",
}
OURS = {
    "row35-home": "/",
    "row35-deep-link": "/v2/runs/flow-run/0197a0c4-8d4e?tab=Logs&g_range=%7B%22type%22%3A%22span%22%7D",
    "row35-encoded-space": "/v2/flow%20runs",
    "row35-encoded-letters": "/v2/zo%C3%AB",
    "row35-at-in-path": "/@evil.example",  # a segment of this host
    "row35-colon-in-path": "/https:evil.example",
    "row35-url-in-query": "/v2?next=https://evil.example//x",
    "row35-much-in-query": "/v2?" + "a" * (MAX_RETURN_TO - 4),
    "row35-almost-ours": "/_authors",
}


def for_a_browser(location: str) -> str:
    """Return what a browser makes of an address before it resolves it (WHATWG URL §4.4)."""
    return re.sub(r"[\t\r\n]", "", location.strip("".join(map(chr, range(0x21))))).replace("\\", "/")


def stays_here(location: str) -> bool:
    seen = for_a_browser(location)
    joined = urlsplit(urljoin(ORIGIN, location))
    return seen.startswith("/") and not seen.startswith("//") and f"{joined.scheme}://{joined.netloc}" == ORIGIN


@pytest.mark.parametrize("raw", ELSEWHERE.values(), ids=ELSEWHERE)
def test_whatever_is_not_plainly_ours_leads_home(raw: str) -> None:
    assert parse_return_to(raw) == HOME


@pytest.mark.parametrize("raw", OURS.values(), ids=OURS)
def test_a_page_of_this_host_is_found_again_exactly(raw: str) -> None:
    assert parse_return_to(raw) == raw
    assert parse_qs(urlsplit(sign_in_href(raw)).query) == {"return_to": [raw]}


@given(st.text(max_size=80).map(lambda text: "/" + text) | st.text(max_size=80))
@example("/\t/evil.example")
@example("/\\evil.example")
def test_row35_no_text_at_all_leads_elsewhere(raw: str) -> None:
    back = parse_return_to(raw)
    assert stays_here(back)
    assert re.fullmatch(r"[\x21-\x7e]+", back)


@given(st.text(alphabet="/\\@:.%?#;_ \t\r\n\x00aefhinopstuvx0259\uff0f", max_size=40))
def test_row35_no_arrangement_of_the_dangerous_characters_leads_elsewhere(raw: str) -> None:
    assert stays_here(parse_return_to(raw))
    assert stays_here(sign_in_href(raw))
    assert re.fullmatch(r"/_auth/login\?return_to=[A-Za-z0-9%._~-]+(#[\x21-\x7e]+)?", sign_in_href(raw))
    switching = sign_in_href(raw, switch=True)
    assert switching == sign_in_href(raw).replace("?", "?switch=1&", 1)
    assert re.fullmatch(r"/_auth/start\?switch=1&return_to=[A-Za-z0-9%._~&=+-]+", switch_account_href(raw))


def test_the_fragment_is_taken_along_to_sign_in() -> None:
    assert sign_in_href("/runs?a=b#tab=logs") == "/_auth/login?return_to=%2Fruns%3Fa%3Db#tab=logs"
    switching = urlsplit(switch_account_href("/runs?a=b#tab=a%20b"))
    assert switching.path == "/_auth/start"
    assert parse_qs(switching.query) == {"switch": ["1"], "return_to": ["/runs?a=b"], "fragment": ["tab=a b"]}


@given(st.text(max_size=60), st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_row35_a_fragment_changes_neither_host_nor_page(raw: str, fragment: str) -> None:
    back = parse_return_to(raw)
    whole = with_fragment(back, fragment)
    assert stays_here(whole)
    assert re.fullmatch(r"[\x21-\x7e]+", whole)
    assert whole.partition("#")[0] == back


FRAGMENTS = {
    "row35-plain": ("#logs", "/v2#logs"),
    "row35-without-mark": ("logs", "/v2#logs"),
    "row35-encoded-before": ("a%20b", "/v2#a%20b"),
    "row35-two-marks": ("##x", "/v2#%23x"),
    "row35-crlf": ("x\r\nSet-Cookie: a=b", "/v2#x%0D%0ASet-Cookie:%20a=b"),
    "row35-letters": ("zoë", "/v2#zo%C3%AB"),
    "row35-none": ("", "/v2"),
    "row35-mark-alone": ("#", "/v2"),
    "row35-too-long": ("x" * MAX_RETURN_TO, "/v2"),
    "row35-too-long-once-encoded": ("ë" * (MAX_RETURN_TO // 4), "/v2"),
}


@pytest.mark.parametrize(("fragment", "whole"), FRAGMENTS.values(), ids=FRAGMENTS)
def test_the_fragment_that_the_browser_kept_comes_back(fragment: str, whole: str) -> None:
    assert with_fragment("/v2", fragment) == whole
