"""``prefect-forward-auth doctor``: looks for mistakes on a worker's machine, or with --server around the service."""

import argparse
import asyncio
import logging
from collections.abc import Callable

from service.doctor.command import add_options
from service.doctor.findings import Finding, status_of
from service.settings import Settings

Configurable = Callable[[argparse.ArgumentParser], None]
Load = Callable[[argparse.Namespace], Settings]


def add_doctor_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", configurable: Configurable, load: Load
) -> None:
    """Add the command. Without ``--server``, ``service.doctor`` runs it before the service is loaded."""
    text = "look for mistakes on a worker's machine or, with --server, around the service; exit 1 if there are any"
    parser = commands.add_parser("doctor", help=text, description=f"{text}.")
    add_options(parser)
    parser.add_argument("--server", action="store_true", help="look at what the service reaches, and at the proxy")
    parser.add_argument("--url", default="", help="Prefect's API as machines reach it, through the proxy")
    configurable(parser)
    parser.set_defaults(run=lambda options: _run(load(options), options.url))


def _run(settings: Settings, url: str) -> int:
    logging.disable(logging.WARNING)  # what the log would say is a finding
    try:
        return asyncio.run(_print(settings, url))
    finally:
        logging.disable(logging.NOTSET)


async def _print(settings: Settings, url: str) -> int:
    from service.gate.doctor import examine_server  # noqa: PLC0415 - other commands need no gate

    found: list[Finding] = []
    async for finding in examine_server(settings, url):
        print(finding, flush=True)
        found.append(finding)
    return status_of(found)
