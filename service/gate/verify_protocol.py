"""The short way of verify calls: answered by the server's protocol, in the call in which their bytes arrived.

A call goes the short way if it is whole, the last in its chunk, and waits for nothing. Everything else goes by ASGI, as
if this module did not exist: uvicorn makes a task, the application decides by the same function, uvicorn writes the
answer.

``HttpToolsProtocol`` is no public interface of uvicorn. This is relied on:

- ``data_received()`` feeds the parser, which calls ``on_message_begin()``, ``on_url()``, ``on_header()``,
  ``on_headers_complete()``, ``on_body()`` and ``on_message_complete()``.
- ``on_message_begin()``, ``on_url()`` and ``on_header()`` only collect, in ``url``, ``headers`` and ``scope``.
- ``on_headers_complete()`` starts the call, or queues it. All of them may run later than the parser calls them, before
  ``on_body()`` and ``on_message_complete()``. It asks the parser for the method, the version, ``should_keep_alive()``
  and ``should_upgrade()`` alone.
- ``cycle`` is the last call that went by ASGI, and ``response_complete`` tells that none is under way.
- ``flow.write_paused`` tells that the peer does not read what is sent.
- ``timeout_keep_alive_task`` is the timer of an idle connection. ``_unset_keepalive_if_required()`` cancels it,
  ``on_response_complete()`` sets it, and ``timeout_keep_alive_handler()`` closes the connection.
- ``shutdown()`` and ``eof_received()`` close a connection on which no call is under way.
- ``server_state.total_requests`` counts answers. All connections of a server have one event loop, ``loop``.

``KNOWN`` has the sources that were read for this and tested. With any other, every call goes by ASGI.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import httptools
import uvicorn
from uvicorn.protocols.http import flow_control, httptools_impl

from service.gate.protocol import MAX_HEAD, BoundedHeadProtocol
from service.gate.verify import ENDPOINTS, EXT_AUTHZ, Chunk, Endpoint, VerifyEndpoints, ext_authz
from service.rendering.wire import Answer

log = logging.getLogger(__name__)

KNOWN: Final = frozenset({"ea814cf42e50628dba76b72e12900943da6801b4bcf097f11dff4ea2cdc99455"})  # 0.54.0


class _Outbox:
    """Writes the answers of one turn of the event loop together, after all that was to be read.

    To write each answer by itself would take twice the processor time: it wakes the proxy up, which falls asleep again
    before the next answer, and in between the code of the decision leaves the processor's cache.
    """

    def __init__(self) -> None:
        self._waiting: list[VerifyProtocol] = []

    def add(self, connection: "VerifyProtocol") -> None:
        """Write the answer of a connection at the end of this turn."""
        if not self._waiting:
            connection.loop.call_soon(self._write_all)
        self._waiting.append(connection)

    def _write_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.write_answer()


_outboxes: Final = WeakKeyDictionary[asyncio.AbstractEventLoop, _Outbox]()  # there is one loop, except in tests


class VerifyProtocol(BoundedHeadProtocol):
    """Answers verify calls that wait for nothing, and leaves all others to ASGI."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._endpoints = self._endpoints_served()
        self._outbox = _outboxes.get(self.loop) or _outboxes.setdefault(self.loop, _Outbox())
        self._answer = b""  # what is decided and not yet written
        self._peer = ""
        self._held: Endpoint | None = None  # of a request whose head is complete, and which ASGI has not got
        self._complete = False  # whether its end has come, too
        self._begun = False  # whether a request has begun and its end has not come
        self._idle_since: float | None = None  # by the clock of the event loop; None until a request is answered

    def _endpoints_served(self) -> VerifyEndpoints | None:
        """Return the application, or None where the server adds to its answers, or has paths or limits of its own."""
        config, app = self.config, self.app
        adds = any((config.server_header, config.date_header, config.headers, self.access_log))
        elsewhere = bool(config.root_path) or config.limit_concurrency is not None
        return app if isinstance(app, VerifyEndpoints) and not adds and not elsewhere else None

    def connection_made(self, transport: Any) -> None:
        """Begin a connection."""
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        """Parse a chunk, and answer the request that it ends with."""
        if self._answer:
            self.write_answer()
        chunk = None
        if self._endpoints is not None and not self._begun:  # so that it means the same as it did before
            chunk = self._endpoints.chunk_of(data)
            if chunk is not None and self._answer_again(chunk):
                return
        super().data_received(data)
        if self._held is not None and not (self._complete and self._answer_at_once(self._held, chunk)):
            self._pass_to_asgi()

    # what the parser calls ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request, without what only ASGI needs."""
        if self._held is not None:  # another request in the same chunk: in turn, by ASGI
            self._pass_to_asgi()
        self.url, self.headers, self._begun = b"", [], True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header, without a look at it."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Hold back what may be answered at once, until it is whole. Pass everything else to ASGI."""
        if self._may_be_answered_at_once():
            self._held, self._complete = _endpoint_of(self.url), False
        if self._held is None:
            self._pass_to_asgi()

    def _may_be_answered_at_once(self) -> bool:
        parser = self.parser
        return (
            self._endpoints is not None
            and self._is_free()
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and parser.get_http_version() == "1.1"
            and parser.get_method() != b"HEAD"
            and self._received + self._together <= MAX_HEAD
        )

    def _is_free(self) -> bool:
        """Tell whether no call is under way, and the peer reads what is sent."""
        return getattr(self.cycle, "response_complete", True) and not self.flow.write_paused  # no cycle: no call yet

    def on_body(self, body: bytes) -> None:
        """Pass a request with a body to ASGI."""
        if self._held is not None:
            self._pass_to_asgi()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that a request that was held back is whole."""
        self._begun = False
        if self._held is None:
            super().on_message_complete()
        else:
            self._complete = True
            self._expect_next()

    # the two ways ---------------------------------------------------------------------------------------------

    def _answer_again(self, chunk: Chunk) -> bool:
        """Answer a chunk that is a whole request, and the same as an earlier one, and tell whether that was possible.

        The parser need not see it: it stands between two requests, before and after.
        """
        if self._endpoints is None or not self._is_free() or self.transport.is_closing():
            return False
        return self._write_soon(partial(self._endpoints.answer_again, chunk, self._peer))

    def _answer_at_once(self, endpoint: Endpoint, chunk: Chunk | None) -> bool:
        """Answer the request that is held back, and tell whether that was possible."""
        if self._endpoints is None or self.transport.is_closing():
            return False
        method = self.parser.get_method().decode("ascii")
        at_once = partial(self._endpoints.answer_at_once, endpoint, method, self.headers, self._peer, chunk)
        return self._write_soon(at_once)

    def _write_soon(self, decide: Callable[[], Answer | None]) -> bool:
        """Write an answer at the end of this turn, and tell whether there is one."""
        try:
            answer = decide()
            if answer is None:
                return False
            written = answer.written
        except Exception:
            log.exception("a verify call could not be answered at once")
            return False
        self._held = None
        self._answer = written
        self._outbox.add(self)
        self.server_state.total_requests += 1
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._close_if_idle_in(self.timeout_keep_alive)
        return True

    def write_answer(self) -> None:
        """Write the answer that is decided, if there is one."""
        answer, self._answer = self._answer, b""
        if answer and not self.transport.is_closing():
            self.transport.write(answer)

    def eof_received(self) -> None:
        """Answer a client that has nothing more to ask."""
        self.write_answer()
        super().eof_received()

    def shutdown(self) -> None:
        """Close the connection as soon as all that is decided is answered."""
        self.write_answer()
        super().shutdown()

    def _pass_to_asgi(self) -> None:
        """Let uvicorn see a request as if its head, and its end where that has come, came now."""
        complete, self._held = self._held is not None and self._complete, None
        url, headers = self.url, self.headers
        super().on_message_begin()
        super().on_url(url)
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()
        if complete:
            super().on_message_complete()

    # the timer of an idle connection: one for many requests, since to set one costs as much as a decision ------------

    def _unset_keepalive_if_required(self) -> None:
        """Note that the connection is not idle. The timer goes on."""
        self._idle_since = None

    def on_response_complete(self) -> None:
        """Set the timer anew after an answer by ASGI, or begin the next request."""
        self._cancel_timer()
        super().on_response_complete()
        self._idle_since = None if self.timeout_keep_alive_task is None else self.loop.time()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for all of the time, and otherwise look again."""
        self.timeout_keep_alive_task = None
        if self._idle_since is None:
            return  # the next answer sets the timer
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._close_if_idle_in(left)
        else:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection, and an answer that nobody will read."""
        self._answer = b""
        self._cancel_timer()
        super().connection_lost(exc)

    def _close_if_idle_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _cancel_timer(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None


def _endpoint_of(url: bytes) -> Endpoint | None:
    """Return the verify endpoint of a request target as proxies write it. Every other one is for ASGI."""
    endpoint = ENDPOINTS.get(url)
    if endpoint is None and url.startswith(EXT_AUTHZ) and url.isascii():
        parsed = httptools.parse_url(url)
        return ext_authz(parsed.path, parsed.query or b"")
    return endpoint


def source_of_uvicorn() -> str:
    """Return a fingerprint of the parts of the installed uvicorn that are relied on; empty if there is no source."""
    digest = hashlib.sha256()
    try:
        for module in (httptools_impl, flow_control):
            digest.update(Path(str(module.__file__)).read_bytes())
    except OSError:
        return ""
    return digest.hexdigest()


def http_protocol() -> type[BoundedHeadProtocol]:
    """Return the protocol for HTTP: this one, where the installed uvicorn is one that it was tested with."""
    if source_of_uvicorn() in KNOWN:
        return VerifyProtocol
    log.warning(
        "this version of the service was not tested with uvicorn %s: it answers all calls by ASGI, which takes longer",
        uvicorn.__version__,
    )
    return BoundedHeadProtocol
