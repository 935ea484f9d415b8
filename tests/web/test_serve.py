"""The command as an operator runs it: a process, its port, its signals, its exit codes."""

import os
import pty
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from service.adapters.users_file import hash_password
from tests.support.command import COMMAND, environment, run
from tests.support.issuer import Issuer as Provider
from tests.support.parts import ROOT
from tests.support.waiting import free_port, wait_until
from tests.web.conftest import FORWARDED


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text(f"alice:{hash_password('secret', 4)}\n")
    return path


def of(users: Path) -> dict[str, str]:
    """Return the settings with which the users of a file may look at everything."""
    return {"FORWARD_AUTH_USERS__FILE": str(users), "FORWARD_AUTH_USERS__ROLE": "viewer"}


@contextmanager
def serving(tmp_path: Path, *arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, "serve", *arguments],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            env=environment(FORWARD_AUTH_PORT=str(port), **variables),
        )
    try:
        if "--uds" not in arguments:
            wait_until(lambda: ready(process, port, tmp_path), timeout=20, what="readiness")
        yield process, port
    finally:
        process.terminate()  # a supervisor ends its workers then
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ready(process: subprocess.Popen[bytes], port: int, folder: Path) -> bool:
    assert process.poll() is None, (folder / "log").read_text()
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_it_serves_and_stops_gracefully(tmp_path: Path, users: Path) -> None:
    with serving(tmp_path, **of(users)) as (process, port):
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/healthz").json() == {"status": "alive"}
        assert httpx.get(f"{url}/forward-auth/api", headers=FORWARDED, auth=("alice", "secret")).status_code == 200
        refused = httpx.get(f"{url}/forward-auth/api", headers=FORWARDED, auth=("alice", "wrong"))
        assert refused.status_code == 401
        assert "server" not in refused.headers
        upgrade = {**FORWARDED, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x"}
        assert httpx.get(f"{url}/forward-auth/api", headers=upgrade, auth=("alice", "secret")).status_code == 200
        assert "forward_auth_decisions_total" in httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in {0, -signal.SIGTERM}
    log = (tmp_path / "log").read_text()
    assert '"code": "invalid_token"' in log
    assert "Traceback" not in log
    assert "secret" not in log


@contextmanager
def handed(listener: socket.socket, tmp_path: Path, users: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Serve on a socket that is handed over as systemd does: descriptor 3, LISTEN_FDS and LISTEN_PID."""
    hand_over = 'exec 3<&"$0"; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
    with (tmp_path / "log").open("ab") as log:
        process = subprocess.Popen(
            ["bash", "-c", hand_over, str(listener.fileno()), *COMMAND, "serve"],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            env=environment(FORWARD_AUTH_PORT="1", **of(users), **variables),
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(15)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_connections_to_an_inherited_socket_wait_for_the_next_process(
    tmp_path: Path, users: Path, workers: str
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener, httpx.Client(timeout=20) as client:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/forward-auth/api"

        def ask() -> int:
            return client.get(url, headers=FORWARDED, auth=("alice", "secret")).status_code

        for _ in range(3):
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(ask)  # nobody listens yet, or any more
                with handed(listener, tmp_path, users, FORWARD_AUTH_WORKERS=workers):
                    assert waiting.result() == 200, (tmp_path / "log").read_text()
                    assert ask() == 200


def test_sockets_of_another_process_are_left_alone(tmp_path: Path, users: Path) -> None:
    with serving(tmp_path, LISTEN_FDS="1", LISTEN_PID="1", **of(users)) as (_, port):
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200


def test_it_holds_more_connections_than_a_shell_allows_by_default(tmp_path: Path, users: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))  # which the service inherits
        try:
            _, port = stack.enter_context(serving(tmp_path, **of(users)))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(200):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_request_under_way_is_answered_before_the_stop(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(f"alice:{hash_password('secret', 13)}\n")
    with serving(tmp_path, **of(users)) as (process, port):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = "".join(f"{name}: {value}\r\n" for name, value in FORWARDED.items())
            credential = "Authorization: Basic YWxpY2U6c2VjcmV0\r\n"
            connection.sendall(f"GET /forward-auth/api HTTP/1.1\r\nHost: x\r\n{head}{credential}\r\n".encode())
            metrics = f"http://127.0.0.1:{port}/metrics"
            wait_until(lambda: "forward_auth_hashing 1.0" in httpx.get(metrics).text, timeout=5, what="hashing")
            process.send_signal(signal.SIGTERM)
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert process.wait(10) in {0, -signal.SIGTERM}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_unix_socket_is_for_its_owner_and_group_whatever_was_left_there(
    tmp_path: Path, users: Path, workers: str
) -> None:
    path = tmp_path / "gate.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with serving(tmp_path, "--uds", str(path), "--workers", workers, **of(users)) as (process, _):
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:

            def allowed() -> bool:
                with suppress(httpx.TransportError):  # bound, and not yet listening
                    answer = client.get("http://gate/forward-auth/api", headers=FORWARDED, auth=("alice", "secret"))
                    return answer.status_code == 200
                return False

            wait_until(allowed, timeout=20, what="an answer over the socket")
        assert stat.filemode(path.stat().st_mode) == "srw-rw----"
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) in {0, -signal.SIGTERM}
    assert not path.exists()


def test_row15_a_connection_that_was_reset_is_not_taken_for_a_trusted_one(tmp_path: Path, users: Path) -> None:
    strangers = {**of(users), "FORWARD_AUTH_TRUSTED_PROXIES": "192.0.2.1"}  # this machine is not among the proxies
    call = b"GET /_auth/callback HTTP/1.1\r\nhost: a\r\n\r\n"
    with serving(tmp_path, **strangers) as (process, port):
        assert httpx.get(f"http://127.0.0.1:{port}/_auth/callback").status_code == 403  # the pages are loaded
        process.send_signal(signal.SIGSTOP)  # so that the reset comes before the server looks at the connection
        for _ in range(5):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(call)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        process.send_signal(signal.SIGCONT)
        for _ in range(5):
            assert exchange(port, call).startswith(b"HTTP/1.1 403 ")
        assert "sign_in_not_begun" not in (tmp_path / "log").read_text()


def test_it_becomes_ready_with_the_issuer_down(tmp_path: Path) -> None:
    gone = Provider("RS256")
    variables = {"URL": gone.url, "AUDIENCES": "prefect", "ROLE": "viewer"}
    with serving(tmp_path, **{f"FORWARD_AUTH_ISSUER__{name}": value for name, value in variables.items()}) as (_, port):

        def call() -> httpx.Response:
            headers = {**FORWARDED, "Authorization": f"Bearer {gone.mint()}"}
            return httpx.get(f"http://127.0.0.1:{port}/forward-auth/api", headers=headers)

        cold = call()
        assert (cold.status_code, "retry-after" in cold.headers) == (503, True)
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").json()["issuers"][gone.url]["state"] == "cold"
        with gone:
            wait_until(lambda: call().status_code == 200, timeout=20, what="recovery")


def test_a_users_file_that_changes_under_load_drops_no_request(tmp_path: Path, users: Path) -> None:
    with (
        serving(tmp_path, **of(users), FORWARD_AUTH_USERS__RELOAD="0.1") as (_, port),
        httpx.Client(auth=("alice", "secret")) as client,
    ):
        url = f"http://127.0.0.1:{port}/forward-auth/api"
        statuses = set()
        for round_ in range(6):
            new = tmp_path / "new"
            new.write_text(users.read_text() + f"user{round_}:{hash_password('x', 4)}\n")
            new.replace(users)

            def loaded(name: str = f"user{round_}") -> bool:
                statuses.add(client.get(url, headers=FORWARDED).status_code)
                return httpx.get(url, headers=FORWARDED, auth=(name, "x")).status_code == 200

            wait_until(loaded, timeout=5, what="the new user")
        assert statuses == {200}
        users.write_text("broken")
        state = f"http://127.0.0.1:{port}/readyz"
        wait_until(lambda: httpx.get(state).json()["users"]["problem"], timeout=5, what="the problem")
        assert client.get(url, headers=FORWARDED).status_code == 200
        users.write_text(f"alice:{hash_password('changed', 4)}\n")
        wait_until(lambda: client.get(url, headers=FORWARDED).status_code == 401, timeout=5, what="the new password")


@pytest.mark.parametrize("command", [["serve"], ["config", "check"]])
def test_mistakes_stop_the_start_and_all_are_listed(command: list[str], tmp_path: Path) -> None:
    done = run(
        *command, cwd=tmp_path, FORWARD_AUTH_PORT="x", FORWARD_AUTH_TYPO="1", FORWARD_AUTH_USERS__FILE="/nowhere"
    )
    assert done.returncode == 2
    assert "port:" in done.stderr
    assert "FORWARD_AUTH_TYPO" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["serve"], ["config", "check"]])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://proxy.example:1080"),
        ("https_proxy", "http://"),
        ("NO_PROXY", "http://x.example"),
        ("SSL_CERT_FILE", "/nowhere"),
        ("SSL_CERT_DIR", "/nowhere"),
    ],
)
def test_a_mistake_in_the_environment_is_one_line_with_the_variables_name(
    tmp_path: Path, users: Path, command: list[str], name: str, value: str
) -> None:
    env = environment(**of(users), **{name: value})
    done = subprocess.run([*COMMAND, *command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    first, line = done.stderr.splitlines()
    assert "1 problem" in first
    assert line.startswith(f"  - {name}: ")


def test_a_mistake_in_the_environment_is_told_where_nothing_is_configured_too(tmp_path: Path) -> None:
    done = run("routes", "diff", "https://prefect.example", cwd=tmp_path, ALL_PROXY="socks5://proxy.example")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "ALL_PROXY: SOCKS proxies are not supported" in done.stderr


@pytest.mark.parametrize(
    "environ",
    [
        {"NO_PROXY": "localhost,127.0.0.1,::1,10.0.0.0/8,fd00::/8,.svc,.cluster.local", "HTTPS_PROXY": "http://p:1"},
        {"no_proxy": "::1", "all_proxy": "p.example:3128"},
        {"SSL_CERT_FILE": "", "HTTP_PROXY": ""},
    ],
)
def test_what_container_engines_put_into_the_environment_is_good(
    tmp_path: Path, users: Path, environ: dict[str, str]
) -> None:
    done = run("config", "check", cwd=tmp_path, **of(users), **environ)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_users_file_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    done = run("serve", cwd=tmp_path, FORWARD_AUTH_USERS__FILE="/nowhere")
    assert done.returncode == 2
    assert "users.file: /nowhere: the file cannot be read" in done.stderr


def test_the_largest_users_file_can_be_set(tmp_path: Path, users: Path) -> None:
    users.write_text(users.read_text() + "#" * 2000 + "\n")
    assert run("config", "check", cwd=tmp_path, **of(users)).returncode == 0
    for command in (["config", "check"], ["serve"], ["users", "list"], ["users", "add", "bob"]):
        done = run(
            *command, cwd=tmp_path, stdin="correct horse battery", FORWARD_AUTH_USERS__MAX_SIZE="1024", **of(users)
        )
        assert (done.returncode, "more than 1024 bytes (users.max_size)" in done.stderr) == (2, True), command


def test_the_configuration_can_be_checked_and_shown(tmp_path: Path, users: Path) -> None:
    good = run("config", "check", cwd=tmp_path, **of(users))
    assert (good.returncode, "is good" in good.stdout) == (0, True)
    assert "Every private address counts as a proxy's" in good.stdout
    narrow = run("config", "check", cwd=tmp_path, FORWARD_AUTH_TRUSTED_PROXIES="10.0.0.7", **of(users)).stdout
    assert "Nobody" not in narrow
    assert "Every" not in narrow
    shown = run("config", "show", cwd=tmp_path, FORWARD_AUTH_USERS__FILE=str(users)).stdout
    assert f'[users]\nfile = "{users}"  # environment, FORWARD_AUTH_USERS__FILE' in shown
    assert "port = 8080  # default" in shown


GOOD, OTHER = "correct horse battery staple", "another pass phrase"


def test_users_are_managed_and_passwords_are_never_arguments(tmp_path: Path) -> None:
    file = str(tmp_path / "users")
    assert run("users", "add", "alice", "--file", file, "--cost", "4", stdin=f"{GOOD}\n").returncode == 0
    assert run("users", "add", "bob", "--file", file, "--cost", "4", stdin=OTHER).returncode == 0
    assert run("users", "list", "--file", file).stdout == "alice\nbob\n"
    assert run("users", "verify", "alice", "--file", file, stdin=f"{GOOD}\n").returncode == 0
    assert run("users", "verify", "alice", "--file", file, stdin=f"{OTHER}\n").returncode == 1
    assert run("users", "verify", "nobody", "--file", file, stdin=f"{OTHER}\n").returncode == 1
    assert "new password" in run("users", "add", "alice", "--file", file, "--cost", "4", stdin=OTHER).stdout
    assert run("users", "remove", "bob", "--file", file).returncode == 0
    assert run("users", "remove", "bob", "--file", file).returncode == 1
    assert run("users", "hash", "--cost", "4", stdin=f"{GOOD}\n").stdout.startswith("$2b$04$")
    assert run("users", "add", "carol", GOOD, "--file", file).returncode == 2
    done = run("users", "add", "carol", "--file", file, stdin="x" * 80)
    assert (done.returncode, "72 bytes" in done.stderr) == (2, True)
    assert "Traceback" not in run("users", "list", "--file", "/nowhere").stderr


@pytest.mark.parametrize("password", ["", "short", "x" * 14, "é" * 14, "\n"])
def test_a_password_that_is_too_short_is_neither_added_nor_hashed(tmp_path: Path, password: str) -> None:
    for command in (["add", "carol", "--file", str(tmp_path / "users")], ["hash"]):
        done = run("users", *command, "--cost", "4", stdin=f"{password}\n")
        assert (done.returncode, done.stdout) == (2, "")
        assert "at least 15 characters" in done.stderr
    assert not (tmp_path / "users").exists()


@pytest.mark.parametrize("password", ["x" * 15, "é" * 15, "a b c d e f g h"])
def test_fifteen_characters_are_enough(password: str) -> None:
    assert run("users", "hash", "--cost", "4", stdin=password).stdout.startswith("$2b$04$")


def test_a_short_password_that_is_in_the_file_already_goes_on_being_one(users: Path) -> None:
    assert run("users", "verify", "alice", "--file", str(users), stdin="secret").returncode == 0


def test_a_password_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    for variables in ({}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = subprocess.run(
            [*COMMAND, "users", "add", "carol", "--file", str(tmp_path / "users")],
            input=b"\xff" * 20,
            capture_output=True,
            check=False,
            cwd=ROOT,
            env=environment(**variables),
        )
        assert (done.returncode, b"not UTF-8" in done.stderr, b"Traceback" in done.stderr) == (2, True, False)


@pytest.mark.parametrize("key", [b"\x03", b"\x04"], ids=["ctrl-c", "ctrl-d"])
@pytest.mark.parametrize("command", [["add", "carol"], ["hash"], ["verify", "alice"]])
def test_a_prompt_can_be_left(users: Path, command: list[str], key: bytes) -> None:
    ours, theirs = pty.openpty()
    more = [] if command == ["hash"] else ["--file", str(users)]
    process = subprocess.Popen(
        [sys.executable, "-c", _AT_A_TERMINAL, "users", *command, *more],
        cwd=ROOT,
        env=environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while b"Password: " not in shown:
        shown += os.read(ours, 1024)
    os.write(ours, key)
    assert process.wait(15) == (130 if key == b"\x03" else 2)
    with suppress(OSError):  # how Linux tells that nobody has the terminal any more
        while more_shown := os.read(ours, 1024):
            shown += more_shown
    os.close(ours)
    assert b"Traceback" not in shown
    assert shown.count(b"\n") == (1 if key == b"\x03" else 2)


_AT_A_TERMINAL = """
import fcntl, signal, sys, termios
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background commands with SIGINT ignored
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from service.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["routes", "--help", "routes --role viewer"])
@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(tmp_path: Path, command: str, reader: str) -> None:
    line = f"set -o pipefail; {' '.join(COMMAND)} {command} | {reader}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stderr == ""
    assert done.returncode in {0, 141}


@pytest.mark.parametrize("command", ["routes", "--version", "routes --role runner"])
def test_an_output_that_cannot_be_written_is_told(tmp_path: Path, command: str) -> None:
    for output, code, told in ((">/dev/full", 2, "No space left on device"), (">&-", 0, "")):
        line = f"{' '.join(COMMAND)} {command} {output}"
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert (done.returncode, told in done.stderr, "Traceback" in done.stderr) == (code, True, False)


def test_users_added_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    def begin(name: str) -> subprocess.Popen[str]:
        command = [*COMMAND, "users", "add", name, "--file", str(tmp_path / "users"), "--cost", "4"]
        return subprocess.Popen(command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, text=True)

    names = [f"user-{number}" for number in range(8)]
    processes = [begin(name) for name in names]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("correct horse battery staple\n")
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [0] * 8
    assert sorted(run("users", "list", "--file", str(tmp_path / "users")).stdout.split()) == names


def test_a_broken_users_file_is_not_written_to(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("alice:plain\n")
    assert run("users", "add", "bob", "--file", str(file), stdin=GOOD).returncode == 2
    assert file.read_text() == "alice:plain\n"


def test_the_version_is_told() -> None:
    assert run("--version").stdout == "0.1.0\n"


def exchange(port: int, *pieces: bytes) -> bytes:
    """Send bytes piece by piece, and return all that comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        received = b""
        with suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while more := connection.recv(65_536):
                received += more
        return received


# a little more than the bound: what nobody reads any more would reset the connection before the answer is read
HEAD = b"GET /healthz HTTP/1.1\r\nhost: a\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([HEAD + b"x: " + b"a" * 131_100 + b"\r\n\r\n"], id="one header"),
        pytest.param([HEAD, *([b"x: " + b"a" * 1_000 + b"\r\n"] * 131), b"\r\n"], id="many headers"),
        pytest.param([HEAD + b"x: ", *([b"a" * 1_000] * 132)], id="a header that does not end"),
        pytest.param([b"GET /", *([b"a" * 1_000] * 132)], id="a request line that does not end"),
        pytest.param(
            [HEAD + b"\r\n" + HEAD, *([b"x: " + b"a" * 1_000 + b"\r\n"] * 131), b"\r\n"], id="the second request"
        ),
    ],
)
def test_a_head_without_an_end_is_refused_and_not_kept(pieces: list[bytes], users: Path, tmp_path: Path) -> None:
    with serving(tmp_path, **of(users)) as (_, port):
        answer = exchange(port, *pieces)
        assert b"HTTP/1.1 431 Request Header Fields Too Large\r\n" in answer
        assert b'"code": "invalid_request"' in answer
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200


def test_a_large_head_within_the_bound_and_a_large_body_are_taken(users: Path, tmp_path: Path) -> None:
    body = b"a" * 300_000
    post = b"POST /_auth/login HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    with serving(tmp_path, **of(users)) as (_, port):
        answer = exchange(port, HEAD + b"x: " + b"a" * 100_000 + b"\r\n\r\n", post, body, HEAD + b"\r\n")
        assert b" 431 " not in answer
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert answer.count(b"HTTP/1.1 415") == 1
