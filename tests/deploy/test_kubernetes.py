"""deploy/kubernetes: built and validated, and read by a real Traefik from a stand-in for the cluster's API."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.support.echo import Echo, Received
from tests.support.kubernetes import Cluster
from tests.support.parts import KUBECTL, ROOT, TRAEFIK, VALIDATE, require
from tests.support.processes import Process, clean_environment
from tests.support.raw_http import basic
from tests.support.site import PASSWORD, SHIPPED, USER, Site, add_user
from tests.support.waiting import accepts, free_port, wait_until

HERE = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("traefik", "ingress-nginx")
MACHINES, PEOPLE = "prefect-m2m.example.com", "prefect.example.com"
OVERLAY = pytest.mark.parametrize("overlay", OVERLAYS)


@cache
def built(name: str) -> list[dict[str, Any]]:
    """Return the objects of an overlay, as kubectl builds them without a cluster."""
    argv: list[str | Path] = [require(KUBECTL), "kustomize", HERE / name]
    return list(yaml.safe_load_all(subprocess.run(argv, check=True, capture_output=True, timeout=60).stdout))


def one(name: str, kind: str, of: str) -> dict[str, Any]:
    """Return the only object of this kind and name."""
    (found,) = (each for each in built(of) if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


# what is built ------------------------------------------------------------------------------------------------


@OVERLAY
def test_every_object_is_as_kubernetes_wants_it(overlay: str, tmp_path: Path) -> None:
    known = [each for each in built(overlay) if each["apiVersion"] != "traefik.io/v1alpha1"]  # Traefik reads its own
    (tmp_path / "all.yml").write_text(yaml.safe_dump_all(known))
    argv: list[str | Path] = [require(VALIDATE), "--strict", tmp_path / "all.yml"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" passed ") + done.stderr.count(" passed ") == len(known)


@OVERLAY
def test_all_is_in_one_namespace_and_no_secret_is_shipped(overlay: str) -> None:
    assert {each["metadata"].get("namespace") for each in built(overlay)} == {"prefect"}
    assert "Secret" not in {each["kind"] for each in built(overlay)}


@OVERLAY
def test_pods_can_do_little(overlay: str) -> None:
    pod = one("forward-auth", "Deployment", overlay)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not any("subPath" in mount for mount in container["volumeMounts"])
    assert not re.search(r":(latest)?$", container["image"])


@OVERLAY
def test_selectors_find_the_pods(overlay: str) -> None:
    template = one("forward-auth", "Deployment", overlay)["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    selectors = [
        one("forward-auth", "Deployment", overlay)["spec"]["selector"]["matchLabels"],
        one("forward-auth", "Service", overlay)["spec"]["selector"],
        one("forward-auth", "PodDisruptionBudget", overlay)["spec"]["selector"]["matchLabels"],
        one("forward-auth", "NetworkPolicy", overlay)["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in template["spec"]["topologySpreadConstraints"]),
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    (port,) = one("forward-auth", "Service", overlay)["spec"]["ports"]
    assert ports[port["targetPort"]] == port["port"]


@OVERLAY
@pytest.mark.parametrize(("name", "port"), [("prefect-server", 4200), ("forward-auth", 8080)])
def test_the_proxy_alone_is_let_in(overlay: str, name: str, port: int) -> None:
    policy = one(name, "NetworkPolicy", overlay)["spec"]
    assert "Ingress" in policy["policyTypes"]
    rules = [rule["from"] for rule in policy["ingress"]]
    if name == "prefect-server":  # the service relays WebSockets
        service = one("forward-auth", "Deployment", overlay)["spec"]["selector"]
        assert rules.pop(0) == [{"podSelector": service}], "of the same namespace"
    ((proxy,),) = rules
    assert set(proxy) == {"namespaceSelector", "podSelector"}, "both in one: these pods of that namespace"
    assert proxy["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] == overlay
    assert all(rule["ports"] == [{"protocol": "TCP", "port": port}] for rule in policy["ingress"])


def test_the_base_lets_nobody_in() -> None:
    """The service itself may reach Prefect, to relay WebSockets."""
    policies = {each["metadata"]["name"]: each["spec"] for each in built("base") if each["kind"] == "NetworkPolicy"}
    assert all("Ingress" in policy["policyTypes"] for policy in policies.values())
    service, prefect = policies["forward-auth"], policies["prefect-server"]
    assert service["ingress"] == []
    ports = [{"protocol": "TCP", "port": 4200}]
    assert prefect["ingress"] == [{"from": [{"podSelector": service["podSelector"]}], "ports": ports}]
    assert {"to": [{"podSelector": prefect["podSelector"]}], "ports": ports} in service["egress"]


# the pod, as far as it can be had without a cluster -----------------------------------------------------------


@dataclass
class Pod:
    """The container's command with its variables and mounts, in a folder instead of a root of its own."""

    folder: Path
    port: int
    process: Process

    def swap_users(self, *names: str) -> None:
        """Change the Secret's volume as the kubelet does: a new folder, and the link to it swapped."""
        volume = self.folder / "run/forward-auth/users"
        volume.mkdir(parents=True, exist_ok=True)
        data = volume / f"..{len(list(volume.iterdir()))}"
        data.mkdir()
        for name in names:
            add_user(data / "users.htpasswd", name, PASSWORD)
        (volume / "..new").symlink_to(data.name)
        (volume / "..new").replace(volume / "..data")
        if not (volume / "users.htpasswd").is_symlink():
            (volume / "users.htpasswd").symlink_to("..data/users.htpasswd")

    def status(self, user: str) -> int:
        """Return what the gate answers about this user."""
        forwarded = {"Method": "GET", "Uri": "/api/hello", "Host": MACHINES, "Proto": "https", "For": "192.0.2.1"}
        headers = {f"X-Forwarded-{name}": value for name, value in forwarded.items()}
        return httpx.get(
            f"http://127.0.0.1:{self.port}/forward-auth/api", headers=headers | dict([basic(user, PASSWORD)])
        ).status_code


