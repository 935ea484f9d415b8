import pytest

from service.core.prefect.roles import BUILT_IN, Access
from service.core.prefect.routes import Routes, known_routes


@pytest.fixture(scope="session")
def routes() -> Routes:
    return Routes(known_routes())


@pytest.fixture(scope="session")
def access(routes: Routes) -> Access:
    return Access(BUILT_IN.values(), routes)
