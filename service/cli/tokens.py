"""``token``: machines' tokens that this service issues."""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from service.cli.options import add_configuration
from service.core.identity.claims import MAX_TEXT
from service.core.names import is_visible_name
from service.issuing.configured import ledger_of
from service.issuing.database import LedgerError
from service.issuing.ledger import Ledger, Token
from service.settings import Settings, load
from service.settings.tokens import TokensSettings

DEFAULT_LIFETIME: Final = 90 * 86_400  # seconds
MAX_NAME: Final = 100  # characters
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LIFETIME: Final = re.compile(r"(\d{1,9})([smhd])", re.ASCII)
KEEP_REVOKED: Final = 365 * 86_400  # seconds, where no expiry is given
MAX_KEEP_REVOKED: Final = 10 * KEEP_REVOKED
_COLUMNS: Final = ("ID", "NAME", "ROLE", "CREATED (UTC)", "EXPIRES (UTC)", "LAST USED (UTC)", "STATE", "OWNER")
_REVOKED: Final = ("ISSUER", "JTI", "REVOKED (UTC)", "KEPT UNTIL (UTC)")


def define(parser: argparse.ArgumentParser) -> None:
    """Add the commands and their options."""
    token = parser.add_subparsers(required=True)
    issue = token.add_parser(
        "issue",
        help="issue a token, and print it once",
        description="Issues a token for a machine and prints it once, alone on standard output: it is kept nowhere.",
    )
    issue.add_argument("--name", required=True, type=machine_name, help="the machine's name, as it stands in the log")
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
        help="revoke a token, all tokens of a name, or a token of another issuer",
        description="Revokes tokens for good. A running service refuses them within 5 seconds. Exits with 1 if no "
        "valid token has this id, name or owner.",
    )
    which = revoke.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", help="the id of one token, from `token list`")
    which.add_argument("--name", help="revoke all tokens of this name")
    which.add_argument("--owner", help="revoke all tokens of a person, as `token list` has them, such as 'local ada'")
    which.add_argument("--jti", help="revoke the token of --issuer with this claim 'jti'")
    revoke.add_argument("--issuer", help="the issuer of the token with --jti: its claim 'iss'")
    revoke.add_argument(
        "--expires-at",
        type=_instant,
        metavar="TIME",
        help="when the token with --jti expires: its claim 'exp', or a date and time in UTC as 2027-01-31T12:00 "
        f"(default: in {KEEP_REVOKED // 86_400} days). The revocation is forgotten then",
    )
    revoke.set_defaults(run=_revoke)
    backup = token.add_parser(
        "backup",
        help="write a copy of keys and list to a new file",
        description="Writes a copy of the signing keys and the list of tokens to a new file, while the service runs.",
    )
    backup.add_argument("file", type=Path, help="the file to write; it must not exist")
    backup.set_defaults(run=_backup)
    for command in (issue, listing, revoke, backup):
        add_configuration(command)


def machine_name(text: str) -> str:
    """Return a name that a machine can have, for argparse."""
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


def _instant(text: str) -> int:
    """Return a time in seconds since the epoch."""
    try:
        at = float(text) if text.isdecimal() else datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        at = 0.0
    if not time.time() < at <= time.time() + MAX_KEEP_REVOKED:
        raise argparse.ArgumentTypeError(
            f"expected a time within the next {MAX_KEEP_REVOKED // 86_400} days, as 1806000000 or 2027-01-31T12:00"
        )
    return int(at)


def configured(options: argparse.Namespace) -> tuple[Settings, TokensSettings, Ledger]:
    """Return the settings, those of tokens, and the ledger, not open yet. Raises LedgerError if there is none."""
    settings = load(config_file=options.config, secrets_file=options.secrets).settings
    ledger = ledger_of(settings)
    if settings.tokens is None or ledger is None:
        raise LedgerError(
            "no tokens are issued here: set tokens.folder (FORWARD_AUTH_TOKENS__FOLDER) to a folder that the service "
            "may write to, or tokens.database to the URL of PostgreSQL, for this command and for the service"
        )
    return settings, settings.tokens, ledger


