from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
# What starts much shares it, so it stays in one process; the longest come first, so that none is left for the end.
TOGETHER = {
    "docker": "docker",
    "browser": "browser",
    "e2e/test_proxies.py": "proxies",
    "e2e/test_oauth2_proxy.py": "proxies",
    "e2e/test_demo.py": "demo",
    "deploy": "deploy",
    "e2e": "e2e",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the tests over processes (`pytest -n 3 --dist loadgroup`): what is not named here, file by file."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    order = list(dict.fromkeys(TOGETHER.values()))
    items.sort(key=lambda item: order.index(group) if (group := _group(item)) in order else len(order))


def _group(item: pytest.Item) -> str:
    path = item.path.relative_to(HERE)
    file = path.as_posix()
    return TOGETHER.get(file) or TOGETHER.get(path.parts[0]) or file
