"""Say where the time of a first-seen token goes, step by step, in this process: `python -m tests.bench.first_seen`.

Each step runs by itself, again and again, so that its code is in the processor's cache. In a server it takes longer.
"""

import asyncio
import time
import timeit
from collections.abc import Callable
from typing import Any

from service.authn.steps import at_once
from service.core.identity.claims import principal_from, with_verified_email
from service.core.identity.compact import decode_segment, parse_header, parse_json_object
from service.core.model import Bearer, Face, Gate
from service.core.policy import decide
from service.core.request.faces import parse_call
from service.core.request.headers import parse_credential
from service.gate.application import ForwardAuth
from service.rendering.answers import allowed
from service.settings import Settings
from service.web.app import create_app
from tests.bench.report import keep_steps
from tests.bench.stage import ALGORITHMS, FORWARDED
from tests.support.issuer import Issuer

ENDPOINT = (Face.FORWARD_AUTH, Gate.API, b"")


def microseconds(work: Callable[[], Any]) -> float:
    """Return the processor time of one run, the best of many."""
    return min(timeit.repeat(work, number=500, repeat=25, timer=time.process_time)) / 500 * 1e6


def steps(app: ForwardAuth, token: bytes) -> dict[str, float]:
    """Return what each step of a first-seen token takes, in microseconds."""
    wiring, presented = app.wiring, b"Bearer " + token
    issuer = next(iter(wiring.issuers.values()))
    header, payload, last = token.split(b".")
    parsed, signature, signed = parse_header(header), decode_segment(last), token[: -len(last) - 1]
    key = issuer.key_at_hand(parsed.kid, parsed.algorithm)
    assert key is not None
    credential = parse_credential(presented)
    assert isinstance(credential, Bearer)
    verified = at_once(wiring.tokens._verifying(token))
    proof = at_once(wiring.tokens.authenticating(credential))
    assert verified is not None
    assert proof is not None
    headers = [(name.lower().encode(), value.encode()) for name, value in FORWARDED.items()]
    headers.append((b"authorization", presented))
    request, _ = parse_call(*ENDPOINT[:1], "GET", b"", headers, wiring.proxies)
    verdicts = app.state.verdicts

    def first_seen() -> None:
        verdicts._proofs.clear()
        app.answer_at_once(ENDPOINT, "GET", headers, "127.0.0.1")

    def assign_roles() -> None:
        wiring.tokens._refuse_revoked(verified, proof.principal.name)
        wiring.tokens._grants.with_roles(proof.principal, with_verified_email(verified.claims, issuer.trust))

    def remember() -> None:
        verdicts.remember(verdicts.key_of(Gate.API, presented), proof, verdicts.era)

    pieces: dict[str, Callable[[], Any]] = {
        "the signature: the key's verify()": lambda: key.verify(signed, signature),
        "the token: its form, three segments decoded, two JSON objects": lambda: (
            parse_credential(presented),
            token.split(b"."),
            parse_header(header),
            decode_segment(last),
            parse_json_object(decode_segment(payload)),
        ),
        "the key: found by its id": lambda: issuer.key_at_hand(parsed.kid, parsed.algorithm),
        "the claims: checked, and the principal": lambda: principal_from(verified, issuer.trust, time.time()),
        "the roles: revoked tokens, grants": assign_roles,
        "the memory: a fingerprint, and the verdict kept": remember,
        "the request: its headers parsed": lambda: parse_call(*ENDPOINT[:1], "GET", b"", headers, wiring.proxies),
        "the decision and the answer": lambda: allowed_bytes(app, request, proof.principal),
    }
    taken = {name: microseconds(work) for name, work in pieces.items()}
    whole = microseconds(first_seen)
    return {**taken, "between the steps": whole - sum(taken.values()), "all": whole}


def allowed_bytes(app: ForwardAuth, request: Any, principal: Any) -> bytes:
    """Return the bytes of the answer."""
    decide(request, principal, Gate.API, app.wiring.access)
    return allowed(principal.identity).written


async def measured(algorithm: str) -> dict[str, float]:
    """Return what each step takes with tokens of this algorithm."""
    with Issuer(algorithm) as issuer:
        trusted: Any = {"url": issuer.url, "audiences": "prefect", "role": "worker"}
        app = create_app(Settings(issuer=trusted))
        await app.start()
        one = next(iter(app.wiring.issuers.values()))
        await one.keys.refresh(one.policy)
        try:
            return steps(app, issuer.mint(lifetime=3600).encode())
        finally:
            await app.stop()


if __name__ == "__main__":
    keep_steps({algorithm: asyncio.run(measured(algorithm)) for algorithm in ALGORITHMS})
