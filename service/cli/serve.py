"""``serve``: the service itself."""

import argparse

from service.cli.loading import load_checked
from service.cli.options import add_configuration


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_configuration(parser)
    parser.add_argument("--host", help="the address to listen at")
    parser.add_argument("--port", help="the port to listen at; 0 takes a free one")
    parser.add_argument("--uds", help="a Unix socket to listen at instead")
    parser.add_argument("--workers", help="processes")
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    settings = load_checked(options).settings
    from service.gate.server import serve  # noqa: PLC0415 - a mistake in the settings is told at once

    serve(settings, options.config, options.secrets)
    return 0
