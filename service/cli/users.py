"""``users``: changes the users file."""

import argparse
import sys
from pathlib import Path
from typing import Final

from service.adapters.users_file import (
    MAX_COST,
    MAX_SIZE,
    UsersFileError,
    hash_password,
    read_users,
    verify_password,
    write_user,
)
from service.cli.options import add_configuration
from service.cli.passwords import read_new_password, read_password
from service.settings import Settings, load

DEFAULT_COST: Final = 12


def define(parser: argparse.ArgumentParser) -> None:
    """Add the commands and their options."""
    commands = parser.add_subparsers(required=True)
    for name, run, explanation in (
        ("hash", _hash, "print the bcrypt hash of a password"),
        ("add", _add, "add a user, or change a password"),
        ("remove", _remove, "remove a user"),
        ("list", _list, "list the users"),
        ("verify", _verify, "check a password; exit 1 if it is wrong"),
    ):
        command = commands.add_parser(
            name, help=explanation, description=f"{explanation}. Passwords come from a prompt or standard input."
        )
        if name in {"add", "remove", "verify"}:
            command.add_argument("name")
        if name in {"hash", "add"}:
            command.add_argument("--cost", type=int, default=DEFAULT_COST, help="bcrypt cost (default %(default)s)")
        if name != "hash":
            command.add_argument("--file", type=Path, help="the users file (default: users.file of the settings)")
            add_configuration(command)
        command.set_defaults(run=run)


def _users_file(options: argparse.Namespace) -> tuple[Path, int, int]:
    """Return the users file, the highest bcrypt cost that is accepted in it, and its largest size in bytes."""
    if options.file is not None:
        return options.file, MAX_COST, MAX_SIZE
    settings: Settings = load(config_file=options.config, secrets_file=options.secrets).settings
    if settings.users is None:
        raise UsersFileError("name the users file: --file, or users.file in the settings")
    return settings.users.file, settings.users.max_cost, settings.users.max_size


def _hash(options: argparse.Namespace) -> int:
    print(hash_password(read_new_password(), options.cost))
    return 0


def _add(options: argparse.Namespace) -> int:
    path, *limits = _users_file(options)
    if path.exists() and path.stat().st_size:
        read_users(path, *limits)  # tell about a broken file before asking for a password
    known = write_user(path, options.name, hash_password(read_new_password(), options.cost), *limits)
    print(f"{path}: {options.name!r} {'has a new password' if known else 'added'}.")
    return 0


def _remove(options: argparse.Namespace) -> int:
    path, *limits = _users_file(options)
    if not write_user(path, options.name, None, *limits):
        print(f"{path} has no user {options.name!r}.", file=sys.stderr)
        return 1
    print(f"{path}: {options.name!r} removed.")
    return 0


def _list(options: argparse.Namespace) -> int:
    for name in read_users(*_users_file(options)).hashes:
        print(name)
    return 0


def _verify(options: argparse.Namespace) -> int:
    right = verify_password(read_users(*_users_file(options)), options.name, read_password())
    print("The password is right." if right else "The user name or the password is wrong.")
    return 0 if right else 1
