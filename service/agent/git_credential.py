"""``prefect-forward-auth git-credential github-app``: a credential helper of Git (gitcredentials(7)).

Git starts it for each address that asks for a credential. It answers for the one host, and the owner or repository,
that it is configured for, and is silent about every other.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from service.agent.endpoints import tls_trusting
from service.agent.github_app import GitHubApp, credential
from service.agent.token_cache import TokenCache, cache_folder
from service.agent.tokens import SourceError
from service.core.mistakes import MistakeError
from service.core.request.proxies import is_loopback

KEY_VARIABLE: Final = "FORWARD_AUTH_GIT_APP_KEY"
MAX_QUESTION: Final = 64 * 1024  # characters
_COMMAND_SECONDS: Final = 20
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
_PUBLIC: Final = "github.com"


def define(parser: argparse.ArgumentParser) -> None:
    """Add the kinds of credential, and their options."""
    helpers = parser.add_subparsers(required=True, metavar="KIND")
    text = "tokens of an hour, made by a GitHub App when Git needs one"
    parser = helpers.add_parser("github-app", help=text, description=f"{text}.", allow_abbrev=False)
    parser.add_argument("--app", required=True, help="the app's client id, or its id")
    parser.add_argument("--installation", required=True, help="the id of its installation")
    key = parser.add_mutually_exclusive_group()
    key.add_argument(
        "--key", type=Path, metavar="FILE", help=f"the app's private key, PEM [{KEY_VARIABLE}: the key itself]"
    )
    key.add_argument("--key-command", metavar="COMMAND", help="a command that prints the key; no shell is involved")
    parser.add_argument("--host", default=_PUBLIC, help="the host to answer for, and its port (default: %(default)s)")
    parser.add_argument("--owner", default="", help="answer for repositories of this owner only")
    parser.add_argument("--repository", default="", metavar="OWNER/NAME", help="answer for this repository only")
    parser.add_argument("--api", default="", help="the API (default: the one of --host)")
    parser.add_argument("--no-cache", action="store_true", help="make a token each time")
    parser.add_argument("action", help="get or erase, which Git adds; others are ignored")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Answer one question; return 0, also for what is not answered, or 1 where there is no token."""
    if options.action not in {"get", "erase"}:  # `store`, and what later versions of Git may ask
        return 0
    try:
        owner, repository = _names(options)
        asked = _question(sys.stdin.read(MAX_QUESTION))
        if not _is_for_us(asked, options.host, owner, repository):
            return 0
        return _answer(options, asked, repository)
    except SourceError as problem:
        print(f"prefect-forward-auth: no token from the GitHub App {options.app}: {problem}", file=sys.stderr)
        return 1


def _answer(options: argparse.Namespace, asked: Mapping[str, str], repository: str) -> int:
    api = _api(options)
    folder = None if options.no_cache else cache_folder(os.environ)
    cache = TokenCache.of(folder, api, options.app, options.installation, repository) if folder is not None else None
    if options.action == "erase":
        if cache is not None:
            cache.forget(asked.get("password", ""))
        return 0
    with cache.locked() if cache is not None else nullcontext():
        token = cache.recall() if cache is not None else None
        if token is None:
            tls = tls_trusting(os.environ.get("SSL_CERT_FILE"))
            app = GitHubApp(options.app, options.installation, api, tls, _key(options), repository)
            token = app.fetch(time.time())
            try:
                if cache is not None:
                    cache.keep(token)
            except OSError as problem:
                why = problem.strerror or problem
                print(f"prefect-forward-auth: the token is not kept for the next time: {why}", file=sys.stderr)
    for name, value in credential(token).items():
        print(f"{name}={value}")
    return 0


def _question(text: str) -> dict[str, str]:
    """Return the attributes of Git's question: lines of name and value, up to an empty one."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        if not line:
            break
        name, _, value = line.partition("=")
        found[name] = value
    return found


def _is_for_us(asked: Mapping[str, str], host: str, owner: str, repository: str) -> bool:
    """Tell whether a credential for this address may be given out."""
    there = asked.get("host", "").lower()
    if there != host.lower() or asked.get("username", "x-access-token") != "x-access-token":
        return False
    if asked.get("protocol") != "https" and not (asked.get("protocol") == "http" and is_loopback(_name_of(there))):
        return False
    if not owner:
        return True
    if "path" not in asked:
        raise MistakeError(
            "Git does not say for which repository it asks: set credential.useHttpPath = true beside the helper"
        )
    segments = asked["path"].lower().removesuffix("/").removesuffix(".git").split("/")
    there_owner, *rest = segments
    return there_owner == owner and len(rest) == 1 and bool(rest[0]) and repository in {"", rest[0]}


def _name_of(host: str) -> str:
    return urlsplit(f"//{host}").hostname or ""


def _names(options: argparse.Namespace) -> tuple[str, str]:
    """Return the owner, and the name of the one repository if there is one, both in lower case."""
    for name in ("app", "installation"):
        if not _ID.fullmatch(getattr(options, name)):
            raise MistakeError(f"--{name}: letters, digits, '.', '_' and '-'")
    if not options.repository:
        return options.owner.lower(), ""
    owner, slash, name = options.repository.lower().removesuffix(".git").partition("/")
    if not (slash and _ID.fullmatch(owner) and _ID.fullmatch(name)):
        raise MistakeError("--repository: the owner and the name, such as acme/flows")
    if options.owner and options.owner.lower() != owner:
        raise MistakeError("--owner and --repository name two owners")
    return owner, name


def _api(options: argparse.Namespace) -> str:
    """Return the API of the host: GitHub's own, GitHub Enterprise Cloud with data residency, or Enterprise Server."""
    host: str = options.host.lower()
    api: str = options.api.rstrip("/")
    if not api:
        own = f"https://{host}/api/v3"
        api = f"https://api.{host}" if host == _PUBLIC or host.endswith(".ghe.com") else own
    parts = urlsplit(api)
    safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    if not safe or not parts.hostname or parts.username or parts.query:
        raise MistakeError("--api: an https:// URL, such as https://github.example.com/api/v3")
    return api


def _key(options: argparse.Namespace) -> str:
    """Return the private key of the app, in PEM."""
    file: Path | None = options.key
    if file is not None:
        try:
            return file.read_text()
        except (OSError, UnicodeDecodeError) as problem:
            raise MistakeError(f"--key {file}: {getattr(problem, 'strerror', None) or 'not text'}") from None
    if options.key_command is None:
        found = os.environ.get(KEY_VARIABLE, "")
        if not found:
            raise MistakeError(f"name the app's key: --key, --key-command, or {KEY_VARIABLE}")
        return found.replace("\\n", "\n")  # as .env files and CI systems carry lines
    try:
        argv = shlex.split(options.key_command)
        done = subprocess.run(  # noqa: S603 - the operator's own command
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as problem:
        raise SourceError(f"--key-command: {getattr(problem, 'strerror', None) or type(problem).__name__}") from None
    if done.returncode:
        raise SourceError(f"--key-command ended with {done.returncode}")
    return str(done.stdout)
