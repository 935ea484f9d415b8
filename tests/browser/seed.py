"""What is on the Prefect server, and where both UIs show it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.prefect import Server

FLOW, POOL, DEPLOYMENT, BLOCK = "crimson-flow", "crimson-pool", "crimson-deployment", "crimson-secret"
RUNS = ("crimson-kestrel", "crimson-heron")


@dataclass(frozen=True)
class UI:
    """One of the two UIs: what its paths begin with, a link to the first run, what it says when it is refused."""

    name: str
    base: str
    deep_link: str
    refused: str

    def __str__(self) -> str:
        return self.name

    @property
    def pages(self) -> dict[str, str]:
        """Names of pages in the menu, each with a text that stands there."""
        return {"Dashboard": "Active Work Pools", "Deployments": DEPLOYMENT, "Blocks": BLOCK, "Runs": RUNS[0]}


V1 = UI("v1", "", "/runs?state=Completed#a=b&c=%20d", "Oops. Something went wrong.")
V2 = UI("v2", "/v2", "/v2/runs?flow-run-search=kestrel&page=1#crimson", "reload the page to sign in")


def seed(server: Server) -> None:
    """Fill the server, past the gate."""
    flow = server.ask("POST", "/flows/", {"name": FLOW})["id"]
    server.create_pool(POOL)
    deployment = {"name": DEPLOYMENT, "flow_id": flow, "work_pool_name": POOL, "entrypoint": "crimson.py:crimson"}
    deployment_id = server.ask("POST", "/deployments/", deployment)["id"]
    for name in RUNS:
        state = {"type": "COMPLETED", "name": "Completed"}
        server.ask(
            "POST", "/flow_runs/", {"name": name, "flow_id": flow, "deployment_id": deployment_id, "state": state}
        )
    secret = server.ask("GET", "/block_types/slug/secret")["id"]
    schemas = server.ask("POST", "/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [secret]}}})
    block = {"name": BLOCK, "block_type_id": secret, "block_schema_id": schemas[0]["id"], "data": {"value": "hush"}}
    server.ask("POST", "/block_documents/", block)
