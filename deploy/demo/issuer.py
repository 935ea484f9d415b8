"""The demo's issuer: one key, discovery and JWKS on loopback, one token for a worker. Runs beside the service."""

from __future__ import annotations

import argparse
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jose import jwk, jwt

ALGORITHM = "ES256"
KEY_ID = "demo"
HOURS = 12


def main() -> None:
    """Write a token to the file, then publish the key that verifies it until ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--audience", required=True)
    parser.add_argument("--subject", required=True)
    parser.add_argument("--token-file", type=Path, required=True)
    options = parser.parse_args()

    issuer = f"http://127.0.0.1:{options.port}"
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    now = int(time.time())
    claims = {
        "iss": issuer,
        "sub": options.subject,
        "aud": options.audience,
        "iat": now,
        "exp": now + HOURS * 3600,
        "jti": f"demo-{now}",
    }
    token = jwt.encode(claims, private, algorithm=ALGORITHM, headers={"kid": KEY_ID, "typ": "at+jwt"})

    documents = {
        "/.well-known/openid-configuration": {"issuer": issuer, "jwks_uri": f"{issuer}/jwks"},
        "/jwks": {"keys": [{**jwk.construct(public, ALGORITHM).to_dict(), "kid": KEY_ID, "use": "sig"}]},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = documents.get(self.path)
            body = json.dumps(document or {}).encode()
            self.send_response(200 if document else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    options.token_file.touch(mode=0o600)
    options.token_file.write_text(token)
    server.serve_forever()


if __name__ == "__main__":
    main()
