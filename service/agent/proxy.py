"""The proxy: takes what the worker sends on loopback, adds a fresh credential, and passes it on to one host."""

import asyncio
import hmac
import json
import logging
import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import h11

from service.agent.connections import READ, Connection, Pool, UpstreamAwayError, response_on
from service.agent.tokens import Keeper, Token

log = logging.getLogger(__name__)

HOLD_SECONDS: Final = 30.0  # for how long a request waits for a token and for the upstream
KEPT_BODY: Final = 1024 * 1024  # bytes of a body that are kept, so that the request can be sent once more
RETRY_AFTER: Final = 5
_NOTE_SECONDS: Final = 60.0  # between two lines about refused credentials
_HOP_BY_HOP: Final = frozenset(  # RFC 9110 §7.6.1
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade proxy-authenticate".split()
)
_NOT_PASSED_ON: Final = _HOP_BY_HOP | {b"authorization", b"proxy-authorization", b"host", b"expect"}
_KEPT: Final = frozenset({b"content-length", b"host"})  # which no Connection header may remove
_REPEATABLE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})  # RFC 9110 §9.2.2
_UNAUTHORIZED: Final = 401

Headers = list[tuple[bytes, bytes]]


class NoTokenError(Exception):
    """There was no valid token in time."""


class UpstreamBrokeError(Exception):
    """The upstream ended the connection before it answered."""


