"""Proxies and authorities from the environment: read as strictly as settings, and really used."""

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from service.adapters.environment import VariableError, read_environment
from service.adapters.outbound import PlainHTTP, call, open_client
from service.settings import ConfigError, load
from tests.support.certificates import write_certificate
from tests.support.forward_proxy import ForwardProxy

pytestmark = pytest.mark.anyio
PROXY = "http://proxy.example:3128"


def proxy_for(url: str, **environ: str) -> str | None:
    return read_environment(environ).proxy_for(httpx.URL(url))


def problems(**environ: str) -> list[str]:
    with pytest.raises(VariableError) as error:
        read_environment(environ)
    return error.value.problems


# which proxy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "https", "http"),
    [
        ({}, None, None),
        ({"HTTPS_PROXY": PROXY}, PROXY, None),
        ({"http_proxy": PROXY}, None, PROXY),
        ({"ALL_PROXY": PROXY}, PROXY, PROXY),
        ({"all_proxy": "proxy.example:3128"}, PROXY, PROXY),
        ({"ALL_PROXY": "http://other.example:1", "https_proxy": PROXY}, PROXY, "http://other.example:1"),
        ({"HTTPS_PROXY": "http://other.example:1", "https_proxy": PROXY}, PROXY, None),
        ({"HTTPS_PROXY": PROXY, "https_proxy": ""}, None, None),
        ({"HTTPS_PROXY": ""}, None, None),
        ({"HTTPS_PROXY": "https://user:p%40ss@proxy.example/"}, "https://user:p%40ss@proxy.example/", None),
        ({"HTTPS_PROXY": "http://[fd00::1]:3128"}, "http://[fd00::1]:3128", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, None, None),
        ({"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY, "ALL_PROXY": "socks5://proxy.example"}, PROXY, PROXY),
        ({"ALL_PROXY": "socks5://proxy.example", "no_proxy": "*"}, None, None),
    ],
)
def test_each_scheme_has_the_proxy_that_the_variables_say(
    environ: dict[str, str], https: str | None, http: str | None
) -> None:
    assert proxy_for("https://idp.example/keys", **environ) == https
    assert proxy_for("http://idp.example/keys", **environ) == http


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("example.com", "https://example.com", True),
        ("example.com", "https://idp.EXAMPLE.com./keys", True),
        ("example.com", "https://notexample.com", False),
        (".example.com", "https://idp.example.com", True),
        (".example.com", "https://example.com", True),
        ("*.example.com", "https://idp.example.com", True),
        ("Example.COM", "https://idp.example.com", True),
        ("example.com:8443", "https://idp.example.com:8443", True),
        ("example.com:8443", "https://idp.example.com", False),
        ("example.com:443", "https://idp.example.com", True),
        ("10.1.2.3", "https://10.1.2.3", True),
        ("10.1.2.3", "https://10.1.2.30", False),
        ("10.0.0.0/8", "https://10.1.2.3:8443", True),
        ("10.0.0.5/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.0.0.0/8:8443", "https://10.1.2.3:8443", True),
        ("10.0.0.0/8", "https://10.example.com", False),
        ("fd00::/8", "https://[fd12::1]", True),
        ("fd00::/8", "https://[fe80::1]", False),
        ("[fd12::1]", "https://[fd12::1]", True),
        ("[fd12::1]:8443", "https://[fd12::1]:8443", True),
        ("[fd12::1]:8443", "https://[fd12::1]", False),
        ("fd12::0:1", "https://[fd12::1]", True),
        ("localhost, ::1 ,fd00::/8,,10.0.0.0/8", "https://[fd12::1]", True),
        ("a.example b.example", "https://b.example", True),
        ("", "https://example.com", False),
    ],
)
def test_hosts_and_networks_are_called_without_a_proxy(no_proxy: str, url: str, direct: bool) -> None:  # noqa: FBT001
    for name in ("NO_PROXY", "no_proxy"):
        assert (proxy_for(url, ALL_PROXY=PROXY, **{name: no_proxy}) is None) is direct


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
def test_this_machine_is_never_called_through_a_proxy(host: str) -> None:
    """Over plain http that would leave the machine, and to the proxy, localhost is the proxy."""
    assert proxy_for(f"http://{host}:8080", ALL_PROXY=PROXY) is None


# mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "http_proxy"])
@pytest.mark.parametrize(
    "value",
    [
        "socks5://user:s3cret@proxy.example:1080",
        "socks://s3cret",
        "ftp://s3cret@proxy.example",
        "http://s3cret@",
        "http://user:s3cret@proxy.example:port",
        "http://user:s3cret@proxy.example:99999",
        "http://user:s3cret@[::1",
        "http://user:s3cret@pro xy.example",
        "http://user:s3cret@proxy.example/path",
        "http://s3cret@proxy.example?x",
        "://s3cret",
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_by_its_variable_and_not_quoted(name: str, value: str) -> None:
    (problem,) = problems(**{name: value})
    assert problem.startswith(f"{name}: ")
    assert "http://HOST:PORT" in problem
    assert ("SOCKS" in problem) is value.startswith("socks")
    assert "s3cret" not in problem
    assert "s3cret" not in repr(read_environment({name: "http://user:s3cret@proxy.example"}))


@pytest.mark.parametrize(
    "member",
    [
        "http://x.example",
        "10.0.0.0/33",
        "fd00::/129",
        "192.168.*",
        "10.0.0.256",
        "x.example:0",
        "x:y",
        "<local>",
        "::g",
    ],
)
def test_a_member_of_no_proxy_that_is_none_is_told(member: str) -> None:
    (problem,) = problems(no_proxy=f"localhost,{member},10.0.0.0/8")
    assert problem.startswith(f"no_proxy: {member!r} is none of: host name, address, network")


@pytest.mark.parametrize("content", [None, "", "no certificate", "folder"])
def test_authorities_that_cannot_be_read_are_told(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "authorities.pem"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    (problem,) = problems(SSL_CERT_FILE=str(path))
    assert problem.startswith(f"SSL_CERT_FILE: {path}: ")
    assert "unset the variable" in problem
    (problem,) = problems(SSL_CERT_DIR=str(path))
    assert problem.startswith(f"SSL_CERT_DIR: {path}: ")


def test_every_mistake_is_told_at_once_and_among_those_of_the_settings() -> None:
    environ = {"NO_PROXY": "10.0.0.0/99", "ALL_PROXY": "socks5://x", "SSL_CERT_FILE": "/nowhere"}
    assert [one.partition(":")[0] for one in problems(**environ)] == ["NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE"]
    with pytest.raises(ConfigError) as error:
        load({**environ, "FORWARD_AUTH_PORT": "x"})
    told = "\n".join(error.value.problems)
    assert all(f"{name}: " in told for name in (*environ, "port"))


# calls ---------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Return the port of a TLS server for idp.example, and the only authority that vouches for it."""
    certificate, key = write_certificate(tmp_path, "idp.example")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "5")
            self.end_headers()
            self.wfile.write(b"keys\n")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, certificate
    server.shutdown()
    server.server_close()


async def fetched(url: str, environ: dict[str, str]) -> bytes:
    async with open_client("tests", environ) as client:
        return (await call(client, "GET", url, allow_http=PlainHTTP.ANYWHERE, timeout=5)).body


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "all_proxy"])
async def test_a_call_goes_through_the_proxy(authority: tuple[int, Path], name: str) -> None:
    port, certificate = authority
    with ForwardProxy(port) as proxy:
        address = proxy.url.replace("//", "//user:p%40ss@")
        assert (
            await fetched("https://idp.example/keys", {name: address, "SSL_CERT_FILE": str(certificate)}) == b"keys\n"
        )
        assert proxy.asked == ["CONNECT idp.example:443 HTTP/1.1"]
        assert proxy.credentials == ["Basic dXNlcjpwQHNz"]


async def test_the_proxy_does_not_vouch_for_the_server(authority: tuple[int, Path]) -> None:
    port, _ = authority
    with ForwardProxy(port) as proxy, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        await fetched("https://idp.example/keys", {"HTTPS_PROXY": proxy.url})


async def test_authorities_in_a_folder_vouch_for_a_server(authority: tuple[int, Path], tmp_path: Path) -> None:
    port, certificate = authority
    folder = tmp_path / "authorities"
    folder.mkdir()
    (folder / f"{_subject_hash(certificate)}.0").write_bytes(certificate.read_bytes())
    with ForwardProxy(port) as proxy:
        environ = {"HTTPS_PROXY": proxy.url, "SSL_CERT_DIR": f"/nowhere:{folder}"}
        assert await fetched("https://idp.example/keys", environ) == b"keys\n"


async def test_a_call_over_plain_http_goes_through_its_own_proxy(authority: tuple[int, Path]) -> None:
    with ForwardProxy() as proxy, ForwardProxy() as other:
        environ = {"HTTP_PROXY": proxy.url, "HTTPS_PROXY": other.url}
        assert await fetched("http://idp.example/keys", environ) == b"by proxy\n"
        assert (proxy.asked, other.asked) == (["GET http://idp.example/keys HTTP/1.1"], [])


async def test_a_call_to_an_exempt_host_does_not(authority: tuple[int, Path]) -> None:
    with ForwardProxy() as proxy:
        for no_proxy in ("127.0.0.0/8", "nothing.example"):  # this machine is exempt in any case
            with pytest.raises(httpx.ConnectError):
                await fetched(f"https://127.0.0.1:{authority[0]}/", {"ALL_PROXY": proxy.url, "NO_PROXY": no_proxy})
        with pytest.raises(httpx.ConnectError):
            await fetched("http://nowhere.invalid/", {"ALL_PROXY": proxy.url, "NO_PROXY": "invalid"})
        assert proxy.asked == []


async def test_no_password_is_taken_from_a_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine idp.example login alice password s3cret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    sent = []
    with ForwardProxy() as proxy:
        async with open_client("tests", {"HTTP_PROXY": proxy.url}) as client:
            client.event_hooks["request"].append(lambda request: _note(sent, request))
            await client.get("http://idp.example/")
    assert "authorization" not in sent[0]


async def _note(sent: list[httpx.Headers], request: httpx.Request) -> None:
    sent.append(request.headers)


def _subject_hash(certificate: Path) -> str:
    import subprocess  # noqa: PLC0415 - OpenSSL alone knows how it names an authority

    command = ["openssl", "x509", "-noout", "-subject_hash", "-in", str(certificate)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
