"""A small issuer in Python: publishes keys, signs whatever it is told, counts fetches, and fails on request."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self, TypeAlias
from urllib.parse import parse_qsl, unquote_plus

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from tests.support.waiting import free_port

PrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_HASHES: dict[str, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
_CURVES: dict[str, tuple[type[ec.EllipticCurve], str]] = {
    "ES256": (ec.SECP256R1, "P-256"),
    "ES384": (ec.SECP384R1, "P-384"),
    "ES512": (ec.SECP521R1, "P-521"),
}


def b64url(raw: bytes) -> str:
    """Encode as RFC 7515 does: URL-safe, without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _number(value: int, size: int | None = None) -> str:
    return b64url(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


@dataclass(frozen=True)
class SigningKey:
    """A private key bound to one algorithm and one key id."""

    alg: str
    kid: str
    private: PrivateKey = field(repr=False)

    @classmethod
    def generate(cls, alg: str, kid: str) -> Self:
        """Make a key for any asymmetric JWS algorithm."""
        if alg in _CURVES:
            return cls(alg, kid, ec.generate_private_key(_CURVES[alg][0]()))
        if alg == "EdDSA":
            return cls(alg, kid, ed25519.Ed25519PrivateKey.generate())
        return cls(alg, kid, rsa.generate_private_key(public_exponent=65537, key_size=2048))

    def jwk(self) -> dict[str, str]:
        """Return the public half as RFC 7517 writes it."""
        common = {"kid": self.kid, "alg": self.alg, "use": "sig"}
        if isinstance(self.private, rsa.RSAPrivateKey):
            numbers = self.private.public_key().public_numbers()
            return {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e), **common}
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            point = self.private.public_key().public_numbers()
            size = (self.private.key_size + 7) // 8
            curve = _CURVES[self.alg][1]
            return {"kty": "EC", "crv": curve, "x": _number(point.x, size), "y": _number(point.y, size), **common}
        raw = self.private.public_key().public_bytes_raw()
        return {"kty": "OKP", "crv": "Ed25519", "x": b64url(raw), **common}

    def sign(self, message: bytes) -> bytes:
        """Return the JWS signature of these bytes (RFC 7518, RFC 8037)."""
        if isinstance(self.private, ed25519.Ed25519PrivateKey):
            return self.private.sign(message)
        digest = _HASHES[self.alg[2:]]()
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            r, s = utils.decode_dss_signature(self.private.sign(message, ec.ECDSA(digest)))
            size = (self.private.key_size + 7) // 8
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")
        if self.alg.startswith("PS"):
            pss = padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)
            return self.private.sign(message, pss, digest)
        return self.private.sign(message, padding.PKCS1v15(), digest)


def encode_jws(header: Mapping[str, Any], payload: bytes, key: SigningKey) -> str:
    """Return a compact JWS over exactly these bytes, however wrong they are."""
    signed = f"{b64url(json.dumps(dict(header)).encode())}.{b64url(payload)}"
    return f"{signed}.{b64url(key.sign(signed.encode()))}"


class Reply(NamedTuple):
    """What one of the issuer's endpoints answers, after ``delay`` seconds, and with ``drip`` seconds between bytes."""

    body: bytes | Mapping[str, Any] = b"{}"
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}
    delay: float = 0.0
    drip: float = 0.0


class Call(NamedTuple):
    """What was sent to one of the issuer's endpoints."""

    path: str
    headers: Mapping[str, str]
    form: dict[str, str]
    body: str = ""


def _client_of(call: Call) -> tuple[str, str]:
    """Return the id and the secret that a client sent, in either way of RFC 6749 §2.3.1."""
    scheme, _, pair = call.headers.get("authorization", "").partition(" ")
    if scheme != "Basic":
        return call.form.get("client_id", ""), call.form.get("client_secret", "")
    username, _, password = base64.b64decode(pair).decode().partition(":")
    return unquote_plus(username), unquote_plus(password)


