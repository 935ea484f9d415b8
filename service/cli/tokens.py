"""``token``: machines' tokens that this service issues."""

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from service.core.names import is_visible_name
from service.issuing.configured import ledger_of
from service.issuing.ledger import Ledger, LedgerError, Token
from service.settings import Settings, load
from service.settings.tokens import TokensSettings

DEFAULT_LIFETIME: Final = 90 * 86_400  # seconds
MAX_NAME: Final = 100  # characters
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LIFETIME: Final = re.compile(r"(\d{1,9})([smhd])", re.ASCII)
_COLUMNS: Final = ("ID", "NAME", "ROLE", "CREATED (UTC)", "EXPIRES (UTC)", "LAST USED (UTC)", "STATE")


def add_token_commands(commands: Any, configurable: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the commands; ``configurable`` adds the options that name the configuration to a command."""
    token = commands.add_parser("token", help="issue, list and revoke tokens for machines").add_subparsers(
        required=True
    )
    issue = token.add_parser(
        "issue",
        help="issue a token, and print it once",
        description="Issues a token for a machine and prints it once, alone on standard output: it is kept nowhere.",
    )
    issue.add_argument("--name", required=True, type=_name, help="the machine's name, as it stands in the log")
    issue.add_argument("--role", required=True, help="the token's role: a built-in one or one of the configuration")
    issue.add_argument(
        "--expires",
        type=_lifetime,
        metavar="TIME",
        help="until the token expires, as 90d, 12h or 30m (default: 90d, or tokens.max_lifetime if that is less)",
    )
    issue.set_defaults(run=_issue)
    listing = token.add_parser(
        "list",
        help="list the tokens, with their last use",
        description="Lists the tokens. An expired one stays in the list for 30 days. The last use is noted each "
        "minute.",
    )
    listing.set_defaults(run=_list)
    revoke = token.add_parser(
        "revoke",
        help="revoke a token, or all tokens of a name",
        description="Revokes tokens. A running service refuses them within 5 seconds. Exits with 1 if no valid token "
        "has this id or name.",
    )
    which = revoke.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", help="the id of one token, from `token list`")
    which.add_argument("--name", help="revoke all tokens of this name")
    revoke.set_defaults(run=_revoke)
    backup = token.add_parser(
        "backup",
        help="write a copy of keys and list to a new file",
        description="Writes a copy of the signing keys and the list of tokens to a new file, while the service runs.",
    )
    backup.add_argument("file", type=Path, help="the file to write; it must not exist")
    backup.set_defaults(run=_backup)
    for command in (issue, listing, revoke, backup):
        configurable(command)


def _name(text: str) -> str:
    if not is_visible_name(text) or len(text) > MAX_NAME:
        raise argparse.ArgumentTypeError(
            f"a name has 1 to {MAX_NAME} visible characters, and no space at its ends, as etl-worker"
        )
    return text


def _lifetime(text: str) -> int:
    found = _LIFETIME.fullmatch(text)
    if found is None or not int(found[1]):
        raise argparse.ArgumentTypeError("expected a number and s, m, h or d, as 90d")
    return int(found[1]) * _UNITS[found[2]]


def _configured(options: argparse.Namespace) -> tuple[Settings, TokensSettings, Ledger]:
    settings = load(config_file=options.config, secrets_file=options.secrets).settings
    ledger = ledger_of(settings)
    if settings.tokens is None or ledger is None:
        raise LedgerError(
            "no tokens are issued here: set tokens.folder (FORWARD_AUTH_TOKENS__FOLDER) to a folder that the service "
            "may write to, for this command and for the service"
        )
    return settings, settings.tokens, ledger


def _issue(options: argparse.Namespace) -> int:
    settings, tokens, ledger = _configured(options)
    roles = settings.access().roles
    if options.role not in roles:
        raise LedgerError(f"there is no role {options.role!r}: there are {', '.join(sorted(roles))}")
    lifetime = options.expires or min(DEFAULT_LIFETIME, tokens.max_lifetime)
    if lifetime > tokens.max_lifetime:
        raise LedgerError(
            f"--expires is longer than the {tokens.max_lifetime / 86_400:g} days that tokens.max_lifetime allows: "
            "ask for less, or raise it"
        )
    with ledger:
        token, entry = ledger.issue(options.name, options.role, lifetime, tokens.issuer, tokens.audience)
    print(token, flush=True)
    told = f"Token {entry.id} for {entry.name!r}, role {entry.role}, expires {_moment(entry.expires)} UTC."
    print(f"{told} It is not shown again.", file=sys.stderr)
    return 0


def _list(options: argparse.Namespace) -> int:
    _, _, ledger = _configured(options)
    with ledger:
        found = ledger.tokens()
    if not found:
        print("No tokens yet: `token issue` makes one.", file=sys.stderr)
        return 0
    rows = [_COLUMNS, *(_row(one, time.time()) for one in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _revoke(options: argparse.Namespace) -> int:
    _, _, ledger = _configured(options)
    with ledger:
        revoked = ledger.revoke(token_id=options.id or "", name=options.name or "")
    for one in revoked:
        print(f"Token {one.id} of {one.name!r} is revoked.")
    if not revoked:
        which = f"the id {options.id!r}" if options.id else f"the name {options.name!r}"
        print(f"No valid token has {which}: see `token list`.", file=sys.stderr)
        return 1
    return 0


def _backup(options: argparse.Namespace) -> int:
    _, _, ledger = _configured(options)
    with ledger:
        ledger.back_up(options.file)
    print(f"{options.file}: written. It holds signing keys: keep it as safe as a password.")
    return 0


def _row(token: Token, now: float) -> tuple[str, ...]:
    state = "revoked" if token.revoked is not None else "expired" if token.expires <= now else "valid"
    used = _moment(token.used) if token.used else "never"
    return token.id, token.name, token.role, _moment(token.created), _moment(token.expires), used, state


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
