"""A Git credential helper: a token of an hour, made by a GitHub App for one installation.

    git_credential_github_app.py --app ID --installation ID --key FILE [--api URL] get

It needs ``cryptography``, which Prefect brings along. Whatever goes wrong is told on standard error, and Git goes on
without a credential. (GitHub's documentation: "Authenticating as a GitHub App installation".)
"""

import argparse
import base64
import json
import sys
import time
import urllib.request
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa


def encode(raw: bytes) -> str:
    """Encode as RFC 7515 §2 does."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def app_jwt(app: str, key_file: Path, now: float) -> str:
    """Return the JWT by which the app proves itself: RS256, good for nine minutes, for clocks that differ by one."""
    key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError(f"{key_file} holds no RSA key")
    claims = {"iss": app, "iat": int(now) - 60, "exp": int(now) + 9 * 60}
    signed = ".".join(encode(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims))
    return f"{signed}.{encode(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def installation_token(api: str, installation: str, proof: str) -> str:
    """Return a token that may read the contents of the installation's repositories, and nothing else."""
    request = urllib.request.Request(  # noqa: S310 - the address is the operator's
        f"{api}/app/installations/{installation}/access_tokens",
        data=json.dumps({"permissions": {"contents": "read"}}).encode(),
        headers={
            "Authorization": f"Bearer {proof}",
            "Accept": "application/vnd.github+json",
            "Content-Type": "application/json",
            "X-GitHub-Api-Version": "2022-11-28",
        },
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
        return str(json.load(answer)["token"])


def main() -> int:
    """Answer Git's question, as git-credential(1) has it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--app", required=True, help="the app's id, or its client id")
    parser.add_argument("--installation", required=True, help="the id of its installation")
    parser.add_argument("--key", required=True, type=Path, help="the app's private key, PEM")
    parser.add_argument("--api", default="https://api.github.com", help="another one for GitHub Enterprise Server")
    parser.add_argument("question", choices=["get", "store", "erase"])
    told = parser.parse_args()
    if told.question != "get":
        return 0
    try:
        token = installation_token(told.api, told.installation, app_jwt(told.app, told.key, time.time()))
    except (OSError, TypeError, ValueError, KeyError) as problem:
        print(f"no token from the GitHub App {told.app}: {problem}", file=sys.stderr)
        return 1
    print(f"username=x-access-token\npassword={token}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
