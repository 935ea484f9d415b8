"""What can be told without a call: the settings, the version, the token."""

import json
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from service.core.errors import Refusal
from service.core.identity.compact import decode_segment, parse_json_object
from service.core.request.headers import ClientVersion
from service.core.request.proxies import is_loopback
from service.doctor.client import (
    FIRST_MESSAGE_SINCE,
    HEADERS_SINCE,
    KEY_WATCHES_BEFORE,
    NEWEST,
    STRING_EVERYWHERE_SINCE,
    Form,
    Presented,
    authorizations,
    forms_in,
    presented,
    token_in,
    userinfo,
)
from service.doctor.findings import Finding, change, note, ok
from service.doctor.settings import AUTH_STRING, HEADERS, KEY, UI_URL, UNVERIFIED, URL, PrefectSettings
from service.rendering.sentences import duration

_QUOTES: Final = "'\"`"
_SEGMENTS: Final = 3
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_MAX_SHOWN: Final = 200


def examine(settings: PrefectSettings, version: ClientVersion | None, needs: float) -> Iterator[Finding]:
    """Yield what the settings tell. ``needs`` is how long work lasts, in seconds."""
    yield from map(change, settings.problems)
    yield from _of_url(settings)
    yield from _of_spelling(settings)
    yield from _of_forms(settings, version)
    yield from _of_version(settings, version)
    yield from _of_token(presented(settings, version), needs)


def _of_url(settings: PrefectSettings) -> Iterator[Finding]:
    url = settings.text(URL)
    if not url:
        yield change(f"{URL} is not set, so Prefect would start a server of its own: set it to https://<host>/api.")
        return
    try:
        parts = urlsplit(url.strip(_QUOTES))
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not host:
        yield change(f"{URL} (from {settings.source(URL)}) is no URL: set it to https://<host>/api.")
        return
    if url[0] in _QUOTES:
        return  # told with the others that have quotes
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme == "http" and not (is_loopback(host) or host.endswith(".localhost")):
        yield change(f"{URL} is {where}: anybody on the way can read the credential. Use https://.")
    elif not parts.path.rstrip("/").endswith("/api"):
        yield note(f"{URL} is {where}, which does not end with /api: that is right only behind another base path.")
    else:
        yield ok(f"{URL} is {where} (from {settings.source(URL)}).")
    if userinfo(url):
        if not settings.text(UI_URL):
            yield change(f"A credential in the URL is printed in the links of the log: set {UI_URL}, too.")
        if "%" in parts.netloc or not _UNRESERVED.issuperset(userinfo(url).replace(":", "", 1)):
            yield change(
                f"The credential in {URL} has characters that Prefect decodes over HTTP and not on WebSockets: use "
                f"letters, digits and -._~ alone, or {AUTH_STRING}."
            )


def _of_spelling(settings: PrefectSettings) -> Iterator[Finding]:
    if settings.is_on(UNVERIFIED):
        yield change(
            f"{UNVERIFIED} is on, so anybody on the way can take the credential: name the authority in "
            "PREFECT_API_SSL_CERT_FILE in place of it."
        )
    for name in (URL, KEY, AUTH_STRING, HEADERS):
        text, source = settings.text(name), settings.source(name)
        if text[:1] and text[:1] in _QUOTES and text[-1:] in _QUOTES:
            yield change(
                f"{name} (from {source}) has quotes in it, which are sent with it: remove them. Docker's --env-file "
                "takes quotes as they are."
            )
        elif text != text.strip():
            yield change(f"{name} (from {source}) begins or ends with a blank or a new line: remove it.")
    if settings.text(KEY).lower().startswith(("bearer ", "basic ")):
        yield change(f"{KEY} begins with a scheme, and Prefect adds 'Bearer' itself: give the token alone.")
    string = settings.text(AUTH_STRING)
    if string and ":" not in string and not string.lower().startswith("bearer "):
        yield change(f"{AUTH_STRING} has no colon: it is user:password, or jwt:<token>.")
    yield from _of_headers(settings)


def _of_headers(settings: PrefectSettings) -> Iterator[Finding]:
    text = settings.text(HEADERS)
    if not text or text[:1] in _QUOTES:
        return
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        yield change(f'{HEADERS} is not a JSON object of texts, such as {{"Authorization": "Bearer <token>"}}.')
        return
    sent = authorizations(settings)
    if len(sent) > 1:
        yield change(f"{HEADERS} has Authorization more than once, and the gate refuses two: keep one.")
    for value in sent:
        if not value.lower().startswith(("bearer ", "basic ")):
            yield change(f"Authorization in {HEADERS} begins with neither 'Bearer ' nor 'Basic '.")


