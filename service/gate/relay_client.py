"""The client's side of a relayed WebSocket."""

from contextlib import suppress
from typing import Final

from service.core.errors import NotFound, Refusal, UntrustedPeer
from service.core.model import Browser, Decision, Face, ForwardedRequest, Gate, NoCredential, Principal
from service.core.policy import decide
from service.core.prefect.roles import Access
from service.core.problems import Problem
from service.core.request.faces import browser_of, parse_call
from service.core.request.first_message import SUBPROTOCOL
from service.core.request.proxies import TrustedProxies
from service.gate.asgi import Message, Receive, Scope, Send
from service.gate.protocol import CONNECTION, RELAY_PREFIX, RelayProtocol
from service.gate.verify import behind_prefix
from service.rendering.close import Close

_PREFIX: Final = RELAY_PREFIX.encode()
GONE: Final = (OSError, RuntimeError)  # what uvicorn raises where the client has gone, or has been sent a close frame


class ClientGoneError(Exception):
    """The client has closed the socket before it was let in."""


class Client:
    """The client's side of a WebSocket, and what is known of it."""

    __slots__ = (
        "_receive",
        "_scope",
        "accepted",
        "browser",
        "connection",
        "era",
        "gate",
        "peer",
        "presented",
        "principal",
        "request",
        "send",
        "subprotocol",
        "until",
        "user_agent",
        "vouched",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self.send = scope, receive, send
        self.connection: RelayProtocol | None = (scope.get("extensions") or {}).get(CONNECTION)
        self.peer: str = scope["client"][0] if scope.get("client") else ""
        self.gate = Gate.API
        self.request: ForwardedRequest | None = None
        self.browser: Browser | None = None
        self.presented: bytes | None = None  # the value of an Authorization header
        self.principal: Principal | None = None
        self.until = 0.0  # seconds since the epoch: the credential is verified again then
        self.era = 0  # of the verdicts when it was verified
        self.subprotocol = SUBPROTOCOL if SUBPROTOCOL in scope["subprotocols"] else None
        self.accepted = False
        self.vouched = False  # there is no credential, and each message is judged
        self.user_agent = b""

    def parse(self, proxies: TrustedProxies) -> None:
        """Read the upgrade request; raises Refusal if it cannot be relayed."""
        if not proxies.trusts(self.peer):
            raise UntrustedPeer(Problem.PEER_NOT_TRUSTED, peer=self.peer)
        call = behind_prefix(self._scope["raw_path"], self._scope["query_string"], _PREFIX)
        if call is None or call[0] is Gate.UI:
            raise NotFound(Problem.NOT_FOUND)
        self.gate, target = call
        self.request, found = parse_call(Face.RELAY, "GET", target, self._scope["headers"], proxies)
        self.browser = browser_of(found, self.request)
        self.presented = found.get(b"authorization")
        self.user_agent = found.get(b"user-agent", b"")

    @property
    def address(self) -> str:
        """Return the client's address, or an empty string where no proxy has said it."""
        return self.request.client if self.request is not None else ""

    def decide(self, who: Principal | NoCredential | Refusal, access: Access) -> Decision:
        """Return the decision about this WebSocket."""
        return decide(self.request, who, self.gate, access, browser=self.browser)

    async def accept(self, *, proved: bool = False) -> None:
        """Accept the upgrade, with Prefect's sub-protocol if the client has offered it.

        ``proved`` tells that the client may send large messages at once, where no first message is due.
        """
        if proved and self.subprotocol is None:
            self.proved()
        await self.send({"type": "websocket.accept", "subprotocol": self.subprotocol})
        self.accepted = True

    def proved(self) -> None:
        """Let the client send large messages, and keep its pings in order with them."""
        if self.connection is not None:
            self.connection.proved()

    def opened(self) -> None:
        """Let go of the headers of the upgrade, which are a third of what an idle socket would keep."""
        self._scope["headers"] = []
        if self.connection is not None:
            self.connection.forget_handshake()

    async def receive(self) -> Message:
        """Return the next message, ping or disconnect."""
        return await self._receive()

    async def first_message(self) -> str | bytes:
        """Return the first message; raises ClientGoneError if none comes any more."""
        message = await self._receive()
        if message["type"] != "websocket.receive":
            raise ClientGoneError
        return content_of(message)

    async def close(self, close: Close) -> None:
        """Close the socket, if that has not happened yet."""
        with suppress(*GONE):
            await self.send({"type": "websocket.close", "code": close.code, "reason": close.reason})


def content_of(message: Message) -> str | bytes:
    """Return what a message of ``websocket.receive`` holds."""
    text: str | None = message.get("text")
    if text is not None:
        return text
    content: bytes = message["bytes"]
    return content
