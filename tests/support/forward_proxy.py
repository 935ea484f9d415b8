"""A forward proxy on loopback, as companies have one between their servers and the Internet."""

from __future__ import annotations

import socket
import socketserver
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class ForwardProxy:
    """Notes what it is asked; joins a CONNECT to one server, whatever was named, and answers everything else itself."""

    def __init__(self, server_port: int = 0) -> None:
        self.asked: list[str] = []  # request lines
        self.credentials: list[str] = []
        proxy = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                line = self.rfile.readline().decode().strip()
                proxy.asked.append(line)
                while header := self.rfile.readline().decode().strip():
                    name, _, value = header.partition(": ")
                    if name.lower() == "proxy-authorization":
                        proxy.credentials.append(value)
                if not line.startswith("CONNECT "):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\nby proxy\n")
                    return
                with socket.create_connection(("127.0.0.1", server_port)) as server:
                    self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    back = threading.Thread(target=_copy, args=(server, self.connection), daemon=True)
                    back.start()
                    _copy(self.connection, server)
                    back.join(5)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
