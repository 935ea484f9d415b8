"""SIGHUP, as an operator sends it: a process under load, and none of its callers notices."""

import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx
import pytest

from service.adapters.users_file import hash_password
from tests.support.clouds import Clouds
from tests.support.issuer import Issuer as Provider
from tests.support.waiting import wait_until
from tests.web.conftest import FORWARDED
from tests.web.test_serve import serving

PAGE = {"X-Forwarded-Proto": "http", "X-Forwarded-Method": "GET", "X-Forwarded-Uri": "/v2/runs"}
BROWSER = {
    "X-Forwarded-Host": "prefect.example.com",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-For": "203.0.113.7",
    "Accept": "text/html",
    "Sec-Fetch-Site": "same-origin",
}
KEYS = ["first-" + "k" * 32, "second-" + "k" * 32]
CONFIG = """
[users]
file = "users"
role = "viewer"
[session]
allow_http = true
"""


class Service:
    """A running service, its files, and how it is told of a change."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], port: int) -> None:
        self.folder, self.process, self.url = folder, process, f"http://127.0.0.1:{port}"

    def write(self, text: str, keys: list[str] | None = None) -> None:
        (self.folder / "forward-auth.toml").write_text(text)
        secrets = self.folder / "secrets.toml"
        secrets.write_text(f"[session]\nkeys = {keys or KEYS[:1]}\n")
        secrets.chmod(0o600)

    def reload(self, outcome: str = "done") -> None:
        """Send SIGHUP, and return once it was followed."""
        before = self.metric("reloads_total", outcome=outcome)
        self.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: self.metric("reloads_total", outcome=outcome) > before, timeout=15, what=outcome, log=self.log
        )

    def metric(self, name: str, **labels: str) -> float:
        inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
        pattern = rf"^forward_auth_{name}{re.escape('{' + inside + '}') if inside else ''} (\S+)$"
        found = re.search(pattern, httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def ask(self, authorization: str = "", gate: str = "api", **headers: str) -> int:
        given = {**FORWARDED, **({"Authorization": authorization} if authorization else {}), **headers}
        return httpx.get(f"{self.url}/forward-auth/{gate}", headers=given).status_code

    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def service(folder: Path, text: str = CONFIG, *arguments: str, **variables: str) -> Iterator[Service]:
    (folder / "users").write_text(f"alice:{hash_password('secret', 4)}\nbob:{hash_password('secret', 4)}\n")
    files = Service(folder, None, 0)  # type: ignore[arg-type]
    files.write(text)
    with serving(folder, *arguments, **variables) as (process, port):
        yield Service(folder, process, port)


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider("RS256") as running:
        yield running


def trusting(provider: Provider, audience: str = "prefect") -> str:
    return f'{CONFIG}\n[issuer]\nurl = "{provider.url}"\naudiences = ["{audience}"]\nrole = "viewer"\n'


def sign_in(one: Service, password: str = "secret") -> httpx.Response:
    """Sign in as a browser does."""
    page = httpx.get(f"{one.url}/_auth/login", headers=BROWSER)
    form = {"username": "alice", "password": password, "csrf": csrf_of(page), "return_to": "/"}
    return httpx.post(f"{one.url}/_auth/login", headers={**BROWSER, "Cookie": cookies_of(page)}, data=form)


def signed_in(one: Service) -> str:
    """Sign in, and return the Cookie header of the session."""
    answer = sign_in(one)
    assert answer.status_code == 303, answer.text
    return cookies_of(answer)


def csrf_of(page: httpx.Response) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert found is not None, page.text
    return found[1]


def cookies_of(answer: httpx.Response) -> str:
    return "; ".join(f"{name}={value}" for name, value in answer.cookies.items())


class Load:
    """Four callers who send fifty requests a second each, and write down what they are told."""

    def __init__(self, one: Service, credentials: list[dict[str, str]]) -> None:
        self.statuses: Counter[int | str] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(one, headers)) for headers in credentials]

    def _call(self, one: Service, headers: dict[str, str]) -> None:
        gate = "ui" if "Cookie" in headers else "api"
        with httpx.Client(headers={**FORWARDED, **headers}) as client:
            while not self._stop.wait(0.02):
                try:
                    self.statuses[client.get(f"{one.url}/forward-auth/{gate}").status_code] += 1
                except httpx.HTTPError as problem:
                    self.statuses[type(problem).__name__] += 1

    def __enter__(self) -> Self:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for one in self._threads:
            one.join(10)


ALICE, BOB = "Basic YWxpY2U6c2VjcmV0", "Basic Ym9iOnNlY3JldA=="


def test_under_load_no_request_is_refused_or_dropped_and_no_count_is_lost(tmp_path: Path, provider: Provider) -> None:
    with service(tmp_path, trusting(provider)) as one:
        session = {"Cookie": signed_in(one), **PAGE}
        token = {"Authorization": f"Bearer {provider.mint()}"}
        with Load(one, [token, {"Authorization": ALICE}, {"Authorization": BOB}, session]) as load:
            wait_until(lambda: load.statuses.total() > 100, timeout=20, what="load")
            for round_ in range(5):
                counted = one.metric("decisions_total", gate="api", outcome="allowed")
                one.write(trusting(provider) + f"[sign_in]\ntitle = 'Round {round_}'\n", KEYS)
                one.reload()
                assert one.metric("decisions_total", gate="api", outcome="allowed") >= counted > 0
            sent = load.statuses.total()
            wait_until(lambda: load.statuses.total() > sent + 200, timeout=20, what="load afterwards")
        assert set(load.statuses) == {200}, load.statuses
        assert "Traceback" not in one.log()


def test_what_is_configured_anew_takes_effect(tmp_path: Path, provider: Provider) -> None:
    with service(tmp_path) as one:
        bearer = f"Bearer {provider.mint()}"
        assert one.ask(bearer) == 401
        one.write(trusting(provider))
        one.reload()
        wait_until(lambda: one.ask(bearer) == 200, timeout=10, what="the new issuer's keys")
        one.write(trusting(provider, audience="another"))
        one.reload()
        assert one.ask(bearer) == 401  # a verdict that was remembered is forgotten
        (tmp_path / "others").write_text(f"carol:{hash_password('secret', 4)}\n")
        assert one.ask(ALICE) == 200
        one.write(CONFIG.replace('"users"', '"others"') + '[log]\ndecisions = "all"\nformat = "text"\n')
        one.reload()
        assert (one.ask(ALICE), one.ask("Basic Y2Fyb2w6c2VjcmV0")) == (401, 200)
        assert "changed: issuer, log.decisions, log.format, users.file" in one.log()
        assert " info    allowed gate=api" in one.log()


def test_roles_and_grants_take_effect_for_whoever_is_known_already(tmp_path: Path) -> None:
    writes = {"X-Forwarded-Uri": "/api/deployments/"}
    mine = '[[grants]]\nissuer = "local"\nusers = "alice"\nroles = "mine"\n[roles.mine]\ncapabilities = "{}"\n'
    with service(tmp_path, CONFIG + mine.format("deploy")) as one:
        cookie = {"gate": "ui", "Cookie": signed_in(one), **PAGE}
        assert (one.ask(ALICE), one.ask(ALICE, **writes), one.ask(BOB, **writes)) == (200, 200, 403)
        one.write(CONFIG + mine.format("run"))  # the same grant, and another role by that name
        one.reload()
        assert (one.ask(ALICE), one.ask(ALICE, **writes), one.ask(**cookie)) == (200, 403, 200)
        one.write(CONFIG)
        one.reload()
        assert (one.ask(ALICE), one.ask(ALICE, **writes)) == (200, 403)
        one.write(CONFIG.replace("viewer", "deployer"))
        one.reload()
        assert (one.ask(ALICE, **writes), one.ask(BOB, **writes)) == (200, 200)
        one.write(CONFIG.replace('role = "viewer"', ""))
        one.reload()
        assert (one.ask(ALICE), one.ask(BOB), one.ask(**cookie)) == (403, 403, 403)


def test_keys_of_sessions_rotate_and_nobody_is_signed_out(tmp_path: Path) -> None:
    with service(tmp_path) as one:
        old = {"gate": "ui", "Cookie": signed_in(one), **PAGE}
        assert one.ask(**old) == 200
        one.write(CONFIG, [KEYS[1], KEYS[0]])
        one.reload()
        new = {**old, "Cookie": signed_in(one)}
        assert (one.ask(**old), one.ask(**new)) == (200, 200)
        one.write(CONFIG, [KEYS[1]])
        one.reload()
        assert (one.ask(**old) == 200, one.ask(**new)) == (False, 200)


def test_without_a_key_sessions_outlive_a_reload(tmp_path: Path) -> None:
    with service(tmp_path) as one:
        (tmp_path / "secrets.toml").unlink()
        one.reload()
        session = {"gate": "ui", "Cookie": signed_in(one), **PAGE}
        one.reload()
        assert one.ask(**session) == 200


def test_a_sign_out_and_wrong_passwords_are_not_forgotten(tmp_path: Path) -> None:
    with service(tmp_path, CONFIG + "[sign_in]\nattempts = 1\n") as one:
        cookie = signed_in(one)
        browser = {**BROWSER, "Cookie": cookie}
        page = httpx.get(f"{one.url}/_auth/logout", headers=browser)
        httpx.post(f"{one.url}/_auth/logout", headers=browser, data={"csrf": csrf_of(page)})
        session = {"gate": "ui", "Cookie": cookie, **PAGE}
        assert (one.ask(**session), sign_in(one, "wrong").status_code) == (401, 403)
        one.reload()
        assert (one.ask(**session), sign_in(one, "wrong").status_code) == (401, 429)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("port = ", "is not TOML"),
        (CONFIG + 'typo = 1\n[issuer]\nurl = "http://idp.example"\n', "issuer.audiences: this key is needed"),
        (CONFIG.replace('"users"', '"nowhere"'), "users.file: "),
        (CONFIG + '[oidc]\nissuer = "https://idp.example"\nclient_id = "x"\nprivate_key = "x"\n', "oidc.private_key"),
    ],
    ids=["toml", "keys", "users file", "private key"],
)
def test_a_broken_configuration_changes_nothing_and_every_problem_is_told(
    tmp_path: Path, broken: str, told: str
) -> None:
    with service(tmp_path) as one:
        session = {"gate": "ui", "Cookie": signed_in(one), **PAGE}
        one.write(broken)
        one.reload("refused")
        assert (one.ask(ALICE), one.ask(**session)) == (200, 200)
        assert told in one.log()
        assert "NOT LOADED, the one before stays in force" in one.log()
        state = httpx.get(f"{one.url}/readyz")
        assert (state.status_code, state.json()["status"]) == (200, "degraded")
        assert told in state.json()["configuration"]["problem"]
        assert one.metric("config_broken") == 1
        one.write(CONFIG)
        one.reload()
        assert one.metric("config_broken") == 0
        assert "Traceback" not in one.log()


def test_a_secrets_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    with service(tmp_path) as one:
        (tmp_path / "secrets.toml").chmod(0o644)
        one.reload("refused")
        assert one.ask(ALICE) == 200
        assert "everybody may read or write it (mode 0644)" in one.log()


def test_a_secrets_manager_is_asked_again_and_while_it_is_down_nothing_changes(tmp_path: Path) -> None:
    with Clouds(tmp_path) as cloud:
        cloud.secrets = {"FORWARD_AUTH_SESSION__KEYS": KEYS[0]}
        variables = {**cloud.environment, "FORWARD_AUTH_SECRETS_FROM": cloud.places["aws"]}
        (tmp_path / "none.toml").touch(0o600)
        with service(tmp_path, CONFIG, "--secrets", "none.toml", **variables) as one:
            old = {"gate": "ui", "Cookie": signed_in(one), **PAGE}
            cloud.down = True
            one.reload("refused")
            assert one.ask(**old) == 200
            assert "secrets_from: aws:prod/forward-auth: ClientError" in one.log()
            cloud.down, cloud.secrets = False, {"FORWARD_AUTH_SESSION__KEYS": KEYS[1]}
            one.reload()
            assert (one.ask(**old), one.ask(**{**old, "Cookie": signed_in(one)})) == (401, 200)


def test_what_takes_a_restart_is_told_and_the_rest_takes_effect(tmp_path: Path) -> None:
    with service(tmp_path) as one:
        one.write("workers = 3\nshutdown_grace = 1\n" + CONFIG.replace('"users"', '"others"'))
        (tmp_path / "others").write_text(f"bob:{hash_password('secret', 4)}\n")
        one.reload()
        assert "workers has changed, which takes a restart" in one.log()
        assert "shutdown_grace has changed, which takes a restart" in one.log()
        assert "changed: users.file" in one.log()
        assert (one.ask(ALICE), one.ask(BOB)) == (401, 200)


def test_with_the_issuer_down_its_keys_are_kept(tmp_path: Path) -> None:
    with Provider("RS256") as provider, service(tmp_path, trusting(provider)) as one:
        bearer = f"Bearer {provider.mint()}"
        wait_until(lambda: one.ask(bearer) == 200, timeout=10, what="keys")
        fetches = one.metric("jwks_fetches_total", issuer=provider.url)
        provider.stop()
        one.write(trusting(provider) + "leeway = 60\n")
        one.reload()
        assert one.ask(bearer) == 200
        assert one.metric("jwks_fetches_total", issuer=provider.url) >= fetches


def test_a_call_under_way_ends_as_it_began(tmp_path: Path, provider: Provider) -> None:
    with service(tmp_path, trusting(provider) + "[issuer.keys]\ncooldown = 1\n") as one:
        wait_until(lambda: one.ask(f"Bearer {provider.mint()}") == 200, timeout=10, what="keys")
        provider.rotate()
        provider.delay = 2.0
        statuses: list[int] = []
        caller = threading.Thread(target=lambda: statuses.append(one.ask(f"Bearer {provider.mint()}")))
        fetches = provider.fetches["/.well-known/openid-configuration"]
        caller.start()
        wait_until(
            lambda: provider.fetches["/.well-known/openid-configuration"] > fetches, timeout=10, what="the fetch"
        )
        one.write(CONFIG)
        one.reload()
        assert statuses == []
        caller.join(15)
        provider.delay = 0.0
        assert statuses == [200]
        assert one.ask(f"Bearer {provider.mint()}") == 401  # what it proved was not remembered


def test_each_of_several_processes_reads_it_again_and_none_is_replaced(tmp_path: Path) -> None:
    with service(tmp_path, CONFIG, "--workers", "2") as one:
        (tmp_path / "others").write_text(f"bob:{hash_password('secret', 4)}\n")
        wait_until(lambda: one.log().count("Application startup complete") == 2, timeout=20, what="both", log=one.log)
        one.write(CONFIG.replace('"users"', '"others"'))
        one.process.send_signal(signal.SIGHUP)
        wait_until(lambda: one.log().count("changed: users.file") == 2, timeout=15, what="both", log=one.log)
        assert {one.ask(ALICE) for _ in range(20)} <= {401, 429}  # each lets ten be wrong
        assert "died" not in one.log()
