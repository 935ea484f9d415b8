"""A real PostgreSQL as a process: on a free loopback port, with a password, and with a database for each test."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psycopg

from tests.support.parts import POSTGRESQL, require
from tests.support.processes import Process
from tests.support.waiting import free_port, wait_until

PASSWORD = "ledger-password-never-shown"
_SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "max_connections": "40"}


class PostgreSQLServer:
    """Serves inside the `with` block; `stop` and `start` play an outage on the same port, in which nothing is lost."""

    def __init__(self) -> None:
        self._programs = require(POSTGRESQL).parent
        self._process: Process | None = None
        self.port = free_port()

    def __enter__(self) -> Self:
        # a folder of its own: it refuses to run as root, and no other user gets into those of tests
        self._folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        try:
            self._as_user = []
            if os.geteuid() == 0:
                user = pwd.getpwnam("nobody")
                os.chown(self._folder, user.pw_uid, user.pw_gid)
                self._as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            password = self._folder / "password"
            password.write_text(PASSWORD)
            password.chmod(0o644)
            options = ["--no-sync", "--username=gate", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"]
            subprocess.run(
                [*self._as_user, self._programs / "initdb", *options, f"--pwfile={password}", self._folder / "data"],
                check=True,
                capture_output=True,
                cwd="/",
            )
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start, and return once it answers."""
        settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        self._process = Process(
            "PostgreSQL",
            [*self._as_user, self._programs / "postgres", "-D", self._folder / "data", "-p", str(self.port), *settings],
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
            log=self._folder / "log",
            cwd=Path("/"),
        )
        self._process.wait_for_line("database system is ready to accept connections", timeout=60)

    def stop(self) -> None:
        """Go away as in a crash: connections end at once."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGQUIT)
            self._process.wait(timeout=30)
            self._process.stop()
            self._process = None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Be away within the `with` block, and there again behind it."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        name = f"ledger_{secrets.token_hex(4)}"
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://gate:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def run(self, statement: str, name: str = "postgres") -> None:
        """Run a statement as the operator."""
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            connection.execute(statement.encode())

    def backends(self, url: str) -> list[int]:
        """Return the processes that serve the connections to a database."""
        with psycopg.connect(self.url("postgres")) as connection:
            rows = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = %s", (url.rpartition("/")[2],)
            ).fetchall()
        return [pid for (pid,) in rows]

    def freeze(self, url: str) -> list[int]:
        """Let the connections to a database answer nothing, as behind a network that drops everything."""
        frozen = self.backends(url)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        return frozen

    def dump(self, url: str) -> str:
        """Return a dump of the ledger's schema, as the documentation says how to make one."""
        done = subprocess.run(
            [self._programs / "pg_dump", "--schema=prefect_forward_auth", "--clean", "--if-exists", url],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def restore(self, url: str, dump: str) -> None:
        """Put a dump in place, at once."""
        subprocess.run(
            [self._programs / "psql", "--single-transaction", "-v", "ON_ERROR_STOP=1", "-q", "-d", url],
            input=dump,
            check=True,
            capture_output=True,
            text=True,
        )


def wait_for_locked(server: PostgreSQLServer, url: str, count: int) -> None:
    """Wait until this many connections to a database wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"

    def waiting() -> bool:
        with psycopg.connect(server.url("postgres")) as connection:
            row = connection.execute(query, (url.rpartition("/")[2],)).fetchone()
        return row is not None and row[0] >= count

    wait_until(waiting, timeout=60, what=f"{count} waiting for a lock")
