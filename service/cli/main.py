"""``prefect-forward-auth``: the commands of the service and its operators."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Final

from service import __version__
from service.adapters.files import FileError
from service.adapters.users_file import (
    MAX_COST,
    MAX_SIZE,
    UsersFileError,
    hash_password,
    read_users,
    verify_password,
    write_user,
)
from service.agent.command import add_commands
from service.agent.git_credential import add_command as add_git_credential_command
from service.cli.doctor import add_doctor_command
from service.cli.machines import add_machine_commands
from service.cli.passwords import read_new_password, read_password
from service.cli.roles import add_role_commands
from service.cli.tokens import add_token_commands
from service.core.identity.presets import PRESETS
from service.gate.explain import CannotExplainError
from service.issuing.ledger import LedgerError, check_folder
from service.rendering.presets import list_lines, preset_lines
from service.settings import ConfigError, Loaded, Settings, load
from service.settings.advice import warnings_about
from service.settings.edit import EditError, Wish, edit_secrets
from service.settings.load import config_path, secrets_path
from service.settings.show import shown
from service.settings.starter import CONFIG_MODE, SECRETS_MODE, config_text, secrets_text, write_new

DEFAULT_COST: Final = 12
_READER_GONE: Final = 128 + 13  # SIGPIPE, which Windows does not have


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 no (a wrong password, a refusal), 2 a mistake that is explained.

    Ctrl-C exits with 130, and a reader of the output who has gone with 141, as a shell reports both signals.
    """
    try:
        try:
            code = _run(arguments)
        finally:
            print(end="", flush=True)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # where the cursor stands behind a prompt
        code = 128 + signal.SIGINT
    except OSError as problem:  # of the output alone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        code = _READER_GONE if isinstance(problem, BrokenPipeError) else 2
        if code != _READER_GONE:
            print(f"prefect-forward-auth: the output cannot be written: {problem.strerror}", file=sys.stderr)
    sys.exit(code)


