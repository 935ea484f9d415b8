"""The command that the agent runs: its environment, the signals that it is handed, its exit status."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

PREFIX: Final = "FORWARD_AUTH_AGENT_"  # of the agent's own variables, which are not for the child
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
_CREDENTIALS: Final = frozenset({"PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"})
_CUSTOM_HEADERS: Final = "PREFECT_CLIENT_CUSTOM_HEADERS"
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def environment_of(environ: Mapping[str, str], api_url: str, ui_url: str) -> dict[str, str]:
    """Return the child's environment: the agent's address in place of every credential."""
    env = {name: value for name, value in environ.items() if name not in _CREDENTIALS and not name.startswith(PREFIX)}
    env["PREFECT_API_URL"] = api_url
    env.setdefault("PREFECT_UI_URL", ui_url)  # or links in the worker's log would lead to the agent
    if _CUSTOM_HEADERS in env:
        env[_CUSTOM_HEADERS] = _without_authorization(env[_CUSTOM_HEADERS])
    direct = ",".join(filter(None, (env.get("no_proxy") or env.get("NO_PROXY"), "127.0.0.1")))
    return env | {"no_proxy": direct, "NO_PROXY": direct}


def _without_authorization(text: str) -> str:
    try:
        headers = json.loads(text)
    except ValueError:
        return "{}"
    if not isinstance(headers, dict):
        return "{}"
    return json.dumps({name: value for name, value in headers.items() if name.lower() != "authorization"})


async def run(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a command, hand it the signals that come, and return the exit status that a shell would report."""
    loop = asyncio.get_running_loop()
    came: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in _PASSED_ON:  # before there is a child: none is lost
        loop.add_signal_handler(number, came.put_nowait, number)
    try:
        child = await asyncio.create_subprocess_exec(*command, env=env)
    except OSError as problem:
        print(f"prefect-forward-auth: {command[0]}: {problem.strerror}", file=sys.stderr)
        return NOT_FOUND if isinstance(problem, FileNotFoundError) else NOT_EXECUTABLE
    passing = asyncio.ensure_future(_pass_on(came, child))
    try:
        status = await child.wait()
    finally:
        passing.cancel()
    return 128 - status if status < 0 else status


async def asked_to_stop() -> None:
    """Wait for a signal to stop."""
    came: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, came.put_nowait, number)
    await came.get()


async def _pass_on(came: asyncio.Queue[signal.Signals], child: asyncio.subprocess.Process) -> None:
    while True:
        number = await came.get()
        if number is signal.SIGINT and _at_terminal():
            continue  # Ctrl-C: the terminal sends it to the child as well, which must not get it twice
        with suppress(ProcessLookupError):
            child.send_signal(number)


def _at_terminal() -> bool:
    """Tell whether this process and its child are in the foreground of a terminal."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False
