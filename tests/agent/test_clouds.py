"""Tokens without a secret, from GitHub Actions, Google Cloud and Azure. All three are FAKES: the real ones are away."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator

import httpx
import pytest

from service.agent.clouds import Surroundings, azure, github_actions, google
from service.agent.tokens import SourceError
from tests.agent.conftest import Run, StartAgent
from tests.support.agent_gate import AgentGate
from tests.support.surroundings import FakeSurroundings

URL = ("--url", "https://prefect-m2m.test/api")
OURS = ("--audience", "prefect")
TLS = ssl.create_default_context()


@pytest.fixture
def fake() -> Iterator[FakeSurroundings]:
    with FakeSurroundings() as fake:
        yield fake


def sources(fake: FakeSurroundings, audience: str = "prefect") -> dict[str, Surroundings]:
    return {
        "google": google(fake.google, audience, TLS),
        "azure": azure(fake.azure, audience, "", TLS),
        "app service": azure(fake.app_service, audience, "of-one", TLS),
        "github": github_actions(fake.github_actions, audience, TLS),
    }


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["google", "azure", "app service", "github"])
async def test_each_of_them_gives_a_token(fake: FakeSurroundings, name: str) -> None:
    token = await sources(fake)[name].fetch()
    assert token.value == "good"
    says = name in {"azure", "app service"}  # the others' tokens are JWTs, which say when they end
    assert token.expires == (pytest.approx(time.time() + 3600, abs=20) if says else None)
    (asked,) = fake.asked
    assert asked.get("audience", asked.get("resource")) == "prefect"
    assert asked.get("client_id", "") == ("of-one" if name == "app service" else "")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "audience", "told"),
    [
        ("google", "prefect", r"it answered 404: does this machine have a service account\?"),
        ("azure", "prefect", r"it answered 400 \(invalid_request\): does this machine have a managed identity"),
        ("azure", "others", r"it answered 400 \(invalid_(resource|request)\): .*--audience"),
    ],
)
async def test_a_refusal_says_what_to_look_at(fake: FakeSurroundings, name: str, audience: str, told: str) -> None:
    fake.has_identity = audience == "others"
    with pytest.raises(SourceError, match=told):
        await sources(fake, audience)[name].fetch()


@pytest.mark.anyio
async def test_a_job_that_may_not_ask(fake: FakeSurroundings) -> None:
    environ = {**fake.github_actions, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-another"}
    source = github_actions(environ, "prefect", TLS)
    with pytest.raises(SourceError, match="it answered 401: is 'permissions: id-token: write' in the job") as told:
        await source.fetch()
    assert "of-another" not in f"{told.value} {source!r} {source}"


@pytest.mark.parametrize("name", ["google", "azure", "github-actions"])
def test_the_worker_gets_in(fake: FakeSurroundings, gate: AgentGate, start: StartAgent, name: str) -> None:
    """Metadata is asked for directly: a proxy would answer with its own machine's."""
    env = {**fake.google, **fake.azure, **fake.github_actions}
    if name != "github-actions":
        env["HTTP_PROXY"] = "http://127.0.0.1:9"
    agent = start("--url", f"{gate.url}/api", f"--{name}", *OURS, env=env)
    assert httpx.get(f"{agent.url}/flows").status_code == 200


def test_a_variable_names_the_source(fake: FakeSurroundings, gate: AgentGate, start: StartAgent) -> None:
    env = {**fake.google, "FORWARD_AUTH_AGENT_GOOGLE": "true", "FORWARD_AUTH_AGENT_AUDIENCE": "prefect"}
    assert httpx.get(f"{start('--url', f'{gate.url}/api', env=env).url}/flows").status_code == 200


@pytest.mark.parametrize(
    ("options", "env", "told"),
    [
        (("--github-actions", *OURS), {}, "Add 'permissions: id-token: write' to the job"),
        (("--github-actions",), {}, "--github-actions needs --audience"),
        (("--google",), {}, "--google needs --audience"),
        (("--azure",), {}, "--azure needs --audience"),
        (("--azure", "--google", *OURS), {}, "there are --google and --azure"),
        (OURS, {"FORWARD_AUTH_AGENT_AZURE": "yes, please"}, "FORWARD_AUTH_AGENT_AZURE is 'true', or not set"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_explained(run: Run, options: tuple[str, ...], env: dict[str, str], told: str) -> None:
    process = run(["true"], *URL, *options, env=env)
    assert process.wait(timeout=30) == 2
    assert told in process.text()