def check_role(settings: Settings, role: str) -> None:
    """Raise LedgerError unless the configuration has a role."""
    roles = settings.access().roles
    if role not in roles:
        raise LedgerError(f"there is no role {role!r}: there are {', '.join(sorted(roles))}")


def _issue(options: argparse.Namespace) -> int:
    settings, tokens, ledger = configured(options)
    check_role(settings, options.role)
    lifetime = options.expires or min(DEFAULT_LIFETIME, tokens.max_lifetime)
    if lifetime > tokens.max_lifetime:
        raise LedgerError(
            f"--expires is longer than the {tokens.max_lifetime / 86_400:g} days that tokens.max_lifetime allows: "
            "ask for less, or raise it"
        )
    with ledger:
        token, entry = ledger.issue(options.name, options.role, lifetime, tokens.issuer, tokens.audience)
    print(token, flush=True)
    told = f"Token {entry.id} for {entry.name!r}, role {entry.role}, expires {moment(entry.expires)} UTC."
    print(f"{told} It is not shown again.", file=sys.stderr)
    return 0


def _list(options: argparse.Namespace) -> int:
    _, _, ledger = configured(options)
    with ledger:
        found, revoked = ledger.tokens(), ledger.revocations()
    if not found:
        print("No tokens yet: `token issue` makes one.", file=sys.stderr)
    else:
        print_table([_COLUMNS, *(_row(one, time.time()) for one in found)])
    if revoked:
        print("\nRevoked with --issuer and --jti:")
        print_table([_REVOKED, *((one.issuer, one.jti, moment(one.created), moment(one.expires)) for one in revoked)])
    return 0


def _revoke(options: argparse.Namespace) -> int:
    settings, tokens, ledger = configured(options)
    if options.jti is not None or options.issuer is not None or options.expires_at is not None:
        return _revoke_of(options, settings, tokens, ledger)
    with ledger:
        if options.owner:
            revoked = ledger.revoke_owned(options.owner)
        else:
            revoked = ledger.revoke(token_id=options.id or "", name=options.name or "")
    for one in revoked:
        print(f"Token {one.id} of {one.name!r} is revoked.")
    if not revoked:
        given = {"id": options.id, "owner": options.owner, "name": options.name}
        which = next(f"the {what} {value!r}" for what, value in given.items() if value or what == "name")
        print(f"No valid token has {which}: see `token list`.", file=sys.stderr)
        return 1
    return 0


def _revoke_of(options: argparse.Namespace, settings: Settings, tokens: TokensSettings, ledger: Ledger) -> int:
    """Revoke a token by its issuer and its id there, which may be this service."""
    issuers = [*(one.url for one in settings.all_issuers), tokens.issuer]
    jti, issuer, expires = options.jti, options.issuer, options.expires_at
    if jti is None or issuer is None:
        raise LedgerError("--jti and --issuer belong together: both are claims of the token ('jti', 'iss')")
    if issuer not in issuers:
        raise LedgerError(f"no tokens of {issuer!r} are accepted: name one of {', '.join(issuers)}, exactly so")
    if not jti.isprintable() or not 1 <= len(jti) <= MAX_TEXT:
        raise LedgerError(f"--jti has 1 to {MAX_TEXT} characters that can be printed")
    with ledger:
        listed = ledger.revoke(token_id=jti) if issuer == tokens.issuer else []
        if not listed:
            ledger.revoke_of(issuer, jti, expires or int(time.time()) + KEEP_REVOKED)
    print(f"Token {jti} of {issuer} is revoked.")
    return 0


def _backup(options: argparse.Namespace) -> int:
    _, _, ledger = configured(options)
    with ledger:
        ledger.back_up(options.file)
    print(f"{options.file}: written. It holds signing keys: keep it as safe as a password.")
    return 0


def _row(token: Token, now: float) -> tuple[str, ...]:
    state = "revoked" if token.revoked is not None else "expired" if token.expires <= now else "valid"
    times = moment(token.created), moment(token.expires), moment(token.used)
    owner = token.owner if token.owner.isprintable() else ascii(token.owner)  # a subject may be any text
    return token.id, token.name, token.role, *times, state, owner


def moment(seconds: int | None) -> str:
    """Return a time as people read it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) if seconds else "never"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns; the first has their names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
