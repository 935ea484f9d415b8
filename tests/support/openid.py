"""The certified OpenID Provider as a process: tokens by client credentials, keys that turn on request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from tests.support.parts import OPENID_PROVIDER, require
from tests.support.processes import Process, clean_environment
from tests.support.waiting import free_port

ALGORITHMS = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
AUDIENCE = "https://prefect.test"
SCRIPT = Path(__file__).parent / "openid_provider" / "provider.mjs"


def _addresses(sites: Sequence[str]) -> dict[str, str]:
    return {
        "REDIRECT_URIS": ",".join(f"{site}/_auth/callback" for site in sites),
        "POST_LOGOUT_REDIRECT_URIS": ",".join(f"{site}/_auth/signed-out" for site in sites),
        "BACKCHANNEL_LOGOUT_URI": f"{sites[0]}/_auth/backchannel-logout",
    }


class OpenIDProvider:
    """Serves as an issuer inside the `with` block; `stop` and `start` play an outage on the same address."""

    def __init__(self, folder: Path, *, token_seconds: int = 600, sites: Sequence[str] = ()) -> None:
        """Take the URLs of the people's hosts of sites; the first is told of logouts over the back channel."""
        modules = require(OPENID_PROVIDER).parents[2]
        self._folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._env = clean_environment(
            folder / "home",
            {
                "PORT": str(self.port),
                "MODULES": str(modules),
                "TOKEN_SECONDS": str(token_seconds),
                "NODE_ENV": "test",
                **(_addresses(sites) if sites else {}),
            },
        )
        self._process: Process | None = None

    def start(self) -> None:
        """Start with fresh keys, and return once it listens."""
        self._process = Process("OpenID Provider", ["node", SCRIPT], env=self._env, log=self._folder / "openid.log")
        self._process.wait_for_line("listening http", timeout=20)

    def stop(self) -> None:
        """Go away; connections are refused from here on."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def token(self, alg: str = "RS256") -> str:
        """Return an access token of the client `worker`, signed with this algorithm."""
        answer = httpx.post(
            f"{self.url}/token",
            auth=("worker", "worker-secret"),
            data={"grant_type": "client_credentials", "resource": f"{AUDIENCE}/{alg}", "scope": "prefect:write"},
        )
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def rotate(self) -> None:
        """Sign with new keys from now on; those before stay published."""
        httpx.post(f"{self.url}/test/rotate").raise_for_status()

    def drop_old(self) -> None:
        """Publish only the keys that sign."""
        httpx.post(f"{self.url}/test/drop-old").raise_for_status()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
