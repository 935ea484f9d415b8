"""The server around the service: uvicorn, set up for standing behind a proxy."""

import os
import secrets
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from service.adapters.prefect_socket import MAX_MESSAGE, PING_SECONDS, PONG_SECONDS
from service.gate.protocol import RelayProtocol
from service.gate.verify_protocol import http_protocol
from service.settings import Settings
from service.settings.load import CONFIG, SECRETS, SESSION_KEY
from service.telemetry.events import configure_logging

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

KEEP_ALIVE: Final = 120  # seconds; longer than proxies keep idle connections, so that they are the ones to close
_FIRST_INHERITED: Final = 3  # SD_LISTEN_FDS_START
MAX_FILES: Final = 65_536  # descriptors: more than the memory of one process has use for


def serve(settings: Settings, config_file: Path | None = None, secrets_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then let running requests finish within ``shutdown_grace`` seconds.

    Each process loads the settings itself, at its start and on SIGHUP. So options of the command line are passed on as
    environment variables.
    """
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the service handles it
    if config_file is not None:
        os.environ[CONFIG] = str(config_file)
    if secrets_file is not None:
        os.environ[SECRETS] = str(secrets_file)
    if settings.uds is not None:
        os.environ["FORWARD_AUTH_UDS"] = str(settings.uds)
    os.environ[SESSION_KEY] = secrets.token_urlsafe(32)  # all processes need the same key
    configure_logging(settings.log.level, settings.log.format)
    inherited = inherited_sockets()
    uds = None if inherited else settings.uds
    _allow_files()
    config = uvicorn.Config(
        "service.web.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        uds=None if uds is None else str(uds),
        workers=settings.workers,
        loop="uvloop",
        **protocols(),
        lifespan="on",
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.shutdown_grace),
    )
    server = SingleProcessServer(config)
    sockets = inherited or (None if uds is None else [_unix_socket(uds)])
    try:
        with suppress(KeyboardInterrupt):
            if settings.workers > 1:
                WorkerSupervisor(config, sockets or [config.bind_socket()]).run()
            else:
                server.run(sockets)
    finally:
        if uds is not None:
            uds.unlink(missing_ok=True)
    if settings.workers == 1 and not server.started:
        sys.exit(STARTUP_FAILURE)


def protocols() -> dict[str, Any]:
    """Return uvicorn's options for HTTP and WebSockets."""
    return {
        "http": http_protocol(),
        "ws": RelayProtocol,
        "ws_max_size": MAX_MESSAGE,
        "ws_per_message_deflate": False,  # it takes more memory than all the rest of a socket
        "ws_ping_interval": PING_SECONDS,
        "ws_ping_timeout": PONG_SECONDS,
        "access_log": False,
        "proxy_headers": False,  # the peer's address must be the proxy's own
        "server_header": False,
        "date_header": False,
    }


def inherited_sockets() -> list[socket.socket]:
    """Return the listening sockets that systemd has opened for this process (sd_listen_fds(3)), if there are any.

    They stay open while the service restarts: the kernel keeps new connections until the next process accepts them.
    """
    mine = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not (mine and count.isdecimal()):
        return []
    return [socket.socket(fileno=_FIRST_INHERITED + number) for number in range(int(count))]


def _allow_files() -> None:
    """Allow this process and its workers as many descriptors as the system lets it have: a relayed socket takes two."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS has limits that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _unix_socket(path: Path) -> socket.socket:
    """Return a socket for its owner and group. uvicorn would let everybody open it, and whoever can is trusted."""
    if path.is_socket():
        path.unlink()  # left behind by a killed process
    listener = socket.socket(socket.AF_UNIX)
    umask = os.umask(0o117)
    try:
        listener.bind(str(path))
    except OSError as problem:
        sys.exit(f"uds: {path}: {problem.strerror}")
    finally:
        os.umask(umask)
    listener.set_inheritable(True)
    return listener


class SingleProcessServer(uvicorn.Server):
    """uvicorn's server, which also removes its Unix socket on SIGTERM."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down as uvicorn does, and remove the socket before uvicorn repeats the signal and the process ends."""
        await super().shutdown(sockets)
        if self.config.uds is not None:
            Path(self.config.uds).unlink(missing_ok=True)  # noqa: ASYNC240 - nothing else runs in this loop now


class WorkerSupervisor(Multiprocess):
    """uvicorn's supervisor of several processes, which passes SIGHUP on instead of replacing them."""

    def handle_hup(self) -> None:
        """Let each process reload its configuration. Replacing processes would lose their state.

        A process that has not started yet is ended by the signal, and the supervisor starts another one.
        """
        for one in self.processes:
            if one.pid is not None and one.process.is_alive():
                os.kill(one.pid, signal.SIGHUP)
