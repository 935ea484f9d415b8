"""Traefik, Prefect and prefect-forward-auth on 127.0.0.1 in one command: `python3 deploy/demo/demo.py`.

Needs Python 3.11 to 3.13 and the network for the first start; nothing else, and nothing outside its folder.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decisions import Decisions
from environments import HERE, ROOT, Environments, UnusableError, check_python
from parts import Part, Parts, answers, free_port

WORKER, PERSON = "demo-worker", "admin"
AUDIENCE = "prefect"
ROLES = "worker,deployer"  # what is pasted deploys a flow, and runs it
MACHINES, PEOPLE = "127.0.0.1", "localhost"  # two names of this machine, for Traefik's two hosts
QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Addresses:
    """The ports of one run of the demo."""

    issuer: int
    prefect: int
    service: int
    traefik: int
    verify: int

    @property
    def api(self) -> str:
        """What machines put into PREFECT_API_URL."""
        return f"http://{MACHINES}:{self.traefik}/api"

    @property
    def ui(self) -> str:
        """What people open."""
        return f"http://{PEOPLE}:{self.traefik}"


def write_command(environments: Environments) -> Path:
    """Put the command `prefect-forward-auth` into the service's environment, and return its path.

    The environment holds what the service needs; the service itself is this clone.
    """
    command = environments.service.folder / "bin" / "prefect-forward-auth"
    python = shlex.quote(str(environments.service.python))
    command.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {python} -m service "$@"\n')
    command.chmod(0o755)
    return command


def add_user(command: Path, file: Path, name: str) -> str:
    """Add somebody to the users file, by the service's own command; return the password."""
    password = secrets.token_urlsafe(15)
    argv: list[str | Path] = [command, "users", "add", name, "--file", file]
    done = subprocess.run(argv, input=password, text=True, capture_output=True, check=False)
    if done.returncode:
        msg = f"the users file could not be written:\n{done.stdout}{done.stderr}"
        raise UnusableError(msg)
    return password


def static_configuration(ports: Addresses, file: Path) -> Path:
    """Write the shipped static configuration with the demo's address and folder in it."""
    text = (ROOT / "traefik" / "http.yml").read_text()
    for shipped, ours in (
        ('":8000"', f'"127.0.0.1:{ports.traefik}"'),
        ("127.0.0.1:8081", f"127.0.0.1:{ports.verify}"),
        ("/etc/traefik/dynamic", str(ROOT / "traefik" / "dynamic")),
    ):
        if text.count(shipped) != 1:
            msg = f"traefik/http.yml no longer contains {shipped} exactly once"
            raise UnusableError(msg)
        text = text.replace(shipped, ours)
    file.write_text(text)
    return file


def read_configuration(file: Path | None) -> dict[str, Any]:
    """Return the tables of a configuration that the demo's service is to have besides its own."""
    try:
        return tomllib.loads(file.read_text()) if file is not None else {}
    except (OSError, ValueError) as problem:
        msg = f"{file} cannot be read: {problem}"
        raise UnusableError(msg) from None


def start(
    environments: Environments, run: Path, home: Path, ports: Addresses, parts: Parts, config: Path | None = None
) -> Part:
    """Start the four parts, and return the service once flows can run through Traefik."""
    python = environments.service.python
    token_file = run / "token"
    issuer_argv: list[str | Path] = [
        python,
        HERE / "issuer.py",
        "--port",
        str(ports.issuer),
        "--token-file",
        token_file,
    ]
    parts.start("issuer", [*issuer_argv, "--audience", AUDIENCE, "--subject", WORKER], env={}, cwd=run)
    prefect_argv: list[str | Path] = [environments.prefect.python, "-m", "prefect", "server", "start"]
    parts.start(
        "Prefect",
        [*prefect_argv, "--host", "127.0.0.1", "--port", str(ports.prefect)],
        env={**QUIET, "PREFECT_HOME": str(home / "server"), "PREFECT_SERVER_UI_API_URL": "/api"},
        cwd=run,
    )
    issuer = f"http://127.0.0.1:{ports.issuer}"
    grants = [
        {"issuer": "local", "users": PERSON, "roles": "admin"},
        {"issuer": "local", "users": WORKER, "roles": ROLES},
        {"issuer": issuer, "roles": ROLES},
        *read_configuration(config).get("grants", []),
    ]
    parts.wait_until(token_file.exists, timeout=30, what="the issuer")
    service = parts.start(
        "service",
        [python, "-m", "service", "serve"],
        env={
            "FORWARD_AUTH_HOST": "127.0.0.1",
            "FORWARD_AUTH_PORT": str(ports.service),
            "FORWARD_AUTH_ISSUER__URL": issuer,
            "FORWARD_AUTH_ISSUER__AUDIENCES": AUDIENCE,
            "FORWARD_AUTH_USERS__FILE": str(run / "users.htpasswd"),
            "FORWARD_AUTH_GRANTS": json.dumps(grants),
            "FORWARD_AUTH_LOG__FORMAT": "json",
            "FORWARD_AUTH_LOG__DECISIONS": "all",
            "FORWARD_AUTH_PREFECT__URL": f"http://127.0.0.1:{ports.prefect}",
            **({"FORWARD_AUTH_CONFIG": str(config)} if config is not None else {}),
        },
        cwd=ROOT,
    )
    parts.start(
        "Traefik",
        [
            environments.traefik.folder / "bin" / "traefik",
            f"--configFile={static_configuration(ports, run / 'traefik.yml')}",
        ],
        env={
            "GATE_MACHINES_HOST": MACHINES,
            "GATE_PEOPLE_HOST": PEOPLE,
            "GATE_PREFECT_URL": f"http://127.0.0.1:{ports.prefect}",
            "GATE_AUTH_URL": f"http://127.0.0.1:{ports.service}",
            "GATE_VERIFY_URL": f"http://127.0.0.1:{ports.verify}",
        },
        cwd=run,
    )
    parts.wait_until(lambda: answers(f"http://127.0.0.1:{ports.service}/readyz"), timeout=30, what="the service")
    # a page is no decision, so this does not appear among them
    parts.wait_until(lambda: answers(f"{ports.ui}/_auth/login"), timeout=30, what="Traefik")
    parts.wait_until(
        lambda: answers(f"http://127.0.0.1:{ports.prefect}/api/health"), timeout=180, what="the Prefect server"
    )
    return service


