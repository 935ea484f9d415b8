"""Whether a request asks Prefect for the secrets of blocks in plain text.

Prefect decides by ``include_secrets``, as FastAPI parses it from a query or from the top of a JSON body. Here, every
value that Prefect could take for true counts as asking, and so does everything that cannot be read.
"""

import json
from typing import Final
from urllib.parse import parse_qsl

from service.core.strict_json import unique_members

FLAG: Final = "include_secrets"
MAX_BODY: Final = 64 * 1024
_NO: Final = frozenset({"false", "f", "no", "n", "off", "0"})


def asked_in_query(query: str) -> bool:
    """Tell whether a query asks for secrets: by any value except a plain false; if repeated, by any of them."""
    if "secret" not in query and "%" not in query:
        return False
    readings = f"{query}&{query.replace(';', '&')}"  # old servers also split at ";": both readings count
    return any(name == FLAG and value.lower() not in _NO for name, value in parse_qsl(readings, keep_blank_values=True))


def asked_in_body(body: bytes) -> bool:
    """Tell whether a JSON body asks for secrets: it does unless it is an object whose flag is absent or ``false``.

    An empty body counts as one that the proxy did not send. Bodies that only the server could read, as in UTF-16, with
    a byte-order mark or with repeated keys, count as asking.
    """
    if not body or len(body) > MAX_BODY:
        return True
    try:
        content = json.loads(body.decode("utf-8"), object_pairs_hook=unique_members)
    except (ValueError, RecursionError):
        return True
    return not isinstance(content, dict) or content.get(FLAG, False) is not False
