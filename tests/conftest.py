from __future__ import annotations

import os
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.postgresql import PostgreSQLServer

# What starts much shares it, so it stays in one process; the longest come first, so that none is left for the end.
TOGETHER = {
    "tests/browser/": "browser",
    "tests/providers/": "providers",
    "tests/docker/test_replicas.py": "replicas",
    "tests/docker/test_issued_tokens.py": "replicas",
    "tests/docker/": "docker",
    "tests/e2e/test_proxies.py": "proxies",
    "tests/e2e/test_oauth2_proxy.py": "proxies",
    "tests/e2e/test_demo.py": "demo",
    "tests/e2e/test_restarts.py": "restarts",
    "tests/e2e/test_websocket_attacks.py": "restarts",
    "tests/e2e/test_agent.py": "restarts",
    "tests/e2e/": "e2e",
    "tests/deploy/": "deploy",
}


def pytest_configure(config: pytest.Config) -> None:
    """Prepare each process that runs tests."""
    os.umask(0o022)  # files that the group may not write to
    _trust_one_authority(config)
    if os.environ.get("TEST_BY_ASGI"):
        _use_another_uvicorn(config)
    _pass_on_to_processes()


def _use_another_uvicorn(config: pytest.Config) -> None:
    """Let the service find a uvicorn that it does not know, here and in processes, so that all calls go by ASGI."""
    from tests.support.other_uvicorn import install  # noqa: PLC0415 - here alone, where it is wanted

    folder = tempfile.TemporaryDirectory(prefix="uvicorn-")
    config.add_cleanup(folder.cleanup)
    path = str(install(Path(folder.name)))
    sys.path.insert(0, path)
    os.environ["PYTHONPATH"] = os.pathsep.join([path, *filter(None, [os.environ.get("PYTHONPATH")])])


def _pass_on_to_processes() -> None:
    """Pass on what concerns all processes to those, too, that tests start with an environment of their own.

    `make coverage` measures them, and lets them answer by ASGI.
    """
    measuring = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_PROCESS_")}
    first = os.environ.get("PYTHONPATH") if os.environ.get("TEST_BY_ASGI") else None
    if not measuring and not first:
        return
    start = subprocess.Popen.__init__

    def started(self: Any, *args: Any, env: Any = None, **rest: Any) -> None:
        if env is not None:
            env = {**measuring, **env}
            if first:
                env["PYTHONPATH"] = os.pathsep.join(filter(None, [first, env.get("PYTHONPATH")]))
        start(self, *args, env=env, **rest)

    subprocess.Popen.__init__ = started  # type: ignore[method-assign]


def _trust_one_authority(config: pytest.Config) -> None:
    """Know one authority instead of all: httpx reads them anew for each client, for 30 ms, and here are thousands."""
    end = "-----END CERTIFICATE-----\n"
    folder = tempfile.TemporaryDirectory(prefix="authority-")
    config.add_cleanup(folder.cleanup)
    one = Path(folder.name) / "one.pem"
    one.write_text(certifi.contents().partition(end)[0] + end)
    all_of_them = {certifi.where(), os.environ.get("SSL_CERT_FILE") or certifi.where()}
    create = ssl.create_default_context

    def create_default_context(*args: Any, cafile: str | None = None, **rest: Any) -> ssl.SSLContext:
        return create(*args, cafile=str(one) if cafile in all_of_them else cafile, **rest)

    ssl.create_default_context = create_default_context


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQLServer]:
    """Return a running PostgreSQL, one for each process that runs tests."""
    from tests.support.postgresql import PostgreSQLServer  # noqa: PLC0415 - here alone, where it is wanted

    with PostgreSQLServer() as server:
        yield server


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is run by hand, and put the longest first."""
    if os.environ.get("TEST_PROVIDERS") != "all":
        by_hand = [item for item in items if item.get_closest_marker("by_hand")]
        config.hook.pytest_deselected(items=by_hand)
        items[:] = [item for item in items if item not in by_hand]
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
