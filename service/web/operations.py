"""The FastAPI application behind the gate: the pages, and metrics and OpenAPI for operators."""

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
from service.core.errors import Broken, Code, MalformedRequest, NotFound, Refusal
from service.core.problems import Cause, Problem
from service.gate.asgi import ASGIApp, Message, Receive, Scope, Send
from service.gate.wiring import Wiring
from service.rendering.answers import refusal_content
from service.web.account import AccountRoutes
from service.web.login import LoginRoutes
from service.web.logout import LogoutRoutes
from service.web.metrics import create_registry
from service.web.own_sessions import OwnSessionRoutes
from service.web.own_tokens import OwnTokenRoutes
from service.web.page_context import PageContext
from service.web.published import MOUNT, PublishedRoutes
from service.web.token_requests import PATH, TokenRoutes

MAX_BODY: Final = 128 * 1024  # a logout token's 64 KB, in a form
_PROBLEMS: Final[dict[int, Problem]] = {
    codes.METHOD_NOT_ALLOWED: Problem.METHOD_NOT_ALLOWED,
    codes.REQUEST_ENTITY_TOO_LARGE: Problem.FORM_TOO_LONG,
}
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
        redirect_slashes=False,  # such a redirect would lead to the scheme and host of the proxy's connection
    )
    app.add_middleware(BoundedBodies)
    registry = create_registry(in_force)

    context = PageContext(in_force)

    @app.middleware("http")
    async def check_caller(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return _refused_caller(request, context) or await call_next(request)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, problem: HTTPException) -> Response:
        status = problem.status_code
        if status == codes.NOT_FOUND:
            return context.answered(request, NotFound(Problem.NOT_FOUND))
        return context.answered(request, MalformedRequest(_PROBLEMS.get(status, Problem.FORM_UNREADABLE)), status)

    published = PublishedRoutes(context)
    pages = LoginRoutes(context), LogoutRoutes(context), AccountRoutes(context)
    own = OwnTokenRoutes(context), OwnSessionRoutes(context)
    for routes in (*pages, *own, TokenRoutes(context), published):
        app.include_router(routes.router, prefix=MOUNT)
    app.include_router(published.inserted)

    @app.exception_handler(Refusal)
    async def refused_on_a_page(_: Request, refusal: Refusal) -> Response:
        return context.refused(refusal)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, problem: RequestValidationError) -> Response:
        fields = [".".join(str(part) for part in one["loc"]) for one in problem.errors()]
        return context.refused(MalformedRequest(Problem.FORM_UNREADABLE, fields=fields))

    @app.exception_handler(Exception)
    async def failed(request: Request, _: Exception) -> Response:
        return context.answered(request, Broken(Problem.INTERNAL))

    @app.get("/metrics", response_class=Response, summary="Metrics in Prometheus' text format")
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return cast("ASGIApp", app)


def _refused_caller(request: Request, context: PageContext) -> Response | None:
    """Return the refusal of a caller that is no trusted proxy, or of a form that no page of this service sends."""
    if not context.wiring.proxies.trusts(request.client.host if request.client else ""):
        content = refusal_content(Code.UNTRUSTED_PROXY, Cause(Problem.PEER_NOT_TRUSTED), secrets.token_hex(8))
        return JSONResponse(content, 403)
    if request.url.path == MOUNT + PATH:
        return None  # it has errors of its own, for all that is wrong with a request
    # a multipart form chooses its own codec, and some codecs take minutes
    if request.method == "POST" and not _FORM.fullmatch(request.headers.get("content-type", "")):
        return context.answered(request, MalformedRequest(Problem.FORM_TYPE_WRONG), codes.UNSUPPORTED_MEDIA_TYPE)
    return None


class BoundedBodies:
    """Refuses a body of more than ``MAX_BODY`` bytes: FastAPI reads a form before any check of this service runs."""

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
                raise HTTPException(codes.REQUEST_ENTITY_TOO_LARGE)
            return message

        await self._app(scope, bounded, send)
