"""What was sealed opens again, for its purpose, under a key that is at hand; nothing else opens."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.authn.seal import Seal

OLD, NEW = "an old secret of more than 32 characters", "a new secret of more than 32 characters"
CONTENT = b"who it is, and until when"


def test_what_was_sealed_opens_again_at_every_replica() -> None:
    assert Seal((OLD,)).open("session", Seal((OLD,)).seal("session", CONTENT)) == CONTENT


@given(st.binary(max_size=200))
def test_any_content_fits_into_a_cookie_and_a_form(content: bytes) -> None:
    seal = Seal((OLD,))
    sealed = seal.seal("session", content)
    assert set(sealed) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert seal.open("session", sealed) == content


def test_what_was_sealed_for_one_purpose_is_nothing_for_another() -> None:
    seal = Seal((OLD,))
    for purpose in ("session", "attempt", "rounds", "sign-out", ""):
        sealed = seal.seal(purpose, CONTENT)
        opened = [other for other in ("session", "attempt", "rounds", "sign-out", "") if seal.open(other, sealed)]
        assert opened == [purpose]


def test_a_new_key_in_front_seals_and_the_old_one_still_opens_until_it_is_removed() -> None:
    before, both, after = Seal((OLD,)), Seal((NEW, OLD)), Seal((NEW,))
    of_old, of_new = before.seal("session", CONTENT), both.seal("session", CONTENT)
    assert both.open("session", of_old) == both.open("session", of_new) == after.open("session", of_new) == CONTENT
    assert after.open("session", of_old) is None
    assert before.open("session", of_new) is None


def test_without_a_configured_key_each_process_has_its_own() -> None:
    mine = Seal()
    sealed = mine.seal("session", CONTENT)
    assert mine.open("session", sealed) == CONTENT
    assert Seal().open("session", sealed) is None


def test_the_same_is_never_sealed_the_same_way_and_nothing_of_it_shows() -> None:
    seal = Seal((OLD,))
    sealed = {seal.seal("session", CONTENT) for _ in range(1_000)}
    raw = [base64.urlsafe_b64decode(one + "=" * (-len(one) % 4)) for one in sealed]
    assert len({one[4:16] for one in raw}) == 1_000  # the nonces: GCM is broken by one that is used twice
    assert not any(CONTENT in one or OLD.encode() in one for one in raw)


def test_a_change_of_any_bit_is_noticed() -> None:
    seal = Seal((OLD,))
    sealed = seal.seal("session", CONTENT)
    raw = base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
    for place in range(len(raw) * 8):
        forged = bytearray(raw)
        forged[place // 8] ^= 1 << place % 8
        assert seal.open("session", base64.urlsafe_b64encode(forged).rstrip(b"=").decode()) is None, place
    for length in range(len(sealed)):
        assert seal.open("session", sealed[:length]) is None, length


NOT_SEALED = ["", "A", "====", "a b", "ümlaut", "\x00", "\ud800", "!" * 40, "A" * 20_000, "{}", "null"]


@pytest.mark.parametrize("text", NOT_SEALED, ids=range(len(NOT_SEALED)))
def test_row18_what_is_no_seal_opens_nothing_and_breaks_nothing(text: str) -> None:
    assert Seal((OLD,)).open("session", text) is None


@given(st.text(max_size=80))
def test_row18_no_text_at_all_opens(text: str) -> None:
    seal = Seal((OLD,))
    key_id = seal.seal("session", CONTENT)[:5]  # so that it comes as far as the cipher
    assert seal.open("session", text) is None
    assert seal.open("session", key_id + text) is None


def test_a_name_is_the_same_for_all_who_share_the_first_key_and_tells_nothing() -> None:
    name = Seal((OLD,)).name_of(CONTENT)
    assert name == Seal((OLD, NEW)).name_of(CONTENT)
    assert len({name, Seal((NEW, OLD)).name_of(CONTENT), Seal((OLD,)).name_of(CONTENT + b"!")}) == 3
    assert Seal().name_of(CONTENT) != Seal().name_of(CONTENT)
    assert CONTENT.decode() not in name
