"""`config check`: everything at once, a warning for what is weak, and no success where nobody could get in."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.adapters.users_file import hash_password
from service.core.identity.presets import PRESETS
from tests.support.command import run
from tests.support.parts import ROOT

GITHUB = "https://token.actions.githubusercontent.com"
GITLAB = "https://gitlab.com"
# what else there would be a warning about
QUIET = 'trusted_proxies = ["10.0.0.1"]\nprefect = {url = "http://prefect:4200"}\n'


def check(folder: Path, toml: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "forward-auth.toml").write_text(toml)
    done = run("config", "check", *options, cwd=folder)
    assert "Traceback" not in done.stderr
    return done


def test_a_missing_file_is_told_with_every_other_mistake(tmp_path: Path) -> None:
    done = check(tmp_path, "prot = 1\nport = 'x'\n[users]\nfile = '/nowhere'\nrole = 'boss'\n")
    assert done.returncode == 2
    for told in ("port: ", "prot: ", "users.role: ", "users.file: /nowhere: "):
        assert told in done.stderr
    assert "has 4 problem(s)" in done.stderr


@pytest.mark.parametrize(
    ("users", "toml", "code"),
    [
        ("alice", "", 1),
        ("alice", "role = 'viewer'\n", 0),
        ("alice", "[[grants]]\nusers = 'alice'\nroles = 'viewer'\n", 0),
        ("", "role = 'viewer'\n", 1),
        ("", f"role = 'viewer'\n[issuer]\nurl = '{GITLAB}'\naudiences = 'x'\n", 0),
    ],
    ids=["no role", "a role", "a grant", "no user", "no user, and an issuer"],
)
def test_a_configuration_that_admits_nobody_is_no_success(tmp_path: Path, users: str, toml: str, code: int) -> None:
    (tmp_path / "users").write_text(f"{users}:{hash_password('x', 4)}\n" if users else "# nobody yet\n")
    done = check(tmp_path, f"{QUIET}[session]\nkeys = '{'k' * 40}'\n[users]\nfile = 'users'\n{toml}")
    assert done.returncode == code, done.stderr
    assert ("Nobody has a role" in done.stdout) is bool(code)


def test_strict_makes_every_warning_an_error(tmp_path: Path) -> None:
    good = "[issuer]\nurl = 'https://idp.example'\naudiences = 'x'\nrole = 'worker'\n"
    for options, toml, code in (((), good, 0), (("--strict",), good, 1), (("--strict",), QUIET + good, 0)):
        done = check(tmp_path, toml, *options)
        assert (done.returncode, "Warning: " in done.stdout) == (code, toml == good)


@pytest.mark.parametrize(
    ("issuer", "claims", "grants", "warned"),
    [
        (GITHUB, "", "", "issuer.role"),
        (GITHUB, "repository_owner = 'acme'", "", "issuer.role"),
        (GITHUB, "repository_owner = 'acme', environment = 'production'", "", "issuer.role"),
        (GITHUB, "job_workflow_ref = 'acme/flows/.github/workflows/deploy.yml@refs/heads/main'", "", "issuer.role"),
        (GITHUB, "repository_id = '1'", "", ""),
        (GITHUB, "repository = 'acme/flows'", "", ""),
        (GITHUB, "sub = 'repo:acme/flows:ref:refs/heads/main'", "", ""),
        (GITLAB, "namespace_path = 'acme'", "", "issuer.role"),
        (GITLAB, "project_id = '1'", "", ""),
        (GITLAB, "project_path = 'acme/flows'", "", ""),
        ("https://idp.example", "", "", ""),
        (GITHUB, None, "", ""),
        (GITHUB, None, "roles = 'deployer'", "grants.0"),
        (GITHUB, None, "roles = 'deployer'\nclaims = { repository_owner = 'acme' }", "grants.0"),
        (GITHUB, None, "roles = 'deployer'\nclaims = { repository = { glob = 'acme/*' } }", "grants.0"),
        (GITHUB, None, "roles = 'deployer'\nclaims = { sub = { glob = 'repo:acme/*:*' } }", "grants.0"),
        (GITHUB, None, "roles = 'deployer'\nclaims = { sub = { glob = 'repo:acme/flows:**' } }", ""),
        (GITHUB, None, "roles = 'deployer'\nclaims = { repository = ['acme/flows', 'acme/etl'] }", ""),
        (GITHUB, None, "roles = 'deployer'\nclaims = { repository_id = { equals = '1' } }", ""),
        (GITHUB, None, "roles = 'deployer'\nusers = 'repo:acme/flows:**'", ""),
        (GITHUB, None, "roles = 'deployer'\nusers = 'repo:acme/**'", "grants.0"),
        (GITHUB, None, "issuer = 'local'\nroles = 'deployer'", ""),
    ],
)
def test_an_issuer_of_everybodys_ci_pins_the_repository(
    tmp_path: Path, issuer: str, claims: str | None, grants: str, warned: str
) -> None:
    """The role of the issuer is given unless `claims` is None."""
    (tmp_path / "users").write_text(f"alice:{hash_password('x', 4)}\n")
    toml = f"{QUIET}[session]\nkeys = '{'k' * 40}'\n[issuer]\nurl = '{issuer}'\naudiences = 'x'\n"
    toml += "" if claims is None else f"role = 'deployer'\nrequired_claims = {{ {claims} }}\n"
    toml += "[users]\nfile = 'users'\nrole = 'viewer'\n" if "local" in grants else ""
    toml += f"[[grants]]\n{grants}\n" if grants else ""
    done = check(tmp_path, toml)
    told = [line for line in done.stdout.splitlines() if line.startswith("Warning: ")]
    assert [line.split()[1] for line in told] == ([f"{warned}:"] if warned else []), done.stderr
    assert all("Pin the repository" in line for line in told)


DOCUMENTS = [*(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*.md"), *(ROOT / "deploy").rglob("*.toml")]


def examples() -> Iterator[Any]:
    """Yield the TOML of documents and of shipped files that names one of those issuers."""
    for path in DOCUMENTS:
        text = path.read_text()
        blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if path.suffix == ".md" else [text]
        for number, block in enumerate(blocks):
            of_people = block.startswith('[oidc]\npreset = "gitlab"')
            if (GITHUB in block or GITLAB in block) and not of_people:
                yield pytest.param(block, id=f"{path.relative_to(ROOT)}-{number}")


EXAMPLES = list(examples())


@pytest.mark.parametrize("toml", EXAMPLES)
def test_no_example_lets_every_repository_in(tmp_path: Path, toml: str) -> None:
    """The issuers that an example's grants name are added to it."""
    (tmp_path / "users").write_text(f"alice:{hash_password('x', 4)}\n")
    toml = toml.replace("/run/secrets/users.htpasswd", "users")
    configured = [PRESETS[name].defaults["url"] for name in re.findall(r'^preset = "(.*?)"', toml, re.MULTILINE)]
    for url in sorted(set(re.findall(r'^issuer = "(https:.*?)"', toml, re.MULTILINE)).difference(configured)):
        toml += f"\n[[issuers]]\nurl = '{url}'\naudiences = 'x'\n"
    if 'issuer = "local"' in toml:
        toml += "\n[users]\nfile = 'users'\n"
    done = check(tmp_path, toml)
    assert done.returncode == 0, done.stderr
    assert "Pin the repository" not in done.stdout


