"""`doctor` beside real clients, in front of the real site; and Prefect's own reading of its settings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from service.doctor.settings import AUTH_STRING, HEADERS, KEY, UI_URL, URL, read_settings
from tests.support.credential_forms import (
    API_KEY,
    BASIC,
    BEARER_AUTH_STRING,
    CUSTOM_HEADERS,
    JWT_AUTH_STRING,
    URL_USERINFO,
    CredentialForm,
)
from tests.support.openid import OpenIDProvider
from tests.support.parts import ROOT, SERVER_VERSION, by_age, prefect_part, require
from tests.support.prefect import Server
from tests.support.processes import clean_environment
from tests.support.site import Site

NEEDS = ("--needs", "1m")  # the provider's tokens last ten


def doctor(folder: Path, version: str, settings: Mapping[str, str], *options: str) -> tuple[int, str]:
    python = require(prefect_part(version))
    env = clean_environment(folder / "home", {**settings, "PYTHONPATH": str(ROOT)})
    argv = [sys.executable, "-m", "service", "doctor", "--python", str(python), *NEEDS, *options]
    done = subprocess.run(argv, env=env, cwd=folder / "home", capture_output=True, text=True, timeout=120, check=False)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


CLIENTS = [
    ("3.9.1", API_KEY),
    ("3.9.1", BASIC),
    ("3.9.1", BEARER_AUTH_STRING),
    ("3.6.11", API_KEY),
    ("3.6.11", CUSTOM_HEADERS),
    ("3.4.8", JWT_AUTH_STRING),
    ("3.2.15", URL_USERINFO),
]


@pytest.mark.parametrize("client", by_age(*CLIENTS, version=itemgetter(0)), ids=lambda one: f"{one[0]}-{one[1].name}")
def test_nothing_is_wrong_with_a_form_that_works(
    client: tuple[str, CredentialForm], site: Site, openid_provider: OpenIDProvider, tmp_path: Path
) -> None:
    version, form = client
    settings = {**form.settings(f"{site.machines_url}/api", openid_provider.token()), "PREFECT_UI_URL": site.people_url}
    status, told = doctor(tmp_path, version, settings)
    assert status == 0, told
    for word in ("is a gate", "lets this credential in over HTTP", "reaches Prefect", f"Prefect {version}"):
        assert word in told


def test_what_is_planted_is_found(
    site: Site, openid_provider: OpenIDProvider, prefect_server: Server, tmp_path: Path
) -> None:
    api = f"{site.machines_url}/api"
    token = openid_provider.token()
    planted: dict[str, dict[str, str]] = {
        "The user name or the password is wrong": {URL: api, AUTH_STRING: "svc-workers:wrong"},
        "signature could not be verified": {URL: api, KEY: f"{token[:-8]}AAAAAAAA"},
        "There is no credential": {URL: api},
        "it is the host for people": {URL: f"{site.people_url}/api", KEY: token},
        "PREFECT_API_URL ends with /api": {URL: site.machines_url, KEY: token},
        "has quotes in it": {URL: api, AUTH_STRING: '"svc-workers:correct horse battery staple"'},
        "remove the others": {URL: api, KEY: token, AUTH_STRING: "svc-workers:correct horse battery staple"},
        "cannot be called": {URL: "http://127.0.0.1:9/api", KEY: token},
    }
    for word, settings in planted.items():
        status, told = doctor(tmp_path, SERVER_VERSION, settings)
        assert (status, word in told) == (1, True), f"{word}: {told}"
        assert token not in told
    direct = {URL: f"{prefect_server.url}/api", KEY: token}
    status, told = doctor(tmp_path, SERVER_VERSION, direct)
    assert "asks for no credential" in told


# beside the service ---------------------------------------------------------------------------------------


def doctor_of_service(folder: Path, settings: Mapping[str, str], url: str) -> tuple[int, str]:
    env = clean_environment(folder / "home", {**settings, "PYTHONPATH": str(ROOT)})
    argv = [sys.executable, "-m", "service", "doctor", "--server", *(["--url", url] if url else [])]
    done = subprocess.run(argv, env=env, cwd=folder / "home", capture_output=True, text=True, timeout=120, check=False)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def test_nothing_is_wrong_around_the_service(
    site: Site, service_settings: Mapping[str, str], prefect_server: Server, tmp_path: Path
) -> None:
    settings = {**service_settings, "FORWARD_AUTH_PREFECT__URL": prefect_server.url}
    status, told = doctor_of_service(tmp_path, settings, f"{site.machines_url}/api")
    assert status == 0, told
    lines = [line for line in told.splitlines() if line.startswith("ok ")]
    for word in (
        "has 1 users",
        "keys that can be used",
        "Prefect answers at",
        "refuses a call without a credential",
        "does not believe what callers send",
        "leads nobody to the internal endpoints",
        "hands WebSockets over to the relay",
    ):
        assert any(word in line for line in lines), told


def test_what_is_planted_around_the_service_is_found(
    site: Site,
    service_settings: Mapping[str, str],
    prefect_server: Server,
    openid_provider: OpenIDProvider,
    tmp_path: Path,
) -> None:
    prefect = {"FORWARD_AUTH_PREFECT__URL": prefect_server.url}
    issuer = {"FORWARD_AUTH_ISSUER__URL": "http://127.0.0.1:9"}
    ask = {"FORWARD_AUTH_ISSUER__INTROSPECTION__CLIENT_ID": "worker"}
    secret = "FORWARD_AUTH_ISSUER__INTROSPECTION__CLIENT_SECRET"
    machines = f"{site.machines_url}/api"
    planted: dict[str, tuple[Mapping[str, str], str]] = {
        "prefect.url is not set": ({}, ""),
        "Prefect cannot be reached": ({"FORWARD_AUTH_PREFECT__URL": "http://127.0.0.1:9"}, ""),
        "is not Prefect's API": ({"FORWARD_AUTH_PREFECT__URL": openid_provider.url}, ""),
        "http://127.0.0.1:9: ": ({**prefect, **issuer}, ""),
        "does not answer about opaque tokens": ({**prefect, **ask, secret: "wrong"}, ""),
        "The store does not answer": ({**prefect, "FORWARD_AUTH_STORE__URL": "redis://127.0.0.1:9"}, ""),
        "lets anybody in": (prefect, f"{prefect_server.url}/api"),
        "not with this service's refusal": (prefect, f"{site.service_url}/api"),
        "cannot be called": (prefect, "http://127.0.0.1:9/api"),
    }
    for word, (changed, url) in planted.items():
        status, told = doctor_of_service(tmp_path, {**service_settings, **changed}, url)
        found = [line for line in told.splitlines() if line.startswith("change ")]
        assert (status, any(word in line for line in found)) == (1, True), f"{word}: {told}"
    status, told = doctor_of_service(
        tmp_path, {**service_settings, **prefect, **ask, secret: "worker-secret"}, machines
    )
    assert (status, "answers about opaque tokens" in told) == (0, True), told


# settings -------------------------------------------------------------------------------------------------

SOURCES: dict[str, Any] = {
    "nothing": {},
    "a profile": {"profiles": "a"},
    "another profile": {"profiles": "a", "environ": {"PREFECT_PROFILE": "b"}},
    "a profile that is not there": {"profiles": "gone"},
    "pyproject.toml": {"profiles": "a", "pyproject": True},
    "prefect.toml": {"profiles": "a", "pyproject": True, "toml": True},
    ".env": {"profiles": "a", "pyproject": True, "toml": True, "dotenv": True},
    "the environment": {"profiles": "a", "dotenv": True, "environ": {KEY: "of the environment"}},
    "an empty variable": {"profiles": "a", "environ": {KEY: ""}},
    "headers of a file": {"profiles": "a", "toml": True, "environ": {AUTH_STRING: "a:b"}},
    "headers of three sources": {"profiles": "a", "toml": True, "environ": {HEADERS: '{{"X": "environment"}}'}},
    "profiles elsewhere": {"elsewhere": "b", "environ": {"PREFECT_PROFILES_PATH": "elsewhere.toml"}},
    "profiles elsewhere, by .env": {"elsewhere": "b", "dotenv": True},
    "a home": {"profiles": "a", "environ": {"PREFECT_HOME": "{folder}/other"}},
}
READ = """
import json, os, sys
from pathlib import Path
from prefect.settings import Settings
from prefect.settings import sources
found = {}
for name, case in json.loads(sys.stdin.read()).items():
    for one in [one for one in os.environ if one.startswith("PREFECT_")]:
        del os.environ[one]
    os.environ |= case["environ"]
    os.chdir(case["folder"])
    sources._file_cache.clear()
    sources.DEFAULT_PREFECT_HOME = Path(case["folder"]) / ".prefect"
    settings = Settings()
    secret = lambda value: value.get_secret_value() if value is not None else ""
    found[name] = [settings.api.url or "", secret(settings.api.key), secret(settings.api.auth_string),
                   settings.client.custom_headers, settings.ui_url or ""]
