"""The FastAPI application behind the gate: metrics and OpenAPI, for operators and never for the outside."""

import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from httpx import codes
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from service import __version__
from service.core.errors import Code, MalformedRequest, Refusal
from service.gate.asgi import ASGIApp, Message, Receive, Scope, Send
from service.gate.wiring import Wiring
from service.web.account import Account
from service.web.login import Login
from service.web.logout import Logout
from service.web.metrics import create_registry
from service.web.visits import Desk

MAX_BODY: Final = 128 * 1024  # a logout token's 64 KB, in a form
_FORM: Final = re.compile(r"application/x-www-form-urlencoded(; ?charset=utf-8)?", re.IGNORECASE)


def create_web(in_force: Callable[[], Wiring]) -> ASGIApp:
    """Return the application for everything that is not a verify call.

    ``in_force`` returns the wiring that the call under way began with.
    """
    app = FastAPI(
        title="prefect-forward-auth",
        version=__version__,
        description="Operations. The verify endpoints are described in docs/reference.md.",
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(BoundedBodies)
    registry = create_registry(in_force)

    @app.middleware("http")
    async def at_the_door(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return _turned_away(request, in_force()) or await call_next(request)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, problem: HTTPException) -> Response:
        if problem.status_code == codes.NOT_FOUND:
            return _refusal(404, Code.NOT_FOUND, "There is nothing here.")
        return _refusal(problem.status_code, Code.INVALID_REQUEST, str(problem.detail))

    desk = Desk(in_force)
    for routes in (Login(desk), Logout(desk), Account(desk)):
        app.include_router(routes.router, prefix="/_auth")

    @app.exception_handler(Refusal)
    async def refused_on_a_page(_: Request, refusal: Refusal) -> Response:
        return desk.refused(refusal)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, problem: RequestValidationError) -> Response:
        fields = ", ".join(".".join(str(part) for part in one["loc"]) for one in problem.errors())
        return desk.refused(MalformedRequest("This form cannot be read: go back and try again.", reason=fields))

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return _refusal(503, Code.INTERNAL_ERROR, "The service failed: tell its operators.")

    @app.get("/metrics", response_class=Response, summary="Metrics in Prometheus' text format")
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return cast("ASGIApp", app)


def _turned_away(request: Request, wiring: Wiring) -> Response | None:
    """Return the refusal for what nobody but a proxy of ours may send, and for what no page of ours sends."""
    peer = request.client.host if request.client else ""
    if peer and not wiring.proxies.trusts(peer):
        return _refusal(403, Code.UNTRUSTED_PROXY, "This address may not see the operations' endpoints.")
    # a multipart form names the codec to read it with, and there are codecs that take minutes
    if request.method == "POST" and not _FORM.fullmatch(request.headers.get("content-type", "")):
        return _refusal(415, Code.INVALID_REQUEST, "This is not a form of this site: go back and try again.")
    return None


def _refusal(status: int, code: Code, detail: str) -> Response:
    return JSONResponse({"detail": detail, "code": code, "request_id": secrets.token_hex(8)}, status)


class BoundedBodies:
    """Reads no more than ``MAX_BODY`` bytes of a request: a form is read whole before anybody is asked for anything."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call (ASGI 3.0)."""
        left = MAX_BODY

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(codes.REQUEST_ENTITY_TOO_LARGE, "This form is too long.")
            return message

        await self._app(scope, bounded, send)
