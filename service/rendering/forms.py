"""How a client sends its credential: the form that works on its version of Prefect, on HTTP and on WebSockets alike.

``PREFECT_API_KEY`` and ``PREFECT_API_AUTH_STRING`` are in no form: on many versions, or on all, WebSockets go without
them, and task runs are lost.
"""

from typing import Final, NamedTuple

from service.core.request.headers import ClientVersion


class Form(NamedTuple):
    """A form, as a sentence each for a token, for a user name and password, and for either."""

    token: str
    password: str
    either: str


_HEADERS: Final = "Set PREFECT_CLIENT_CUSTOM_HEADERS to"
_BASIC: Final = '"Basic <base64 of user:password>"'
_URL: Final = "Set PREFECT_API_URL to"
_USERINFO: Final = "'https://user:password@<host>/api'"

FORMS: Final[tuple[tuple[ClientVersion, Form], ...]] = (  # since which version, the newest first
    (
        (3, 4, 8),
        Form(
            f"""{_HEADERS} '{{"Authorization": "Bearer <token>"}}'.""",
            f"""{_HEADERS} '{{"Authorization": {_BASIC}}}'.""",
            f"""{_HEADERS} '{{"Authorization": "Bearer <token>"}}', or use {_BASIC} there.""",
        ),
    ),
    (
        (0, 0, 0),
        Form(
            f"{_URL} 'https://jwt:<token>@<host>/api'.",
            f"{_URL} {_USERINFO}.",
            f"{_URL} 'https://jwt:<token>@<host>/api', or to {_USERINFO}.",
        ),
    ),
)


ANY_VERSION: Final = FORMS[-1][1]


def form_for(version: ClientVersion | None) -> Form:
    """Return the form for a version; the one that works on every version if it is not known."""
    if version is None:
        return ANY_VERSION
    return next(form for since, form in FORMS if version >= since)
