"""Whether a request asks Prefect for the secrets of blocks in plain text.

Whatever the server could take for a yes is one, and whatever cannot be read is one too: a no is known, or it is none.
Prefect decides by FastAPI's reading of ``include_secrets``, in a query or at the top of a JSON body.
"""

import json
from typing import Any, Final
from urllib.parse import parse_qsl

FLAG: Final = "include_secrets"
MAX_BODY: Final = 64 * 1024
_NO: Final = frozenset({"false", "f", "no", "n", "off", "0"})


def asked_in_query(query: str) -> bool:
    """Tell whether a query asks for secrets: any value but a plain no, and if repeated, any of them."""
    if "secret" not in query and "%" not in query:
        return False
    readings = f"{query}&{query.replace(';', '&')}"  # old servers split there, too: what either makes of it counts
    return any(name == FLAG and value.lower() not in _NO for name, value in parse_qsl(readings, keep_blank_values=True))


def asked_in_body(body: bytes) -> bool:
    """Tell whether a JSON body asks for secrets: unless it is an object whose flag is absent or ``false``, it does.

    An empty body counts as one that the proxy did not send. The server reads UTF-16, a byte-order mark, and of a
    repeated key the last; none of that has to be understood here.
    """
    if not body or len(body) > MAX_BODY:
        return True
    try:
        content = json.loads(body.decode("utf-8"), object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError):
        return True
    return not isinstance(content, dict) or content.get(FLAG, False) is not False


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key is repeated: readers differ on which one counts")
    return members
