from collections.abc import Iterator

import pytest

from tests.support.keycloak import Keycloak


@pytest.fixture(scope="session")
def keycloak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keycloak]:
    """Return a running Keycloak with no realm but its own; a test makes realms of names of its own."""
    with Keycloak(tmp_path_factory.mktemp("keycloak")) as running:
        yield running
