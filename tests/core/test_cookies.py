"""What is read from a Cookie header, what is left for the upstream, and what a browser is told to keep."""

from http.cookies import SimpleCookie

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import MalformedRequest, SessionEnded
from service.core.model import NO_CREDENTIAL, ForwardedRequest, NoCredential, SessionCookie
from service.core.request.cookies import (
    CHUNK,
    HOST_PREFIX,
    MAX_CHUNKS,
    MAX_COOKIES,
    MAX_SEALED,
    NAME,
    clear_session,
    keeps_secure,
    own_cookies,
    session_cookie,
    set_session,
    strip_own_cookies,
)
from tests.support.refusals import refused

S = "__Host-prefect-gate"
SEALED = "".join(chr(ord("a") + number % 26) for number in range(2 * CHUNK + 7))


def read(header: str | bytes, prefix: bytes = HOST_PREFIX) -> SessionCookie | NoCredential:
    return session_cookie(own_cookies(header if isinstance(header, bytes) else header.encode("latin-1"), prefix))


def kept(set_cookies: list[str]) -> str:
    """Return the Cookie header of a browser that was told all this."""
    return "; ".join(one.partition(";")[0] for one in set_cookies)


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, MAX_SEALED])
@pytest.mark.parametrize("secure", [True, False])
def test_a_session_of_any_size_comes_back_whole(length: int, *, secure: bool) -> None:
    sealed = ("xY-_9" * MAX_SEALED)[:length]
    cookies = set_session(sealed, 60, secure=secure)
    assert read("other=1; " + kept(cookies), HOST_PREFIX if secure else b"") == SessionCookie(sealed)
    assert all(len(one) <= 4096 for one in cookies)


def test_parts_come_in_any_order_and_those_left_from_a_larger_session_are_passed_over() -> None:
    old, new = set_session(SEALED, 60, secure=True), set_session("new", 60, secure=True)
    assert read(kept(list(reversed(old)))) == SessionCookie(SEALED)
    assert read(kept([*old[1:], *new])) == SessionCookie("new")


UNREADABLE = {
    "row18-no-part-count": f"{S}=abc",
    "row18-part-count-alone": f"{S}=1.",
    "row18-part-count-without-point": f"{S}=1",
    "row18-no-parts": f"{S}=0.abc",
    "row18-too-many-parts": f"{S}={MAX_CHUNKS + 1}.abc",
    "row18-part-count-two-digits": f"{S}=01.abc",
    "row18-part-count-negative": f"{S}=-1.abc",
    "row18-part-count-no-number": f"{S}=x.abc",
    "row18-part-count-superscript": f"{S}=\xb2.abc",
    "row18-point-alone": f"{S}=.",
    "row18-part-missing": f"{S}=3.abc; {S}-2=ghi",
    "row18-part-empty": f"{S}=2.abc; {S}-1=",
    "row18-not-ascii": f"{S}=1.abc\xff",
    "row18-part-not-ascii": f"{S}=2.abc; {S}-1=\xc3\xab",
    "row18-repeated": f"{S}=1.abc; {S}=1.def",
    "row18-repeated-alike": f"{S}=1.abc; {S}=1.abc",
    "row18-part-repeated": f"{S}=2.abc; {S}-1=d; {S}-1=e",
    "row18-other-cookie-of-ours-repeated": f"{S}=1.abc; {S}-sign-ins=a; {S}-sign-ins=b",
}


@pytest.mark.parametrize("header", UNREADABLE.values(), ids=UNREADABLE)
def test_a_cookie_that_cannot_be_read_is_a_session_that_ended(header: str) -> None:
    with pytest.raises(SessionEnded):
        read(header)


def test_row18_more_cookies_than_can_be_read_are_no_session_that_ended() -> None:
    with refused(MalformedRequest, "delete this site's cookies"):  # to sign in again would not help
        read(f"{S}=1.abc; x={'x' * MAX_COOKIES}")


NOT_OURS = {
    "row36-tossed-by-a-sibling": ("prefect-gate=1.abc", HOST_PREFIX),
    "row36-secure-prefix-is-another": ("__Secure-prefect-gate=1.abc", HOST_PREFIX),
    "row36-prefix-in-lower-case": ("__host-prefect-gate=1.abc", HOST_PREFIX),
    "row36-name-in-upper-case": ("__Host-PREFECT-GATE=1.abc", HOST_PREFIX),
    "row36-name-inside-a-value": (f"a={S}=1.abc", HOST_PREFIX),
    "row36-name-in-quotes": (f'a="; "{S}=1.abc"', HOST_PREFIX),
    "row36-nameless": (f"={S}=1.abc", HOST_PREFIX),
    "row36-comma-is-no-end": (f"a=b, {S}=1.abc", HOST_PREFIX),
    "row36-empty": (f"{S}=", HOST_PREFIX),
    "row36-no-equals-sign": (S, HOST_PREFIX),
    "row36-nothing": ("", HOST_PREFIX),
    "row36-a-part-alone": (f"{S}-1=abc", HOST_PREFIX),
    "row36-over-http-the-prefix-is-another-name": (f"{S}=1.abc", b""),
}


@pytest.mark.parametrize(("header", "prefix"), NOT_OURS.values(), ids=NOT_OURS)
def test_a_cookie_that_is_not_by_our_name_is_no_session(header: str, prefix: bytes) -> None:
    assert read(header, prefix) is NO_CREDENTIAL