def _succeeds(url: str, port: int) -> bool:
    return accepts(port) and httpx.get(url).is_success


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    spec = one("forward-auth", "Deployment", "traefik")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    (volume,) = (each for each in spec["volumes"] if each["name"] == "config")
    config = one(volume["configMap"]["name"], "ConfigMap", "traefik")["data"]
    mounts = {mount["name"]: tmp_path / mount["mountPath"].lstrip("/") for mount in container["volumeMounts"]}
    for folder in mounts.values():
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in config.items():
        (mounts["config"] / name).write_text(text.replace('"/run/', f'"{tmp_path}/run/'))
    (mounts["secrets"] / "FORWARD_AUTH_SESSION__KEYS").write_text("k" * 44)
    (secrets,) = (each for each in spec["volumes"] if each["name"] == "secrets")
    mode = secrets["secret"]["defaultMode"] & (0o777 if os.geteuid() == 0 else 0o700)  # root gives them to a group
    (mounts["secrets"] / "FORWARD_AUTH_SESSION__KEYS").chmod(mode)
    port = free_port()
    told = {each["name"]: each["value"] for each in container["env"]}
    assert told["FORWARD_AUTH_PREFECT__URL"] == "http://prefect-server:4200"
    environment = {name: f"{tmp_path}{value}" if value.startswith("/") else value for name, value in told.items()}
    argv = [sys.executable, "-m", "service", *container["args"], "--port", str(port)]
    pod = Pod(tmp_path, port, None)  # type: ignore[arg-type]  # the files come first
    pod.swap_users("alice")
    env = clean_environment(tmp_path / "home", environment)
    with Process("the service", argv, env=env, log=tmp_path / "log", cwd=ROOT) as pod.process:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] in {each["name"] for each in container["ports"]}
            url = f"http://127.0.0.1:{port}{asked['path']}"
            wait_until(partial(_succeeds, url, port), timeout=20, what=url)
        yield pod