def _run(arguments: list[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ConfigError as error:
        print(f"The configuration has {len(error.problems)} problem(s):", file=sys.stderr)
        for problem in error.problems:
            print(f"  - {problem}", file=sys.stderr)
    except BrokenPipeError:
        raise
    except (FileError, UsersFileError, EditError, CannotExplainError, OSError) as error:
        print(f"prefect-forward-auth: {error}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prefect-forward-auth", description="Forward auth made for Prefect.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    serve = commands.add_parser("serve", help="answer verify calls")
    _configurable(serve)
    serve.add_argument("--host", help="the address to listen at")
    serve.add_argument("--port", help="the port to listen at; 0 takes a free one")
    serve.add_argument("--uds", help="a Unix socket to listen at instead")
    serve.add_argument("--workers", help="processes")
    serve.set_defaults(run=_serve)
    add_commands(commands)
    add_git_credential_command(commands)

    config = commands.add_parser("config", help="write, look at and change the configuration").add_subparsers(
        required=True
    )
    for name, run, explanation in (
        ("init", _config_init, "write a commented forward-auth.toml, and a secrets file for the owner's eyes alone"),
        ("check", _config_check, "list every problem, or say that there is none; exit 1 if nobody could get in"),
        ("show", _config_show, "print the values in force as TOML, each with its source, secrets masked"),
        ("edit-secrets", _config_edit, "open the secrets file in $EDITOR, and replace it once it is good"),
    ):
        command = config.add_parser(name, help=explanation, description=f"{explanation}.")
        _configurable(command)
        if name == "check":
            command.add_argument("--strict", action="store_true", help="exit 1 if there is any warning")
        command.set_defaults(run=run)

    presets = config.add_parser("presets", help="list the presets of issuers, or show one")
    presets.add_argument("name", nargs="?", choices=list(PRESETS), metavar="NAME", help="the preset to show")
    presets.set_defaults(run=_config_presets)

    add_role_commands(commands, _configurable)
    add_token_commands(commands, _configurable)
    add_machine_commands(commands, _configurable)
    add_doctor_command(commands, _configurable, lambda options: _load(options).settings)

    users = commands.add_parser("users", help="change the users file").add_subparsers(required=True)
    for name, run, explanation in (
        ("hash", _users_hash, "print the bcrypt hash of a password"),
        ("add", _users_add, "add a user, or change a password"),
        ("remove", _users_remove, "remove a user"),
        ("list", _users_list, "list the users"),
        ("verify", _users_verify, "check a password; exit 1 if it is wrong"),
    ):
        command = users.add_parser(
            name, help=explanation, description=f"{explanation}. Passwords come from a prompt or standard input."
        )
        if name in {"add", "remove", "verify"}:
            command.add_argument("name")
        if name in {"hash", "add"}:
            command.add_argument("--cost", type=int, default=DEFAULT_COST, help="bcrypt cost (default %(default)s)")
        if name != "hash":
            command.add_argument("--file", type=Path, help="the users file (default: users.file of the settings)")
            _configurable(command)
        command.set_defaults(run=run)
    return parser


def _configurable(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="the configuration file (default: forward-auth.toml, if any)")
    parser.add_argument("--secrets", type=Path, help="the secrets file (default: secrets.toml beside it, if any)")


def _load(options: argparse.Namespace) -> Loaded:
    """Load the settings and check the files that they name; raise ConfigError with the problems of both."""
    given = {name: getattr(options, name, None) for name in ("host", "port", "uds", "workers")}
    command_line = {name: value for name, value in given.items() if value}
    try:
        loaded = load(command_line=command_line, config_file=options.config, secrets_file=options.secrets)
    except ConfigError as error:
        raise ConfigError(error.problems + _problems_of_files(error.draft)) from None
    problems = _problems_of_files(loaded.settings)
    if problems:
        raise ConfigError(problems)
    return loaded


def _problems_of_files(settings: Settings | None) -> list[str]:
    """Return what is wrong with the files that settings, or a draft of them, name."""
    found = []
    users = settings.users if settings is not None and settings.users and str(settings.users.file) else None
    if users is not None:
        try:
            read_users(users.file, users.max_cost, users.max_size)
        except UsersFileError as problem:
            found.append(f"users.file: {users.file}: {problem}")
    tokens = settings.tokens if settings is not None and settings.tokens and str(settings.tokens.folder) else None
    if tokens is not None:
        try:
            check_folder(tokens.folder)
        except LedgerError as problem:
            found.append(f"tokens.folder: {problem}")
    return found


def _serve(options: argparse.Namespace) -> int:
    settings = _load(options).settings
    from service.gate.server import serve  # noqa: PLC0415 - a server is not needed to hash a password

    serve(settings, options.config, options.secrets)
    return 0


def _config_init(options: argparse.Namespace) -> int:
    config, _ = config_path(os.environ, options.config)
    secrets, _ = secrets_path(os.environ, options.config, options.secrets)
    for path, text, mode in ((config, config_text(), CONFIG_MODE), (secrets, secrets_text(), SECRETS_MODE)):
        print(f"{path}: {'written' if write_new(path, text, mode) else 'is there already, and stays as it is'}.")
    print("Next: name an issuer, a users file or a provider there, and run 'prefect-forward-auth config check'.")
    return 0


def _config_edit(options: argparse.Namespace) -> int:
    path, _ = secrets_path(os.environ, options.config, options.secrets)

    def problems_of(secrets: Path) -> list[str]:
        try:
            load(config_file=options.config, secrets_file=secrets)
        except ConfigError as error:
            return error.problems
        return []

    changed = edit_secrets(path, os.environ, problems_of, _ask)
    print(f"{path}: replaced. SIGHUP lets a running service read it." if changed else f"{path}: nothing was changed.")
    return 0


def _ask(problems: list[str]) -> Wish:
    """Show the problems of a draft and ask what to do; without a terminal, discard the draft."""
    for problem in problems:
        print(f"  - {problem}", file=sys.stderr)
    if not sys.stdin.isatty():
        return "discard"
    wishes: dict[str, Wish] = {"e": "edit", "w": "write", "d": "discard"}
    try:
        while (answer := input("Edit again, write it anyway, or discard it? [e/w/d] ").strip().lower()) not in wishes:
            pass
    except EOFError:
        return "discard"
    return wishes[answer]


def _config_check(options: argparse.Namespace) -> int:
    loaded = _load(options)
    settings = loaded.settings
    issuers = ", ".join(one.url for one in settings.all_issuers) or "none"
    users_file = settings.users.file if settings.users else "none"
    admits = _has_callers(settings)
    good = "is good" if admits else "has no mistake, but admits nobody"
    print(f"The configuration {good}. Issuers: {issuers}. Users file: {users_file}.")
    at_provider = f"at {settings.oidc.issuer}" if settings.oidc else ""
    form = "with the form, as users of the file" if settings.local_sign_in else ""
    if settings.tokens is not None:
        print(f"This service issues tokens. Their list: {settings.tokens.folder}.")
    print(f"People sign in {' or '.join(filter(None, (at_provider, form))) or 'nowhere'}.")
    warnings = list(warnings_about(loaded))
    for warning in warnings:
        print(f"Warning: {warning}")
    if not admits:
        print("Nobody has a role, so every caller is refused: set users.role, issuer.role, oidc.role, or grants.")
        return 1
    return 1 if options.strict and warnings else 0


def _has_callers(settings: Settings) -> bool:
    """Tell whether anybody can have a role: it is given, and if only to users of the file, there are some."""
    users = settings.users
    others = bool(settings.all_issuers or settings.oidc or settings.tokens)
    return settings.gives_roles and bool(
        others or (users and read_users(users.file, users.max_cost, users.max_size).hashes)
    )


def _config_presets(options: argparse.Namespace) -> int:
    if options.name is None:
        print("\n".join(list_lines()))
        print("\n'config presets NAME' shows one: an example, its rules and its claims.")
    else:
        print("\n".join(preset_lines(options.name)))
    return 0


def _config_show(options: argparse.Namespace) -> int:
    for line in shown(load(config_file=options.config, secrets_file=options.secrets)):
        print(line)
    return 0


def _users_file(options: argparse.Namespace) -> tuple[Path, int, int]:
    """Return the users file, the highest bcrypt cost that is accepted in it, and its largest size in bytes."""
    if options.file is not None:
        return options.file, MAX_COST, MAX_SIZE
    settings: Settings = load(config_file=options.config, secrets_file=options.secrets).settings
    if settings.users is None:
        raise UsersFileError("name the users file: --file, or users.file in the settings")
    return settings.users.file, settings.users.max_cost, settings.users.max_size


def _users_hash(options: argparse.Namespace) -> int:
    print(hash_password(read_new_password(), options.cost))
    return 0


def _users_add(options: argparse.Namespace) -> int:
    path, *limits = _users_file(options)
    if path.exists() and path.stat().st_size:
        read_users(path, *limits)  # tell about a broken file before asking for a password
    known = write_user(path, options.name, hash_password(read_new_password(), options.cost), *limits)
    print(f"{path}: {options.name!r} {'has a new password' if known else 'added'}.")
    return 0


def _users_remove(options: argparse.Namespace) -> int:
    path, *limits = _users_file(options)
    if not write_user(path, options.name, None, *limits):
        print(f"{path} has no user {options.name!r}.", file=sys.stderr)
        return 1
    print(f"{path}: {options.name!r} removed.")
    return 0


def _users_list(options: argparse.Namespace) -> int:
    for name in read_users(*_users_file(options)).hashes:
        print(name)
    return 0


def _users_verify(options: argparse.Namespace) -> int:
    right = verify_password(read_users(*_users_file(options)), options.name, read_password())
    print("The password is right." if right else "The user name or the password is wrong.")
    return 0 if right else 1
