"""A FAKE of the secrets managers of three clouds, over loopback HTTP, for the real SDKs.

It knows only the calls that reading needs, checks that a credential is sent, and fails on request. It cannot show the
clouds' own permissions, quotas and latencies.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.auth.credentials import AnonymousCredentials
from google.cloud.secretmanager import SecretManagerServiceClient
from google.cloud.secretmanager_v1.services.secret_manager_service.transports import SecretManagerServiceRestTransport
from pydantic_settings.sources.providers import gcp

PROJECT, SECRET_ID = "project-1", "prod/forward-auth"


class Clouds:
    """Holds the same secrets in each cloud; serves inside the `with` block."""

    def __init__(self, folder: Path) -> None:
        self.secrets: dict[str, Any] = {}
        self.forbidden: set[str] = set()
        self.down = False
        self.delay = 0.0
        self.read: list[str] = []  # the names whose values were given away
        self._plain = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._tls = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.certificate = _certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        self._tls.socket = context.wrap_socket(self._tls.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._plain.server_port}"

    @property
    def vault(self) -> str:
        return f"https://127.0.0.1:{self._tls.server_port}"

    @property
    def places(self) -> dict[str, str]:
        return {"gcp": f"gcp:{PROJECT}", "aws": f"aws:{SECRET_ID}", "azure": f"azure:{self.vault}"}

    @property
    def environment(self) -> dict[str, str]:
        """What makes the SDKs of Amazon and Azure ask here."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "fake",
            "AWS_SECRET_ACCESS_KEY": "fake",
            "AWS_MAX_ATTEMPTS": "1",
            "IDENTITY_ENDPOINT": f"{self.url}/token",  # a managed identity, as App Service gives one
            "IDENTITY_HEADER": "fake",
            "REQUESTS_CA_BUNDLE": str(self.certificate),
        }

    def bend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the SDKs in this process ask here; Google's takes no address from the environment."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        gcp.import_gcp_secret_manager()
        monkeypatch.setattr(gcp, "google_auth_default", lambda: (AnonymousCredentials(), None))  # type: ignore[no-untyped-call]
        monkeypatch.setattr(gcp, "SecretManagerServiceClient", self._google)

    def _google(self, credentials: AnonymousCredentials) -> SecretManagerServiceClient:
        host = self.url.removeprefix("http://")
        transport = SecretManagerServiceRestTransport(host=host, credentials=credentials, url_scheme="http")
        return SecretManagerServiceClient(transport=transport)

    def __enter__(self) -> Self:
        for server in (self._plain, self._tls):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self._plain, self._tls):
            server.shutdown()
            server.server_close()

    # what is answered -------------------------------------------------------------------------------------

    def _amazon(self, asked: dict[str, Any]) -> tuple[int, Any]:
        if asked["SecretId"] != SECRET_ID:
            return 400, {"__type": "ResourceNotFoundException", "Message": "Secrets Manager can't find it."}
        if self.forbidden:
            return 400, {"__type": "AccessDeniedException", "Message": "not authorized"}
        self.read += self.secrets
        return 200, {"Name": SECRET_ID, "SecretString": json.dumps(self.secrets)}

    def _get(self, path: str) -> tuple[int, Any]:
        if path == "/token":
            return 200, {"access_token": "fake", "expires_on": str(int(time.time()) + 3600), "token_type": "Bearer"}
        secrets, parent = self.secrets, f"/v1/projects/{PROJECT}/secrets"
        if path == parent:
            return 200, {"secrets": [{"name": f"projects/{PROJECT}/secrets/{name}"} for name in secrets]}
        if path == "/secrets":
            vault = [
                {"id": f"{self.vault}/secrets/{name.replace('_', '-')}", "attributes": {"enabled": True}}
                for name in secrets
            ]
            return 200, {"value": vault}
        of_google = path.startswith(parent)
        name = path.removeprefix(parent).removeprefix("/secrets").split("/")[1]
        name = name if of_google else name.replace("-", "_")
        if name not in secrets:
            return 404, {"error": {"code": 404, "message": "not found", "status": "NOT_FOUND"}}
        if name in self.forbidden:
            return 403, {"error": {"code": 403, "message": "denied", "status": "PERMISSION_DENIED"}}
        self.read.append(name)
        if of_google:
            return 200, {"payload": {"data": base64.b64encode(str(secrets[name]).encode()).decode()}}
        return 200, {"value": secrets[name], "id": f"{self.vault}/secrets/{name.replace('_', '-')}/1"}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path).path.rstrip("/")
                if path.startswith("/secrets") and "Authorization" not in self.headers:
                    # the SDK checks that the vault's own domain ends with the resource's
                    resource = cloud.vault.replace("127.0.0.1", "0.0.1")
                    challenge = f'Bearer authorization="https://login.example/tenant", resource="{resource}"'
                    self._send(401, {}, challenge)
                else:
                    self._send(*cloud._get(path))

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["X-Amz-Target"] == "secretsmanager.GetSecretValue"
                assert self.headers["Authorization"].startswith("AWS4-HMAC-SHA256 ")
                self._send(*cloud._amazon(asked))

            def _send(self, status: int, answer: Any, challenge: str = "") -> None:
                time.sleep(cloud.delay)  # slowness is what is being played here
                status, answer = (400, {"error": {"code": 400, "message": "down"}}) if cloud.down else (status, answer)
                body = json.dumps(answer).encode()
                self.send_response(status)
                if challenge:
                    self.send_header("WWW-Authenticate", challenge)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Keep the tests' output quiet."""

        return Handler


def _certificate(folder: Path) -> Path:
    """Write a certificate for 127.0.0.1, signed by itself, together with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([]), dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "cloud.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    return path
