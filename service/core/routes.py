"""What this service knows of Prefect's API: which paths are WebSockets.

A forward-auth call looks the same for a WebSocket as for a GET, so the path is all there is to tell by.
"""

import re
from typing import Final

_WEBSOCKETS: Final = (
    ("events/in", re.compile(r"/events/in\Z")),
    ("events/out", re.compile(r"/events/out\Z")),
    ("logs/out", re.compile(r"/logs/out\Z")),
    ("task_runs/subscriptions/scheduled", re.compile(r"/task_runs/subscriptions/scheduled\Z")),
    ("work_pools/{name}/workers/connect", re.compile(r"/work_pools/[^/]+/workers/connect\Z")),
)


def websocket_endpoint(path: str) -> str | None:
    """Name the WebSocket of Prefect's API that ``path`` ends in, from a closed set, or None.

    It is for counting and for advice, never for permission: an API served under a prefix matches too.
    """
    for name, pattern in _WEBSOCKETS:
        if pattern.search(path):
            return name
    return None
