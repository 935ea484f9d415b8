"""``prefect-forward-auth run`` starts a command behind an agent of its own; ``agent`` is the agent alone."""

import argparse
import asyncio
import logging
import os
import re
import shlex
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from service.agent import child
from service.agent.clouds import NotThereError, Surroundings, azure, github_actions, google
from service.agent.connections import Pool, Upstream
from service.agent.endpoints import tls_trusting
from service.agent.proxy import HOLD_SECONDS, Proxy
from service.agent.sources import ClientCredentials, TokenCommand, TokenFile
from service.agent.tokens import Keeper, Source
from service.core.mistakes import MistakeError
from service.core.request.proxies import is_loopback

_OPTIONS: Final = {
    "url": "the API behind the gate, such as https://prefect-m2m.example.com/api (default: $PREFECT_API_URL)",
    "issuer": "have tokens from this issuer, whose discovery document names the token endpoint",
    "token-url": "have tokens from this token endpoint",
    "client-id": "the id of the OAuth client",
    "client-secret-file": "the file with its secret",
    "scope": "the scope to ask for",
    "audience": "the audience to ask for, as the gate expects it",
    "token-file": "have tokens from this file, which something else rotates",
    "token-command": "have tokens from this command, which prints a token or JSON",
    "github-actions": "have tokens from GitHub, in a job of GitHub Actions",
    "google": "have tokens from Google's metadata server, as the machine's service account",
    "azure": "have tokens from Azure, as the machine's managed identity",
    "ca-file": "trust the authorities of this file (default: $PREFECT_API_SSL_CERT_FILE, or $SSL_CERT_FILE)",
}
_SURROUNDINGS: Final = ("github-actions", "google", "azure")


def define_run(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``run``."""
    _define(parser)
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --, the command and its arguments")


def define_agent(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``agent``."""
    _define(parser)
    parser.add_argument("--listen", default="127.0.0.1:4201", help="the address of loopback (%(default)s)")
    parser.add_argument("--path", default="", help="the secret in the path (default: a random one)")


def _define(parser: argparse.ArgumentParser) -> None:
    parser.allow_abbrev = False
    for option, explanation in _OPTIONS.items():
        flag: dict[str, Any] = {"action": "store_const", "const": "true"} if option in _SURROUNDINGS else {}
        parser.add_argument(f"--{option}", help=f"{explanation} [{_variable(option)}]", default="", **flag)
    parser.add_argument("--client-auth", choices=("basic", "post"), help="how the secret is sent (default: basic)")
    parser.add_argument("--allow-http", action="store_true", help="permit http:// to other machines")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve a command, or whoever knows the address; return its status, or 1 where there is no token."""
    logging.basicConfig(level=logging.INFO, format="prefect-forward-auth: %(message)s", stream=sys.stderr)
    command: list[str] = getattr(options, "command", [])
    tls = _tls(_value(options, "ca-file"))
    upstream = _upstream(options, tls)
    source = source_of(options, tls)
    host, port, path = ("127.0.0.1", 0, "") if command else _address(options)
    work = _serve(upstream, source, command, host, port, path)
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return asyncio.run(work)
    return int(uvloop.run(work))


def _address(options: argparse.Namespace) -> tuple[str, int, str]:
    host, _, port = options.listen.rpartition(":")
    if not is_loopback(host) or not port.isdecimal():
        raise MistakeError("--listen: an address of loopback and a port, such as 127.0.0.1:4201")
    if not re.fullmatch(r"[A-Za-z0-9_-]{0,100}", options.path):
        raise MistakeError("--path: up to 100 letters, digits, '-' and '_'")
    return host, int(port), options.path


async def _serve(upstream: Upstream, source: Source, command: list[str], host: str, port: int, path: str) -> int:
    keeper, pool = Keeper(source), Pool(upstream)
    fetching = asyncio.ensure_future(keeper.run())
    try:
        await keeper.token(asyncio.get_running_loop().time() + HOLD_SECONDS)
        api_url = await Proxy(pool, keeper, path).listen(host, port)
    except TimeoutError:
        print(f"prefect-forward-auth: no token from {source} within {HOLD_SECONDS:g} s", file=sys.stderr)
        return 1
    except OSError as problem:
        raise MistakeError(f"--listen {host}:{port}: {problem.strerror}") from None
    else:
        logging.getLogger(__name__).info("Calls go to %s, with tokens from %s.", upstream.url, source)
        if command:
            env = child.environment_of(os.environ, api_url, upstream.url.removesuffix("/api"))
            return await child.run(command, env)
        print(f"PREFECT_API_URL={api_url}", flush=True)
        await child.asked_to_stop()
        return 0
    finally:
        fetching.cancel()
        pool.close()


def _variable(name: str) -> str:
    return child.PREFIX + name.upper().replace("-", "_")


def _value(options: argparse.Namespace, name: str) -> str:
    given: str = getattr(options, name.replace("-", "_"))
    return given or os.environ.get(_variable(name), "")


def _tls(ca_file: str) -> ssl.SSLContext:
    return tls_trusting(ca_file or os.environ.get("PREFECT_API_SSL_CERT_FILE") or os.environ.get("SSL_CERT_FILE"))


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
    kinds = [name for name in ("token-file", "token-command", "token-url", "issuer", *_SURROUNDINGS) if values[name]]
    if len(kinds) != 1:
        raise MistakeError(
            "name one source of tokens: --issuer or --token-url, --token-file, --token-command, "
            "--github-actions, --google or --azure"
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
    if kinds[0] in _SURROUNDINGS:
        return _surroundings(kinds[0], values, tls)
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


def _surroundings(kind: str, values: Mapping[str, str], tls: ssl.SSLContext) -> Surroundings:
    if values[kind].lower() not in {"1", "true"}:
        raise MistakeError(f"{_variable(kind)} is 'true', or not set")
    audience = values["audience"]
    if not audience:
        raise MistakeError(f"--{kind} needs --audience: the one that the gate expects")
    try:
        if kind == "github-actions":
            return github_actions(os.environ, audience, tls)
    except NotThereError as problem:
        raise MistakeError(f"--github-actions: {problem}") from None
    if kind == "google":
        return google(os.environ, audience, tls)
    return azure(os.environ, audience, values["client-id"], tls)


def _secret(file: str) -> str:
    if not file:
        return os.environ.get(_variable("client-secret"), "")
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise MistakeError(f"--client-secret-file: {getattr(problem, 'strerror', None) or 'not text'}") from None
