from __future__ import annotations

from typing import Any

import pytest

# What starts much shares it, so it stays in one process; the longest come first, so that none is left for the end.
TOGETHER = {
    "tests/browser/": "browser",
    "tests/docker/test_replicas.py": "replicas",
    "tests/docker/": "docker",
    "tests/e2e/test_proxies.py": "proxies",
    "tests/e2e/test_oauth2_proxy.py": "proxies",
    "tests/e2e/test_demo.py": "demo",
    "tests/e2e/": "e2e",
    "tests/deploy/": "deploy",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first."""
    order = list(dict.fromkeys(TOGETHER.values()))
    items.sort(key=lambda item: order.index(group) if (group := _group(item.nodeid)) in order else len(order))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Spread the tests over the processes of `pytest -n 3`: what is not named here, file by file."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - here alone, where tests run side by side

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Groups(config, log)


def _group(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    return next((group for start, group in TOGETHER.items() if file.startswith(start)), file)
