"""``prefect-forward-auth doctor``: looks for mistakes on a worker's machine, or with --server around the service."""

import argparse
import asyncio
import logging

from service.cli.options import add_configuration
from service.doctor import command
from service.doctor.findings import Finding, status_of


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options of both."""
    command.define(parser)
    server = parser.add_argument_group("around the service")
    server.add_argument("--server", action="store_true", help="look at what the service reaches, and at the proxy")
    server.add_argument("--url", default="", help="Prefect's API as machines reach it, through the proxy")
    add_configuration(server)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if not options.server:
        return command.run(options)
    logging.disable(logging.WARNING)  # what the log would say is a finding
    try:
        return asyncio.run(_print(options))
    finally:
        logging.disable(logging.NOTSET)


async def _print(options: argparse.Namespace) -> int:
    # the worker's side needs neither
    from service.cli.loading import load_checked  # noqa: PLC0415
    from service.gate.doctor import examine_server  # noqa: PLC0415

    found: list[Finding] = []
    async for finding in examine_server(load_checked(options).settings, options.url):
        print(finding, flush=True)
        found.append(finding)
    return status_of(found)
