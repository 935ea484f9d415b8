"""The bound of a memory that keeps its entries in order of age."""

from itertools import islice
from typing import Any


def drop_oldest(entries: dict[Any, Any], capacity: int) -> int:
    """Drop the oldest entries, which are the first, beyond ``capacity``; return how many."""
    surplus = max(0, len(entries) - capacity)
    if surplus:
        for oldest in list(islice(entries, surplus)):
            del entries[oldest]
    return surplus
