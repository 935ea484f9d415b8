"""``config``: writes, checks, shows and changes the configuration."""

import argparse
import os
import sys
from pathlib import Path

from service.adapters.users_file import read_users
from service.cli.loading import load_checked
from service.cli.options import add_configuration
from service.core.identity.presets import PRESETS, PRESETS_FOR_PEOPLE
from service.issuing.configured import ledger_of
from service.rendering.presets import list_lines, people_lines, preset_lines
from service.settings import ConfigError, Settings, load
from service.settings.advice import warnings_about
from service.settings.edit import Wish, edit_secrets
from service.settings.load import config_path, secrets_path
from service.settings.show import shown
from service.settings.starter import CONFIG_MODE, SECRETS_MODE, config_text, secrets_text, write_new


def define(parser: argparse.ArgumentParser) -> None:
    """Add the commands and their options."""
    commands = parser.add_subparsers(required=True)
    for name, run, explanation in (
        ("init", _init, "write a commented forward-auth.toml, and a secrets file for the owner's eyes alone"),
        ("check", _check, "list every problem, or say that there is none; exit 1 if nobody could get in"),
        ("show", _show, "print the values in force as TOML, each with its source, secrets masked"),
        ("edit-secrets", _edit, "open the secrets file in $EDITOR, and replace it once it is good"),
    ):
        command = commands.add_parser(name, help=explanation, description=f"{explanation}.")
        add_configuration(command)
        if name == "check":
            command.add_argument("--strict", action="store_true", help="exit 1 if there is any warning")
        command.set_defaults(run=run)
    presets = commands.add_parser("presets", help="list the presets of providers, or show one")
    known = dict.fromkeys([*PRESETS, *PRESETS_FOR_PEOPLE])
    presets.add_argument("name", nargs="?", choices=list(known), metavar="NAME", help="the preset to show")
    presets.set_defaults(run=_presets)


def _init(options: argparse.Namespace) -> int:
    config, _ = config_path(os.environ, options.config)
    secrets, _ = secrets_path(os.environ, options.config, options.secrets)
    for path, text, mode in ((config, config_text(), CONFIG_MODE), (secrets, secrets_text(), SECRETS_MODE)):
        print(f"{path}: {'written' if write_new(path, text, mode) else 'is there already, and stays as it is'}.")
    print("Next: name an issuer, a users file or a provider there, and run 'prefect-forward-auth config check'.")
    return 0


def _edit(options: argparse.Namespace) -> int:
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


def _check(options: argparse.Namespace) -> int:
    loaded = load_checked(options)
    settings = loaded.settings
    issuers = ", ".join(one.url for one in settings.all_issuers) or "none"
    users_file = settings.users.file if settings.users else "none"
    admits = _has_callers(settings)
    good = "is good" if admits else "has no mistake, but admits nobody"
    print(f"The configuration {good}. Issuers: {issuers}. Users file: {users_file}.")
    at_provider = f"at {settings.oidc.issuer}" if settings.oidc else ""
    form = "with the form, as users of the file" if settings.local_sign_in else ""
    if (ledger := ledger_of(settings)) is not None:
        print(f"This service issues tokens. Their list: {ledger.name}.")
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


def _presets(options: argparse.Namespace) -> int:
    if options.name is None:
        print("\n".join(list_lines()))
        print("\n'config presets NAME' shows one: an example, its rules and its claims.")
        return 0
    if options.name in PRESETS_FOR_PEOPLE:
        print("\n".join(["People, [oidc]:", "", *people_lines(options.name)]))
    if options.name in PRESETS:
        before = [""] if options.name in PRESETS_FOR_PEOPLE else []
        print("\n".join([*before, "Machines, [[issuers]]:", "", *preset_lines(options.name)]))
    return 0


def _show(options: argparse.Namespace) -> int:
    for line in shown(load(config_file=options.config, secrets_file=options.secrets)):
        print(line)
    return 0
