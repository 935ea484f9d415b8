"""Under load, while configuration, users and tokens change: nobody is judged by what is no longer in force."""

import os
import socket
import threading
import time
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Final, NamedTuple, Self

import httpx
import pytest

from service.adapters.users_file import hash_password
from tests.support.issuer import Issuer
from tests.support.waiting import wait_until
from tests.web.test_reload import ALICE, BOB, BROWSER, CONFIG, PAGE, Service, csrf_of, service, signed_in

SECONDS: Final = int(os.environ.get("TEST_SECONDS", "60"))
HEAD: Final = (
    "GET /forward-auth/api HTTP/1.1\r\nHost: gate\r\nX-Forwarded-Method: POST\r\nX-Forwarded-Proto: https\r\n"
    "X-Forwarded-Host: prefect.example.com\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Uri: "
)
READS, DEPLOYS = "/api/flows/filter", "/api/deployments/"


class Caller:
    """Sends the same bytes again and again over one connection, and writes down when it was told what."""

    def __init__(self, port: int, credential: str, target: str, pause: float) -> None:
        self._call = f"{HEAD}{target}\r\nAuthorization: {credential}\r\n\r\n".encode()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._pause = pause
        self.told: list[tuple[float, float, int]] = []  # when it was sent, when answered, and the status
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            sent, answer = time.time(), b""
            self._socket.sendall(self._call)
            while b"\r\n\r\n" not in answer:
                answer += self._socket.recv(65_536)
            head, _, body = answer.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(body) < length:
                body += self._socket.recv(65_536)
            self.told.append((sent, time.time(), int(head[9:12])))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(40)
        self._socket.close()


class Configured(NamedTuple):
    """What is configured: whether the token's audience is right, whether users may deploy, and whether there is bob."""

    audience: bool
    deploys: bool
    bob: bool


class InForce:
    """What was in force when. While a change takes effect, both what was and what will be may count."""

    def __init__(self, one: Service, issuer: Issuer, first: Configured) -> None:
        self._one, self._issuer = one, issuer
        self.periods: list[tuple[float, Configured]] = [(0.0, first)]  # from when on each may count
        self.over: list[float] = []  # and when each of them, but for the last, has ceased to count

    def change(self, to: Configured) -> None:
        self.periods.append((time.time(), to))
        folder = self._one.folder
        users = {"alice": _HASH, **({"bob": _HASH} if to.bob else {})}
        (folder / "new").write_text("".join(f"{name}:{one}\n" for name, one in users.items()))
        (folder / "new").replace(folder / "users")
        self._one.write(configuration(self._issuer, to))
        self._one.reload()
        self.over.append(time.time())

    def during(self, sent: float, answered: float) -> set[Configured]:
        """Return all that may count for a call."""
        ends = [*self.over, float("inf")]
        return {one for (begin, one), end in zip(self.periods, ends, strict=True) if begin <= answered and sent <= end}


_HASH: Final = hash_password("secret", 4)


def configuration(issuer: Issuer, what: Configured) -> str:
    text = CONFIG.replace("viewer", "deployer" if what.deploys else "viewer")
    audience = "prefect" if what.audience else "another"
    trusted = f'[issuer]\nurl = "{issuer.url}"\naudiences = "{audience}"\nrole = "viewer"\nleeway = 0\n'
    return f"{text}{trusted}[sign_in]\nattempts = 1000\n"


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 240)
def test_nobody_is_judged_by_what_is_no_longer_in_force(tmp_path: Path) -> None:
    first = Configured(audience=True, deploys=False, bob=True)
    with ExitStack() as stack:
        issuer = stack.enter_context(Issuer("RS256"))
        one = stack.enter_context(service(tmp_path, configuration(issuer, first)))
        port = int(one.url.rpartition(":")[2])
        lasting = f"Bearer {issuer.mint(lifetime=3_600)}"
        wait_until(lambda: one.ask(lasting) == 200, timeout=20, what="keys")
        in_force = InForce(one, issuer, first)

        def call(credential: str, target: str = READS, pause: float = 0.004) -> list[Caller]:
            return [stack.enter_context(Caller(port, credential, target, pause)) for _ in range(2)]

        tokens, deploying = call(lasting), call(ALICE, DEPLOYS)
        bobs = call(BOB, pause=0.1)  # more wrong passwords would be too many
        ending: list[tuple[int, Caller]] = []
        ends = time.monotonic() + SECONDS
        for audience, deploys, bob in cycle([(0, 0, 1), (1, 1, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1)]):
            began = time.monotonic()
            expires = int(time.time()) + 2
            ending.append(
                (expires, stack.enter_context(Caller(port, f"Bearer {issuer.mint(exp=expires)}", READS, 0.01)))
            )
            in_force.change(Configured(bool(audience), bool(deploys), bool(bob)))
            cookie = signed_in(one)
            session = {"gate": "ui", "Cookie": cookie, **PAGE}
            assert [one.ask(**session) for _ in range(3)] == [200] * 3
            sign_out(one, cookie)
            assert [one.ask(**session) for _ in range(3)] == [401] * 3
            if time.monotonic() > ends:
                break
            time.sleep(max(0.0, began + 1.0 - time.monotonic()))
            if len(ending) > 4:  # whose token has ended a while ago
                ending[len(ending) - 5][1].stop()
    assert "Traceback" not in one.log()
    assert len(in_force.over) >= SECONDS / 3
    for callers, right in (
        (tokens, lambda what: {200} if what.audience else {401}),
        (deploying, lambda what: {200} if what.deploys else {403}),
        (bobs, lambda what: {200} if what.bob else {401}),
    ):
        for caller in callers:
            assert len(caller.told) > SECONDS
            assert {status for _, _, status in caller.told} == set().union(*map(right, first_two(right)))
            for sent, answered, status in caller.told:
                assert status in set().union(*map(right, in_force.during(sent, answered))), (sent, answered)
    for expires, caller in ending:
        late = {status for sent, _, status in caller.told if sent >= expires}
        assert late <= {401}, (expires, caller.told)
    assert sum(200 in {status for _, _, status in caller.told} for _, caller in ending) > len(ending) / 4


def first_two(_: object) -> list[Configured]:
    """Return what differs in everything."""
    return [Configured(audience=True, deploys=True, bob=True), Configured(audience=False, deploys=False, bob=False)]


def sign_out(one: Service, cookie: str) -> None:
    browser = {**BROWSER, "Cookie": cookie}
    page = httpx.get(f"{one.url}/_auth/logout", headers=browser)
    assert httpx.post(f"{one.url}/_auth/logout", headers=browser, data={"csrf": csrf_of(page)}).status_code < 400
