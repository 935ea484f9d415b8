"""The servers that are measured, each a process of its own on loopback."""

import json
import os
import re
import secrets
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx
import yaml

from service.adapters.users_file import hash_password
from tests.support.issuer import Issuer, b64url
from tests.support.other_uvicorn import install as install_other_uvicorn
from tests.support.parts import ROOT, TRAEFIK, require
from tests.support.waiting import accepts, free_port, wait_until

FORWARDED = {
    "X-Forwarded-Method": "POST",
    "X-Forwarded-Uri": "/api/flow_runs/filter",
    "X-Forwarded-Host": "prefect.example.com",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-For": "203.0.113.7",
}
UVICORN = ["--loop", "uvloop", "--http", "httptools", "--ws", "none", "--no-access-log"]
UVICORN += ["--no-server-header", "--no-date-header", "--no-proxy-headers"]
SERVER_CORE, LOAD_CORE = 0, 1
ALGORITHMS = ("RS256", "ES256", "EdDSA")


def environment() -> dict[str, str]:
    """Return the environment of a measured process: ours, with compiled Python allowed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Stage:
    """Everything that is measured, up inside the `with` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.issuer = Issuer("RS256", "ES256", "EdDSA")
        self.password = secrets.token_urlsafe(24)
        self.users = folder / "users"
        self._stack = ExitStack()
        self._processes: dict[int, int] = {}  # by port

    def __enter__(self) -> Self:
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(ROOT / "service")], check=True, env=environment())
        with self._stack:  # what was started ends if a later start fails
            self._start_all()
            self._stack = self._stack.pop_all()
        return self

    def _start_all(self) -> None:
        self._stack.enter_context(self.issuer)
        hashed = hash_password(self.password, 10)
        self.users.write_text(f"bench:{hashed}\n")
        self.gate_process, self.gate = self.service()
        # so short a memory that each of many tokens, sent in turn, has to be verified
        self.forgetful_process, self.forgetful = self.service(FORWARD_AUTH_VERDICT_SECONDS="0.05")
        _, self.by_asgi = self.service(PYTHONPATH=str(install_other_uvicorn(self.folder / "uvicorn")))
        self.bare = self._uvicorn("tests.bench.apps:bare", "--lifespan", "off")
        self.raw = {
            algorithm: self._uvicorn(f"tests.bench.apps:one_{algorithm.lower()}", "--factory", "--lifespan", "off")
            for algorithm in ALGORITHMS
        }
        self.ordinary = self._uvicorn("tests.bench.apps:ordinary", "--factory")
        self.traefik = self._traefik(hashed)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(
        self, argv: list[str], variables: dict[str, str], port: int, *, core: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program and return once its port is open."""
        log = self._stack.enter_context((self.folder / f"{port}.log").open("wb"))
        process = subprocess.Popen(
            argv,
            env={**environment(), **variables},
            cwd=ROOT,
            stdout=log,
            stderr=log,
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509
        )

        def stop() -> None:
            process.kill()
            process.wait()

        self._stack.callback(stop)

        def up() -> bool:
            if process.poll() is not None:
                raise SystemExit(f"{argv} ended: {Path(log.name).read_text()}")
            return accepts(port)

        wait_until(up, timeout=30, what=f"port {port} of {argv}")
        self._processes[port] = process.pid
        return process

    def process_at(self, url: str) -> int | None:
        """Return the process that listens at a URL."""
        return self._processes.get(urlsplit(url).port or 0)

    def _variables(self, port: int) -> dict[str, str]:
        return {
            "FORWARD_AUTH_PORT": str(port),
            "FORWARD_AUTH_ISSUER__URL": self.issuer.url,
            "FORWARD_AUTH_ISSUER__AUDIENCES": "prefect",
            "FORWARD_AUTH_ISSUER__ROLE": "worker",
            "FORWARD_AUTH_USERS__FILE": str(self.users),
            "FORWARD_AUTH_USERS__ROLE": "worker",
        }

    def service(self, *, core: int | None = SERVER_CORE, **variables: str) -> tuple[subprocess.Popen[bytes], str]:
        """Start the product and return it with its verify endpoint."""
        port = free_port()
        argv = [sys.executable, "-m", "service", "serve"]
        process = self.start(argv, {**self._variables(port), **variables}, port, core=core)
        ready = f"http://127.0.0.1:{port}/readyz"
        wait_until(lambda: httpx.get(ready).json()["status"] == "ready", timeout=30, what=ready)
        return process, f"http://127.0.0.1:{port}/forward-auth/api"

    def _uvicorn(self, app: str, *options: str) -> str:
        port = free_port()
        argv = [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--log-level", "warning"]
        self.start([*argv, *UVICORN, *options], self._variables(port), port, core=SERVER_CORE)
        return f"http://127.0.0.1:{port}/forward-auth/api"

    def _traefik(self, hashed: str) -> str:
        """Start Traefik with four routes to one upstream: open, its basicAuth, our gate, a bare one in its place."""
        port = free_port()
        static = {
            "entryPoints": {"web": {"address": f"127.0.0.1:{port}"}},
            "providers": {"file": {"filename": str(self.folder / "dynamic.yml")}},
            "log": {"level": "ERROR"},
        }
        copied = {"authRequestHeaders": ["Authorization"], "authResponseHeaders": ["X-Auth-Request-User"]}
        middlewares = {
            "own": {"basicAuth": {"users": [f"bench:{hashed}"]}},
            "ours": {"forwardAuth": {"address": self.gate, **copied}},
            "bare": {"forwardAuth": {"address": self.bare, **copied}},
            "strip": {"stripPrefix": {"prefixes": ["/open", "/own", "/ours", "/bare"]}},  # a path of Prefect's is left
        }
        routers = {
            name: {"rule": f"PathPrefix(`/{name}`)", "service": "up", "middlewares": ["strip", *used]}
            for name, used in (("open", []), ("own", ["own"]), ("ours", ["ours"]), ("bare", ["bare"]))
        }
        # a process of its own, as Prefect is: one that also answered in our place would be woken half as often
        prefect = self._uvicorn("tests.bench.apps:bare", "--lifespan", "off")
        upstream = {"loadBalancer": {"servers": [{"url": prefect.removesuffix("/forward-auth/api")}]}}
        dynamic = {"http": {"routers": routers, "services": {"up": upstream}, "middlewares": middlewares}}
        (self.folder / "dynamic.yml").write_text(yaml.safe_dump(dynamic))
        (self.folder / "static.yml").write_text(yaml.safe_dump(static))
        traefik = str(require(TRAEFIK))
        self.start([traefik, f"--configFile={self.folder / 'static.yml'}"], {}, port)
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{url}/open").status_code == 200, timeout=20, what="routes in Traefik")
        return url

    def start_up_seconds(self, runs: int = 5) -> float:
        """Return the median time from starting the process to the first 200 of /readyz."""
        times = []
        for _ in range(runs):
            port = free_port()
            began = time.perf_counter()
            process = self.start([sys.executable, "-m", "service", "serve"], self._variables(port), port)
            url = f"http://127.0.0.1:{port}/readyz"
            wait_until(partial(_answers, url), timeout=20, what=url)
            times.append(time.perf_counter() - began)
            process.kill()
            process.wait()
        return statistics.median(times)

    def tokens(self, count: int, algorithm: str = "RS256") -> list[str]:
        """Return distinct good tokens."""
        return [self.issuer.mint(alg=algorithm, lifetime=3600, sub=f"svc-{number}") for number in range(count)]

    def session(self) -> str:
        """Sign in with the form, and return the Cookie header of the session."""
        base = self.gate.removesuffix("/forward-auth/api")
        forwarded = {f"X-Forwarded-{name}": FORWARDED[f"X-Forwarded-{name}"] for name in ("Host", "Proto", "For")}
        with httpx.Client(base_url=base, headers={**forwarded, "Sec-Fetch-Site": "same-origin"}) as browser:
            form = browser.get("/_auth/login")
            csrf = re.search(r'name="csrf"[^>]*value="([^"]+)"', form.text)
            assert csrf is not None
            held = {"Cookie": form.headers["set-cookie"].partition(";")[0]}
            data = {"username": "bench", "password": self.password, "csrf": csrf[1]}
            signed_in = browser.post("/_auth/login", data=data, headers=held)
        cookies = [one.partition(";")[0] for one in signed_in.headers.get_list("set-cookie")]
        return next(one for one in cookies if one.startswith("__Host-prefect-gate="))

    def strangers(self, count: int) -> list[str]:
        """Return tokens with invented key ids, whose signatures are nobody's."""
        payload = self.issuer.mint(lifetime=3600).split(".")[1]
        return [
            ".".join([b64url(json.dumps({"alg": "RS256", "kid": secrets.token_hex(8)}).encode()), payload, "A" * 342])
            for _ in range(count)
        ]


def _answers(url: str) -> bool:
    return httpx.get(url).status_code == 200


def resident_mb(process: subprocess.Popen[bytes]) -> float:
    """Return the resident memory of a process in megabytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
