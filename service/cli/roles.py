"""``explain`` and ``routes``: what the roles open."""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from service.cli.options import add_configuration
from service.core.model import Allow
from service.core.prefect.roles import BUILT_IN, Access
from service.core.prefect.routes import Capability
from service.gate.explain import (
    Caller,
    CannotExplainError,
    caller_from_claims,
    caller_from_token,
    caller_from_users,
    caller_with_roles,
    compare,
    explain,
    routes_of,
)
from service.rendering.explanations import change_lines, explanation_lines, route_lines
from service.settings import ConfigError, Settings, is_configured, load
from service.settings.access import table_of


def define_explain(explanation: argparse.ArgumentParser) -> None:
    """Add the options of ``explain``."""
    explanation.description = "Shows what the gate answers to a call, and why. Exits with 1 if that is a refusal."
    explanation.add_argument("method", help="GET, POST …; WS for a WebSocket")
    explanation.add_argument("target", help="path and query, as /api/flows/filter")
    caller = explanation.add_mutually_exclusive_group(required=True)
    caller.add_argument("--role", action="append", help="by a caller with this role; may be repeated")
    caller.add_argument("--user", help="by a user of the users file; no password is needed")
    caller.add_argument(
        "--token-file", help="by the sender of the token in this file, which is verified; - is standard input"
    )
    caller.add_argument(
        "--claims-file",
        help="by the principal of the claims in this JSON file, checked as the gate does, but for the signature",
    )
    explanation.add_argument("--issuer", default="", help="the issuer of those claims, if they have no iss")
    explanation.add_argument("--body", help="the call's body, as the proxy sends it along")
    add_configuration(explanation)
    explanation.set_defaults(run=_explain)


def define_routes(routes: argparse.ArgumentParser) -> None:
    """Add the options of ``routes``, and its ``diff``."""
    routes.add_argument("--role", default="", help="only those that this role opens")
    routes.add_argument("--capability", default="", choices=[str(one) for one in Capability], metavar="CAPABILITY")
    add_configuration(routes)
    routes.set_defaults(run=_routes)
    diff = routes.add_subparsers(metavar="diff").add_parser(
        "diff", help="compare with a version of Prefect; exit 1 if it has routes, or flags, that are not known"
    )
    diff.add_argument("openapi", help="its OpenAPI document: a file, or the URL of a running server")
    diff.set_defaults(run=_routes_diff)


def _configured(options: argparse.Namespace, *, needed: bool = False) -> tuple[Settings | None, Access]:
    """Return the settings, and who may call what: by the built-in roles as long as nothing is configured.

    A configuration that has problems is one only if it was named, or is ``needed``.
    """
    named = bool(options.config or options.secrets)
    if named or is_configured(os.environ):
        try:
            settings = load(config_file=options.config, secrets_file=options.secrets).settings
        except ConfigError:
            if named or needed:
                raise
            print("The configuration has problems (config check). This is without it.", file=sys.stderr)
        else:
            return settings, settings.access()
    return None, Access(BUILT_IN.values(), table_of())


def _explain(options: argparse.Namespace) -> int:
    settings, access = _configured(options, needed=not _are_built_in(options.role))
    body = None if options.body is None else options.body.encode()
    caller = _caller(options, settings, access)
    explanation = explain(settings, access, caller, (options.method, options.target), body)
    print("\n".join(explanation_lines(explanation)))
    return 0 if isinstance(explanation.decision, Allow) else 1


def _are_built_in(roles: list[str] | None) -> bool:
    return roles is not None and BUILT_IN.keys() >= set(roles)


def _caller(options: argparse.Namespace, settings: Settings | None, access: Access) -> Caller:
    if options.role is not None:
        return caller_with_roles(access, tuple(options.role))
    if settings is None:
        raise CannotExplainError("the configuration says who has which roles: name it (--config)")
    if options.user is not None:
        return caller_from_users(settings, options.user)
    if options.claims_file is not None:
        try:
            claims = json.loads(_content(options.claims_file))
        except ValueError:
            claims = None
        if not isinstance(claims, dict):
            raise CannotExplainError(f"{options.claims_file} is not a JSON object")
        return caller_from_claims(settings, claims, options.issuer)
    return asyncio.run(caller_from_token(settings, _content(options.token_file)))


def _content(path: str) -> str:
    return sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")


def _routes(options: argparse.Namespace) -> int:
    _, access = _configured(options, needed=not _are_built_in([options.role] if options.role else []))
    for line in route_lines(routes_of(access, options.role, options.capability)):
        print(line)
    return 0


def _routes_diff(options: argparse.Namespace) -> int:
    settings, access = _configured(options)
    found = compare(access, options.openapi, settings.prefect.api_base_path if settings else "/api")
    print("\n".join(change_lines(found)))
    return 1 if found.unknown or found.secret_flags else 0
