"""create_app(): the service as a server runs it."""

from collections.abc import Callable

from service.gate.application import ForwardAuth
from service.gate.asgi import ASGIApp
from service.gate.wiring import Wiring
from service.settings import Settings, load
from service.telemetry.events import configure_logging


def create_app(settings: Settings | None = None) -> ForwardAuth:
    """Return the ASGI application; without ``settings``, they are read at the start and at each SIGHUP."""
    if settings is not None:
        return ForwardAuth(settings, _load_web)
    settings = _read_settings()
    configure_logging(settings.log.level, settings.log.format)
    return ForwardAuth(settings, _load_web, _read_settings)


def _read_settings() -> Settings:
    return load().settings


def _load_web(in_force: Callable[[], Wiring]) -> ASGIApp:
    """Build the FastAPI application, whose import takes longer than all the rest."""
    from service.web.operations import create_web  # noqa: PLC0415 - the gate does not wait for it

    return create_web(in_force)
