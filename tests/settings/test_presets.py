"""A preset in the configuration: its defaults, what overrides them, and what would let strangers in."""

from pathlib import Path

import pytest

from service.core.identity.presets import PRESETS, PRESETS_FOR_PEOPLE
from service.rendering.presets import WORDS, WORDS_FOR_PEOPLE
from service.settings import ConfigError, Settings, load
from service.settings.show import shown

TENANT = "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/v2.0"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def configured(toml: str) -> Settings:
    Path("forward-auth.toml").write_text(toml)
    return load({}).settings


def problems(toml: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        configured(toml)
    return [one.removesuffix(" (forward-auth.toml)") for one in error.value.problems]


def issuer(preset: str, lines: str) -> str:
    return f'[issuer]\npreset = "{preset}"\naudiences = ["prefect"]\n{lines}\n'


PINNED = 'required_claims = { repository_id = ["1"] }\n'
REFUSED = {
    # preset, what is set, which key is named, and what to add or change
    "github-nothing": ("github-actions", "", "issuer.required_claims: ", "repository_id = ["),
    "github-a-branch-alone": (
        "github-actions",
        'required_claims = { ref = ["refs/heads/main"], job_workflow_ref = ["x"] }',
        "issuer.required_claims: ",
        "Require repository, repository_id, repository_owner or repository_owner_id",
    ),
    "github-the-subject-alone": (
        "github-actions",
        'required_claims = { sub = ["environment:production"] }',
        "issuer.required_claims: ",
        "each repository on GitHub",
    ),
    "github-no-value": (
        "github-actions",
        "required_claims = { repository = [] }",
        "issuer.required_claims: ",
        "repository_id = [",
    ),
    "github-the-name-of-a-workflow": (
        "github-actions",
        'required_claims = { repository = ["acme/flows"], workflow = ["deploy"] }',
        "issuer.required_claims: ",
        "the claim 'workflow' cannot decide about access",
    ),
    "github-a-grant-for-a-pull-requests-branch": (
        "github-actions",
        f'{PINNED}\n[[grants]]\nroles = ["deployer"]\nclaims = {{ head_ref = ["main"] }}',
        "grants.0.claims: ",
        "the claim 'head_ref' cannot decide",
    ),
    "gitlab-nothing": ("gitlab-ci", 'role = "viewer"', "issuer.required_claims: ", "project_id = ["),
    "gitlab-a-protected-branch-alone": (
        "gitlab-ci",
        'required_claims = { ref_protected = ["true"] }',
        "issuer.required_claims: ",
        "Require project_path, project_id, namespace_path or namespace_id",
    ),
    "kubernetes-the-name-alone": (
        "kubernetes",
        'url = "https://k8s.example"\nrequired_claims = { "kubernetes.io.serviceaccount.name" = ["worker"] }',
        "issuer.required_claims: ",
        '"kubernetes.io.namespace" = [',
    ),
    "kubernetes-the-api-servers-audience": (
        "kubernetes",
        'url = "https://k8s.example"\naudiences = ["https://k8s.example"]\nrequired_claims = { sub = ["x"] }',
        "issuer.audiences: ",
        "each pod has a token for the API server",
    ),
    "google-nothing": ("google", "", "issuer.required_claims: ", "gserviceaccount.com"),
    "google-the-client-alone": (
        "google",
        'required_claims = { azp = ["1"], email_verified = ["true"] }',
        "issuer.required_claims: ",
        "everybody with a Google account",
    ),
    "entra-every-tenant": (
        "entra",
        'url = "https://login.microsoftonline.com/common/v2.0"',
        "issuer.url: ",
        "that of one tenant with its id",
    ),
    "entra-personal-accounts": (
        "entra",
        'url = "https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0"',
        "issuer.url: ",
        "personal accounts",
    ),
    "entra-a-role-for-each-app": ("entra", f'url = "{TENANT}"\nrole = "worker"', "issuer.role: ", "Require roles, "),
    "entra-a-grant-for-each-app": (
        "entra",
        f'url = "{TENANT}"\n[[grants]]\nroles = ["worker"]',
        "issuer.role: ",
        "give roles with grants that have conditions",
    ),
    "entra-an-address": (
        "entra",
        f'url = "{TENANT}"\nprincipal_claim = "preferred_username"',
        "issuer.principal_claim: ",
        "the tenant does not prove it",
    ),
    "entra-graph": (
        "entra",
        f'url = "{TENANT}"\naudiences = ["https://graph.microsoft.com"]',
        "issuer.audiences: ",
        "Microsoft Graph",
    ),
    "keycloak-account": (
        "keycloak",
        'url = "https://idp.example/realms/data"\naudiences = ["account", "prefect"]',
        "issuer.audiences: ",
        "nearly every token of the realm",
    ),
    "keycloak-no-realm": ("keycloak", 'url = "https://idp.example"', "issuer.url: ", "/realms/data"),
    "auth0-whoever-signs-up": (
        "auth0",
        'url = "https://t.eu.auth0.com/"\nrole = "worker"',
        "issuer.role: ",
        'gty = ["client-credentials"]',
    ),
    "auth0-no-slash": ("auth0", 'url = "https://t.eu.auth0.com"', "issuer.url: ", "slash at its end"),
    "auth0-its-own-api": (
        "auth0",
        'url = "https://t.eu.auth0.com/"\naudiences = ["https://t.eu.auth0.com/api/v2/"]',
        "issuer.audiences: ",
        "Auth0's own API",
    ),
    "okta-its-own-server": ("okta", 'url = "https://o.okta.com"', "issuer.url: ", "custom authorization server"),
    "okta-a-role-for-all": (
        "okta",
        'url = "https://o.okta.com/oauth2/default"\nrole = "worker"',
        "issuer.role: ",
        "cid = [",
    ),
    "authentik-no-slash": ("authentik", 'url = "https://a.example/application/o/x"', "issuer.url: ", "slash"),
    "zitadel-a-role-for-all": ("zitadel", 'url = "https://z.example"\nrole = "worker"', "issuer.role: ", "sub = ["),
    "zitadel-roles-of-any-project": (
        "zitadel",
        'url = "https://z.example"\ngroups_claim = "urn:zitadel:iam:org:project:roles"',
        "issuer.groups_claim: ",
        "the caller's own project",
    ),
}


@pytest.mark.parametrize(("preset", "lines", "key", "words"), REFUSED.values(), ids=REFUSED)
def test_what_would_let_strangers_in_is_refused_with_what_to_change(
    preset: str, lines: str, key: str, words: str
) -> None:
    toml = issuer(preset, lines)
    if lines.count("audiences"):
        toml = toml.replace('audiences = ["prefect"]\n', "")
    (problem,) = problems(toml)
    assert problem.startswith(key)
    assert words in problem
    assert "{" not in problem.replace("required_claims = {", "")


@pytest.mark.parametrize("preset", PRESETS)
def test_each_example_works_as_it_stands(preset: str) -> None:
    settings = configured(WORDS[preset].example)
    assert settings.issuers[0].preset == preset
    assert settings.gives_roles


@pytest.mark.parametrize("preset", [name for name, one in PRESETS.items() if one.pins_for_all])
def test_a_role_for_all_is_accepted_once_it_is_narrowed(preset: str) -> None:
    url = next(line for line in WORDS[preset].example.splitlines() if line.startswith("url"))
    for narrowed in (WORDS[preset].pin, 'authorized_parties = ["worker"]'):
        assert configured(issuer(preset, f'{url}\nrole = "worker"\n{narrowed}')).issuer
    scoped = issuer(preset, f'{url}\nrole = "worker"\nrequired_scopes = ["prefect"]')
    if PRESETS[preset].scopes_suffice:
        assert configured(scoped).issuer
    else:  # whoever asks for the scope may have it
        assert problems(scoped)[0].startswith("issuer.role: ")


@pytest.mark.parametrize(
    "condition",
    [
        "",
        'users = ["**"]',
        'users = ["worker", "*"]',
        'clients = ["*"]\nusers = ["*"]',
        'groups = ["a"]',
        'users = ["a*"]',
    ],
)
def test_a_grant_for_any_name_is_one_for_all(condition: str) -> None:
    toml = issuer("entra", f'url = "{TENANT}"\n[[grants]]\nroles = ["worker"]\n{condition}')
    if condition.startswith(("groups", 'users = ["a')):
        assert configured(toml).grants
    else:
        assert problems(toml)[0].startswith("issuer.role: ")


@pytest.mark.parametrize("preset", [name for name, one in PRESETS.items() if one.pins])
def test_one_of_the_claims_is_enough(preset: str) -> None:
    for claim in PRESETS[preset].pins:
        url = "" if "url" in PRESETS[preset].defaults else 'url = "https://k8s.example"\n'
        assert configured(issuer(preset, f'{url}required_claims = {{ "{claim}" = ["x"] }}')).issuer


def test_what_is_set_overrides_a_default_and_the_rest_stays() -> None:
    found = configured(issuer("github-actions", f'{PINNED}url = "https://ghes.example/_services/token"')).issuer
    assert found is not None
    assert found.url == "https://ghes.example/_services/token"
    assert (found.token_types, found.groups_claim) == ({"jwt"}, "")
    found = configured(issuer("github-actions", f'{PINNED}token_types = "at+jwt"\ngroups_claim = "teams"')).issuer
    assert found is not None
    assert (found.token_types, found.groups_claim) == ({"at+jwt"}, "teams")


def test_variables_name_a_preset_too() -> None:
    given = {"PRESET": "github-actions", "AUDIENCES": "prefect", "REQUIRED_CLAIMS": '{"repository_id": ["1"]}'}
    found = load({f"FORWARD_AUTH_ISSUER__{name}": value for name, value in given.items()}).settings.issuer
    assert found is not None
    assert found.url == "https://token.actions.githubusercontent.com"
    with pytest.raises(ConfigError, match="repository_id"):
        load({f"FORWARD_AUTH_ISSUER__{name}": value for name, value in given.items() if name != "REQUIRED_CLAIMS"})


def test_an_unknown_preset_is_told_with_those_that_there_are() -> None:
    (problem,) = problems(issuer("github", 'url = "https://idp.example"'))
    assert problem.startswith("issuer.preset: there is no such preset: there are github-actions, gitlab-ci")


def test_a_broken_rule_is_told_together_with_other_mistakes() -> None:
    found = problems(issuer("github-actions", 'role = "boss"\nleeway = 900'))
    assert [one.partition(":")[0] for one in found] == ["issuer.leeway", "issuer.required_claims", "issuer.role"]


def test_a_claim_that_is_required_under_a_misspelt_key_is_not_said_to_be_missing() -> None:
    (problem,) = problems(issuer("github-actions", 'required_claim = { repository_id = ["1"] }'))
    assert problem.startswith("issuer.required_claim: no such key; did you mean issuer.required_claims?")


def test_what_is_shown_says_what_comes_from_a_preset() -> None:
    toml = issuer("github-actions", f'{PINNED}token_types = ["jwt"]')
    Path("forward-auth.toml").write_text(toml)
    lines = list(shown(load({})))
    assert 'url = "https://token.actions.githubusercontent.com"  # preset github-actions' in lines
    assert 'algorithms = ["RS256"]  # preset github-actions' in lines
    assert 'token_types = ["jwt"]  # forward-auth.toml' in lines
    assert "leeway = 30  # default" in lines


def test_a_token_for_the_keys_is_sent_to_a_place_that_is_named() -> None:
    toml = issuer("kubernetes", 'url = "https://k8s.example"\nrequired_claims = { sub = ["x"] }')
    assert problems(toml + 'jwks_token_file = "/token"') == [
        "issuer.jwks_url: needed with jwks_token_file: the token is sent there, and nowhere else"
    ]
    assert configured(toml + 'jwks_token_file = "/token"\njwks_url = "https://k8s.example/jwks"').issuer


# where people sign in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS_FOR_PEOPLE)
def test_each_example_for_people_works_as_it_stands(preset: str) -> None:
    settings = configured(WORDS_FOR_PEOPLE[preset].example)
    assert settings.oidc is not None
    assert settings.oidc.preset == preset
    assert settings.gives_roles
    for name, value in PRESETS_FOR_PEOPLE[preset].defaults.items():
        if name != "client_auth" and f"{name} =" not in WORDS_FOR_PEOPLE[preset].example:
            assert getattr(settings.oidc, name) == value


def oidc(preset: str, lines: str = "") -> str:
    return f'[oidc]\npreset = "{preset}"\nclient_id = "gate"\n{lines}\n'


STRANGERS = {
    "google-everybody": ("google", 'role = "viewer"', "oidc.role: ", "everybody with a Google account can sign in"),
    "google-a-grant-for-everybody": ("google", '[[grants]]\nroles = ["viewer"]', "oidc.role: ", "hd = ["),
    "gitlab-everybody": ("gitlab", 'role = "viewer"', "oidc.role: ", "groups = ["),
    "auth0-whoever-signs-up": (
        "auth0",
        'issuer = "https://t.eu.auth0.com/"\nrole = "viewer"',
        "oidc.role: ",
        "signs up with the tenant can sign in",
    ),
    "entra-every-tenant": (
        "entra",
        'issuer = "https://login.microsoftonline.com/common/v2.0"',
        "oidc.issuer: ",
        "let in everybody",
    ),
    "entra-an-address": (
        "entra",
        f'issuer = "{TENANT}"\nprincipal_claim = "email"',
        "oidc.principal_claim: ",
        "Use oid",
    ),
    "entra-a-grant-by-name": (
        "entra",
        f'issuer = "{TENANT}"\n[[grants]]\nroles = ["admin"]\nclaims = {{ name = ["Alice"] }}',
        "grants.0.claims: ",
        "Use oid",
    ),
    "keycloak-no-realm": ("keycloak", 'issuer = "https://idp.example"', "oidc.issuer: ", "/realms/data"),
    "authentik-no-slash": ("authentik", 'issuer = "https://a.example/application/o/x"', "oidc.issuer: ", "slash"),
    "one-for-machines": ("github-actions", 'issuer = "https://a.example"', "oidc.preset: ", "there are keycloak, dex"),
}


@pytest.mark.parametrize(("preset", "lines", "key", "words"), STRANGERS.values(), ids=STRANGERS)
def test_what_would_let_strangers_sign_in_is_refused(preset: str, lines: str, key: str, words: str) -> None:
    (problem,) = problems(oidc(preset, lines))
    assert problem.startswith(key)
    assert words in problem


@pytest.mark.parametrize("preset", [name for name, one in PRESETS_FOR_PEOPLE.items() if one.pins_for_all])
def test_a_role_for_everybody_is_accepted_once_it_is_narrowed(preset: str) -> None:
    known, words = PRESETS_FOR_PEOPLE[preset], WORDS_FOR_PEOPLE[preset]
    issuer = next((line for line in words.example.splitlines() if line.startswith("issuer")), "")
    assert configured(oidc(preset, f'{issuer}\nrole = "viewer"\n{words.pin}')).oidc
    for claim in known.pins_for_all:
        toml = oidc(preset, f'{issuer}\nrole = "viewer"\nrequired_claims = {{ "{claim}" = ["x"] }}')
        assert configured(toml).oidc


def test_a_preset_for_people_is_shown_and_overridden() -> None:
    Path("forward-auth.toml").write_text(
        oidc("keycloak", 'issuer = "https://k.example/realms/r"\ngroups_claim = "groups"')
    )
    lines = list(shown(load({})))
    assert 'principal_claim = "preferred_username"  # preset keycloak' in lines
    assert 'groups_claim = "groups"  # forward-auth.toml' in lines


def test_how_a_client_proves_itself_is_for_those_that_have_a_secret() -> None:
    def method(lines: str) -> str:
        oidc_settings = configured(oidc("auth0", f'issuer = "https://t.eu.auth0.com/"\n{lines}')).oidc
        assert oidc_settings is not None
        return oidc_settings.auth_method

    assert method('client_secret = "secret"') == "client_secret_post"
    assert method('client_secret = "secret"\nclient_auth = "client_secret_basic"') == "client_secret_basic"
    assert method("") == "none"


def test_id_tokens_of_people_are_no_credentials_of_machines() -> None:
    toml = '[oidc]\nissuer = "https://d.example"\nclient_id = "gate"\n[issuer]\nurl = "https://d.example"\n'
    toml += (
        'accept_id_tokens = true\naudiences = ["%s"]\n[[grants]]\nissuer = "https://d.example"\nroles = ["viewer"]\n'
    )
    (problem,) = problems(toml % "gate")
    assert problem.startswith("issuer.audiences: with accept_id_tokens, ID tokens of people would be credentials")
    assert configured(toml % "worker").issuer
