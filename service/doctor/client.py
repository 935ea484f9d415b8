"""What a version of Prefect's client sends, as it was measured (docs/workers.md): over HTTP, and on WebSockets."""

import base64
import json
from enum import StrEnum
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from service.core.request.headers import ClientVersion
from service.doctor.settings import AUTH_STRING, HEADERS, KEY, URL, PrefectSettings

HEADERS_SINCE: Final = (3, 4, 8)
STRING_WINS_SINCE: Final = (3, 4, 1)  # before that, PREFECT_API_KEY won
STRING_AT_UPGRADE_SINCE: Final = (3, 8, 3)  # of /events/in
FIRST_MESSAGE_SINCE: Final = (3, 6, 29)  # of /events/in
STRING_EVERYWHERE_SINCE: Final = (3, 4, 0)
KEY_WATCHES_BEFORE: Final = (3, 6, 11)  # `--watch` worked with a key until then
NEWEST: Final = (3, 9, 1)  # that was measured; taken for a version that is not known


class Form(StrEnum):
    """How a credential is given to Prefect."""

    URL = "the URL"
    HEADERS = HEADERS
    AUTH_STRING = AUTH_STRING
    KEY = KEY


class Presented(NamedTuple):
    """What the client sends: over HTTP, at the upgrade of ``/events/in``, and in its first message.

    ``first`` is None where the token of that message is null. Without ``handshake`` there is no first message.
    """

    form: Form | None
    http: str = ""
    upgrade: str = ""
    first: str | None = None
    handshake: bool = True

    def __repr__(self) -> str:
        return f"Presented(form={self.form})"


def forms_in(settings: PrefectSettings) -> list[Form]:
    """Return the forms in which there is a credential."""
    present = {
        Form.URL: bool(userinfo(settings.text(URL))),
        Form.HEADERS: bool(authorizations(settings)),
        Form.AUTH_STRING: bool(settings.text(AUTH_STRING)),
        Form.KEY: bool(settings.text(KEY)),
    }
    return [form for form, there in present.items() if there]


def presented(settings: PrefectSettings, version: ClientVersion | None) -> Presented:
    """Return what a version sends with these settings; the newest one if it is not known."""
    version = version or NEWEST
    forms = forms_in(settings)
    handshake = version >= FIRST_MESSAGE_SINCE
    string, key = settings.text(AUTH_STRING), settings.text(KEY)
    first = string or None
    if Form.URL in forms:
        header = basic(userinfo(settings.text(URL)))
        return Presented(Form.URL, header, header, first, handshake)
    if Form.HEADERS in forms and version >= HEADERS_SINCE:
        header = authorizations(settings)[0]
        return Presented(Form.HEADERS, header, header, first, handshake)
    if string and (not key or version >= STRING_WINS_SINCE):
        header = basic(string)
        return Presented(
            Form.AUTH_STRING, header, header if version >= STRING_AT_UPGRADE_SINCE else "", first, handshake
        )
    if key:
        return Presented(Form.KEY, f"Bearer {key}", "", first, handshake)
    return Presented(None, handshake=handshake)


def token_in(sent: Presented) -> str:
    """Return the token that a client sends over HTTP, or an empty string if that is a name and a password."""
    scheme, _, value = sent.http.partition(" ")
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode()
        except ValueError:
            return ""
        name, colon, password = value.partition(":")
        if colon:
            return password if password.startswith("eyJ") else ""
        scheme, _, value = name.partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


def authorizations(settings: PrefectSettings) -> list[str]:
    """Return the values of ``Authorization`` among the custom headers, in any case."""
    return [value for name, value in custom_headers(settings).items() if name.lower() == "authorization"]


def custom_headers(settings: PrefectSettings) -> dict[str, str]:
    """Return the custom headers; none where they are not a JSON object of strings."""
    try:
        found = json.loads(settings.text(HEADERS) or "{}")
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def userinfo(url: str) -> str:
    """Return user name and password of a URL, decoded, or an empty string."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if not (parts.username or parts.password):
        return ""
    return f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"


def basic(text: str) -> str:
    """Return the Authorization header of a text (RFC 7617)."""
    return f"Basic {base64.b64encode(text.encode()).decode()}"
