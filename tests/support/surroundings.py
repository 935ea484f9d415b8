"""A FAKE of what gives tokens to jobs of GitHub Actions and to machines of Google Cloud and Azure, over loopback HTTP.

It answers as their documentation says: with the same members and types, and with the same refusals of a call that lacks
its header or parameter. It cannot show the clouds' own limits and latencies, and the tokens are what the test says.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

GOOGLE_PATH = "/computeMetadata/v1/instance/service-accounts/default/identity"
AZURE_PATH = "/metadata/identity/oauth2/token"
APP_SERVICE_PATH = "/msi/token"
GITHUB_PATH = "/idtoken/run/job"
Answer = tuple[int, str | dict[str, Any]]


def _in_an_hour() -> str:
    return str(int(time.time()) + 3600)


class FakeSurroundings:
    """Gives ``token`` for one audience, for an hour; serves inside the `with` block. Without an identity it refuses."""

    def __init__(self, token: str = "good", audience: str = "prefect") -> None:
        self.token, self.audience = token, audience
        self.has_identity = True
        self.asked: list[dict[str, str]] = []  # the parameters of each call
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"

    @property
    def google(self) -> dict[str, str]:
        return {"GCE_METADATA_HOST": self.host}

    @property
    def azure(self) -> dict[str, str]:
        return {"AZURE_POD_IDENTITY_AUTHORITY_HOST": self.url}

    @property
    def app_service(self) -> dict[str, str]:
        return {"IDENTITY_ENDPOINT": f"{self.url}{APP_SERVICE_PATH}", "IDENTITY_HEADER": "of-the-app"}

    @property
    def github_actions(self) -> dict[str, str]:
        return {
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.url}{GITHUB_PATH}?api-version=2.0",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-job",
        }

    def _google(self, query: dict[str, str], headers: Any) -> Answer:
        if headers.get("Metadata-Flavor") != "Google":
            return 403, "<html>Your client does not have permission</html>"
        if query.get("format") != "full" or not query.get("audience"):
            return 400, "non-empty audience parameter required"
        return (200, self.token) if self.has_identity else (404, "<html>404</html>")

    def _azure(self, query: dict[str, str], headers: Any) -> Answer:
        if headers.get("Metadata") != "true" or query.get("api-version") != "2018-02-01":
            return 400, {"error": "invalid_request", "error_description": "Required metadata header not specified"}
        if not self.has_identity:
            return 400, {"error": "invalid_request", "error_description": "Identity not found"}
        if query.get("resource") != self.audience:
            return 400, {"error": "invalid_resource", "error_description": "AADSTS500011"}
        return 200, {"access_token": self.token, "expires_in": "3600", "expires_on": _in_an_hour(), "resource": "…"}

    def _app_service(self, query: dict[str, str], headers: Any) -> Answer:
        if headers.get("X-IDENTITY-HEADER") != "of-the-app" or query.get("api-version") != "2019-08-01":
            return 401, {"statusCode": 401, "message": "Invalid header"}
        return 200, {"access_token": self.token, "expires_on": _in_an_hour(), "token_type": "Bearer"}

    def _github(self, query: dict[str, str], headers: Any) -> Answer:
        if headers.get("Authorization", "").lower() != "bearer of-the-job" or query.get("api-version") != "2.0":
            return 401, {"message": "Unauthorized"}
        return 200, {"count": len(self.token), "value": self.token}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self
        endpoints = {
            GOOGLE_PATH: self._google,
            AZURE_PATH: self._azure,
            APP_SERVICE_PATH: self._app_service,
            GITHUB_PATH: self._github,
        }

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = dict(parse_qsl(url.query))
                fake.asked.append(query)
                status, answer = endpoints[url.path](query, self.headers)
                body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Keep the tests' output quiet."""

        return Handler
