"""The server around the service: uvicorn, set up for standing behind a proxy."""

import os
import secrets
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from service.gate.protocol import BoundedHeadProtocol
from service.settings import Settings
from service.settings.load import CONFIG, SECRETS, SESSION_KEY
from service.telemetry.events import configure_logging

KEEP_ALIVE: Final = 120  # seconds; longer than proxies keep idle connections, so that they are the ones to close


def serve(settings: Settings, config_file: Path | None = None, secrets_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then let requests under way finish within ``shutdown_grace`` seconds.

    Each process loads the settings itself, at its start and on SIGHUP, so what the command line said is handed on as
    variables.
    """
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the service listens to it: what it asks for is being done
    if config_file is not None:
        os.environ[CONFIG] = str(config_file)
    if secrets_file is not None:
        os.environ[SECRETS] = str(secrets_file)
    if settings.uds is not None:
        os.environ["FORWARD_AUTH_UDS"] = str(settings.uds)
    os.environ[SESSION_KEY] = secrets.token_urlsafe(32)  # what one process seals, the others have to open
    configure_logging(settings.log.level, settings.log.format)
    config = uvicorn.Config(
        "service.web.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        uds=None if settings.uds is None else str(settings.uds),
        workers=settings.workers,
        loop="uvloop",
        http=BoundedHeadProtocol,
        ws="none",  # a proxy may forward an Upgrade header; the verify call is an HTTP call all the same
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # the peer's address is the proxy's, and decides whether it is believed
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.shutdown_grace),
    )
    server = Alone(config)
    sockets = None if settings.uds is None else [_unix_socket(settings.uds)]
    try:
        with suppress(KeyboardInterrupt):
            if settings.workers > 1:
                Workers(config, sockets or [config.bind_socket()]).run()
            else:
                server.run(sockets)
    finally:
        if settings.uds is not None:
            settings.uds.unlink(missing_ok=True)
    if settings.workers == 1 and not server.started:
        sys.exit(STARTUP_FAILURE)


def _unix_socket(path: Path) -> socket.socket:
    """Return a socket that its owner and group may open: who may is trusted, and uvicorn would let everybody."""
    if path.is_socket():
        path.unlink()  # of a process that was killed
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


class Alone(uvicorn.Server):
    """uvicorn's server of one process, but for its Unix socket: SIGTERM would leave that behind."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End as uvicorn does, and take the socket away: at its end the process is killed by the signal it was sent."""
        await super().shutdown(sockets)
        if self.config.uds is not None:
            Path(self.config.uds).unlink(missing_ok=True)  # noqa: ASYNC240 - nothing waits for this loop any more


class Workers(Multiprocess):
    """uvicorn's supervisor of several processes, but for SIGHUP."""

    def handle_hup(self) -> None:
        """Let each process read the configuration again, where uvicorn would replace it, and lose what it knows.

        One that is only starting ends by it, and another is started in its place.
        """
        for one in self.processes:
            if one.pid is not None and one.process.is_alive():
                os.kill(one.pid, signal.SIGHUP)
