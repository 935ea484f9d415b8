"""The server around the service: uvicorn, set up for standing behind a proxy."""

import os
import secrets
from pathlib import Path
from typing import Final

import uvicorn

from service.adapters.telemetry import configure_logging
from service.settings import Settings

KEEP_ALIVE: Final = 120  # seconds; longer than proxies keep idle connections, so that they are the ones to close


def serve(settings: Settings, config_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then let requests under way finish within ``shutdown_grace`` seconds.

    Each process loads the settings itself, so what the command line said is handed on as variables.
    """
    if config_file is not None:
        os.environ["FORWARD_AUTH_CONFIG"] = str(config_file)
    if settings.uds is not None:
        os.environ["FORWARD_AUTH_UDS"] = str(settings.uds)
    if settings.workers > 1 and not settings.session.keys:  # what one process seals, the others have to open
        os.environ["FORWARD_AUTH_SESSION__KEYS"] = secrets.token_urlsafe(32)
    configure_logging(settings.log.level, settings.log.format)
    uvicorn.run(
        "service.web.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        uds=None if settings.uds is None else str(settings.uds),
        workers=settings.workers,
        loop="uvloop",
        http="httptools",
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
