"""Starts each proxy for real, with its shipped configuration, in front of one site."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.parts import CADDY, ENVOY, NGINX, NGINX_OF_DEBIAN, ROOT, TRAEFIK, Part, require
from tests.support.processes import Process, clean_environment
from tests.support.raw_http import send
from tests.support.site import MACHINES, PEOPLE, Site, replace_once
from tests.support.waiting import accepts, free_port, wait_until

DEPLOY = ROOT / "deploy"
HOSTS = {"GATE_MACHINES_HOST": MACHINES, "GATE_PEOPLE_HOST": PEOPLE}


@dataclass(frozen=True)
class Certificate:
    """Two PEM files."""

    chain: Path
    key: Path


Start = Callable[[Site, int, Certificate | None], Process]


@dataclass(frozen=True)
class Proxy:
    """A kind of proxy: `start` runs it on a port, in front of a site's service and its upstream."""

    name: str
    part: Part
    start: Start


def start(proxy: Proxy, site: Site, certificate: Certificate | None = None) -> tuple[int, Process]:
    """Start a proxy on a free port, and return once it asks the service; with TLS, once it listens."""
    require(proxy.part)
    port = free_port()
    process = proxy.start(site, port, certificate)

    def ready() -> bool:
        if process.returncode is not None:
            msg = f"{proxy.name} ended with {process.returncode}:\n{process.tail()}"
            raise RuntimeError(msg)
        return accepts(port) and (bool(certificate) or asks())

    def asks() -> bool:
        """Say whether it has its routes; without the service, some proxies wait before they answer."""
        try:
            return send(port, MACHINES, "/api/health", timeout=3).status != 404
        except TimeoutError:
            return True

    try:
        wait_until(ready, timeout=20, what=f"routes in {proxy.name}", log=process.tail)
    except BaseException:
        process.stop()
        raise
    return port, process


def _apart(site: Site) -> dict[str, str]:
    """Return the variables of those proxies that do not take a URL apart."""
    prefect = urlsplit(site.prefect_url)
    return {
        **HOSTS,
        "GATE_PREFECT_HOST": str(prefect.hostname),
        "GATE_PREFECT_PORT": str(prefect.port),
        "GATE_AUTH_HOST": "127.0.0.1",
        "GATE_AUTH_PORT": str(site.service_port),
    }


def _envsubst(template: Path, variables: Mapping[str, str]) -> str:
    """Fill in what begins with GATE_, as `envsubst` does."""
    return re.sub(r"\$\{(GATE_\w+)\}", lambda match: variables[match[1]], template.read_text())


def _traefik(site: Site, port: int, certificate: Certificate | None) -> Process:
    if certificate is not None:
        files = {"GATE_TLS_CERT_FILE": str(certificate.chain), "GATE_TLS_KEY_FILE": str(certificate.key)}
        return site.start_traefik("https.yml", {8443: port, 8000: free_port()}, files)
    return site.start_traefik("http.yml", {8000: port})


# What the official image has around the templates; keepalive_timeout is set there, too.
_NGINX = """
user root root;
daemon off;
worker_processes 2;
pid nginx.pid;
error_log stderr notice;
events {{ worker_connections 1024; }}
http {{
    default_type application/octet-stream;
    access_log off;
    sendfile on;
    keepalive_timeout 65;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    include conf.d/*.conf;
}}
"""


def _nginx(part: Part) -> Start:
    def start_nginx(site: Site, port: int, certificate: Certificate | None) -> Process:
        folder = site.folder / f"nginx-{port}"
        shutil.copytree(DEPLOY / "nginx" / "gate", folder / "gate")
        (folder / "conf.d").mkdir()
        template = DEPLOY / "nginx" / "templates" / "default.conf.template"
        variables = {**_apart(site), "GATE_LISTEN": f"127.0.0.1:{port}{' ssl' if certificate else ''}"}
        text = _envsubst(template, variables)
        if site.websockets == "always":
            text = replace_once(text, '    "websocket:" 1;', '    "~^websocket:" 1;')
        (folder / "conf.d" / "default.conf").write_text(text)
        if certificate is not None:
            tls = (DEPLOY / "nginx" / "tls.conf").read_text()
            tls = replace_once(tls, "/etc/nginx/tls/tls.crt", str(certificate.chain))
            (folder / "gate" / "tls.conf").write_text(replace_once(tls, "/etc/nginx/tls/tls.key", str(certificate.key)))
        (folder / "nginx.conf").write_text(_NGINX.format(folder=folder))
        return Process(
            part.name,
            [require(part), "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"],
            env=clean_environment(site.folder / "home", {}),
            log=folder / "nginx.log",
        )

    return start_nginx


def _caddy(site: Site, port: int, certificate: Certificate | None) -> Process:
    env = {
        **HOSTS,
        "GATE_HTTP_PORT": str(free_port() if certificate else port),
        "GATE_HTTPS_PORT": str(port if certificate else free_port()),
        "GATE_PREFECT_URL": site.prefect_url,
        "GATE_AUTH_URL": site.service_url,
        "GATE_WEBSOCKETS": site.websockets,
    }
    if certificate is not None:
        files = {"GATE_TLS_CERT_FILE": str(certificate.chain), "GATE_TLS_KEY_FILE": str(certificate.key)}
        env |= {"GATE_TLS": "files", **files}
    config = DEPLOY / "caddy" / ("Caddyfile" if certificate else "Caddyfile.http")
    return Process(
        "Caddy",
        [require(CADDY), "run", "--config", config],
        env=clean_environment(site.folder / "home", env),
        log=site.folder / f"caddy-{port}.log",
    )


def _envoy(site: Site, port: int, certificate: Certificate | None) -> Process:
    template = DEPLOY / "envoy" / "envoy.yaml.template"
    text = _envsubst(template, {**_apart(site), "GATE_LISTEN_PORT": str(port)})
    if site.websockets == "always":
        text, lines = re.subn(r"(?m)^ +- {name: authorization, .*\n", "", text)
        assert lines == 1
    if certificate is not None:
        text = re.sub(r"(?m)^( +)#(?=\S| {2})(?!# )", r"\1", text)
        text = replace_once(text, "/etc/envoy/tls/tls.crt", str(certificate.chain))
        text = replace_once(text, "/etc/envoy/tls/tls.key", str(certificate.key))
    config = site.folder / f"envoy-{port}.yaml"
    config.write_text(replace_once(text, "address: 0.0.0.0,", "address: 127.0.0.1,"))
    return Process(
        "Envoy",
        [require(ENVOY), "-c", config, "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"],
        env=clean_environment(site.folder / "home", {}),
        log=site.folder / f"envoy-{port}.log",
    )


PROXIES = {
    proxy.name: proxy
    for proxy in (
        Proxy("traefik", TRAEFIK, _traefik),
        Proxy("nginx", NGINX, _nginx(NGINX)),
        Proxy("nginx-of-debian", NGINX_OF_DEBIAN, _nginx(NGINX_OF_DEBIAN)),
        Proxy("caddy", CADDY, _caddy),
        Proxy("envoy", ENVOY, _envoy),
    )
}
