"""Environment variables for outgoing calls: proxies and certificate authorities.

The variables are those that curl, Python and OpenSSL read. They are read here, as strictly as settings are, and not by
the HTTP client: a mistake in one is told by its name when the service starts.
"""

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import httpx

from service.core.request.proxies import Network, is_loopback

_SCHEMES: Final = ("http", "https")
_PORTS: Final = {"http": 80, "https": 443}
_MAX_PORT: Final = 65_535
_WITH_PORT: Final = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*):(?P<port>[0-9]{1,5})")
_HOST: Final = re.compile(r"([a-z0-9_-]+\.)*(?![0-9]+\Z)[a-z0-9_-]+")
_HASHED: Final = re.compile(r"[0-9a-f]{8}\.[0-9]+")  # how OpenSSL finds an authority in a folder


class VariableError(Exception):
    """Variables that cannot be used: all problems, by name. Values are not quoted; a proxy may contain a password."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Exemption(NamedTuple):
    """An entry of NO_PROXY: a host and all names below it, or a network; for one port, or for all."""

    host: str
    network: Network | None
    port: int | None

    def covers(self, host: str, port: int | None) -> bool:
        """Tell whether a host, in lower case, is called without a proxy on a port."""
        if self.port is not None and self.port != port:
            return False
        if self.network is None:
            return host == self.host or host.endswith(f".{self.host}")
        try:
            return ip_address(host) in self.network
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class OutboundEnvironment:
    """The proxy for each scheme, as a URL, and who is called without one.

    ``authorities`` is a PEM file, or ``authority_folders`` a list of folders as OpenSSL writes it; without either, the
    usual authorities vouch for servers.
    """

    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    exempt: tuple[Exemption, ...] = ()
    authorities: str = ""
    authority_folders: str = ""

    def proxy_for(self, url: httpx.URL) -> str | None:
        """Return the proxy through which a URL is called.

        This machine is never called through one: to the proxy, localhost is the proxy, and what may go unencrypted
        because it stays on this machine would not.
        """
        host = url.raw_host.decode("ascii").lower().rstrip(".").partition("%")[0]
        port = url.port or _PORTS.get(url.scheme)
        if is_loopback(host) or any(one.covers(host, port) for one in self.exempt):
            return None
        return self.proxies.get(url.scheme)

    def tls(self) -> ssl.SSLContext:
        """Return the TLS context for outgoing calls; raise OSError if the authorities cannot be read."""
        if self.authorities or self.authority_folders:
            return ssl.create_default_context(cafile=self.authorities or None, capath=self.authority_folders or None)
        return httpx.create_ssl_context(trust_env=False)


def read_environment(environ: Mapping[str, str]) -> OutboundEnvironment:
    """Return the parsed variables, or raise VariableError with all problems.

    Of two spellings of a proxy variable the lower-case one counts, even if it is empty, as for curl and Python.
    """
    problems: list[str] = []
    exempt = _exempt(environ, problems)
    proxies = {} if exempt is None else _proxies(environ, problems)
    authorities = environ.get("SSL_CERT_FILE", "")
    folders = "" if authorities else environ.get("SSL_CERT_DIR", "")
    if authorities:
        _check_authorities(authorities, problems)
    elif folders and not any(map(_has_authorities, folders.split(os.pathsep))):
        problems.append(
            f"SSL_CERT_DIR: {folders}: there is no certificate under the name of its hash: run 'openssl rehash' on the "
            "folder, or unset the variable"
        )
    if problems:
        raise VariableError(problems)
    return OutboundEnvironment(proxies, exempt or (), authorities, folders)


def problems_of_environment(environ: Mapping[str, str]) -> list[str]:
    """Return all problems of the variables."""
    try:
        read_environment(environ)
    except VariableError as error:
        return error.problems
    return []


def _given(environ: Mapping[str, str], variable: str) -> tuple[str, str]:
    """Return the name of a proxy variable, in the spelling that is used, and its value."""
    name = variable.lower() if variable.lower() in environ else variable
    return name, environ.get(name, "").strip()


def _proxies(environ: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    """Return the proxy of each scheme. ALL_PROXY is for schemes without a proxy of their own."""
    found: dict[str, str] = {}
    told: set[str] = set()
    for scheme in _SCHEMES:
        name, value = _given(environ, f"{scheme.upper()}_PROXY")
        if not value:
            name, value = _given(environ, "ALL_PROXY")
        if value:
            found[scheme] = value if "://" in value else f"http://{value}"
            problem = _problem_of_proxy(found[scheme])
            if problem and name not in told:
                problems.append(f"{name}: {problem}")
                told.add(name)
    return found


def _problem_of_proxy(url: str) -> str:
    if url.lower().startswith("socks"):
        return "SOCKS proxies are not supported: name an HTTP proxy, as http://HOST:PORT, or unset the variable"
    try:
        parts = urlsplit(url)
        httpx.Proxy(url)
        beyond = parts.path.strip("/") or parts.query or parts.fragment
        if parts.scheme in _SCHEMES and _is_host(parts.hostname or "") and parts.port != 0 and not beyond:
            return ""
    except (ValueError, httpx.InvalidURL):
        pass
    return "this is not the URL of a proxy: expected http://HOST:PORT or https://HOST:PORT"


def _is_host(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return _HOST.fullmatch(host) is not None
    return True


def _exempt(environ: Mapping[str, str], problems: list[str]) -> tuple[Exemption, ...] | None:
    """Return the entries of NO_PROXY, or None if nothing is called through a proxy."""
    name, value = _given(environ, "NO_PROXY")
    found = []
    for member in filter(None, re.split(r"[,\s]+", value)):
        if member == "*":
            return None
        exemption = _exemption(member)
        if exemption is None:
            problems.append(
                f"{name}: {member!r:.80} is none of: host name, address, network (10.0.0.0/8, fd00::/8), any of them "
                "with :PORT, *"
            )
        else:
            found.append(exemption)
    return tuple(found)


def _exemption(member: str) -> Exemption | None:
    match = _WITH_PORT.fullmatch(member)
    host = match["host"] if match else member
    port = int(match["port"]) if match else None
    if port is not None and not 0 < port <= _MAX_PORT:
        return None
    try:
        return Exemption("", ip_network(host.removeprefix("[").removesuffix("]"), strict=False), port)
    except ValueError:
        name = host.lower().removeprefix("*").lstrip(".").rstrip(".")
        return Exemption(name, None, port) if _HOST.fullmatch(name) else None


def _check_authorities(file: str, problems: list[str]) -> None:
    try:
        ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        cause = "it holds no certificate in PEM"
    except OSError as problem:
        cause = str(problem.strerror)
    else:
        return
    problems.append(f"SSL_CERT_FILE: {file}: {cause}: name a file of certificates, or unset the variable")


def _has_authorities(folder: str) -> bool:
    try:
        return any(_HASHED.fullmatch(path.name) for path in Path(folder).iterdir())
    except OSError:
        return False
