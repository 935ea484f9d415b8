"""``explain`` and ``routes``: what the roles open, asked at a terminal."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.core.model import Allow
from service.core.prefect.roles import BUILT_IN, Access
from service.core.prefect.routes import Capability, Routes, known_routes
from service.gate.explain import (
    CannotExplainError,
    Someone,
    compared,
    explained,
    holder_of,
    sender_of,
    table,
    user,
    with_these_roles,
)
from service.settings import Settings, is_configured, load


def add_role_commands(commands: Any, configurable: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the commands to the parser's; ``configurable`` adds the options that tell where the configuration is."""
    explain = commands.add_parser(
        "explain",
        help="tell what the gate answers to a call, and why",
        description="Tells what the gate answers to a call, and why; exit 1 if that is a refusal.",
    )
    explain.add_argument("method", help="GET, POST …; WS for a WebSocket")
    explain.add_argument("target", help="path and query, as /api/flows/filter")
    someone = explain.add_mutually_exclusive_group(required=True)
    someone.add_argument("--role", action="append", help="by somebody with this role; may be repeated")
    someone.add_argument("--user", help="by a user of the users file; a password is not needed for this, nor asked for")
    someone.add_argument("--token-file", help="by whoever sends the token in this file, - for standard input; verified")
    someone.add_argument("--claims-file", help="by whoever has the claims in this JSON file, as if they were signed")
    explain.add_argument("--issuer", default="", help="whose claims those are, if they have no iss")
    explain.add_argument("--body", help="the call's body, as the proxy sends it along")
    configurable(explain)
    explain.set_defaults(run=_explain)

    routes = commands.add_parser("routes", help="print the routes of Prefect, and what opens each")
    routes.add_argument("--role", default="", help="those that this role opens")
    routes.add_argument("--capability", default="", choices=[str(one) for one in Capability], metavar="CAPABILITY")
    configurable(routes)
    routes.set_defaults(run=_routes)
    diff = routes.add_subparsers(metavar="diff").add_parser(
        "diff", help="compare with a version of Prefect; exit 1 if it has routes, or flags, that are not known"
    )
    diff.add_argument("openapi", help="its OpenAPI document: a file, or the URL of a running server")
    diff.set_defaults(run=_routes_diff)


def _configured(options: argparse.Namespace) -> tuple[Settings | None, Access]:
    """Return the settings and who may call what; where nothing is configured yet, the roles and routes built in."""
    if not (options.config or options.secrets) and not is_configured(os.environ):
        return None, Access(BUILT_IN.values(), Routes(known_routes()))
    settings = load(config_file=options.config, secrets_file=options.secrets).settings
    return settings, settings.access()


def _explain(options: argparse.Namespace) -> int:
    settings, access = _configured(options)
    body = None if options.body is None else options.body.encode()
    decision, lines = explained(
        settings, access, _someone(options, settings, access), (options.method, options.target), body
    )
    print("\n".join(lines))
    return 0 if isinstance(decision, Allow) else 1


def _someone(options: argparse.Namespace, settings: Settings | None, access: Access) -> Someone:
    if options.role is not None:
        return with_these_roles(access, tuple(options.role))
    if settings is None:
        raise CannotExplainError("who has which roles is told by the configuration: name it (--config)")
    if options.user is not None:
        return user(settings, options.user)
    if options.claims_file is not None:
        try:
            claims = json.loads(_content(options.claims_file))
        except ValueError:
            claims = None
        if not isinstance(claims, dict):
            raise CannotExplainError(f"{options.claims_file} is not a JSON object")
        return holder_of(settings, claims, options.issuer)
    return asyncio.run(sender_of(settings, _content(options.token_file)))


def _content(path: str) -> str:
    return sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")


def _routes(options: argparse.Namespace) -> int:
    for line in table(_configured(options)[1], options.role, options.capability):
        print(line)
    return 0


def _routes_diff(options: argparse.Namespace) -> int:
    settings, access = _configured(options)
    found = compared(access, options.openapi, settings.prefect.api_base_path if settings else "/api")
    for what, rules in (
        ("not known, so for the role admin alone", found.unknown),
        ("known, and may tell secrets in a new way", found.telling),
        ("known of other versions, and not in this one", found.gone),
    ):
        print(f"{len(rules)} {what}{':' if rules else ''}")
        for rule in rules:
            print(f"  {rule}")
    return 1 if found.unknown or found.telling else 0
