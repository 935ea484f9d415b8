"""The FastAPI application behind the gate: the pages, and metrics and OpenAPI for operators."""

import re
import secrets
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from httpx import codes
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from service import __version__
from service.core.errors import Code, MalformedRequest, Refusal
from service.core.problems import Cause, Problem
from service.gate.asgi import ASGIApp, Message, Receive, Scope, Send
from service.gate.wiring import Wiring
from service.rendering.answers import refusal_content
from service.web.account import Account
from service.web.login import Login
from service.web.logout import Logout
from service.web.page_context import PageContext

MAX_BODY: Final = 128 * 1024  # a logout token's 64 KB, in a form
_UNREADABLE: Final = Cause(Problem.FORM_UNREADABLE)
_CAUSES: Final[dict[int, Cause]] = {
    codes.METHOD_NOT_ALLOWED: Cause(Problem.METHOD_NOT_ALLOWED),
    codes.REQUEST_ENTITY_TOO_LARGE: Cause(Problem.FORM_TOO_LONG),
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
    )
    app.add_middleware(BoundedBodies)
    registry = CollectorRegistry()
    registry.register(ServiceCollector(in_force))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)

    @app.middleware("http")
    async def check_caller(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return _refused_caller(request, in_force()) or await call_next(request)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, problem: HTTPException) -> Response:
        if problem.status_code == codes.NOT_FOUND:
            return _refusal(404, Code.NOT_FOUND, Cause(Problem.NOT_FOUND))
        return _refusal(problem.status_code, Code.INVALID_REQUEST, _CAUSES.get(problem.status_code, _UNREADABLE))

    context = PageContext(in_force)
    for routes in (Login(context), Logout(context), Account(context)):
        app.include_router(routes.router, prefix="/_auth")

    @app.exception_handler(Refusal)
    async def refused_on_a_page(_: Request, refusal: Refusal) -> Response:
        return context.refused(refusal)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, problem: RequestValidationError) -> Response:
        fields = [".".join(str(part) for part in one["loc"]) for one in problem.errors()]
        return context.refused(MalformedRequest(Problem.FORM_UNREADABLE, fields=fields))

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return _refusal(503, Code.INTERNAL_ERROR, Cause(Problem.INTERNAL))

    @app.get("/metrics", response_class=Response, summary="Metrics in Prometheus' text format")
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return cast("ASGIApp", app)


def _refused_caller(request: Request, wiring: Wiring) -> Response | None:
    """Return the refusal of a caller that is no trusted proxy, or of a form that no page of this service sends."""
    peer = request.client.host if request.client else ""
    if peer and not wiring.proxies.trusts(peer):
        return _refusal(403, Code.UNTRUSTED_PROXY, Cause(Problem.PEER_NOT_TRUSTED))
    # a multipart form chooses its own codec, and some codecs take minutes
    if request.method == "POST" and not _FORM.fullmatch(request.headers.get("content-type", "")):
        return _refusal(415, Code.INVALID_REQUEST, Cause(Problem.FORM_TYPE_WRONG))
    return None


def _refusal(status: int, code: Code, cause: Cause) -> Response:
    return JSONResponse(refusal_content(code, cause, secrets.token_hex(8)), status)


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


class ServiceCollector(Collector):
    """Collects the metrics on request, so that counting costs the hot path no more than an addition."""

    def __init__(self, in_force: Callable[[], Wiring]) -> None:
        self._in_force = in_force

    @property
    def _wiring(self) -> Wiring:
        return self._in_force()

    def collect(self) -> Iterator[Any]:
        """Yield the metrics; every label is of a closed set, or an issuer of the configuration."""
        telemetry = self._wiring.telemetry
        decisions = CounterMetricFamily(
            "forward_auth_decisions", "Decisions by gate and outcome", labels=["gate", "outcome"]
        )
        for gate, count in telemetry.allowed.items():
            decisions.add_metric([gate, "allowed"], count)
        for (gate, code), count in telemetry.refused.items():
            decisions.add_metric([gate, code], count)
        yield decisions
        lost = CounterMetricFamily(
            "forward_auth_websocket_refused",
            "WebSockets of Prefect's API refused for want of a credential: task runs are being lost",
            labels=["endpoint"],
        )
        for endpoint, count in telemetry.websockets_refused.items():
            lost.add_metric([endpoint], count)
        yield lost
        sign_ins = CounterMetricFamily("forward_auth_sign_ins", "Signing in and out, by outcome", labels=["outcome"])
        for outcome, count in telemetry.sign_ins.items():
            sign_ins.add_metric([outcome], count)
        yield sign_ins
        reloads = CounterMetricFamily("forward_auth_reloads", "Readings of the configuration anew", labels=["outcome"])
        for outcome in ("done", "refused"):
            reloads.add_metric([outcome], telemetry.reloads[outcome])
        yield reloads
        yield GaugeMetricFamily(
            "forward_auth_config_broken",
            "1 while the configuration is not the one in force",
            value=1 if telemetry.config_problem else 0,
        )
        yield CounterMetricFamily(
            "forward_auth_unknown_routes",
            "Calls of routes that the table does not know",
            value=telemetry.unknown_routes,
        )
        yield CounterMetricFamily(
            "forward_auth_log_suppressed", "Refusals that were not logged one by one", value=telemetry.suppressed
        )
        yield CounterMetricFamily(
            "forward_auth_guesses_refused",
            "Passwords that were not looked at, after too many wrong ones from where they came",
            value=telemetry.guesses_refused,
        )
        yield from self._issuers()
        yield from self._clients()
        yield from self._users()

    def _issuers(self) -> Iterator[Any]:
        fetches = CounterMetricFamily("forward_auth_jwks_fetches", "Fetches of an issuer's keys", labels=["issuer"])
        failures = CounterMetricFamily("forward_auth_jwks_failures", "Fetches that failed", labels=["issuer"])
        keys = GaugeMetricFamily("forward_auth_jwks_keys", "Usable keys of an issuer", labels=["issuer"])
        age = GaugeMetricFamily(
            "forward_auth_jwks_age_seconds", "Time since an issuer's keys were last fetched", labels=["issuer"]
        )
        for url, issuer in list(self._wiring.issuers.items()):
            fetches.add_metric([url], issuer.fetches)
            failures.add_metric([url], issuer.failures)
            keys.add_metric([url], issuer.key_count if issuer.warm else 0)
            if issuer.age is not None:
                age.add_metric([url], issuer.age)
        yield from (fetches, failures, keys, age)

    def _clients(self) -> Iterator[Any]:
        grants = CounterMetricFamily(
            "forward_auth_client_grants", "Issuers asked about clients, by outcome", labels=["issuer", "outcome"]
        )
        for url, clients in list(self._wiring.clients.items()):
            for outcome, count in clients.outcomes.items():
                grants.add_metric([url, outcome], count)
        yield grants

    def _users(self) -> Iterator[Any]:
        users, passwords = self._wiring.users, self._wiring.passwords
        if users is not None and passwords is not None:
            yield GaugeMetricFamily("forward_auth_users", "Users in force", value=len(users.users.hashes))
            yield GaugeMetricFamily(
                "forward_auth_users_file_broken",
                "1 while the users file is not the one in force",
                value=1 if users.problem else 0,
            )
            yield GaugeMetricFamily(
                "forward_auth_hashing", "Passwords being hashed or waiting", value=passwords.waiting
            )
