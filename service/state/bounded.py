"""The bound of a memory that keeps its entries in order of age."""

from collections import OrderedDict
from itertools import islice
from typing import Any


def drop_oldest(entries: dict[Any, Any], capacity: int) -> int:
    """Drop the oldest entries, which are the first, beyond ``capacity``; return how many."""
    surplus = max(0, len(entries) - capacity)
    if surplus:
        for oldest in list(islice(entries, surplus)):
            del entries[oldest]
    return surplus


def keep(entries: OrderedDict[Any, Any], key: Any, value: Any, capacity: int) -> None:
    """Add an entry, and drop the oldest if there are more than ``capacity``.

    An ordered dictionary finds its oldest entry at once. A plain one looks at each that was dropped before.
    """
    entries[key] = value
    if len(entries) > capacity:
        entries.popitem(last=False)