class Proxy:
    """Serves one worker. Its address has a secret in its path, without which nothing is passed on."""

    def __init__(self, pool: Pool, keeper: Keeper, secret: str = "", *, hold: float = HOLD_SECONDS) -> None:
        self._pool, self._keeper, self._hold = pool, keeper, hold
        self._prefix = f"/{secret or secrets.token_urlsafe(16)}".encode()
        self._noted = float("-inf")

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Begin to listen, and return the URL of Prefect's API here."""
        self._server = await asyncio.start_server(self._serve, host, port, backlog=1024)
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{port}{self._prefix.decode()}/api"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, until it ends."""
        client = Connection(reader, writer, h11.SERVER)
        try:
            while isinstance(request := await client.next_event(), h11.Request):
                await self._answer(client, request)
                if not client.is_done():
                    break
        except h11.RemoteProtocolError:
            with suppress(OSError, h11.LocalProtocolError):
                await _tell(client, 400, "This is not a request that can be passed on.")
        except (OSError, h11.LocalProtocolError, UpstreamBrokeError):
            pass  # one side has gone, and so goes the other
        finally:
            client.close()

    def _path_of(self, target: bytes) -> bytes | None:
        """Return the path and query at the upstream, or None for a request without the secret."""
        start = self._prefix + b"/api"
        if not hmac.compare_digest(target[: len(start)], start):
            return None
        rest = target[len(start) :]
        return self._pool.upstream.path.encode() + rest if rest[:1] in {b"/", b"?", b""} else None

    async def _answer(self, client: Connection, request: h11.Request) -> None:
        path = self._path_of(request.target)
        if path is None:
            await _tell(client, 404, "There is nothing here.")
            return
        if client.http.they_are_waiting_for_100_continue:
            await client.send(h11.InformationalResponse(status_code=100, headers=[]))
        try:
            body, whole = await _begin_of_body(client)
            exchange = _Exchange(self._pool, self._keeper, client, request, path, body, whole=whole)
            try:
                upstream, response = await exchange.run(asyncio.get_running_loop().time() + self._hold)
                if response.status_code == _UNAUTHORIZED:
                    self._note_refusal()
                await self._pass_down(client, upstream, response)
            finally:
                exchange.end()
        except NoTokenError:
            await _tell(client, 503, "There is no valid token at the moment.", again=True)
        except UpstreamAwayError:
            await _tell(client, 503, "The server cannot be reached.", again=True)
        except UpstreamBrokeError:
            await _tell(client, 502, "The server ended the connection without an answer.")

    def _note_refusal(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._noted + _NOTE_SECONDS:
            self._noted = now
            log.warning("%s refuses the credential (401), and there is no other one.", self._pool.upstream.url)

    async def _pass_down(
        self, client: Connection, upstream: Connection, response: h11.Response | h11.InformationalResponse
    ) -> None:
        """Pass an answer on to the worker, and all that follows where both sides change to WebSocket."""
        if isinstance(response, h11.InformationalResponse):
            headers = [*_end_to_end(response.headers, _HOP_BY_HOP), (b"connection", b"Upgrade"), *_upgrade_of(response)]
            await client.send(h11.InformationalResponse(status_code=101, headers=headers, reason=response.reason))
            await _tunnel(client, upstream)
            return
        pending: list[h11.Event] = [
            h11.Response(
                status_code=response.status_code,
                headers=_end_to_end(response.headers, _HOP_BY_HOP),
                reason=response.reason,
            )
        ]
        while True:
            try:
                event = upstream.http.next_event()
                while event is h11.NEED_DATA:
                    if pending:
                        await client.send(*pending)
                        pending = []
                    upstream.http.receive_data(await upstream.reader.read(READ))
                    event = upstream.http.next_event()
            except h11.RemoteProtocolError:
                raise UpstreamBrokeError from None
            if isinstance(event, h11.EndOfMessage):
                await client.send(*pending, h11.EndOfMessage())
                return
            if isinstance(event, h11.Data):
                pending.append(event)


class _Exchange:
    """One request at the upstream, sent once more where its credential was refused."""

    def __init__(
        self,
        pool: Pool,
        keeper: Keeper,
        client: Connection,
        request: h11.Request,
        path: bytes,
        body: bytes,
        *,
        whole: bool,
    ) -> None:
        self._pool, self._keeper, self._client = pool, keeper, client
        self._method, self._path, self._body, self._whole = request.method, path, body, whole
        self._headers = [*_end_to_end(request.headers, _NOT_PASSED_ON), (b"host", pool.upstream.authority.encode())]
        named = {name for name, _ in self._headers}
        if b"content-length" not in named and (body or not whole):
            self._headers.append((b"transfer-encoding", b"chunked"))
        if upgrade := _upgrade_of(request):
            self._headers += [(b"connection", b"Upgrade"), *upgrade]
        self._upstream: Connection | None = None
        self._upload: asyncio.Task[None] | None = None

    async def run(self, until: float) -> tuple[Connection, h11.Response | h11.InformationalResponse]:
        """Return the connection to the upstream and the answer's head.

        Waits until this time of the event loop for a connection and a token. Raises UpstreamAwayError, NoTokenError or
        UpstreamBrokeError.
        """
        renewed = fresh = False
        while True:
            self._upstream = upstream = await self._pool.take(until, fresh=fresh)
            try:
                token = await self._keeper.token(until)
            except TimeoutError:
                raise NoTokenError from None
            try:
                response = await self._send(upstream, token)
            except (OSError, h11.RemoteProtocolError):
                if upstream.since and not fresh and self._whole and self._method in _REPEATABLE:
                    fresh = True  # the upstream has closed a kept connection just now
                    upstream.close()
                    continue
                raise UpstreamBrokeError from None
            if response.status_code != _UNAUTHORIZED or renewed or not self._whole:
                return upstream, response
            renewed = True
            try:
                if await self._keeper.renew(token, until) is None:
                    return upstream, response
            except TimeoutError:
                raise NoTokenError from None
            upstream.close()

    async def _send(self, upstream: Connection, token: Token) -> h11.Response | h11.InformationalResponse:
        authorization = (b"authorization", b"Bearer " + token.value.encode())
        head = h11.Request(method=self._method, target=self._path, headers=[*self._headers, authorization])
        data = [h11.Data(data=self._body)] if self._body else []
        if self._whole:
            with suppress(OSError):  # it may have answered, and closed the connection
                await upstream.send(head, *data, h11.EndOfMessage())
            return await response_on(upstream)
        answer = asyncio.ensure_future(response_on(upstream))
        with suppress(OSError):  # likewise
            await upstream.send(head, *data)
        self._upload = asyncio.ensure_future(_pass_up(self._client, upstream))
        await asyncio.wait({self._upload, answer}, return_when=asyncio.FIRST_COMPLETED)
        if self._upload.done() and self._upload.exception() is not None:
            answer.cancel()
            await self._upload
        return await answer

    def end(self) -> None:
        """Keep the connection to the upstream if the exchange is complete, and close it otherwise."""
        if self._upload is not None:
            self._upload.cancel()
        if self._upstream is not None:
            self._pool.put_back(self._upstream)


async def _begin_of_body(client: Connection) -> tuple[bytes, bool]:
    """Return a body as far as it is kept, and whether that is all of it."""
    body = bytearray()
    while len(body) <= KEPT_BODY:
        event = await client.next_event()
        if not isinstance(event, h11.Data):
            return bytes(body), True
        body += event.data
    return bytes(body), False


async def _pass_up(client: Connection, upstream: Connection) -> None:
    """Pass the rest of a body on, as far as the upstream takes it."""
    while True:
        event = await client.next_event()
        end = not isinstance(event, h11.Data)
        try:
            await upstream.send(h11.EndOfMessage() if end else event)  # type: ignore[arg-type]
        except OSError:
            return  # it may have answered already
        if end:
            return


async def _tunnel(client: Connection, upstream: Connection) -> None:
    """Pass bytes both ways as fast as the slower side takes them, until one side closes."""
    ways = [
        asyncio.ensure_future(_copy(client.http.trailing_data[0], client.reader, upstream.writer)),
        asyncio.ensure_future(_copy(upstream.http.trailing_data[0], upstream.reader, client.writer)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _copy(first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    data = first or await reader.read(READ)
    while data:
        writer.write(data)
        await writer.drain()
        data = await reader.read(READ)


def _end_to_end(headers: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> Headers:
    """Return the headers that are for the other end (RFC 9110 §7.6.1)."""
    named = {
        word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b",")
    } - _KEPT
    return [(name, value) for name, value in headers if name not in dropped and name not in named]


def _upgrade_of(message: h11.Request | h11.InformationalResponse) -> Headers:
    """Return the header of a change to WebSocket; any other change of protocols is not passed on."""
    return [(name, value) for name, value in message.headers if name == b"upgrade" and value.lower() == b"websocket"]


async def _tell(client: Connection, status: int, detail: str, *, again: bool = False) -> None:
    """Answer in the proxy's own words, in the form that Prefect's client prints."""
    body = json.dumps({"detail": f"prefect-forward-auth agent: {detail}"}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if again:
        headers.append((b"retry-after", str(RETRY_AFTER).encode()))
    if client.http.their_state is not h11.DONE:
        headers.append((b"connection", b"close"))
    await client.send(h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