def test_a_changed_secret_is_seen_without_a_restart(pod: Pod) -> None:
    assert (pod.status("alice"), pod.status("bob")) == (200, 401)
    pod.swap_users("bob")
    wait_until(lambda: pod.status("bob") == 200, timeout=10, what="the new user let in", log=pod.process.tail)
    assert pod.status("alice") == 401


# Traefik's part -----------------------------------------------------------------------------------------------


def _service(name: str, port: int, target: int) -> Iterator[dict[str, Any]]:
    """Yield a Service and the pod behind it, on this machine."""
    metadata = {"name": name, "namespace": "prefect"}
    ports = [{"name": "http", "port": port, "protocol": "TCP"}]
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"clusterIP": "10.0.0.1", "ports": ports},
    }
    yield {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata | {"labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [ports[0] | {"port": target}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True, "serving": True}}],
    }


@dataclass
class Gated:
    """Traefik with what it read from the cluster, and beside it what it read from traefik/dynamic/gate.yml."""

    port: int
    context: ssl.SSLContext
    raw: dict[str, Any]
    clear_port: int
    site: Site

    def get(self, host: str, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        with httpx.Client(verify=self.context, timeout=30) as client:
            return client.get(
                f"https://127.0.0.1:{self.port}{path}",
                headers={"Host": host, **(headers or {})},
                extensions={"sni_hostname": host},
            )

    def of(self, what: str, provider: str) -> dict[str, Any]:
        """Return its routers, middlewares or services of one provider, under names that both could have."""
        text = json.dumps({name: value for name, value in self.raw[what].items() if name.endswith(f"@{provider}")})
        same = ((r"prefect_([a-z-]+@kubernetescrd)", r"\1"), (f"@{provider}", ""), (".example.net", ""))
        for found, plain in (*same, ("/prefect/forward-auth/", "/forward-auth/")):
            text = re.sub(found, plain, text)
        return dict(json.loads(text.replace(".example.com", "")))


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    folder = tmp_path_factory.mktemp("kubernetes")
    add_user(folder / "users.htpasswd", USER, PASSWORD)
    wanted = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN={MACHINES}"
    names = ["-addext", f"subjectAltName=DNS:{MACHINES},DNS:{PEOPLE}"]
    out: list[str | Path] = ["-keyout", folder / "tls.key", "-out", folder / "tls.crt"]
    subprocess.run(["openssl", *wanted.split(), *names, *out], check=True, capture_output=True)
    files = {name: base64.b64encode((folder / name).read_bytes()).decode() for name in ("tls.crt", "tls.key")}
    secret = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "data": files}
    secret["metadata"] = {"name": "prefect-tls", "namespace": "prefect"}
    static = yaml.safe_load((HERE / "traefik" / "traefik-values.yml").read_text())["additionalArguments"]
    with Echo() as echo:
        users = {"FORWARD_AUTH_USERS__FILE": str(folder / "users.htpasswd"), "FORWARD_AUTH_USERS__ROLE": "viewer"}
        site = Site(folder, echo.url, users)
        site.start_service()
        verify = f"127.0.0.1:{free_port()}"
        objects = json.dumps(built("traefik")).replace("127.0.0.1:8081", verify)
        services = (_service("prefect-server", 4200, echo.port), _service("forward-auth", 8080, site.service_port))
        api, port, clear = free_port(), free_port(), free_port()
        try:
            with Cluster([*json.loads(objects), secret, *(each for pair in services for each in pair)]) as cluster:
                argv = [
                    *(each.replace("127.0.0.1:8081", verify) for each in static if not each.startswith("--api.")),
                    f"--entryPoints.websecure.address=127.0.0.1:{port}",
                    f"--entryPoints.web.address=127.0.0.1:{clear}",
                    f"--entryPoints.traefik.address=127.0.0.1:{api}",
                    "--api.insecure=true",  # to be asked what it read
                    f"--providers.kubernetesCRD.endpoint={cluster.url}",
                    f"--providers.file.filename={SHIPPED / 'dynamic' / 'gate.yml'}",
                ]
                file = {
                    "GATE_MACHINES_HOST": "prefect-m2m.example.net",
                    "GATE_PEOPLE_HOST": "prefect.example.net",
                    "GATE_PREFECT_URL": echo.url,
                    "GATE_AUTH_URL": site.service_url,
                    "GATE_VERIFY_URL": f"http://{verify}",
                }
                env = clean_environment(folder / "home", file)
                with Process("Traefik", [require(TRAEFIK), *argv], env=env, log=folder / "traefik.log") as traefik:
                    url = f"http://127.0.0.1:{api}/api/rawdata"
                    wait_until(
                        lambda: accepts(api) and "prefect_people" in (text := httpx.get(url).text) and "@file" in text,
                        timeout=20,
                        what="routes from both",
                        log=traefik.tail,
                    )
                    context = ssl.create_default_context(cafile=folder / "tls.crt")
                    yield Gated(port, context, httpx.get(url).json(), clear, site)
                    assert " ERR " not in re.sub(r"\x1b\[\d*m", "", traefik.text())
        finally:
            site.service.stop()


def _routers(all_of_them: dict[str, Any]) -> dict[str, Any]:
    """Return routers by their rule, with what decides what becomes of a request."""
    keys = ("middlewares", "priority", "status")
    return {" ".join(router["rule"].split()): {key: router.get(key) for key in keys} for router in all_of_them.values()}


def test_traefik_reads_the_same_routers_as_from_the_file(gated: Gated) -> None:
    from_cluster = {
        name: router
        for name, router in gated.of("routers", "kubernetescrd").items()
        if router["entryPoints"] != ["web"]
    }
    assert len(from_cluster) == 9
    assert [router["entryPoints"] for router in from_cluster.values() if router.get("tls") is None] == [["verify"]]
    from_file = gated.of("routers", "file")
    del from_file["gate-away"]
    verify = next(router for router in from_cluster.values() if router["entryPoints"] == ["verify"])
    assert verify["middlewares"].pop(0) == "without-namespace"
    assert _routers(from_cluster) == _routers(from_file)


def test_traefik_reads_the_same_gates_and_header_rules(gated: Gated) -> None:
    from_cluster, from_file = (
        {name: {key: rule for key, rule in value.items() if key != "usedBy"} for name, value in found.items()}
        for found in (gated.of("middlewares", "kubernetescrd"), gated.of("middlewares", "file"))
    )
    to_tls = from_cluster.pop("to-tls")
    assert to_tls["redirectScheme"] == {"scheme": "https", "permanent": True}
    assert from_cluster.pop("without-namespace")["stripPrefix"] == {"prefixes": ["/prefect"]}
    del from_file["try-again"]
    assert from_cluster["gate-away"]["errors"].pop("service") == "noop@internal"
    assert from_file["gate-away"]["errors"].pop("service") == "gate-away"
    assert from_cluster == from_file


def test_each_route_leads_to_its_server_by_its_transport(gated: Gated) -> None:
    def ends(provider: str) -> dict[str, Any]:
        services = gated.of("services", provider)
        return {
            " ".join(router["rule"].split()): (
                services[router["service"]]["loadBalancer"]["servers"],
                services[router["service"]]["loadBalancer"]["serversTransport"],
                services[router["service"]]["loadBalancer"].get("passHostHeader"),
            )
            for router in gated.of("routers", provider).values()
            if router["service"] != "noop@internal"
        }

    assert ends("kubernetescrd") == ends("file")
    text = (SHIPPED / "dynamic" / "gate.yml").read_text()
    from_file = yaml.safe_load(text[text.index("  serversTransports:") :])["serversTransports"]
    from_cluster = {
        each["metadata"]["name"]: each["spec"] for each in built("traefik") if each["kind"] == "ServersTransport"
    }
    assert from_cluster == from_file


def test_traefiks_entry_points_are_set_up_as_in_its_own_file() -> None:
    def flat(value: Any, name: str) -> dict[str, str]:
        if isinstance(value, dict):
            return {key: each for below in value for key, each in flat(value[below], f"{name}.{below}").items()}
        text = ",".join(value) if isinstance(value, list) else str(value)
        return {name.lower(): text.lower()} if text != "{}" and value != [] else {}

    values = yaml.safe_load((HERE / "traefik" / "traefik-values.yml").read_text())
    told = dict(each.removeprefix("--").lower().split("=") for each in values["additionalArguments"])
    static = yaml.safe_load((SHIPPED / "https.yml").read_text())
    secure, clear = static["entryPoints"]["secure"], static["entryPoints"]["clear"]
    for entry in (secure, clear):
        del entry["address"]  # the chart's own business
    del secure["asDefault"]
    wanted = flat(secure, "entrypoints.websecure") | flat(clear, "entrypoints.web")
    wanted |= flat(static["entryPoints"]["verify"], "entrypoints.verify")
    del static["entryPoints"], static["providers"], static["log"]
    wanted |= {key.removeprefix("."): value for key, value in flat(static, "").items()}
    own = ("safenaming", "allowemptyservices")
    assert told == wanted | {f"providers.kubernetescrd.{name}": "true" for name in own}


def test_machines_pass_with_a_credential_alone_and_prefect_sees_none(gated: Gated) -> None:
    assert gated.get(MACHINES, "/api/hello").status_code == 401
    assert gated.get(MACHINES, "/").status_code == 404
    claims = {"X-Auth-Request-User": "mallory", "X_Auth_Request_Groups": "admins", "X-Auth-Request-More": "mallory"}
    claims |= {"Forwarded": "for=mallory", "Cookie": "__Host-prefect-gate=x"}
    answer = gated.get(MACHINES, "/api/hello", {**claims, **dict([basic(USER, PASSWORD)])})
    assert answer.status_code == 200
    seen = Received.from_json(answer.json())
    assert seen.values("X-Auth-Request-User") == [USER]
    assert seen.values("X-Auth-Request-Groups") == [""]
    assert not seen.values("X-Auth-Request-More")
    assert not seen.values("Forwarded")
    assert not seen.values("Authorization")
    assert not seen.values("Cookie")


def test_people_are_sent_to_sign_in_at_the_service(gated: Gated) -> None:
    navigation = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate"}
    answer = gated.get(PEOPLE, "/runs?x=1", navigation)
    assert (answer.status_code, answer.headers["location"]) == (302, "/_auth/login?return_to=%2Fruns%3Fx%3D1")
    assert gated.get(PEOPLE, answer.headers["location"], navigation).status_code == 200
    assert gated.get(PEOPLE, "/api/hello", dict([basic(USER, PASSWORD)])).status_code == 401


def test_a_websocket_without_a_header_is_the_relays(gated: Gated) -> None:
    connection = socket.create_connection(("127.0.0.1", gated.port), 10)
    url, protocols = f"wss://{MACHINES}/api/logs/out", [Subprotocol("prefect")]
    with connect(url, sock=connection, ssl=gated.context, subprotocols=protocols) as opened:
        opened.send(json.dumps({"type": "auth", "token": None}))
        with pytest.raises(ConnectionClosed):
            opened.recv(10)
    assert opened.close_code == 1008
    assert gated.get(MACHINES, "/relay/api/api/logs/out").status_code == 404


def test_a_service_that_restarts_is_waited_for(gated: Gated) -> None:
    credential = dict([basic(USER, PASSWORD)])
    gated.site.service.kill()
    assert gated.get(MACHINES, "/api/hello", credential).status_code == 503, "after 20 seconds"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gated.get, MACHINES, "/api/hello", credential)
        gated.site.start_service()
        assert asked.result().status_code == 200


def test_in_clear_browsers_are_sent_on_and_machines_are_not(gated: Gated) -> None:
    def get(host: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{gated.clear_port}/api", headers={"Host": host})

    assert get(PEOPLE).headers["location"].startswith("https://")
    assert get(MACHINES).status_code == 404
