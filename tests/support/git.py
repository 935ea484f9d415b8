"""A private repository on loopback: over SSH by a real sshd, over HTTP by Git's own http-backend behind a password."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tests.support.parts import SSHD, require
from tests.support.processes import Process, clean_environment
from tests.support.waiting import accepts, free_port, wait_until

IDENTITY = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]


def make_repository(bare: Path, *files: Path) -> None:
    """Make a bare repository whose branch `main` holds these files."""
    work = bare.with_suffix(".work")
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def git(*words: str | Path) -> None:
        subprocess.run(["git", *words], check=True, capture_output=True, env=env)

    git("init", "--quiet", "--initial-branch=main", work)
    for file in files:
        shutil.copy(file, work)
    git("-C", work, "add", ".")
    git("-C", work, *IDENTITY, "commit", "--quiet", "--message", "flows")
    git("clone", "--quiet", "--bare", work, bare)


def make_key(file: Path) -> str:
    """Write a new Ed25519 key without a passphrase, and return its public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", file], check=True)
    return file.with_suffix(".pub").read_text().strip()


class SSHServer:
    """A real sshd on loopback that lets one key in, for Git alone."""

    def __init__(self, folder: Path, authorized_key: str) -> None:
        self.port = free_port()
        self.host_key = make_key(folder / "host_key")
        (folder / "authorized_keys").write_text(f"restrict {authorized_key}\n")
        self._config = folder / "sshd_config"
        self._config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        )
        self._folder = folder

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where it drops its rights; systemd would make it
        argv: list[str | Path] = [require(SSHD), "-D", "-e", "-f", self._config]
        env = clean_environment(self._folder / "home", {})
        self._process = Process("sshd", argv, env=env, log=self._folder / "sshd.log")
        wait_until(lambda: accepts(self.port), timeout=10, what="sshd", log=self._process.tail)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()


class HTTPServer:
    """Serves the bare repositories of a folder to whoever `lets_in` says: a function of user name and password."""

    def __init__(self, folder: Path, lets_in: Callable[[str, str], bool]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.refused = 0
        self._folder, self._lets_in = folder, lets_in

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                scheme, _, credential = self.headers.get("Authorization", "").partition(" ")
                user, _, password = base64.b64decode(credential).decode().partition(":") if scheme else ("", "", "")
                if not outer._lets_in(user, password):
                    outer.refused += 1
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="git"')
                    self.end_headers()
                    return
                url = urlsplit(self.path)
                env = {
                    "PATH": os.environ["PATH"],
                    "GIT_PROJECT_ROOT": str(outer._folder),
                    "GIT_HTTP_EXPORT_ALL": "1",
                    "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                    "REMOTE_USER": user,
                    "REQUEST_METHOD": self.command,
                    "PATH_INFO": url.path,
                    "QUERY_STRING": url.query,
                    "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                    "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                }
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                argv = ["git", "-c", "safe.directory=*", "http-backend"]
                told = subprocess.run(argv, input=body, env=env, capture_output=True, check=True).stdout
                head, _, content = told.partition(b"\r\n\r\n")
                fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
                self.send_response(int(fields.pop("Status", "200").split()[0]))
                for name, value in fields.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _answer

            def log_message(self, *_: object) -> None:
                """Keep the tests' output quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
