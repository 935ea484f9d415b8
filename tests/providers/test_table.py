"""What the documentation says that was tried with real providers is what the tests try."""

from __future__ import annotations

import re

from tests.providers.test_matrix import BY_HAND
from tests.support.keycloak_in_matrix import KeycloakRealm
from tests.support.parts import ROOT
from tests.support.real_provider import ROWS, RealProvider

PAGE = ROOT / "docs" / "providers" / "README.md"
PROVIDERS: tuple[type[RealProvider], ...] = (KeycloakRealm, *BY_HAND.values())


def table() -> str:
    """Return the table, with a numbered note for each limit of a provider."""
    notes = list(dict.fromkeys(f"{one.name}: {text}" for one in PROVIDERS for text in one.limits.values()))
    lines = [
        f"| | {' | '.join(f'{one.name} {one.version}' for one in PROVIDERS)} |",
        f"| --- |{' --- |' * len(PROVIDERS)}",
    ]
    for row, text in ROWS.items():
        cells = [
            str(notes.index(f"{one.name}: {one.limits[row]}") + 1) if row in one.limits else "yes" for one in PROVIDERS
        ]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))])


def test_the_page_has_the_table_of_what_is_tried() -> None:
    found = re.search(r"<!-- tried -->\n(.*?)\n<!-- -->", PAGE.read_text(), re.DOTALL)
    assert found
    assert found[1] == table()


def test_each_limit_is_of_a_row() -> None:
    assert all(one.limits.keys() <= ROWS.keys() for one in PROVIDERS)
