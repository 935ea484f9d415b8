"""`doctor --server`: a table of neighbours that are away, wrong, or too open. tests/e2e has the real ones."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli.main import main
from tests.support.issuer import Call, Reply
from tests.support.issuer import Issuer as Neighbour


@pytest.fixture
def here(tmp_path: Path, users_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORWARD_AUTH_USERS__FILE", str(users_file))
    monkeypatch.setenv("FORWARD_AUTH_USERS__ROLE", "viewer")
    return tmp_path


@pytest.fixture
def neighbour() -> Iterator[Neighbour]:
    """Be an issuer, Prefect, and the proxy, one below each path."""
    with Neighbour("ES256") as running:
        running.replies["/prefect/admin/version"] = Reply({})
        yield running


def examined(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[str]]:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--server", *options])
    return int(ended.value.code or 0), capsys.readouterr().out.splitlines()


def settle(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"FORWARD_AUTH_{name}", value)


def test_nothing_is_wrong(
    here: Path, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    neighbour.metadata["introspection_endpoint"] = f"{neighbour.url}/introspect"
    neighbour.replies["/introspect"] = Reply({"active": False})
    (here / "tokens").mkdir(mode=0o700)
    settle(
        monkeypatch,
        PREFECT__URL=neighbour.url,
        PREFECT__API_BASE_PATH="/prefect",
        ISSUER__URL=neighbour.url,
        ISSUER__AUDIENCES="prefect",
        ISSUER__INTROSPECTION__CLIENT_ID="gate",
        ISSUER__INTROSPECTION__CLIENT_SECRET="hunter2",
        TOKENS__FOLDER=str(here / "tokens"),
    )
    status, lines = examined(capsys)
    assert status == 0, lines
    assert [line for line in lines if line.startswith("note ")] == [lines[-1]]
    assert len(lines) == 6
    neighbour.replies["/introspect"] = Reply({"active": True, "sub": "x", "aud": "prefect", "exp": 4_000_000_000})
    status, lines = examined(capsys)
    assert (status, "a token that nobody has" in "".join(lines)) == (1, True)


@pytest.mark.parametrize(("path", "said"), [("/", "configure the issuer as it names itself"), ("/nowhere", "404")])
def test_an_issuer_that_names_itself_otherwise(
    path: str,
    said: str,
    here: Path,
    neighbour: Neighbour,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settle(monkeypatch, ISSUER__URL=f"{neighbour.url}{path}", ISSUER__AUDIENCES="prefect", PREFECT__URL=neighbour.url)
    status, lines = examined(capsys)
    assert status == 1
    assert said in "".join(lines)


PREFECTS = {
    "away": (None, "", "cannot be reached"),
    "another server": (Reply(status=404), "", "is not Prefect's API"),
    "with an auth string": (Reply(status=401), "", "asks for an auth string"),
    "with another auth string": (Reply(status=401), "admin:x", "refuses prefect.auth_string"),
}


@pytest.mark.parametrize("name", PREFECTS)
def test_prefect(
    name: str,
    here: Path,
    neighbour: Neighbour,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reply, pair, word = PREFECTS[name]
    settle(monkeypatch, PREFECT__URL=neighbour.url, PREFECT__API_BASE_PATH="/prefect", PREFECT__AUTH_STRING=pair)
    if reply is None:
        neighbour.stop()
    else:
        neighbour.replies["/prefect/admin/version"] = reply
    status, lines = examined(capsys)
    assert (status, any(word in line for line in lines if line.startswith("change "))) == (1, True), lines


REFUSAL = Reply({"code": "credential_required"}, 401)
UNREADABLE = Reply({"code": "invalid_request"}, 400)


def _believes(call: Call) -> Reply:
    """Answer as a gate behind a proxy that passes a caller's own header on."""
    return UNREADABLE if "x-forwarded-uri" in map(str.lower, call.headers) else REFUSAL


PROXIES = {
    "open": ({"/api/admin/version": Reply({})}, "lets anybody in"),
    "another": ({"/api/admin/version": Reply(status=404)}, "answers 404"),
    "believes callers": ({"/api/admin/version": _believes}, "what callers send as X-Forwarded-Uri"),
    "too open": ({"/api/admin/version": REFUSAL, "/readyz": Reply({})}, "leads the outside to /readyz:"),
    "leads to the gate": ({"/api/admin/version": REFUSAL, "/forward-auth/api": UNREADABLE}, "to /forward-auth/api:"),
    "hands nothing over": ({"/api/admin/version": REFUSAL}, "A WebSocket cannot be opened through the proxy"),
}


@pytest.mark.parametrize("name", PROXIES)
def test_the_proxy(
    name: str, here: Path, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replies, word = PROXIES[name]
    neighbour.replies.update(replies)
    settle(monkeypatch, PREFECT__URL=neighbour.url, PREFECT__API_BASE_PATH="/prefect")
    status, lines = examined(capsys, "--url", f"{neighbour.url}/api/")
    assert (status, any(word in line for line in lines if line.startswith("change "))) == (1, True), lines
    assert json.dumps(lines).count("hunter2") == 0
