"""The ASGI application of the service: verify calls, probes and the web application."""

import asyncio
import gc
import logging
import secrets
from collections.abc import Callable
from contextvars import ContextVar

from service.core.errors import Code
from service.core.problems import Cause, Problem
from service.gate.asgi import ASGIApp, Message, Receive, Scope, Send, send_json
from service.gate.generation import Generation
from service.gate.readiness import readiness
from service.gate.relay import Relay
from service.gate.reload import ReadSettings, Reloads
from service.gate.verify import EXT_AUTHZ_PREFIX, VerifyEndpoints
from service.gate.wiring import Wiring, new_state, wire
from service.rendering.answers import refusal_content
from service.settings import Settings

log = logging.getLogger(__name__)

LoadWeb = Callable[[Callable[[], Wiring]], ASGIApp]


class ForwardAuth(VerifyEndpoints):
    """The ASGI application that the server runs.

    The web application is loaded in the background while the first verify calls are answered.
    """

    def __init__(self, settings: Settings, load_web: LoadWeb, read_settings: ReadSettings | None = None) -> None:
        """``read_settings`` reads the settings again on SIGHUP. Raises ConfigError."""
        self.state = new_state()
        super().__init__(Generation(wire(settings, self.state)))
        self.relay = Relay(self)
        self._load_web = load_web
        self._read_settings = read_settings
        self._web: asyncio.Task[ASGIApp] | None = None
        self._wiring_of_call: ContextVar[Wiring] = ContextVar("wiring_of_call")  # for the web application
        self._reloads: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def _answer_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the probes here, so that they do not wait for the web application, which answers all other calls."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] == "websocket":
            await self.relay(scope, receive, send)
            return
        path = scope["path"]
        if path == "/healthz":
            await send_json(send, 200, {"status": "alive"})
        elif path == "/readyz":
            await send_json(send, 200 if self.generation.ready else 503, readiness(self.generation))
        elif self._web is None or path.startswith(EXT_AUTHZ_PREFIX):
            await self._not_found(send)
        else:
            with self.generation as generation:
                self._wiring_of_call.set(generation.wiring)
                await self._answer_by_web(self._web, scope, receive, send)

    @staticmethod
    async def _answer_by_web(web: asyncio.Task[ASGIApp], scope: Scope, receive: Receive, send: Send) -> None:
        """Let the web application answer. If it fails or could not be loaded, answer 503."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await (await asyncio.shield(web))(scope, receive, watched)
        except Exception:
            log.exception("the web application failed")
            if not begun:
                cause = Cause(Problem.INTERNAL)
                await send_json(send, 503, refusal_content(Code.INTERNAL_ERROR, cause, secrets.token_hex(8)))

    @staticmethod
    async def _not_found(send: Send) -> None:
        await send_json(send, 404, refusal_content(Code.NOT_FOUND, Cause(Problem.NOT_FOUND), secrets.token_hex(8)))

    # from start to stop -----------------------------------------------------------------------------------

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.start()
                except Exception as problem:  # noqa: BLE001 - whatever fails, the server must not start
                    await send({"type": "lifespan.startup.failed", "message": str(problem)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def start(self) -> None:
        """Start the background tasks, and begin to load the web application."""
        await self.generation.start()
        self._web = asyncio.create_task(self._loaded_web())
        self._watch = asyncio.create_task(self.relay.watch())
        if self._read_settings is not None:
            reloads = Reloads(self._read_settings, self.use)
            self._reloads = asyncio.create_task(reloads.follow_sighup(self.generation))

    async def _loaded_web(self) -> ASGIApp:
        self._wiring_of_call.set(self.wiring)
        web = await asyncio.to_thread(self._load_web, self._wiring_of_call.get)
        gc.collect()
        gc.freeze()  # what is loaded by now stays loaded, so the garbage collector need not look at it again
        gc.set_threshold(5_000, 10, 10)  # calls leave no reference cycles behind
        return web

    async def stop(self) -> None:
        """Stop everything that start() began, and close all connections."""
        for work in (self._reloads, self._web, self._watch):
            if work is not None:
                work.cancel()
        await self.generation.stop()
        await self.state.close()
