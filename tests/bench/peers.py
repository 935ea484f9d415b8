"""Measure other ways to protect an API beside the gate, on the same requests, in one run: `make bench-peers`.

Each server has one core, the load has the other. Each answers by itself, without an upstream. A peer that is not
installed is named and left out.
"""

import argparse
import base64
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
import yaml
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.adapters.users_file import hash_password
from tests.bench.__main__ import BARE, basic, cost, in_turns, other_paths, with_credential
from tests.bench.load import Load, Measured
from tests.bench.report import keep
from tests.bench.stage import LOAD_CORE, SERVER_CORE, Stage
from tests.support.parts import CADDY, ENVOY, HAPROXY, NGINX_OF_DEBIAN, OAUTH2_PROXY, TRAEFIK, Part
from tests.support.waiting import free_port

COST: Final = 10  # of bcrypt: what htpasswd writes by default is 5, and what is recommended is more
JWT, PASSWORD = "Bearer", "Basic"

_HAPROXY = """
global
  nbthread 1
defaults
  mode http
  timeout client 60s
  timeout server 60s
  timeout connect 5s
  timeout http-keep-alive 60s
frontend gate
  bind 127.0.0.1:{port}
  http-request set-var(txn.token) http_auth_bearer
  http-request set-var(txn.alg) var(txn.token),jwt_header_query('$.alg')
  http-request set-var(txn.exp) var(txn.token),jwt_payload_query('$.exp','int')
  http-request set-var(txn.now) date()
  http-request deny deny_status 401 unless {{ var(txn.alg) -m str RS256 }}
  http-request deny deny_status 401 unless {{ var(txn.token),jwt_payload_query('$.iss') -m str {issuer} }}
  http-request deny deny_status 401 unless {{ var(txn.token),jwt_payload_query('$.aud') -m str prefect }}
  http-request deny deny_status 401 if {{ var(txn.exp),sub(txn.now) -m int lt 0 }}
  http-request deny deny_status 401 unless {{ var(txn.token),jwt_verify(txn.alg,"{key}") -m int 1 }}
  http-request return status 200
"""
_NGINX = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{}}
http {{
  access_log off;
  keepalive_requests 100000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    root {folder};
    location / {{
      auth_basic gate;
      auth_basic_user_file {folder}/nginx.users;
      try_files /empty =404;
    }}
  }}
}}
"""
_CADDY = """
{{
  admin off
  auto_https off
}}
http://127.0.0.1:{port} {{
  basic_auth {{
    bench {hash}
  }}
  respond 200
}}
"""


class Peers(Stage):
    """The gate, the bare answer, and the peers that are installed, up inside the `with` block."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.urls: dict[str, tuple[str, str]] = {}  # by the name of a row: the kind of credential, and the URL
        self.left_out: list[str] = []

    def _start_all(self) -> None:
        self._stack.enter_context(self.issuer)
        hashed = hash_password(self.password, COST)
        self.users.write_text(f"bench:{hashed}\n")
        _, self.gate = self.service()
        _, self.forgetful = self.service(FORWARD_AUTH_VERDICT_SECONDS="0.05")
        self.bare = self._uvicorn("tests.bench.apps:bare", "--lifespan", "off")
        for name, kind, part, start in (
            ("Envoy, jwt_authn", JWT, ENVOY, self._envoy),
            ("Envoy, jwt_authn with its JWT cache", JWT, ENVOY, lambda program: self._envoy(program, cached=True)),
            ("HAProxy, jwt_verify", JWT, HAPROXY, self._haproxy),
            ("oauth2-proxy", JWT, OAUTH2_PROXY, self._oauth2_proxy),
            ("Traefik, basicAuth", PASSWORD, TRAEFIK, lambda program: self._traefik_alone(program, hashed)),
            ("Nginx, auth_basic", PASSWORD, NGINX_OF_DEBIAN, lambda program: self._nginx(program, hashed)),
            ("Caddy, basic_auth", PASSWORD, CADDY, lambda program: self._caddy(program, hashed)),
        ):
            self._add(name, kind, part, start)

    def _add(self, name: str, kind: str, part: Part, start: Callable[[str], str]) -> None:
        program = part.find()
        if program is None:
            print(f"{name} is left out: {part.cure}")
            self.left_out.append(name)
        else:
            self.urls[name] = kind, start(str(program))

    def _run(self, argv: list[str], port: int, path: str = "/forward-auth/api") -> str:
        self.start(argv, {}, port, core=SERVER_CORE)
        return f"http://127.0.0.1:{port}{path}"

    def _envoy(self, program: str, *, cached: bool = False) -> str:
        port = free_port()
        provider = {
            "issuer": self.issuer.url,
            "audiences": ["prefect"],
            "local_jwks": {"inline_string": httpx.get(self.issuer.jwks_url).text},
            **({"jwt_cache_config": {"jwt_cache_size": 1000}} if cached else {}),
        }
        http, network = (f"type.googleapis.com/envoy.extensions.filters.{kind}" for kind in ("http", "network"))
        manager = {
            "@type": f"{network}.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "gate",
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                    }
                ]
            },
            "http_filters": [
                {
                    "name": "jwt",
                    "typed_config": {
                        "@type": f"{http}.jwt_authn.v3.JwtAuthentication",
                        "providers": {"issuer": provider},
                        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "issuer"}}],
                    },
                },
                {"name": "router", "typed_config": {"@type": f"{http}.router.v3.Router"}},
            ],
        }
        listener = {
            "name": "gate",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        }
        config = self.folder / f"envoy-{port}.yaml"
        config.write_text(yaml.safe_dump({"static_resources": {"listeners": [listener]}}))
        options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "error"]
        return self._run([program, "-c", str(config), *options], port)

    def _haproxy(self, program: str) -> str:
        port, key = free_port(), self.folder / "haproxy.pem"
        public = self.issuer.key("RS256").private.public_key()
        key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        config = self.folder / "haproxy.cfg"
        config.write_text(_HAPROXY.format(port=port, issuer=self.issuer.url, key=key))
        return self._run([program, "-db", "-f", str(config)], port)

    def _oauth2_proxy(self, program: str) -> str:
        port = free_port()
        self.issuer.metadata = {
            "authorization_endpoint": f"{self.issuer.url}/authorize",
            "token_endpoint": f"{self.issuer.url}/token",
        }
        argv = [
            program,
            f"--http-address=127.0.0.1:{port}",
            "--provider=oidc",
            f"--oidc-issuer-url={self.issuer.url}",
            "--client-id=prefect",
            "--client-secret=unused",
            f"--cookie-secret={base64.b64encode(b'k' * 32).decode()}",
            "--email-domain=*",
            "--oidc-email-claim=sub",
            "--skip-jwt-bearer-tokens=true",
            "--upstream=static://200",
            "--redirect-url=http://127.0.0.1/oauth2/callback",
            "--request-logging=false",
            "--auth-logging=false",
            "--standard-logging=false",
        ]
        return self._run(argv, port, "/oauth2/auth")

    def _traefik_alone(self, program: str, hashed: str) -> str:
        port = free_port()
        dynamic = {
            "http": {
                "routers": {"all": {"rule": "PathPrefix(`/`)", "service": "ping@internal", "middlewares": ["own"]}},
                "middlewares": {"own": {"basicAuth": {"users": [f"bench:{hashed}"]}}},
            }
        }
        (self.folder / "alone.yml").write_text(yaml.safe_dump(dynamic))
        argv = [
            program,
            f"--entryPoints.web.address=127.0.0.1:{port}",
            f"--providers.file.filename={self.folder / 'alone.yml'}",
            "--ping.manualRouting=true",
            "--log.level=ERROR",
        ]
        return self._run(argv, port)

    def _nginx(self, program: str, hashed: str) -> str:
        port = free_port()
        self.folder.chmod(0o755)  # its worker is nobody
        (self.folder / "nginx.users").write_text(f"bench:{hashed.replace('$2b$', '$2y$')}\n")
        (self.folder / "empty").touch()
        config = self.folder / "nginx.conf"
        config.write_text(_NGINX.format(port=port, folder=self.folder))
        return self._run([program, "-c", str(config), "-e", "stderr"], port)

    def _caddy(self, program: str, hashed: str) -> str:
        port, config = free_port(), self.folder / "Caddyfile"
        config.write_text(_CADDY.format(port=port, hash=hashed))
        return self._run([program, "run", "--config", str(config), "--adapter", "caddyfile"], port)


