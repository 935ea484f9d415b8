"""What the gate is measured against, on the same server: a bare answer, and an ordinary FastAPI endpoint."""

import secrets
from itertools import cycle
from typing import Annotated, Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from fastapi import FastAPI, Header, Response

from service.core.errors import Refusal
from service.core.model import NO_CREDENTIAL, Allow, Bearer, Face, ForwardedRequest, Gate, Principal
from service.core.policy import decide
from service.core.request.headers import parse_credential, parse_host, parse_method, parse_scheme, parse_target
from service.gate.application import ForwardAuth
from service.gate.asgi import Receive, Scope, Send
from service.rendering.answers import allow_headers, render
from service.web.app import create_app

_START: dict[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"x-auth-request-user", b"somebody"), (b"content-length", b"0")],
}
_BODY: dict[str, Any] = {"type": "http.response.body", "body": b""}


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 200 without a look at the request: the server's ceiling."""
    await send(_START)
    await send(_BODY)


def one_rs256() -> Any:
    """Return the bare answer behind one RS256 verification by the library alone: what no first-seen token can spare."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return _behind_one_verification(private, padding.PKCS1v15(), hashes.SHA256())


def one_es256() -> Any:
    """Return the same with ES256."""
    return _behind_one_verification(ec.generate_private_key(ec.SECP256R1()), ec.ECDSA(hashes.SHA256()))


def one_eddsa() -> Any:
    """Return the same with Ed25519."""
    return _behind_one_verification(ed25519.Ed25519PrivateKey.generate())


def _behind_one_verification(private: Any, *how: Any) -> Any:
    messages = [secrets.token_hex(300).encode() for _ in range(200)]
    pairs = cycle([(private.sign(one, *how), one) for one in messages])
    verify = private.public_key().verify

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        verify(*next(pairs), *how)
        await send(_START)
        await send(_BODY)

    return app


def ordinary() -> FastAPI:
    """Return the same decision, by the same functions, as one would write it with FastAPI."""
    service: ForwardAuth = create_app()
    verdicts = service.state.verdicts

    async def lifespan(_: FastAPI) -> Any:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(lifespan=lifespan)

    @app.get("/forward-auth/api")
    async def verify(
        x_forwarded_method: Annotated[str, Header()],
        x_forwarded_uri: Annotated[str, Header()],
        x_forwarded_host: Annotated[str, Header()],
        x_forwarded_proto: Annotated[str, Header()],
        x_forwarded_for: Annotated[str, Header()],
        authorization: Annotated[str | None, Header()] = None,
    ) -> Response:
        who: Any = NO_CREDENTIAL
        call = None
        try:
            target = parse_target(x_forwarded_uri.encode())
            call = ForwardedRequest(
                parse_method(x_forwarded_method.encode()),
                parse_scheme(x_forwarded_proto.encode()),
                parse_host(x_forwarded_host.encode()),
                target.path,
                target.query,
                service.wiring.proxies.client_of(x_forwarded_for.encode()),
            )
            if authorization is not None:
                key = verdicts.key_of(Gate.API, authorization.encode())
                proof = verdicts.recall(key)
                if proof is None:
                    credential = parse_credential(authorization.encode())
                    if isinstance(credential, Bearer):
                        proof = await service.wiring.tokens.authenticate(credential)
                    else:
                        assert service.wiring.passwords is not None
                        proof = await service.wiring.passwords.authenticate(credential)
                    verdicts.remember(key, proof, verdicts.era)
                who = proof.principal
        except Refusal as refusal:
            who = refusal
        decision = decide(call, who, Gate.API, service.wiring.access)
        if isinstance(decision, Allow):
            return _response(decision.principal)
        answer = render(decision, Face.FORWARD_AUTH, Gate.API, "")
        return Response(answer.body, answer.status)

    return app


def _response(principal: Principal) -> Response:
    headers = {
        name.decode(): value.decode() for name, value in allow_headers(principal.identity) if name != b"content-length"
    }
    return Response(status_code=200, headers=headers)