print(json.dumps(found))
"""


def lay_out(folder: Path, case: Mapping[str, Any]) -> None:
    """Write the files of a case."""
    folder.mkdir()
    text = (
        'active = "{}"\n[profiles.a]\nPREFECT_API_URL = "https://a/api"\nPREFECT_API_KEY = "of a"\n'
        'PREFECT_CLIENT_CUSTOM_HEADERS = \'{{"X": "a"}}\'\n[profiles.b]\nPREFECT_API_URL = "https://b/api"\n'
    )
    (folder / ".prefect").mkdir()
    if "profiles" in case:
        (folder / ".prefect" / "profiles.toml").write_text(text.format(case["profiles"]))
    if "elsewhere" in case:
        (folder / "elsewhere.toml").write_text(text.format(case["elsewhere"]))
    if "pyproject" in case:
        (folder / "pyproject.toml").write_text('[tool.prefect]\nui_url = "https://ui"\n[tool.prefect.api]\nkey = "p"\n')
    if "toml" in case:
        (folder / "prefect.toml").write_text('[api]\nkey = "t"\n[client.custom_headers]\nAuthorization = "Bearer t"\n')
    if "dotenv" in case:
        (folder / ".env").write_text("PREFECT_PROFILES_PATH=elsewhere.toml\nexport PREFECT_API_KEY='of dotenv' # yes\n")


def test_the_settings_are_those_that_prefect_reads(tmp_path: Path) -> None:
    cases: dict[str, Any] = {}
    for number, (name, case) in enumerate(SOURCES.items()):
        folder = tmp_path / f"case-{number}"
        lay_out(folder, case)
        environ = {key: value.format(folder=folder) for key, value in case.get("environ", {}).items()}
        cases[name] = {"folder": str(folder), "environ": environ}
    python = require(prefect_part(SERVER_VERSION))
    env = clean_environment(tmp_path / "home", {})
    done = subprocess.run(
        [python, "-c", READ], input=json.dumps(cases), env=env, capture_output=True, text=True, timeout=120, check=True
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    for name, case in cases.items():
        folder = Path(case["folder"])
        ours = read_settings(case["environ"], folder, folder)
        headers = json.loads(ours.text(HEADERS) or "{}")
        assert [ours.text(URL), ours.text(KEY), ours.text(AUTH_STRING), headers] == theirs[name][:4], name
        assert ours.text(UI_URL) in {"", theirs[name][4]}, name  # Prefect derives one from the API's URL