class Issuer:
    """Discovery and JWKS over loopback HTTP; `with Issuer() as issuer` serves until the block ends."""

    def __init__(self, *algs: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.jwks_url = f"{self.url}/jwks"
        self.fetches: Counter[str] = Counter()  # by path
        self.delay = 0.0  # seconds before each answer
        self.status = 200  # of each answer
        self.body: bytes | None = None  # in place of the key set
        self.headers: dict[str, str] = {}  # added to each answer
        self.metadata: dict[str, Any] = {}  # more of the discovery document
        self.replies: dict[str, Reply | Callable[[Call], Reply]] = {}  # of more endpoints, by path
        self.calls: list[Call] = []  # to those
        self.kids = True  # whether the published keys have ids
        self._generation = 1
        self._algs = algs or ("RS256",)
        self.keys = [SigningKey.generate(alg, f"{alg}-1") for alg in self._algs]
        self._server: ThreadingHTTPServer | None = None

    def key(self, alg: str | None = None) -> SigningKey:
        """Return the newest key of this algorithm."""
        return next(key for key in self.keys if key.alg == (alg or self._algs[0]))

    def rotate(self) -> None:
        """Sign with new keys from now on; those before stay published."""
        self._generation += 1
        self.keys = [SigningKey.generate(alg, f"{alg}-{self._generation}") for alg in self._algs] + self.keys

    def drop_old(self) -> None:
        """Stop publishing all keys but the newest of each algorithm."""
        self.keys = self.keys[: len(self._algs)]

    def mint(
        self,
        *,
        alg: str | None = None,
        key: SigningKey | None = None,
        header: Mapping[str, Any] | None = None,
        lifetime: float = 300,
        **claims: Any,
    ) -> str:
        """Return a token that is good but for what is given here; a claim or header of None is left out."""
        key = key or self.key(alg)
        now = int(time.time())
        proper = {
            "iss": self.url,
            "sub": "svc",
            "aud": "prefect",
            "iat": now,
            "exp": now + lifetime,
            "jti": str(now),
        }
        body = {name: value for name, value in {**proper, **claims}.items() if value is not None}
        head = {"alg": key.alg, "kid": key.kid, "typ": "at+jwt", **(header or {})}
        head = {name: value for name, value in head.items() if value is not None}
        return encode_jws(head, json.dumps(body).encode(), key)

    def grant_to(self, clients: Mapping[str, str], **claims: Any) -> None:
        """Let clients, id → secret, have tokens by their own credentials (RFC 6749 §4.4), with these claims."""

        def grant(call: Call) -> Reply:
            client = _client_of(call)
            if call.form.get("grant_type") != "client_credentials" or clients.get(client[0]) != client[1]:
                return Reply({"error": "invalid_client"}, 401)
            token = self.mint(sub=client[0], client_id=client[0], **claims)
            return Reply({"access_token": token, "token_type": "Bearer", "expires_in": 300})

        self.metadata["token_endpoint"] = f"{self.url}/token"
        self.replies["/token"] = grant

    def key_set(self) -> dict[str, list[dict[str, Any]]]:
        """Return the published keys as RFC 7517 writes a set."""
        keys = [key.jwk() for key in self.keys]
        return {"keys": keys if self.kids else [{**key, "kid": None} for key in keys]}

    def start(self) -> None:
        """Listen, on the same port as ever."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections until started again."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetches[self.path] += 1
                time.sleep(issuer.delay)  # slowness is what is being played here
                if self.path == "/.well-known/openid-configuration":
                    document = {"issuer": issuer.url, "jwks_uri": issuer.jwks_url, **issuer.metadata}
                    self._send(issuer.status, json.dumps(document).encode())
                elif self.path == "/jwks":
                    body = issuer.body if issuer.body is not None else json.dumps(issuer.key_set()).encode()
                    self._send(issuer.status, body)
                else:
                    self._reply("")

            def do_POST(self) -> None:
                self._reply(self.rfile.read(int(self.headers["Content-Length"])).decode())

            def _reply(self, body: str) -> None:
                call = Call(self.path.partition("?")[0], dict(self.headers), dict(parse_qsl(body)), body)
                issuer.calls.append(call)
                reply = issuer.replies.get(call.path, Reply(status=404))
                reply = reply if isinstance(reply, Reply) else reply(call)
                time.sleep(reply.delay)
                answer = reply.body if isinstance(reply.body, bytes) else json.dumps(dict(reply.body)).encode()
                headers = {"Content-Type": reply.content_type, **reply.headers}
                self._send(reply.status, answer, headers, drip=reply.drip)

            def _send(
                self, status: int, body: bytes, headers: Mapping[str, str] | None = None, *, drip: float = 0
            ) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **issuer.headers, **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                with contextlib.suppress(ConnectionError):  # whoever asked has given up waiting
                    self.end_headers()
                    step = 1 if drip else max(1, len(body))
                    for start in range(0, len(body), step):
                        self.wfile.write(body[start : start + step])
                        time.sleep(drip)

            def log_message(self, *_: object) -> None:
                """Keep the tests' output quiet."""

        return Handler
