"""What this service publishes as an issuer: its keys, and where they and the token endpoint are.

The documents are those of OpenID Connect Discovery 1.0 §4 and of RFC 8414 §3. Both begin with the issuer's URL, which
is ``tokens.issuer``, so there are none if that is a name.
"""

from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.core.errors import NotFound
from service.core.problems import Problem
from service.issuing.signing import ALGORITHM
from service.web.page_context import PageContext
from service.web.token_requests import GRANT_TYPE, PATH

MOUNT: Final = "/_auth"
MAX_AGE: Final = 300  # seconds, less than the lead of a new key
AUTH_METHODS: Final = ("client_secret_basic", "client_secret_post")
_KEYS: Final = "/.well-known/jwks.json"
_OPENID: Final = "/.well-known/openid-configuration"
_OAUTH: Final = "/.well-known/oauth-authorization-server"
_CACHED: Final = {"Cache-Control": f"public, max-age={MAX_AGE}", "X-Content-Type-Options": "nosniff"}


class PublishedRoutes:
    """The routes of an issuer's documents. ``inserted`` has the one whose path is not below ``MOUNT``."""

    def __init__(self, context: PageContext) -> None:
        self.router = router = APIRouter(include_in_schema=False)
        self.inserted = inserted = APIRouter(include_in_schema=False)

        @router.get(_KEYS)
        async def keys(request: Request) -> Response:
            own = context.wiring.own_issuer
            if own is None:
                return context.answered(request, NotFound(Problem.NOT_FOUND))
            return Response(own.issued.jwks, headers=_CACHED, media_type="application/jwk-set+json")

        @router.get(_OPENID)
        @router.get(_OAUTH)
        @inserted.get(_OAUTH + MOUNT)  # RFC 8414 §3.1: before the path of the issuer
        async def metadata(request: Request) -> Response:
            settings = context.settings.tokens
            document = metadata_of(settings.issuer) if settings is not None else None
            if document is None:
                return context.answered(request, NotFound(Problem.NOT_FOUND))
            return JSONResponse(document, headers=_CACHED)


def metadata_of(issuer: str) -> dict[str, Any] | None:
    """Return the document of an issuer at whose host this service is reached, or None if it is no URL."""
    url = urlsplit(issuer)
    if url.scheme not in {"https", "http"} or not url.netloc or url.query or url.fragment:
        return None
    base = f"{url.scheme}://{url.netloc}{MOUNT}"
    return {
        "issuer": issuer,
        "jwks_uri": base + _KEYS,
        "token_endpoint": base + PATH,
        "token_endpoint_auth_methods_supported": list(AUTH_METHODS),
        "grant_types_supported": [GRANT_TYPE],
        "response_types_supported": ["none"],  # both documents must have it, and there is no authorization endpoint
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [ALGORITHM],
    }
