"""Forward auth made for Prefect: a reverse proxy asks, this service answers.

Read the floors bottom up: ``core`` (pure decisions), ``adapters`` and ``settings`` (the outside world),
``gate`` (the hot path), ``web`` and ``cli`` (everything else).
"""

__version__ = "0.1.0"
