"""The only place that decides where a browser may be sent back to after sign-in.

A return address is a path and query of this very host, and is parsed as strictly as a request's target. Anything else
is replaced by the home page.
"""

from typing import Final
from urllib.parse import quote, unquote, urlencode

from service.core.errors import MalformedRequest
from service.core.request.headers import parse_target

HOME: Final = "/"
PAGES: Final = "/_auth/"
MAX_RETURN_TO: Final = 1024  # it travels in a cookie, and several attempts at once in a header
_FRAGMENT: Final = "!$&'()*+,;=:@/?-._~%"  # RFC 3986 §3.5


def parse_return_to(raw: str) -> str:
    """Return path and query to go back to, or the home page for anything that is not plainly a path of this host."""
    if len(raw) > MAX_RETURN_TO or not raw.isascii():
        return HOME
    try:
        target = parse_target(raw.encode("ascii"))
    except MalformedRequest:
        return HOME
    return HOME if f"{target.path}/".startswith(PAGES) else raw


def with_fragment(return_to: str, fragment: str) -> str:
    """Return the address with a fragment, which browsers do not send by themselves; a long one is dropped."""
    encoded = quote(fragment.removeprefix("#"), safe=_FRAGMENT)
    return f"{return_to}#{encoded}" if encoded and len(return_to) + len(encoded) < MAX_RETURN_TO else return_to


def sign_in_href(return_to: str, *, switch: bool = False) -> str:
    """Return where a browser signs in, to come back to a path, query and fragment of this host.

    With ``switch``, the provider is to let somebody else sign in.
    """
    address, _, fragment = return_to.partition("#")
    location = f"{PAGES}login?{'switch=1&' if switch else ''}return_to={quote(parse_return_to(address), safe='')}"
    return f"{location}#{quote(fragment, safe=_FRAGMENT)}" if fragment else location


def switch_account_href(return_to: str) -> str:
    """Return where a browser signs in at the provider with another account, to come back as after ``sign_in_href``."""
    address, _, fragment = return_to.partition("#")
    query = {"switch": "1", "return_to": parse_return_to(address), "fragment": unquote(fragment)}
    return f"{PAGES}start?{urlencode({name: value for name, value in query.items() if value})}"
