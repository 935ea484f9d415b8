"""Reading the service's /metrics."""

from __future__ import annotations

import re
from collections import Counter

import httpx

from tests.support.site import Site

_REFUSAL = re.compile(
    r'^forward_auth_websocket_refused_total\{endpoint="(?P<endpoint>[^"]*)"\} (?P<count>\S+)$', re.MULTILINE
)
_DROPPED = re.compile(r"^forward_auth_websocket_events_dropped_total\{[^}]*\} (\S+)$", re.MULTILINE)


def websocket_refusals(site: Site) -> Counter[str]:
    """Return how many WebSocket handshakes without a credential were refused, by endpoint."""
    text = httpx.get(f"{site.service_url}/metrics").text
    return Counter({match["endpoint"]: int(float(match["count"])) for match in _REFUSAL.finditer(text)})


def dropped_events(site: Site) -> int:
    """Return how many events of clients without a credential were dropped."""
    text = httpx.get(f"{site.service_url}/metrics").text
    return sum(int(float(count)) for count in _DROPPED.findall(text))
