"""The options that several commands share. This module loads nothing of the service."""

import argparse
from pathlib import Path


def add_configuration(parser: argparse._ActionsContainer) -> None:
    """Add the options that name the configuration."""
    parser.add_argument("--config", type=Path, help="the configuration file (default: forward-auth.toml, if any)")
    parser.add_argument("--secrets", type=Path, help="the secrets file (default: secrets.toml beside it, if any)")
