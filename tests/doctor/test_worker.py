"""`prefect-forward-auth doctor` finds each mistake that is planted, one at a time, and nothing where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from websockets.sync.server import Server, ServerConnection, serve

from service.cli.main import main
from service.doctor import calls
from service.doctor.settings import read_settings
from tests.support.issuer import Call, Issuer, Reply
from tests.support.parts import ROOT
from tests.support.processes import clean_environment

URL = "https://prefect-m2m.example.com/api"
GOOD = {"PREFECT_API_URL": URL, "PREFECT_API_AUTH_STRING": "worker:correct-horse"}
HEADER = "PREFECT_CLIENT_CUSTOM_HEADERS"


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer("ES256")  # it signs, and nobody calls it


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in an empty folder, which is home as well, with an empty environment."""
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "SSL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def interpreter(folder: Path, version: str) -> str:
    """Return what answers like an interpreter that has this version of Prefect; tests/e2e asks real ones."""
    path = folder / f"python-{version}"
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o700)
    return str(path)


def diagnose(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: Mapping[str, str],
    *options: str,
    version: str = "3.9.1",
) -> tuple[int, list[str]]:
    """Return the exit status and the lines."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    python = ["--python", interpreter(folder, version)] if version else []
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *python, *options])
    return int(ended.value.code or 0), capsys.readouterr().out.splitlines()


# the version of Prefect, what is set in place of GOOD (None is not set), and what is to change
MISTAKES: dict[str, tuple[str, dict[str, str | None], str]] = {
    "no URL": ("3.9.1", {"PREFECT_API_URL": None}, "PREFECT_API_URL is not set"),
    "no scheme": ("3.9.1", {"PREFECT_API_URL": "prefect-m2m.example.com/api"}, "is no URL"),
    "plain http": ("3.9.1", {"PREFECT_API_URL": "http://prefect.example.com/api"}, "anybody on the way can read"),
    "quoted URL": ("3.9.1", {"PREFECT_API_URL": f'"{URL}"'}, "PREFECT_API_URL (from the environment) has quotes"),
    "quoted auth string": (
        "3.9.1",
        {"PREFECT_API_AUTH_STRING": "'a:b'"},
        "AUTH_STRING (from the environment) has quotes",
    ),
    "a new line": ("3.9.1", {"PREFECT_API_AUTH_STRING": "a:b\n"}, "a blank or a new line"),
    "no colon": ("3.9.1", {"PREFECT_API_AUTH_STRING": "secret"}, "has no colon"),
    "both": ("3.9.1", {"PREFECT_API_KEY": "k"}, "PREFECT_API_AUTH_STRING counts over HTTP"),
    "both, before 3.4.1": ("3.2.15", {"PREFECT_API_KEY": "k"}, "PREFECT_API_KEY counts over HTTP"),
    "both, which version?": ("", {"PREFECT_API_KEY": "k"}, "depends on Prefect's version"),
    "a header and a key": ("3.9.1", {HEADER: '{"Authorization": "Bearer k"}'}, f"{HEADER} counts over HTTP"),
    "two headers": ("3.9.1", {HEADER: '{"authorization": "Bearer k"}'}, "two are sent"),
    "two in one": (
        "3.9.1",
        {"PREFECT_API_AUTH_STRING": None, HEADER: '{"Authorization": "Bearer a", "authorization": "Bearer b"}'},
        "more than once",
    ),
    "no scheme in a header": ("3.9.1", {"PREFECT_API_AUTH_STRING": None, HEADER: '{"Authorization": "k"}'}, "neither"),
    "no JSON": ("3.9.1", {HEADER: "Authorization: Bearer k"}, "is not a JSON object"),
    "headers before 3.4.8": (
        "3.4.7",
        {"PREFECT_API_AUTH_STRING": None, HEADER: '{"Authorization": "Bearer k"}'},
        "3.4.7 does not know PREFECT_CLIENT_CUSTOM_HEADERS",
    ),
    "a scheme in a key": ("3.9.1", {"PREFECT_API_AUTH_STRING": None, "PREFECT_API_KEY": "Bearer k"}, "adds 'Bearer'"),
    "unverified": ("3.9.1", {"PREFECT_API_TLS_INSECURE_SKIP_VERIFY": "true"}, "anybody on the way can take"),
    "links with a credential": (
        "3.9.1",
        {"PREFECT_API_AUTH_STRING": None, "PREFECT_API_URL": "https://a:b@prefect-m2m.example.com/api"},
        "set PREFECT_UI_URL, too",
    ),
    "encoded in a URL": (
        "3.9.1",
        {"PREFECT_API_AUTH_STRING": None, "PREFECT_API_URL": "https://a:b%2B@prefect-m2m.example.com/api"},
        "decodes over HTTP and not on WebSockets",
    ),
    "a profile that is not there": ("3.9.1", {"PREFECT_PROFILE": "gone"}, "'gone'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version, changed, word = MISTAKES[name]
    given = {key: value for key, value in {**GOOD, **changed}.items() if value is not None}
    status, lines = diagnose(here, monkeypatch, capsys, given, "--offline", version=version)
    found = [line for line in lines if line.startswith("change ")]
    assert (status, any(word in line for line in found)) == (1, True), lines
    assert len(found) == 1 or name in {"links with a credential", "encoded in a URL", "two headers", "no JSON"}, found
    assert "correct-horse" not in "".join(lines)


RIGHT: dict[str, tuple[str, dict[str, str], str]] = {
    "auth string": ("3.9.1", GOOD, ""),
    "headers": ("3.4.8", {"PREFECT_API_URL": URL, HEADER: '{"Authorization": "Basic YTpi"}'}, ""),
    "URL": (
        "3.2.15",
        {"PREFECT_API_URL": "https://a:b@prefect-m2m.example.com/api", "PREFECT_UI_URL": "https://prefect.example.com"},
        "",
    ),
    "loopback": ("3.9.1", {**GOOD, "PREFECT_API_URL": "http://127.0.0.1:4200/api"}, ""),
    "key": ("3.9.1", {"PREFECT_API_URL": URL, "PREFECT_API_KEY": "k"}, "deployment run --watch sees nothing"),
    "key, early": ("3.4.8", {"PREFECT_API_URL": URL, "PREFECT_API_KEY": "k"}, "events stream shows only"),
    "auth string, first versions": ("3.2.15", GOOD, "task.serve gets no runs"),
    "auth string, early": ("3.6.11", GOOD, "events outside of flow runs are dropped"),
    "a token alone": ("3.9.1", {"PREFECT_API_URL": URL, "PREFECT_API_AUTH_STRING": "Bearer opaque"}, "not a JWT"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_left_alone(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version, given, word = RIGHT[name]
    status, lines = diagnose(here, monkeypatch, capsys, given, "--offline", version=version)
    assert status == 0, lines
    notes = [line for line in lines if line.startswith("note ")]
    assert any(word in line for line in notes) if word else not notes, lines


@pytest.mark.parametrize("form", ["PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", HEADER, "URL"])
def test_a_token_is_read_in_every_form_and_never_shown(
    form: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], issuer: Issuer
) -> None:
    for lifetime, needs, says, wrong in (
        (7_260, "1h", "It ends in 2 hours, and a worker that uses it ends then", 0),
        (3_540, "1h", "prefect-forward-auth run", 1),
        (3_540, "30m", "It ends in 59 minutes", 0),
        (-120, "1h", "It ended 2 minutes ago", 1),
    ):
        token = issuer.mint(lifetime=lifetime, aud=["prefect", "other"])
        given = {
            "PREFECT_API_KEY": {"PREFECT_API_KEY": token},
            "PREFECT_API_AUTH_STRING": {"PREFECT_API_AUTH_STRING": f"jwt:{token}"},
            HEADER: {HEADER: json.dumps({"Authorization": f"Bearer {token}"})},
            "URL": {"PREFECT_API_URL": URL.replace("://", f"://jwt:{token}@"), "PREFECT_UI_URL": URL},
        }[form]
        status, lines = diagnose(
            here, monkeypatch, capsys, {"PREFECT_API_URL": URL, **given}, "--offline", "--needs", needs
        )
        (line,) = [one for one in lines if "The token is of" in one]
        assert (status, says in line) == (wrong, True), lines
        assert f"{issuer.url}, for prefect, other" in line
        assert token.rpartition(".")[2] not in "".join(lines)
    never = issuer.mint(exp=None)
    status, lines = diagnose(here, monkeypatch, capsys, {"PREFECT_API_URL": URL, "PREFECT_API_KEY": never}, "--offline")
    assert status == 1


def test_a_setting_is_that_of_the_strongest_source(here: Path) -> None:
    """tests/e2e compares these with what Prefect itself reads."""
    (here / ".prefect").mkdir()
    profiles = here / ".prefect" / "profiles.toml"
    profiles.write_text(
        'active = "a"\n[profiles.a]\nPREFECT_API_KEY = "profile"\n[profiles.b]\nPREFECT_API_KEY = "b"\n'
    )
    read = lambda **environ: read_settings(environ, here, here).settings["PREFECT_API_KEY"]  # noqa: E731
    assert (read().text, read().source) == ("profile", f"the profile 'a' of {profiles}")
    assert read(PREFECT_PROFILE="b").text == "b"
    (here / "pyproject.toml").write_text('[tool.prefect.api]\nkey = "pyproject"\n')
    assert (read().text, read().source) == ("pyproject", "pyproject.toml")
    (here / "prefect.toml").write_text('[api]\nkey = "prefect"\n')
    assert (read().text, read().source) == ("prefect", "prefect.toml")
    (here / ".env").write_text('export PREFECT_API_KEY="dot" # a remark\n')
    assert (read().text, read().source) == ("dot", ".env")
    assert read(PREFECT_API_KEY="env").source == "the environment"
    assert read(PREFECT_API_KEY="").text == ""
    (here / "prefect.toml").write_text("[api")
    (here / ".env").write_bytes(b"\xff")
    assert len(read_settings({}, here, here).problems) == 2
    assert "profile" not in repr(read())


def test_the_version_is_that_of_the_command_in_the_path(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "bin").mkdir()
    (here / "bin" / "prefect").write_text("#!/bin/sh\n")
    (here / "bin" / "prefect").chmod(0o700)
    Path(interpreter(here, "3.6.11")).rename(here / "bin" / "python")
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "prefect").symlink_to(here / "bin" / "prefect")  # as pipx does
    monkeypatch.setenv("PATH", str(here / "elsewhere"))
    _, lines = diagnose(here, monkeypatch, capsys, GOOD, "--offline", version="")
    assert any("Prefect 3.6.11" in line for line in lines)
    for path in ("/nonexistent", sys.executable):  # not there, and without Prefect
        with pytest.raises(SystemExit, match="1"):
            main(["doctor", "--offline", "--python", path])
        assert "does not say which version" in capsys.readouterr().out
    monkeypatch.setenv("PATH", "/nonexistent")
    status, lines = diagnose(here, monkeypatch, capsys, GOOD, "--offline", version="")
    assert (status, any("is not known" in line for line in lines)) == (0, True)


# calls ----------------------------------------------------------------------------------------------------


def gate(call: Call) -> Reply:
    """Answer as the gate does behind a proxy."""
    presented = call.headers.get("authorization")
    if presented is None:
        return Reply({"code": "credential_required"}, 401, headers={"WWW-Authenticate": "Bearer"})
    if presented != "Basic d29ya2VyOmNvcnJlY3QtaG9yc2U=":
        return Reply({"code": "invalid_token", "detail": "The user name or the password is wrong."}, 401)
    return Reply({"version": "3.9.1"})


ANSWERS: dict[str, tuple[Reply, str]] = {
    "open": (Reply({}), "asks for no credential"),
    "people's host": (Reply(b"", 302, headers={"Location": "/_auth/login"}), "it is the host for people"),
    "people's API": (Reply({"code": "credential_required"}, 401), "it is the host for people"),
    "another gate": (Reply({}, 401), "it is not this gate that answers"),
    "no API": (Reply(b"", 404), "no Prefect API at this address"),
    "a page": (Reply(b"<html>", 200, "text/html"), "is a page"),
    "not now": (Reply({"detail": "The identity provider cannot be reached."}, 503), "(503): try again. The identity"),
    "throttled": (Reply({"detail": "Too many."}, 429), "(429): try again. Too many."),
    "forbidden": (Reply({"detail": "Ask for the role worker."}, 403), "(403). Ask for the role worker."),
}


@pytest.fixture
def server() -> Iterator[Issuer]:
    """Return a server that answers what it is told; it is no gate, and says nothing on WebSockets."""
    with Issuer("ES256") as running:
        yield running


@pytest.mark.parametrize("name", ANSWERS)
def test_what_an_answer_says(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Issuer
) -> None:
    reply, word = ANSWERS[name]
    server.replies["/api/admin/version"] = reply
    status, lines = diagnose(here, monkeypatch, capsys, {**GOOD, "PREFECT_API_URL": f"{server.url}/api/"})
    assert status == 1, lines
    assert any(word in line for line in lines), lines


def test_a_refused_credential_and_none(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Issuer
) -> None:
    server.replies["/api/admin/version"] = gate
    url = {"PREFECT_API_URL": f"{server.url}/api"}
    _, lines = diagnose(here, monkeypatch, capsys, {**url, "PREFECT_API_AUTH_STRING": "worker:hunter2"})
    assert lines[-1].endswith("refuses this credential over HTTP (401). The user name or the password is wrong.")
    assert "hunter2" not in "".join(lines)
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    _, lines = diagnose(here, monkeypatch, capsys, url)
    assert "There is no credential" in lines[-1]
    server.stop()
    status, lines = diagnose(here, monkeypatch, capsys, url)
    assert (status, "cannot be called" in lines[-1]) == (1, True)


def test_a_certificate_that_is_not_trusted(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_SSL_CERT_FILE", str(here / "none.pem"))
    status, lines = diagnose(here, monkeypatch, capsys, GOOD)
    assert (status, "cannot be read" in lines[-1]) == (1, True)


def _talk(socket: ServerConnection) -> None:
    path = socket.request.path if socket.request is not None else ""
    if path.startswith("/closes"):
        socket.close(1008, "No credential on this WebSocket")
    elif path.startswith("/legacy"):
        threading.Event().wait(0.2)
        socket.close(1008, "Nobody vouches")
    else:
        for message in socket:
            if json.loads(message) == {"type": "auth", "token": "worker:correct-horse"}:
                socket.send('{"type": "auth_success"}')


@pytest.fixture
def sockets() -> Iterator[Server]:
    """Serve WebSockets as the relay does, and /…/admin/version as a gate that has let somebody in."""

    def process(connection: ServerConnection, request: object) -> object:
        path = getattr(request, "path", "")
        if path.endswith("/admin/version"):
            presented = getattr(request, "headers").get("authorization")  # noqa: B009
            answer = connection.respond(200 if presented else 401, '{"code": "credential_required"}')
            del answer.headers["content-type"]
            answer.headers["content-type"] = "application/json"
            answer.headers["www-authenticate"] = "Bearer"
            return answer
        return (
            connection.respond(403, '{"detail": "Ask for the role worker."}') if path.startswith("/refuses") else None
        )

    with serve(_talk, "127.0.0.1", 0, process_request=process) as running:  # type: ignore[arg-type]
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "version", "word", "expected"),
    [
        ("good", "3.9.1", "reaches Prefect", 0),
        ("good", "3.6.11", "reaches Prefect", 0),  # sends no first message
        ("closes", "3.9.1", "closed (1008), so task runs are lost. No credential", 1),
        ("legacy", "3.6.11", "closed (1008), so task runs are lost. Nobody vouches", 1),
        ("refuses", "3.9.1", "refused (403). Ask for the role worker.", 1),
    ],
)
def test_a_socket_is_opened_as_the_version_does(
    path: str,
    version: str,
    word: str,
    expected: int,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sockets: Server,
) -> None:
    monkeypatch.setattr(calls, "VOUCHING_SECONDS", 2.0)
    url = f"http://127.0.0.1:{sockets.socket.getsockname()[1]}/{path}/api"
    status, lines = diagnose(here, monkeypatch, capsys, {**GOOD, "PREFECT_API_URL": url}, version=version)
    assert (status, word in lines[-1]) == (expected, True), lines


def test_the_command_loads_nothing_of_the_service(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['x', 'doctor', '--offline']\n"
        "from service.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: status = end.code\n"
        "assert not {'fastapi', 'pydantic', 'service.gate', 'service.settings'} & set(sys.modules)\n"
        "sys.exit(status)"
    )
    env = clean_environment(tmp_path / "home", {**GOOD, "PYTHONPATH": str(ROOT)})
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("ok      PREFECT_API_URL is")


@pytest.mark.parametrize("needs", ["1", "1w", "h", "-1h"])
def test_a_time_is_a_number_and_a_unit(needs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", f"--needs={needs}"])
    assert ended.value.code == 2
    assert "such as 12h" in capsys.readouterr().err
