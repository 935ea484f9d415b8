"""``prefect-forward-auth doctor``, on a worker's machine: looks, calls the gate, and says what to change."""

import argparse
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import certifi

from service.core.request.headers import ClientVersion
from service.doctor.client import presented
from service.doctor.examine import examine
from service.doctor.findings import Finding, change, status_of
from service.doctor.settings import CA_FILE, UNVERIFIED, URL, PrefectSettings, read_settings

DEFAULT_NEEDS: Final = 3_600.0  # seconds
_ASK_SECONDS: Final = 30
_ASK: Final = "import importlib.metadata as m; print(m.version('prefect'))"
_RELEASE: Final = re.compile(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})")
_LENGTH: Final = re.compile(r"(\d{1,6})([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options of a worker's machine."""
    parser.description = (
        "Look at Prefect's settings here, call the gate, and say what to change. Run it where and as whom the worker "
        "runs. Exits with 0, or with 1 if there is something to change. --server looks at the service."
    )
    parser.allow_abbrev = False
    parser.add_argument(
        "--python", metavar="PATH", help="the interpreter of Prefect (default: that of prefect in $PATH)"
    )
    parser.add_argument(
        "--needs",
        type=_seconds,
        default=DEFAULT_NEEDS,
        metavar="TIME",
        help="for how long a credential has to last, such as 12h or 7d (default: 1h)",
    )
    parser.add_argument("--offline", action="store_true", help="look at the settings only, and call nobody")


def run(options: argparse.Namespace) -> int:
    """Print the findings, one line each; return 0, or 1 if there is something to change."""
    found = []
    for finding in findings(options, os.environ, Path.cwd(), Path.home()):
        print(finding, flush=True)
        found.append(finding)
    return status_of(found)


def findings(options: argparse.Namespace, environ: Mapping[str, str], folder: Path, home: Path) -> Iterator[Finding]:
    """Yield what is found with this environment, in this folder."""
    settings = read_settings(environ, folder, home)
    try:
        version = version_of(options.python)
    except LookupError as problem:
        yield change(str(problem))
        version = None
    yield from examine(settings, version, options.needs)
    url = _without_userinfo(settings.text(URL))
    if options.offline or not url:
        return
    try:
        tls = _tls(settings, environ)
    except OSError as problem:
        yield change(f"The authorities of {CA_FILE} or SSL_CERT_FILE cannot be read: {problem.strerror}.")
        return
    from service.doctor.calls import call_gate  # noqa: PLC0415 - half a second that --offline does not need

    yield from call_gate(url, presented(settings, version), tls)


def version_of(python: str | None) -> ClientVersion | None:
    """Return the version of Prefect that an interpreter has, by default that of the command ``prefect``; None if none.

    Raises LookupError if a named interpreter has none.
    """
    interpreter = python
    if interpreter is None:
        command = shutil.which("prefect")
        if command is None:
            return None
        interpreter = str(Path(command).resolve().with_name("python"))
    try:
        done = subprocess.run(  # noqa: S603 - whoever runs this names it
            [interpreter, "-c", _ASK], capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        done = None
    release = _RELEASE.match(done.stdout) if done is not None and not done.returncode else None
    if release is None:
        if python is not None:
            raise LookupError(f"--python {python}: it does not say which version of Prefect it has")
        return None
    return int(release[1]), int(release[2]), int(release[3])


def _without_userinfo(url: str) -> str:
    """Return the URL that is called, or an empty string if it is none."""
    try:
        parts = urlsplit(url)
        callable_ = (
            parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port >= 0)
        )
    except ValueError:
        return ""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/") if callable_ else ""


def _tls(settings: PrefectSettings, environ: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=settings.text(CA_FILE) or environ.get("SSL_CERT_FILE") or certifi.where()
    )
    if settings.is_on(UNVERIFIED):  # as Prefect would
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _seconds(text: str) -> float:
    match = _LENGTH.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError("a number and s, m, h or d, such as 12h")
    return float(match[1]) * _UNITS[match[2]]
