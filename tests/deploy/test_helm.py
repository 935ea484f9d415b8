"""deploy/helm: the chart renders what kustomize builds, and puts values where they belong."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.support.parts import HELM, KUBECTL, ROOT, VALIDATE, require

CHART = ROOT / "deploy" / "helm" / "prefect-forward-auth"
Objects = dict[tuple[str, str], dict[str, Any]]


def read(*argv: str | Path) -> Objects:
    """Return the objects that a command prints, by kind and name."""
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found = [each for each in yaml.safe_load_all(done.stdout) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def render(*values: str, namespace: str = "prefect") -> Objects:
    words = [word for value in values for word in ("--set", value)]
    return read(require(HELM), "template", "forward-auth", CHART, "--namespace", namespace, *words)


def test_helm_finds_no_fault() -> None:
    done = subprocess.run([require(HELM), "lint", "--strict", CHART], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_it_renders_what_kustomize_builds() -> None:
    rendered = render()
    built = read(require(KUBECTL), "kustomize", ROOT / "deploy" / "kubernetes" / "traefik")
    # The one difference: kustomize names the configuration by its hash, Helm notes the hash at the pods.
    (name,) = (name for kind, name in built if kind == "ConfigMap")
    built["ConfigMap", "forward-auth"] = config = built.pop(("ConfigMap", name))
    config["metadata"]["name"] = "forward-auth"
    pods = built["Deployment", "forward-auth"]["spec"]["template"]
    pods["spec"]["volumes"][0]["configMap"]["name"] = "forward-auth"
    noted = rendered["Deployment", "forward-auth"]["spec"]["template"]["metadata"].pop("annotations")
    assert set(noted) == {"checksum/config"}
    assert rendered == built


def test_a_change_of_the_configuration_is_a_rolling_update() -> None:
    def noted(objects: Objects) -> Any:
        return objects["Deployment", "forward-auth"]["spec"]["template"]["metadata"]["annotations"]

    assert noted(render()) == noted(render())
    assert noted(render("config=port=1")) != noted(render())


def test_values_arrive(tmp_path: Path) -> None:
    values = ("hosts.machines=m.test", "hosts.people=p.test", "image.tag=9", "tlsSecret=t", "prefect.service=server")
    more = ("prefect.port=4201", "usersSecret=u", "secrets=s", "traefik.namespace=edge", "replicas.min=3")
    objects = render(*values, *more, "prefect.labels.app=flows", namespace="flows")
    assert {each["metadata"]["namespace"] for each in objects.values()} == {"flows"}
    pod = objects["Deployment", "forward-auth"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"].endswith(":9")
    assert {each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each} == {"u", "s"}
    machines, people = objects["IngressRoute", "machines"]["spec"], objects["IngressRoute", "people"]["spec"]
    assert machines["routes"][0]["match"].startswith("Host(`m.test`)")
    assert {route["match"].split()[0] for route in people["routes"]} == {"Host(`p.test`)"}
    assert (machines["tls"]["secretName"], machines["routes"][0]["services"][0]["name"]) == ("t", "server")
    assert "/flows/forward-auth/" in objects["Middleware", "gate-api"]["spec"]["forwardAuth"]["address"]
    assert objects["Middleware", "without-namespace"]["spec"]["stripPrefix"]["prefixes"] == ["/flows"]
    assert objects["IngressRoute", "verify"]["spec"]["routes"][0]["match"] == "PathPrefix(`/flows/forward-auth/`)"
    told = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    assert told["FORWARD_AUTH_PREFECT__URL"] == "http://server:4201"
    ports = [{"protocol": "TCP", "port": 4201}]
    service, rule = objects["NetworkPolicy", "prefect-server"]["spec"]["ingress"]
    assert service["ports"] == rule["ports"] == ports
    prefect = objects["NetworkPolicy", "prefect-server"]["spec"]["podSelector"]
    assert prefect["matchLabels"]["app"] == "flows"
    assert {"to": [{"podSelector": prefect}], "ports": ports} in objects["NetworkPolicy", "forward-auth"]["spec"][
        "egress"
    ]
    assert rule["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "edge"}
    assert objects["HorizontalPodAutoscaler", "forward-auth"]["spec"]["minReplicas"] == 3
    known = [each for each in objects.values() if each["apiVersion"] != "traefik.io/v1alpha1"]
    (tmp_path / "all.yml").write_text(yaml.safe_dump_all(known))
    argv: list[str | Path] = [require(VALIDATE), "--strict", tmp_path / "all.yml"]
    done = subprocess.run(argv, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()


def test_hosts_that_are_the_same_are_refused() -> None:
    argv: list[str | Path] = [
        require(HELM),
        "template",
        CHART,
        "--set",
        "hosts.machines=same",
        "--set",
        "hosts.people=same",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "must differ" in done.stderr