def _of_forms(settings: PrefectSettings, version: ClientVersion | None) -> Iterator[Finding]:
    forms = forms_in(settings)
    if len(forms) < 2:  # noqa: PLR2004 - one credential, or none
        return
    names = " and ".join(f"{form}" for form in forms)
    wins = presented(settings, version).form
    if {Form.KEY, Form.AUTH_STRING} <= set(forms) and version is None:
        yield change(
            f"Credentials are set in {names}, and which one counts depends on Prefect's version (3.4.1): keep one."
        )
    elif Form.HEADERS in forms and Form.AUTH_STRING in forms and "authorization" in settings.text(HEADERS):
        yield change(f"With {AUTH_STRING} and a lower-case authorization in {HEADERS}, two are sent: keep one.")
    else:
        yield change(f"Credentials are set in {names}; {wins} counts over HTTP: remove the others.")


def _of_version(settings: PrefectSettings, version: ClientVersion | None) -> Iterator[Finding]:
    forms, sent = forms_in(settings), presented(settings, version)
    if version is None:
        yield note("The version of Prefect is not known: name its interpreter with --python.")
    text = ".".join(map(str, version)) if version is not None else f"of a version like {'.'.join(map(str, NEWEST))}"
    if not forms:
        return
    if version is not None and Form.HEADERS in forms and version < HEADERS_SINCE:
        yield change(f"Prefect {text} does not know {HEADERS}, which exist since 3.4.8: use {AUTH_STRING}=jwt:<token>.")
        return
    if sent.form is Form.KEY:
        lost = ["events stream shows only events of runs that this address reports on"]
        if version is None or version >= KEY_WATCHES_BEFORE:
            lost.insert(0, "deployment run --watch sees nothing")
        yield note(
            f"Prefect {text} sends {KEY} on no WebSocket of events: {', and '.join(lost)}. Workers lose nothing where "
            f"the gate relays WebSockets. {AUTH_STRING}=jwt:<token> has none of these limits."
        )
    elif sent.form is Form.AUTH_STRING and version is not None and version < STRING_EVERYWHERE_SINCE:
        yield note(
            f"Prefect {text} sends {AUTH_STRING} on no WebSocket: task.serve gets no runs, and events stream shows "
            "only events of runs that this address reports on. Put the credential into the URL for those."
        )
    elif sent.form is Form.AUTH_STRING and version is not None and version < FIRST_MESSAGE_SINCE:
        yield note(
            f"Prefect {text} sends {AUTH_STRING} on no WebSocket of /events/in: events outside of flow runs are "
            "dropped."
        )
    elif sent.form is not None:
        yield ok(f"Prefect {text} carries {sent.form} wherever it has to.")


def _of_token(sent: Presented, needs: float) -> Iterator[Finding]:
    token = token_in(sent)
    if not token:
        return
    claims = unverified_claims(token)
    if claims is None:
        yield note("The token is not a JWT, so only its issuer knows when it ends.")
        return
    audience = claims.get("aud")
    named = ", ".join(map(str, audience)) if isinstance(audience, list) else str(audience)
    whose = f"The token is of {_shown(claims.get('iss'))}, for {_shown(named)}"
    expires = claims.get("exp")
    if isinstance(expires, bool) or not isinstance(expires, int | float):
        yield change(f"{whose}, and never ends: the gate accepts only tokens that do.")
        return
    left = expires - time.time()
    if left <= 0:
        yield change(f"{whose}. It ended {duration(-left)} ago: obtain a new one.")
    elif left < needs:
        yield change(
            f"{whose}. It ends in {duration(left)}, and a worker ends with it: use one that lasts longer, or start the "
            "worker with 'prefect-forward-auth run', which keeps it fresh."
        )
    else:
        yield ok(f"{whose}. It ends in {duration(left)}, and a worker that uses it ends then.")


def unverified_claims(token: str) -> dict[str, Any] | None:
    """Return the claims of a JWT that nobody has verified, or None if it is no JWT."""
    segments = token.split(".")
    if len(segments) != _SEGMENTS:
        return None
    try:
        return parse_json_object(decode_segment(segments[1].encode()))
    except (Refusal, ValueError, RecursionError):
        return None


def _shown(value: object) -> str:
    text = str(value)
    return text[:_MAX_SHOWN] if text.isprintable() else repr(text)[:_MAX_SHOWN]