def instructions(
    environments: Environments,
    command: Path,
    home: Path,
    ports: Addresses,
    passwords: Mapping[str, str],
    token: str,
    provider: str = "",
) -> str:
    """Return what to paste: a credential in one of three forms, then a flow; and where people sign in."""
    python, prefect = environments.prefect.python, environments.prefect.folder / "bin" / "prefect"
    fresh = "unset PREFECT_API_KEY PREFECT_API_AUTH_STRING PREFECT_CLIENT_CUSTOM_HEADERS"
    common = f"export PREFECT_HOME={shlex.quote(str(home / 'client'))} PREFECT_UI_URL={ports.ui}"
    headers = shlex.quote(json.dumps({"Authorization": f"Bearer {token}"}))
    flow = shlex.quote(str(HERE / "flow.py"))
    person = f"at {provider}" if provider else f"as {PERSON}, with the password {passwords[PERSON]}"
    return f"""
Everything is up. In another terminal, take ONE of these three credentials:

# 1. A user name and a password (Basic)
  {fresh}; {common}
  export PREFECT_API_URL={ports.api} PREFECT_API_AUTH_STRING={shlex.quote(f"{WORKER}:{passwords[WORKER]}")}

# 2. A JWT in a header
  {fresh}; {common}
  export PREFECT_API_URL={ports.api} PREFECT_CLIENT_CUSTOM_HEADERS={headers}

# 3. A JWT in the URL
  {fresh}; {common}
  export PREFECT_API_URL={ports.api.replace("://", f"://jwt:{token}@")}

Then run a flow in that terminal:
  {python} {flow}

Or deploy it, and let a worker run it (the worker goes on polling: stop it with Ctrl-C):
  {prefect} work-pool create demo --type process --overwrite
  {python} {flow} --deploy
  {prefect} worker start --pool demo --type process

See the runs in a browser (not Safari, which keeps no session over plain http):  {ports.ui}
  sign in {person}

Ask the service's own command, for example why somebody may not do something:
  {shlex.quote(str(command))} explain --role viewer POST /api/deployments/

Logs are in {home.parent / "run"}.  Ctrl-C stops everything.

Decisions as they are made:
"""


def follow(service: Part, parts: Parts, interrupted: threading.Event) -> None:
    """Print decisions until interrupted; raise if a part ends by itself."""
    decisions = Decisions(service.log)
    try:
        while not interrupted.wait(0.2):
            for line in decisions.new():
                print(line, flush=True)
            parts.check()
    finally:
        decisions.close()


def demo(folder: Path, interrupted: threading.Event, config: Path | None, port: int) -> None:
    """Run the demo in a folder until interrupted."""
    provider = read_configuration(config).get("oidc", {}).get("issuer", "")
    environments = Environments.within(folder)
    environments.make(interrupted.is_set)
    run, home = folder / "run", folder / "prefect-homes"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(mode=0o700)
    for one in ("server", "client"):
        (home / one).mkdir(parents=True, exist_ok=True)
    ports = Addresses(free_port(), free_port(), free_port(), port or free_port(), free_port())
    parts = Parts(run, interrupted.is_set)
    try:
        command = write_command(environments)
        passwords = {name: add_user(command, run / "users.htpasswd", name) for name in (PERSON, WORKER)}
        print("Starting …", flush=True)
        service = start(environments, run, home, ports, parts, config)
        token = (run / "token").read_text()
        print(instructions(environments, command, home, ports, passwords, token, provider), flush=True)
        follow(service, parts, interrupted)
    finally:
        print("\nStopping …", flush=True)
        parts.stop()
        print("Stopped.", flush=True)


def main() -> int:
    """Run the demo; 0 after Ctrl-C, 1 with a reason otherwise."""
    parser = argparse.ArgumentParser(description="Traefik, Prefect and prefect-forward-auth on 127.0.0.1")
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo", help="where all of it lives (default: .demo)")
    parser.add_argument(
        "--config", type=Path, help="more configuration for the service: [oidc], [[issuers]], [[grants]]"
    )
    parser.add_argument("--port", type=int, default=0, help="Traefik's port (default: a free one)")
    options = parser.parse_args()
    folder, config = options.folder.absolute(), options.config and options.config.absolute()

    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: interrupted.set())
    # What another environment or profile says must not reach the demo's parts.
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "FORWARD_AUTH_", "PYTHON"))]:
        del os.environ[name]
    try:
        check_python()
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                msg = f"A demo runs from {folder} already; stop it, or give another --folder."
                raise UnusableError(msg) from None
            demo(folder, interrupted, config, options.port)
    except UnusableError as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
