"""``machines``: the machines that obtain tokens from this service with a name and a secret."""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from service.cli.options import add_configuration
from service.cli.tokens import check_role, configured, machine_name, moment, print_table
from service.issuing.ledger import Machine

_COLUMNS: Final = ("NAME", "ROLE", "SECRET", "CREATED (UTC)", "LAST USED (UTC)")


def define(parser: argparse.ArgumentParser) -> None:
    """Add the commands and their options."""
    machines = parser.add_subparsers(required=True)
    for name, run, explanation in (
        ("add", _add, "add a machine, and print its secret once, alone on standard output"),
        ("list", _list, "list the machines and their secrets, with their last use"),
        ("rotate", _rotate, "print a second secret of a machine; the first one stays valid until it is removed"),
        ("remove-secret", _remove_secret, "remove one secret of a machine, and end the tokens obtained with it"),
        ("remove", _remove, "remove a machine, and end its tokens"),
    ):
        command = machines.add_parser(name, help=explanation, description=f"{explanation}.".capitalize())
        if name == "add":
            command.add_argument("name", type=_client_id, help="the machine's name, which is its client id")
            command.add_argument("--role", required=True, help="a built-in role or one of the configuration")
        elif name != "list":
            command.add_argument("name", help="the machine's name")
        if name == "remove-secret":
            command.add_argument("id", help="the id of the secret, from `machines list`")
        add_configuration(command)
        command.set_defaults(run=run)


def _client_id(text: str) -> str:
    name = machine_name(text)
    if ":" in name:
        raise argparse.ArgumentTypeError("a machine's name has no colon, which ends a name in HTTP (RFC 7617)")
    return name


def _add(options: argparse.Namespace) -> int:
    settings, _, ledger = configured(options)
    check_role(settings, options.role)
    with ledger:
        secret = ledger.add_machine(options.name, options.role)
    print(secret, flush=True)
    told = f"This is the secret of the machine {options.name!r}, role {options.role}."
    print(f"{told} It is not shown again.", file=sys.stderr)
    return 0


def _list(options: argparse.Namespace) -> int:
    _, _, ledger = configured(options)
    with ledger:
        found = ledger.machines()
    if not found:
        print("No machines yet: `machines add` adds one.", file=sys.stderr)
        return 0
    print_table([_COLUMNS, *(row for one in found for row in _rows(one))])
    return 0


def _rows(machine: Machine) -> Sequence[Sequence[str]]:
    """Return a row for each secret; one for a machine that has none."""
    known = machine.name, machine.role
    rows = [(*known, one.id, moment(one.created), moment(one.used)) for one in machine.secrets]
    return rows or [(*known, "none", moment(machine.created), "never")]


def _rotate(options: argparse.Namespace) -> int:
    _, _, ledger = configured(options)
    with ledger:
        secret, before = ledger.add_secret(options.name)
    print(secret, flush=True)
    print(f"This is a new secret of the machine {options.name!r}. It is not shown again.", file=sys.stderr)
    for one in before:
        told = f"`machines remove-secret {options.name} {one.id}`"
        print(f"The old one stays valid. Once the machine has the new one, run {told}.", file=sys.stderr)
    return 0


def _remove_secret(options: argparse.Namespace) -> int:
    _, _, ledger = configured(options)
    with ledger:
        removed = ledger.remove_secret(options.name, options.id)
    if not removed:
        print(f"{options.name!r} has no secret {options.id!r}: see `machines list`.", file=sys.stderr)
        return 1
    print(f"The secret {options.id} of {options.name!r} is removed, and its tokens are refused.")
    return 0


def _remove(options: argparse.Namespace) -> int:
    _, _, ledger = configured(options)
    with ledger:
        removed = ledger.remove_machine(options.name)
    if not removed:
        print(f"There is no machine {options.name!r}: see `machines list`.", file=sys.stderr)
        return 1
    print(f"{options.name!r} is removed, and its tokens are refused.")
    return 0
