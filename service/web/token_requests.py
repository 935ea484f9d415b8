"""The token endpoint: a machine exchanges its name and secret for a short token (RFC 6749 §4.4)."""

import binascii
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Literal, NoReturn
from urllib.parse import parse_qsl, unquote_plus

from fastapi import APIRouter, Request
from httpx import codes
from starlette.responses import JSONResponse, Response

from service.core.errors import Later, NotFound, Refusal, Throttled
from service.core.problems import Problem
from service.rendering.sentences import log_reason
from service.settings.tokens import TokensSettings
from service.web.page_context import PageContext

PATH: Final = "/token"
MAX_FORM: Final = 16 * 1024  # bytes
MAX_PARAMETERS: Final = 50
GRANT_TYPE: Final = "client_credentials"
_FORM: Final = "application/x-www-form-urlencoded"
_NOT_STORED: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}  # RFC 6749 §5.1
_CHALLENGE: Final = {"WWW-Authenticate": 'Basic realm="Prefect API", charset="UTF-8"'}
Parameters = Mapping[str, str]
Client = tuple[str, str]
ErrorCode = Literal[
    "invalid_request",
    "invalid_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
    "temporarily_unavailable",
]


class RequestError(Exception):
    """A request without a token as its answer (RFC 6749 §5.2). ``description`` is ASCII without quotes."""

    def __init__(
        self, error: ErrorCode, description: str, *, status: int = 400, retry_after: int = 0, reason: str = ""
    ) -> None:
        super().__init__(description)
        self.error, self.description, self.status, self.retry_after = error, description, status, retry_after
        self.reason = reason or description

    def response(self) -> Response:
        """Return the error response."""
        headers = dict(_NOT_STORED)
        if self.status == codes.UNAUTHORIZED:
            headers |= _CHALLENGE
        if self.retry_after:
            headers["Retry-After"] = str(self.retry_after)
        return JSONResponse({"error": self.error, "error_description": self.description}, self.status, headers)


class TokenRoutes:
    """The route of the token endpoint."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        self.router = router = APIRouter(include_in_schema=False)

        @router.post(PATH)
        async def token(request: Request) -> Response:
            settings = context.settings.tokens
            if settings is None:
                return context.answered(request, NotFound(Problem.NOT_FOUND))
            try:
                return await self._granted(request, settings)
            except RequestError as problem:
                telemetry = context.wiring.telemetry
                telemetry.token_requested(problem.error, client=_sender(context, request), reason=problem.reason)
                return problem.response()

    async def _granted(self, request: Request, settings: TokensSettings) -> Response:
        try:
            asked = self._context.parse(request)
        except Refusal as refusal:
            _refuse("invalid_request", "The request's headers cannot be read.", reason=log_reason(refusal.cause))
        if asked.browser.another_site:  # it could send wrong secrets from the address of whoever looks at it
            _refuse("invalid_request", "A page of another site cannot ask for a token.")
        sender = asked.request.client
        parameters = await parse_form(request)
        name, secret = client_of(request.headers.getlist("authorization"), parameters)
        _check(parameters, settings)
        try:
            granted = await self._context.wiring.guard.grant(name, secret, sender)
        except Later as later:
            raise _later(later) from None
        except Refusal as refusal:
            raise RequestError(
                "invalid_client",
                "The client id or the client secret is wrong.",
                status=codes.UNAUTHORIZED,
                reason=log_reason(refusal.cause),
            ) from None
        self._context.wiring.telemetry.token_requested("granted", machine=name, client=sender)
        answer = {**granted._asdict(), "token_type": "Bearer"}
        return JSONResponse(answer, headers=_NOT_STORED)


async def parse_form(request: Request) -> Parameters:
    """Return the parameters of a form; those without a value count as left out (RFC 6749 §3.2)."""
    media_type, _, charset = request.headers.get("content-type", "").partition(";")
    if media_type.strip().lower() != _FORM or charset.strip().lower() not in {"", "charset=utf-8"}:
        _refuse("invalid_request", f"The body has to be {_FORM}.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM:
            _refuse("invalid_request", f"The body has more than {MAX_FORM} bytes.")
    try:
        pairs = parse_qsl(
            bytes(body).decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(body),
            errors="strict",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError:
        _refuse("invalid_request", "The body is not a form.")
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        _refuse("invalid_request", "A parameter stands there twice.")
    return {name: value for name, value in parameters.items() if value}


def client_of(authorization: Sequence[str], parameters: Parameters) -> Client:
    """Return the id and the secret of a client, sent in one of the two ways of RFC 6749 §2.3.1, and not in both."""
    named, secret = parameters.get("client_id", ""), parameters.get("client_secret", "")
    if not authorization:
        if not named or not secret:
            raise RequestError(
                "invalid_client", "Send client_id and client_secret, by HTTP Basic or in the form.", status=401
            )
        return named, secret
    client = _parse_basic(authorization[0])
    if len(authorization) > 1 or secret or named not in {"", client[0]}:
        _refuse("invalid_request", "The client authenticates in more than one way.")
    return client


def _parse_basic(authorization: str) -> Client:
    """Return what was encoded as a form first, and only then by RFC 7617."""
    scheme, _, encoded = authorization.partition(" ")
    name = colon = secret = ""
    if scheme.lower() == "basic":
        with suppress(ValueError):
            pair = binascii.a2b_base64(encoded.strip(" "), strict_mode=True).decode("ascii")
            name, colon, secret = (unquote_plus(part, errors="strict") for part in pair.partition(":"))
    if not colon:
        raise RequestError(
            "invalid_client", "The Authorization header is not Basic of client_id:client_secret.", status=401
        )
    return name, secret


def _check(parameters: Parameters, settings: TokensSettings) -> None:
    """Refuse whatever no machine is granted. Parameters that are not known are ignored (RFC 6749 §3.2)."""
    if "grant_type" not in parameters:
        _refuse("invalid_request", "The parameter grant_type is missing.")
    if parameters["grant_type"] != GRANT_TYPE:
        _refuse("unsupported_grant_type", f"The only grant_type is {GRANT_TYPE}.")
    if "scope" in parameters:
        _refuse("invalid_scope", "There are no scopes here: leave scope out. A machine has one role.")
    if any(parameters.get(name, settings.audience) != settings.audience for name in ("audience", "resource")):
        _refuse("invalid_target", "Tokens are for another audience than the one asked for: leave it out.")  # RFC 8707


def _later(refusal: Later) -> RequestError:
    described = "Too many wrong secrets came from this address, or too many are being checked: wait."
    if not isinstance(refusal, Throttled):
        described = "Tokens cannot be issued just now: try again shortly."
    return RequestError(
        "temporarily_unavailable",
        described,
        status=refusal.status,
        retry_after=refusal.retry_after,
        reason=log_reason(refusal.cause),
    )


def _refuse(error: ErrorCode, description: str, *, reason: str = "") -> NoReturn:
    raise RequestError(error, description, reason=reason) from None


def _sender(context: PageContext, request: Request) -> str:
    """Return the address of the caller, for the log; an empty text if it cannot be read."""
    try:
        return context.parse(request).request.client
    except Refusal:
        return ""
