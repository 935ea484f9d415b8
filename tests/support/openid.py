"""The certified OpenID Provider as a process, with key rotation on request, and a person who signs in there."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urljoin, urlsplit

import httpx

from tests.support.parts import OPENID_PROVIDER, require
from tests.support.processes import Process, Startable, clean_environment
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


class OpenIDProvider(Startable):
    """Serves as an issuer inside the `with` block; `stop` and `start` play an outage on the same address."""

    def __init__(
        self,
        folder: Path,
        *,
        token_seconds: int = 600,
        sites: Sequence[str] = (),
        clients: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Take the URLs of the people's hosts of sites; the first is told of logouts over the back channel.

        ``clients`` are there beside `browser` and `public`, with metadata as client registration names them.
        """
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
                "CLIENTS": json.dumps(list(clients)),
                **(_addresses(sites) if sites else {}),
            },
        )
        self._process: Process | None = None
        self._starts = 0

    def start(self) -> None:
        """Start with fresh keys, and return once it listens."""
        env = {**self._env, "GENERATION": str(1000 * self._starts)}
        self._starts += 1
        self._process = Process("OpenID Provider", ["node", SCRIPT], env=env, log=self._folder / "openid.log")
        self._process.wait_for_line("listening http", timeout=20)

    def stop(self) -> None:
        """Go away; connections are refused from here on."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def token(self, alg: str = "RS256") -> str:
        """Return an access token of the client `worker`, signed with this algorithm; `opaque` is none."""
        answer = httpx.post(
            f"{self.url}/token",
            auth=("worker", "worker-secret"),
            data={"grant_type": "client_credentials", "resource": f"{AUDIENCE}/{alg}", "scope": "prefect:write"},
        )
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def revoke(self, token: str) -> None:
        """Have a token of the client `worker` forgotten."""
        answer = httpx.post(f"{self.url}/token/revocation", auth=("worker", "worker-secret"), data={"token": token})
        answer.raise_for_status()

    def rotate(self) -> None:
        """Sign with new keys from now on; those before stay published."""
        httpx.post(f"{self.url}/test/rotate").raise_for_status()

    def drop_old(self) -> None:
        """Publish only the keys that sign."""
        httpx.post(f"{self.url}/test/drop-old").raise_for_status()

    def set_groups(self, user: str, *groups: str) -> None:
        """Let somebody be in these groups from now on."""
        query = {"user": user, "groups": ",".join(groups)}
        httpx.post(f"{self.url}/test/groups", params=query).raise_for_status()

    def deny(self, user: str) -> None:
        """Know nobody of that name any more."""
        httpx.post(f"{self.url}/test/deny", params={"user": user}).raise_for_status()


class ProviderBrowser:
    """A person's browser at the provider: it fills in the forms there, and stops where it is sent elsewhere."""

    def __init__(self, provider: OpenIDProvider) -> None:
        self._home = provider.url
        self._client = httpx.Client()

    def sign_in(self, url: str, user: str) -> dict[str, str]:
        """Begin at an authorization URL, and return the query of the callback."""
        return self._walk(url, {"login": user, "password": "any"})

    def decline(self, url: str) -> dict[str, str]:
        """Begin at an authorization URL, leave by its link for cancelling, and return the query of the callback."""
        return self._walk(url, None)

    def sign_out(self, url: str) -> str:
        """Begin at a logout URL, confirm, and return the address that one is sent back to."""
        page = self._client.get(url)
        xsrf = re.search(r'name="xsrf" value="(\w+)"', page.text)
        assert xsrf, page.text
        answer = self._client.post(f"{self._home}/session/end/confirm", data={"xsrf": xsrf[1], "logout": "yes"})
        assert answer.has_redirect_location, answer.text
        return answer.headers["location"]

    def _walk(self, url: str, fields: Mapping[str, str] | None) -> dict[str, str]:
        for _ in range(20):
            if not url.startswith(f"{self._home}/"):
                return dict(parse_qsl(urlsplit(url).query))
            answer = self._client.get(url)
            if not answer.has_redirect_location:
                answer = self._fill_in(answer, fields)
            url = urljoin(url, answer.headers["location"])
        raise AssertionError(f"still at the provider: {url}")

    def _fill_in(self, page: httpx.Response, fields: Mapping[str, str] | None) -> httpx.Response:
        cancel = re.search(r'href="([^"]+/abort)"', page.text)
        action = re.search(r'<form[^>]* action="([^"]+)"', page.text)
        prompt = re.search(r'name="prompt" value="(\w+)"', page.text)
        assert cancel, page.text
        assert action, page.text
        assert prompt, page.text
        if fields is None:
            return self._client.get(urljoin(str(page.url), html.unescape(cancel[1])))
        given = fields if prompt[1] == "login" else {}
        return self._client.post(html.unescape(action[1]), data={"prompt": prompt[1], **given})

    def close(self) -> None:
        """Close the browser."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
