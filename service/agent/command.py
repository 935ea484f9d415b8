"""``prefect-forward-auth run``: starts a command behind an agent of its own."""

import argparse
import asyncio
import logging
import os
import shlex
import ssl
import sys
from pathlib import Path
from typing import Final, Literal

import certifi

from service.agent import child
from service.agent.connections import Pool, Upstream
from service.agent.proxy import HOLD_SECONDS, Proxy
from service.agent.sources import ClientCredentials, TokenCommand, TokenFile
from service.agent.tokens import Keeper, Source

_MISTAKE: Final = 2

_OPTIONS: Final = {
    "url": "the API behind the gate, such as https://prefect-m2m.example.com/api (default: $PREFECT_API_URL)",
    "issuer": "have tokens from this issuer, whose discovery document names the token endpoint",
    "token-url": "have tokens from this token endpoint",
    "client-id": "the id of the OAuth client",
    "client-secret-file": "the file with its secret",
    "scope": "the scope to ask for",
    "audience": "the audience to ask for, where the issuer has such a parameter",
    "token-file": "have tokens from this file, which something else rotates",
    "token-command": "have tokens from this command, which prints a token or JSON",
    "ca-file": "trust the authorities of this file (default: $PREFECT_API_SSL_CERT_FILE, or $SSL_CERT_FILE)",
}


class MistakeError(Exception):
    """The options do not fit; the message says what to do."""


def add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``run`` and its options."""
    text = "run a command, such as a Prefect worker, with a credential that is always fresh"
    parser = commands.add_parser("run", help=text, description=f"{text}.", allow_abbrev=False)
    for name, explanation in _OPTIONS.items():
        parser.add_argument(f"--{name}", help=f"{explanation} [{_variable(name)}]", default="")
    parser.add_argument("--client-auth", choices=("basic", "post"), help="how the secret is sent (default: basic)")
    parser.add_argument("--allow-http", action="store_true", help="permit http:// to other machines")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --, the command and its arguments")
    parser.set_defaults(run=run)


def main(arguments: list[str]) -> int:
    """Run one command of this package, without loading what the service needs."""
    parser = argparse.ArgumentParser(prog="prefect-forward-auth", allow_abbrev=False)
    add_run(parser.add_subparsers(required=True, metavar="command"))
    options = parser.parse_args(arguments)
    return int(options.run(options))


def run(options: argparse.Namespace) -> int:
    """Run the command behind an agent; return its status, or 2 for a mistake, 1 where no token can be had."""
    logging.basicConfig(level=logging.INFO, format="prefect-forward-auth: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        tls = _tls(_value(options, "ca-file"))
        upstream = _upstream(options, tls)
        source = source_of(options, tls)
    except MistakeError as problem:
        print(f"prefect-forward-auth: {problem}", file=sys.stderr)
        return _MISTAKE
    work = _run(upstream, source, options.command)
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return asyncio.run(work)
    return int(uvloop.run(work))


async def _run(upstream: Upstream, source: Source, command: list[str]) -> int:
    keeper, pool = Keeper(source), Pool(upstream)
    fetching = asyncio.ensure_future(keeper.run())
    try:
        await keeper.token(asyncio.get_running_loop().time() + HOLD_SECONDS)
    except TimeoutError:
        print(f"prefect-forward-auth: no token from {source} within {HOLD_SECONDS:g} s", file=sys.stderr)
        return 1
    else:
        api_url = await Proxy(pool, keeper).listen()
        logging.getLogger(__name__).info("Calls go to %s, with tokens from %s.", upstream.url, source)
        env = child.environment_of(os.environ, api_url, upstream.url.removesuffix("/api"))
        return await child.run(command, env)
    finally:
        fetching.cancel()
        pool.close()


def _variable(name: str) -> str:
    return child.PREFIX + name.upper().replace("-", "_")


def _value(options: argparse.Namespace, name: str) -> str:
    given: str = getattr(options, name.replace("-", "_"))
    return given or os.environ.get(_variable(name), "")


def _tls(ca_file: str) -> ssl.SSLContext:
    named = ca_file or os.environ.get("PREFECT_API_SSL_CERT_FILE") or os.environ.get("SSL_CERT_FILE")
    try:
        return ssl.create_default_context(cafile=named or certifi.where())
    except OSError as problem:
        raise MistakeError(f"the authorities of {named} cannot be read: {problem.strerror}") from None


def _upstream(options: argparse.Namespace, tls: ssl.SSLContext) -> Upstream:
    url = _value(options, "url") or os.environ.get("PREFECT_API_URL", "")
    if not url:
        raise MistakeError("name the API behind the gate: --url, or PREFECT_API_URL")
    try:
        return Upstream.parse(url, tls, allow_http=options.allow_http)
    except ValueError as problem:
        raise MistakeError(f"--url: {problem}") from None


def source_of(options: argparse.Namespace, tls: ssl.SSLContext) -> Source:
    """Return the one source that the options and the environment name, or raise MistakeError."""
    values = {name: _value(options, name) for name in _OPTIONS}
    kinds = [name for name in ("token-file", "token-command", "token-url", "issuer") if values[name]]
    if len(kinds) != 1:
        raise MistakeError(
            "name one source of tokens: --issuer or --token-url, --token-file, or --token-command"
            + (f" (there are {' and '.join('--' + kind for kind in kinds)})" if kinds else "")
        )
    if kinds == ["token-file"]:
        return TokenFile(Path(values["token-file"]))
    if kinds == ["token-command"]:
        try:
            argv = shlex.split(values["token-command"])
        except ValueError as problem:
            raise MistakeError(f"--token-command: {problem}") from None
        if not argv:
            raise MistakeError("--token-command is empty")
        return TokenCommand(tuple(argv))
    try:
        Upstream.parse(values[kinds[0]], tls, allow_http=options.allow_http)
    except ValueError as problem:
        raise MistakeError(f"--{kinds[0]}: {problem}") from None
    secret = _secret(values["client-secret-file"])
    if not (values["client-id"] and secret):
        raise MistakeError(
            f"an OAuth client needs --client-id, and --client-secret-file or {_variable('client-secret')}"
        )
    auth: Literal["basic", "post"] = "post" if options.client_auth == "post" else "basic"
    return ClientCredentials(
        values["client-id"],
        secret,
        tls,
        values["token-url"],
        values["issuer"],
        values["scope"],
        values["audience"],
        auth,
    )


def _secret(file: str) -> str:
    if not file:
        return os.environ.get(_variable("client-secret"), "")
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise MistakeError(f"--client-secret-file: {getattr(problem, 'strerror', None) or 'not text'}") from None