def main() -> None:
    """Measure, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=2, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each row")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Peers(Path(name)) as stage:
        sent = {
            JWT: with_credential(f"Bearer {stage.issuer.mint(alg='RS256', lifetime=3600, email_verified=True)}"),
            PASSWORD: with_credential(basic("bench", stage.password)),
        }
        first = [with_credential(f"Bearer {token}") for token in stage.tokens(2000, "RS256")]

        def row(url: str, headers: list[dict[str, str]]) -> Callable[[], Measured]:
            label, server = f"load-{len(rows)}", stage.process_at(url)
            return lambda: Load(
                url, headers, folder=Path(name), name=label, seconds=options.seconds, core=LOAD_CORE, server=server
            ).result()

        rows: dict[str, Callable[[], Measured]] = {}
        rows[BARE] = row(stage.bare, [sent[JWT]])
        rows["gate, cached Bearer"] = row(stage.gate, [sent[JWT]])
        rows["gate, cached Bearer, never the same bytes"] = row(stage.gate, other_paths(sent[JWT]))
        rows["gate, first-seen Bearer"] = row(stage.forgetful, first)
        rows["gate, cached Basic"] = row(stage.gate, [sent[PASSWORD]])
        for peer, (kind, url) in stage.urls.items():
            rows[peer] = row(url, [sent[kind]])
            wrong = {**sent[kind], "Authorization": f"{kind} YWxpY2U6eA=="}
            for headers, right in ((sent[kind], True), (wrong, False)):
                status = httpx.get(url, headers=headers, timeout=10).status_code
                if (status < 300) is not right:
                    raise SystemExit(f"{peer} answers {status}, which is no measurement")
        for headers in sent.values():
            httpx.get(stage.gate, headers=headers).raise_for_status()
        measured = in_turns(rows, options.rounds)
        left_out = stage.left_out
    summary = {f"{name}, to the gate's": measured.paired(cost, name, "gate, cached Bearer") for name in rows}
    keep("bench-peers", {name: measured.median(name) for name in rows}, summary, left_out)


if __name__ == "__main__":
    main()
