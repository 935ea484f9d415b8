"""Names: what one sees is all that there is."""

import unicodedata

import pytest

from service.core.names import is_visible_name

DEFAULT_IGNORABLE = (  # Unicode 16.0, DerivedCoreProperties.txt
    *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0x200B, 0x2010)),
    *(*range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164, *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0),
    *(*range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), *range(0xE0000, 0xE1000)),
)


@pytest.mark.parametrize(
    "name",
    [
        "alice",
        "bob smith",
        "o'neill",
        "alice@example.com",
        "ci/deploy",
        "#1",
        "Zoë",
        "Zoe\u0308",
        "王小明",
        "нина",
        "🦊",
        "-",
    ],
)
def test_a_name_of_any_script_is_one(name: str) -> None:
    assert is_visible_name(name)


@pytest.mark.parametrize("name", ["", " ", " bob", "bob ", "\tbob", "bob\n", "bob\r", "bo\tb", "bob\x00", "bob\x7f"])
def test_white_space_around_a_name_and_control_characters_are_refused(name: str) -> None:
    assert not is_visible_name(name)


@pytest.mark.parametrize("place", ["{}bob", "bo{}b", "bob{}"])
def test_no_character_that_shows_nothing_is_part_of_a_name(place: str) -> None:
    refused = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}
    for code in (*range(0x3000), *range(0xD7F0, 0xE010), *range(0xF8F0, 0x10000), *DEFAULT_IGNORABLE):
        one = chr(code)
        hidden = unicodedata.category(one) in refused or code in DEFAULT_IGNORABLE
        blank = unicodedata.category(one) == "Zs" and (code != 0x20 or place != "bo{}b")
        assert is_visible_name(place.format(one)) is not (hidden or blank or code == 0x2800), hex(code)
