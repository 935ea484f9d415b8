"""A stand-in for a cluster's API: it lists objects and lets clients watch them, and validates nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.support.waiting import free_port

_KINDS = (  # what Traefik asks for
    *("IngressRoute", "IngressRouteTCP", "IngressRouteUDP", "Middleware", "MiddlewareTCP", "ServersTransport"),
    *("ServersTransportTCP", "TLSOption", "TLSStore", "TraefikService"),
    *("ConfigMap", "EndpointSlice", "Namespace", "Node", "Secret", "Service"),
)
_ALL_SENT = {"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}}


class Cluster:
    """Serves objects over loopback HTTP inside the `with` block; enough for a controller's informers."""

    def __init__(self, objects: Iterable[Mapping[str, Any]]) -> None:
        self.objects = [
            {**one, "metadata": {"resourceVersion": "1", "uid": str(number), **one["metadata"]}}
            for number, one in enumerate(objects)
        ]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.asked: set[str] = set()  # paths
        self._end = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    def of(self, path: str) -> tuple[str, str, list[dict[str, Any]]]:
        """Return version, kind and objects below a path such as /apis/traefik.io/v1alpha1/ingressroutes."""
        root, *version, plural = path.strip("/").split("/")
        name = "/".join(version) if root == "apis" else version[0]
        kind = next(one for one in _KINDS if f"{one.lower()}s" == plural)
        return name, kind, [one for one in self.objects if (one["apiVersion"], one["kind"]) == (name, kind)]

    def __enter__(self) -> Self:
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = parse_qs(url.query)
                if url.path == "/version":
                    self._send({"major": "1", "minor": "37", "gitVersion": "v1.37.0"})
                    return
                cluster.asked.add(url.path)
                version, kind, found = cluster.of(url.path)
                if "watch" not in query:
                    metadata = {"resourceVersion": "1"}
                    self._send({"apiVersion": version, "kind": f"{kind}List", "metadata": metadata, "items": found})
                    return
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                if query.get("sendInitialEvents") == ["true"]:
                    for one in found:
                        self._event("ADDED", one)
                    self._event("BOOKMARK", {"apiVersion": version, "kind": kind, "metadata": _ALL_SENT})
                cluster._end.wait()  # nothing ever changes
                self.close_connection = True

            def _event(self, type_: str, what: Mapping[str, Any]) -> None:
                line = json.dumps({"type": type_, "object": what}).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                self.wfile.flush()

            def _send(self, what: Mapping[str, Any]) -> None:
                body = json.dumps(what).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Keep the tests' output quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