def test_row36_one_that_a_sibling_tossed_does_not_even_disturb() -> None:
    assert read(f"prefect-gate=1.evil; {S}=1.mine; prefect-gate=1.evil") == SessionCookie("mine")


@given(st.binary(max_size=300))
def test_row18_any_bytes_are_a_session_none_or_one_that_ended(header: bytes) -> None:
    for given_header in (header, f"{S}=".encode() + header, header + f"; {S}-1=x; {S}=2.".encode() + header):
        try:
            found = read(given_header)
        except SessionEnded:
            continue
        assert isinstance(found, SessionCookie | NoCredential)
        assert isinstance(found, NoCredential) or found.sealed.isascii()


# what the upstream sees -----------------------------------------------------------------------------------

PASSED_ON = {
    "row36-none-of-ours": (b'a=1;  b="x; y";c', b'a=1;  b="x; y";c'),
    "row36-alone": (f"{S}=1.abc".encode(), b""),
    "row36-first": (f"{S}=1.abc; a=1".encode(), b"a=1"),
    "row36-last": (f"a=1; {S}=1.abc".encode(), b"a=1"),
    "row36-between": (f"a=1;{S}=1.abc;b=2".encode(), b"a=1; b=2"),
    "row36-parts": (f"{S}=2.abc; a=1; {S}-1=def".encode(), b"a=1"),
    "row36-attempts": (f"{S}-attempt-x=y; a=1; {S}-sign-ins=z".encode(), b"a=1"),
    "row36-without-prefix": (b"prefect-gate=1.abc; a=1; prefect-gate-1=x", b"a=1"),
    "row36-without-value": (f"{S}; a=1".encode(), b"a=1"),
    "row36-repeated": (f"{S}=1.a; {S}=1.b; a=1".encode(), b"a=1"),
    "row36-odd-values": (f'{S}=1.abc; q="a b"; e=; u=\xc3\xab; eq=a=b; n'.encode("latin-1"), None),
    "row36-named-in-a-value": (b"a=prefect-gate; b=__Host-prefect-gate", b"a=prefect-gate; b=__Host-prefect-gate"),
    "row36-almost-our-name": (b"my-prefect-gate=1; a=2", b"my-prefect-gate=1; a=2"),
}


@pytest.mark.parametrize(("header", "rest"), PASSED_ON.values(), ids=PASSED_ON)
def test_the_upstream_sees_every_cookie_but_ours(header: bytes, rest: bytes | None) -> None:
    expected = 'q="a b"; e=; u=\xc3\xab; eq=a=b; n'.encode("latin-1") if rest is None else rest
    assert strip_own_cookies(header) == expected


@given(st.lists(st.tuples(st.text("abcXYZ_-", min_size=1), st.binary(max_size=20)), max_size=5), st.integers(0, 5))
def test_cookies_of_others_pass_byte_for_byte(others: list[tuple[str, bytes]], place: int) -> None:
    pairs = [name.encode() + b"=" + value.translate(None, b"; \t") for name, value in others]
    pairs = [one for one in pairs if NAME not in one]
    with_session = [*pairs[:place], f"{S}=2.abc".encode(), *pairs[place:], f"{S}-1=def".encode()]
    assert strip_own_cookies(b"; ".join(with_session)) == b"; ".join(pairs)


# what the browser keeps -----------------------------------------------------------------------------------


def test_a_session_is_kept_to_this_host_over_tls_and_from_scripts() -> None:
    for one in [*set_session(SEALED, 3600, secure=True), *clear_session(secure=True)]:
        name, _, _ = one.partition("=")
        morsel = SimpleCookie(one)[name]
        assert name.startswith("__Host-")
        assert (morsel["path"], morsel["domain"], morsel["samesite"]) == ("/", "", "Lax")
        assert morsel["secure"]
        assert morsel["httponly"]


def test_where_plain_http_is_permitted_a_cookie_is_not_secure_and_not_named_so() -> None:
    (one,) = set_session("abc", 3600, secure=False)
    assert one == "prefect-gate=1.abc; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax"


def test_to_sign_out_is_to_drop_every_part_that_there_could_be() -> None:
    cleared = {one.partition("=")[0] for one in clear_session(secure=True) if "Max-Age=0;" in one}
    assert cleared == {one.partition("=")[0] for one in set_session("x" * MAX_SEALED, 60, secure=True)}
    assert len(cleared) == MAX_CHUNKS


@pytest.mark.parametrize(
    ("scheme", "host", "keeps"),
    [
        ("https", "prefect.example.com", True),
        ("wss", "prefect.example.com", True),
        ("http", "prefect.example.com", False),
        ("ws", "prefect.example.com", False),
        ("http", "localhost", True),
        ("http", "prefect.localhost", True),
        ("http", "127.0.0.1", True),
        ("http", "[::1]", True),
        ("http", "localhost.example.com", False),
        ("http", "notlocalhost", False),
        ("http", "127.0.0.1.example.com", False),
        ("http", "10.0.0.1", False),
    ],
)
def test_only_tls_and_this_machine_keep_secure_cookies(scheme: str, host: str, *, keeps: bool) -> None:
    assert keeps_secure(ForwardedRequest("GET", scheme, host, "/", "", "")) is keeps
