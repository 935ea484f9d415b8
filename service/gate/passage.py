"""How the messages of a relayed WebSocket pass: as they are, unless a passage of its own looks at them."""

from collections.abc import Awaitable, Callable

Send = Callable[[str | bytes], Awaitable[None]]


class Passage:
    """Passes the messages of one WebSocket on as they are."""

    async def to_prefect(self, message: str | bytes, send: Send) -> None:
        """Pass a message of the client on."""
        await send(message)

    async def to_client(self, message: str | bytes, send: Send) -> None:
        """Pass a message of Prefect on."""
        await send(message)

    async def finish(self, send: Send) -> None:
        """Pass on to Prefect what is left when the client has gone."""