def test_examples_are_found() -> None:
    assert len(EXAMPLES) == 5


def test_presets_are_listed_and_shown_without_a_configuration(tmp_path: Path) -> None:
    listed = run("config", "presets", cwd=tmp_path)
    assert listed.returncode == 0
    assert re.search("^github-actions +issuer +GitHub Actions$", listed.stdout, re.MULTILINE)
    assert re.search("^keycloak +issuer and oidc +Keycloak$", listed.stdout, re.MULTILINE)
    shown = run("config", "presets", "github-actions", cwd=tmp_path)
    example = shown.stdout.partition("```toml\n")[2].partition("```")[0]
    done = check(tmp_path, QUIET + example)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Warning" not in done.stdout
    assert run("config", "presets", "github", cwd=tmp_path).returncode == 2


def test_a_preset_without_its_claim_is_refused_with_what_to_add(tmp_path: Path) -> None:
    done = check(tmp_path, "[issuer]\npreset = 'github-actions'\naudiences = 'x'\nrole = 'deployer'\n")
    assert done.returncode == 2
    assert "issuer.required_claims: tokens of strangers would be accepted" in done.stderr
    assert 'such as required_claims = { repository_id = ["123456789"] }' in done.stderr


def test_an_audience_that_every_token_of_a_realm_has_is_warned_of(tmp_path: Path) -> None:
    issuer = "[issuer]\nurl = 'https://idp.example/realms/data'\nrole = 'worker'\naudiences = ['{}']\n"
    done = check(tmp_path, QUIET + issuer.format("account"))
    assert done.returncode == 0
    assert "issuer.audiences: 'account' is in nearly every token of a Keycloak realm" in done.stdout
    assert "audience mapper" in done.stdout
    assert "Warning" not in check(tmp_path, QUIET + issuer.format("prefect")).stdout


def test_offline_sessions_at_keycloak_are_warned_of(tmp_path: Path) -> None:
    oidc = "[oidc]\npreset = 'keycloak'\nissuer = 'https://idp.example/realms/data'\nclient_id = 'x'\nrole = 'viewer'\n"
    keys = "[session]\nkeys = ['0123456789abcdef0123456789abcdef']\n"
    assert "Warning" not in check(tmp_path, QUIET + oidc + keys).stdout
    done = check(tmp_path, QUIET + oidc + "scopes = 'openid,offline_access'\n" + keys)
    assert "oidc.scopes: with offline_access, Keycloak keeps a session" in done.stdout


def test_an_owner_alone_is_warned_of_on_a_server_of_ones_own_too(tmp_path: Path) -> None:
    issuer = "[issuer]\npreset = 'github-actions'\nurl = 'https://ghes.example/_services/token'\naudiences = 'x'\n"
    owner = "role = 'deployer'\nrequired_claims = { repository_owner_id = ['65'] }\n"
    assert "any repository" in check(tmp_path, QUIET + issuer + owner).stdout
