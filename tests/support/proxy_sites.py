"""The sites behind the proxies under test: one upstream, one issuer, and the service in three states."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path

from service.authn.seal import Seal
from service.core.identity.sessions import dump_session, load_session
from service.core.request.cookies import set_session
from service.issuing.ledger import Ledger
from service.issuing.sqlite import SQLite
from tests.support.cookie_client import CookieClient
from tests.support.issuer import Issuer
from tests.support.proxies import Proxy, start
from tests.support.site import PASSWORD, USER, Site, add_user
from tests.support.upstream import Upstream
from tests.support.waiting import free_port

AUDIENCE = "prefect"
ONLOOKER = "onlooker"  # may see everything except secrets
GRANTS = [
    {"issuer": "local", "users": USER, "roles": "admin"},
    {"issuer": "local", "users": ONLOOKER, "roles": "viewer"},
]
SESSION = "__Host-prefect-gate"
OWN_ISSUER = "https://prefect-m2m.example.com/_auth"
KEY = "a-session-key-for-the-tests-alone-of-no-worth"


class ProxySites:
    """Sites by state: `well`, `cold` (the issuer cannot be reached) and `down` (the service does not run).

    At `relayed`, the service of `well` relays all WebSockets.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._ports: dict[tuple[str, str], int] = {}
        self._signed_in: dict[str, CookieClient] = {}
        self.upstream = stack.enter_context(Upstream())
        self.issuer = stack.enter_context(Issuer("ES256"))
        self.silent = Issuer("ES256")
        users = folder / "users.htpasswd"
        folder.mkdir(exist_ok=True)
        add_user(users, USER, PASSWORD)
        add_user(users, ONLOOKER, PASSWORD)
        common = {
            "FORWARD_AUTH_GRANTS": json.dumps(GRANTS),
            "FORWARD_AUTH_USERS__FILE": str(users),
            "FORWARD_AUTH_SESSION__KEYS": KEY,
            "FORWARD_AUTH_WEBSOCKETS__VOUCHED": "false",  # all callers of the tests share one address
            "FORWARD_AUTH_ISSUER__AUDIENCES": AUDIENCE,
            "FORWARD_AUTH_ISSUER__ROLE": "admin",
        }
        self.tokens = folder / "tokens"
        issuing = {"FORWARD_AUTH_TOKENS__FOLDER": str(self.tokens), "FORWARD_AUTH_TOKENS__ISSUER": OWN_ISSUER}
        narrow = {"FORWARD_AUTH_USERS__CONCURRENCY": "1", "FORWARD_AUTH_USERS__QUEUE": "1"}
        nowhere = f"http://127.0.0.1:{free_port()}"
        self.by_state = {
            "well": Site(
                folder / "well",
                self.upstream.url,
                {**common, **issuing, "FORWARD_AUTH_ISSUER__URL": self.issuer.url},
            ),
            "cold": Site(
                folder / "cold", nowhere, {**common, **narrow, "FORWARD_AUTH_ISSUER__URL": self.silent.url}, cold=True
            ),
            "down": Site(folder / "down", self.upstream.url, {}),
        }
        well = self.by_state["well"].service_port
        relayed = Site(folder / "relayed", self.upstream.url, {}, service_port=well, websockets="always")
        self.by_state["relayed"] = relayed
        for name, site in self.by_state.items():
            site.folder.mkdir()
            if name in {"well", "cold"}:
                site.start_service()
                stack.callback(site.service.stop)

    def port(self, proxy: Proxy, site: str) -> int:
        """Return the port of a proxy in front of the site in this state."""
        if (proxy.name, site) not in self._ports:
            port, process = start(proxy, self.by_state[site])
            self._stack.callback(process.stop)
            self._ports[proxy.name, site] = port
        return self._ports[proxy.name, site]

    def signed_in(self, proxy: Proxy) -> CookieClient:
        """Return a client that signed in through this proxy."""
        if proxy.name not in self._signed_in:
            person = CookieClient(self.port(proxy, "well"))
            answer = person.sign_in("/runs?x=1")
            assert (answer.status, answer.header("Location")) == (303, "/runs?x=1"), answer
            self._signed_in[proxy.name] = person
        return self._signed_in[proxy.name]

    def new_machine(self, name: str) -> str:
        """Return the secret of a new machine of the site `well`."""
        with Ledger(SQLite(self.tokens), (KEY,), rotate=86_400) as ledger:
            return ledger.add_machine(name, "admin")

    def session_as(self, proxy: Proxy, *, seen: float, groups: int) -> list[str]:
        """Return the cookies of a session that was last used at another time, or is larger than one cookie."""
        sealed = self.signed_in(proxy).cookies[SESSION].partition(".")[2]
        document = Seal((KEY,)).open("session", sealed)
        assert document is not None
        names = tuple(f"group-{number:03}-of-many" for number in range(groups))
        session = load_session(document)._replace(seen=time.time() - seen, groups=names)
        return set_session(Seal((KEY,)).seal("session", dump_session(session)), 600, secure=True)
