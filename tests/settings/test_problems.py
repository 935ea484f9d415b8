"""What is said about a mistake: in our words, with the key and an example, and every cause at once."""

import datetime as dt
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from service.settings import ConfigError, Settings, load

ISSUER = '[issuer]\nurl = "https://idp.example"\naudiences = ["x"]\n'
USERS = '[users]\nfile = "u"\n'
FOREIGN = re.compile(r"[Ii]nput|valid|String should|Field required|Value error|<class|frozenset|dictionary|instance")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def problems(toml: str = "", environ: dict[str, str] | None = None) -> list[str]:
    Path("forward-auth.toml").write_text(toml)
    with pytest.raises(ConfigError) as error:
        load(environ or {})
    return [one.removesuffix(" (forward-auth.toml)") for one in error.value.problems]


# every key ----------------------------------------------------------------------------------------------------


def below(field: FieldInfo) -> type[BaseModel] | None:
    """Return the table that a key holds, alone, in a list or under any name."""
    for one in (field.annotation, *get_args(field.annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def keys(section: type[BaseModel] = Settings, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, field in section.model_fields.items():
        yield (*at, name), field
        table = below(field)
        if table is not None:
            many = {tuple: "0", dict: "name"}.get(get_origin(field.annotation), "")
            yield from keys(table, (*at, name, many) if many else (*at, name))


EVERY_KEY = pytest.mark.parametrize(("path", "field"), [pytest.param(*one, id=".".join(one[0])) for one in keys()])


def told_about(path: tuple[str, ...], value: Any) -> list[str]:
    """Return what is said about a key with a value."""
    return [one for one in all_told(path, value) if one.startswith(f"{'.'.join(path)}: ")]


def all_told(path: tuple[str, ...], value: Any) -> list[str]:
    """Return all that is said if a key has a value."""
    for part in reversed(path):
        value = [value] if part == "0" else {part: value}
    try:
        load({"FORWARD_AUTH_USERS__FILE": "u"}, command_line=value)
    except ConfigError as error:
        return error.problems
    return []


@EVERY_KEY
def test_a_wrong_type_is_told_with_an_example_that_is_right(path: tuple[str, ...], field: FieldInfo) -> None:
    (told,) = told_about(path, dt.date(2026, 1, 1))
    told = told.removesuffix(" (command line)")
    assert not FOREIGN.search(told)
    if told.endswith("true or false"):
        example: Any = True
    elif "one of " in told:
        (choices,) = (one for one in (field.annotation, *get_args(field.annotation)) if get_origin(one) is Literal)
        assert told.endswith(", ".join(f'"{one}"' for one in get_args(choices)))
        example = get_args(choices)[0]
    else:
        example = tomllib.loads(f"value = {told.partition(', such as ')[2]}")["value"]
    if path == ("secrets_from",):  # a place that would be asked
        assert example == ["gcp:my-project"]
    elif path[-2:] not in {("session", "keys"), ("oidc", "private_key")}:  # no example is a secret that is good
        assert told_about(path, example) == []


WRONG = [
    math.nan,
    math.inf,
    -math.inf,
    -1,
    10**12,
    10**40,
    "1" * 5000,
    "x",
    "",
    True,
    [],
    [[]],
    [5],
    {},
    {"a": 5},
    {"": 5},
]


@EVERY_KEY
def test_nothing_is_told_in_other_words(path: tuple[str, ...], field: FieldInfo) -> None:
    for value in [*WRONG, {"bad name!": {}}, "x" * 400, ["x" * 400], {"a": {"b": [5]}}, dt.time(1), b"\xff"]:
        assert not [one for one in all_told(path, value) if FOREIGN.search(one)]


@EVERY_KEY
def test_a_number_out_of_its_bounds_is_told_both(path: tuple[str, ...], field: FieldInfo) -> None:
    if not {int, float} & {field.annotation}:
        return
    for value in (-1, 10**12, math.nan, math.inf, "1" * 5000):
        (told,) = told_about(path, value)
        assert re.search(r"number (from [\d.]+ to|above 0 and up to) \d+, such as \d+", told), told


# in words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("port = 70000", "port: expected a whole number from 0 to 65535, such as 8080"),
        ("port = 1.5", "port: expected a whole number from 0 to 65535, such as 8080"),
        ('workers = "many"', "workers: expected a whole number from 1 to 64, such as 1"),
        ("[issuer.keys]\ntimeout = 0", "issuer.keys.timeout: expected a number above 0 and up to 60, such as 5"),
        ('[session]\nallow_http = "perhaps"', "session.allow_http: expected true or false"),
        ('[log]\nlevel = "loud"', 'log.level: expected one of "debug", "info", "warning", "error"'),
        ("[issuer]\naudiences = [5, 6]", 'issuer.audiences: expected a list of texts, such as ["prefect"]'),
        ("[users]", 'users.file: this key is needed: a path, such as "/etc/prefect-forward-auth/users.htpasswd"'),
        ("[oidc]\nclient_id = ''", 'oidc.client_id: expected text that is not empty, such as "prefect"'),
        (
            f"[sign_in]\ntitle = '{'x' * 61}'",
            'sign_in.title: expected text of at most 60 characters, such as "Prefect"',
        ),
        (
            "[users]\nrole = 'the boss'",
            'users.role: expected text of at most 60 characters (letters, digits, _, . and -), such as "viewer"',
        ),
        (
            "[roles.'the boss']\ncapabilities = 'read'",
            'roles.the boss: expected text of at most 60 characters (letters, digits, _, . and -), such as "night"',
        ),
        (
            "[issuer]\nrequired_claims = { repository_id = 5 }",
            'issuer.required_claims.repository_id: expected a list of texts, such as ["123456789"]',
        ),
        ("users = 'u'", "users: expected a table, such as "),
        ("grants = 'x'", "grants: expected a list of tables (JSON in a variable), such as "),
    ],
)
def test_a_mistake_is_told_in_words(toml: str, told: str) -> None:
    assert any(one == told or (told.endswith("such as ") and one.startswith(told)) for one in problems(toml))


@pytest.mark.parametrize("what", ["private_key", "store"])
def test_a_secret_that_is_none_is_told_with_all_other_mistakes(what: str) -> None:
    oidc = '[oidc]\nissuer = "https://idp.example"\nclient_id = "x"\nprivate_key = "s3cret"\n[store]\nurl = "redis://h:s3cret"\n'
    told = [one for one in problems(f"prot = 1\n{oidc}") if what in one]
    assert len(told) == 1
    assert "s3cret" not in told[0]


# which key was meant ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        (f'{ISSUER}audience = "x"', "issuer.audience: no such key; did you mean issuer.audiences?"),
        ("[issuer.keys]\ntimout = 1", "issuer.keys.timout: no such key; did you mean issuer.keys.timeout?"),
        ("[[issuers]]\naudience = 'x'", "issuers.0.audience: no such key; did you mean issuers.0.audiences?"),
        ("[[grants]]\nrole = 'admin'", "grants.0.role: no such key; did you mean grants.0.roles?"),
        (
            "[roles.night]\ncapability = 'x'",
            "roles.night.capability: no such key; did you mean roles.night.capabilities?",
        ),
        ("[isuer]\nurl = 'x'", "isuer: no such key; did you mean issuer?"),
        (f"{USERS}port = 1", "users.port: no such key; did you mean port?"),
        (f"{USERS}jwks_url = 1", "users.jwks_url: no such key; did you mean issuer.jwks_url?"),
        (f"{USERS}url = 'x'", "users.url: no such key; did you mean issuer.url or store.url or prefect.url?"),
        ("xyz = 1", "xyz: no such key (see docs/configuration.md)"),
    ],
)
def test_a_key_that_does_not_exist_is_told_with_the_one_that_was_meant(toml: str, told: str) -> None:
    assert told in problems(toml)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FORWARD_AUTH_ISSUER__AUDIENCE", "FORWARD_AUTH_ISSUER__AUDIENCES"),
        ("FORWARD_AUTH_ISUER__URL", "FORWARD_AUTH_ISSUER__URL"),
        ("forward_auth_prot", "FORWARD_AUTH_PORT"),
        ("FORWARD_AUTH_ISSUER__KEYS__TIMOUT", "FORWARD_AUTH_ISSUER__KEYS__TIMEOUT"),
    ],
)
def test_a_variable_is_told_so_as_well(name: str, meant: str) -> None:
    assert problems(ISSUER, {name: "1"}) == [f"{name}: no such key; did you mean {meant}?"]


# all at once, and by cause ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "told_keys"),
    [
        pytest.param(
            "prot = 1\nport = 'x'\n[users]\nfile = 'u'\nrole = 'boss'\n"
            "[[grants]]\nissuer = 'https://other.example'\nroles = ['nobody']\n[sign_in]\nlocal = true\n",
            ["port", "prot", "grants.0.issuer", "grants.0.roles", "users.role"],
            id="an unknown key and a wrong type hide nothing",
        ),
        pytest.param(
            f"{ISSUER}role = 'boss'\n[sign_in]\nlocal = true\n[[issuers]]\nurl = 'https://idp.example'\n"
            "audiences = ['x']\n[roles.x]\nroutes = ['GET /api/nothing']\n",
            ["configured more than once", "sign_in.local", "roles.x", "issuer.role"],
            id="contradictions hide each other no more",
        ),
        pytest.param("[issuer", ["forward-auth.toml is not TOML"], id="a file that cannot be read"),
        pytest.param("[isuer]\nurl = 'x'", ["isuer"], id="a table that was meant to be the issuer"),
        pytest.param(
            "[issuer]\nurl = 'https://a.example'\naudience = 'x'", ["issuer.audience"], id="a key that was meant"
        ),
        pytest.param(
            "[issuer]\nurl = 5\naudiences = ['x']\n[[grants]]\nissuer = 'https://a.example'\nroles = ['viewer']",
            ["issuer.url"],
            id="a grant for an issuer that cannot be read",
        ),
        pytest.param(
            f"{USERS}role = 'night'\n[role.night]\ncapabilities = ['read']", ["role"], id="a role that was meant"
        ),
        pytest.param(f"roles = 5\n{USERS}role = 'night'", ["roles"], id="roles that cannot be read"),
        pytest.param(
            f"{USERS}role = 'night'\n[roles.night]\ncapabilities = ['fly']",
            ["roles.night.capabilities"],
            id="a role that is there, and wrong",
        ),
        pytest.param("users = 5\n[sign_in]\nlocal = true", ["users"], id="users that cannot be read"),
        pytest.param("port = 'x'", ["port", "nobody could be verified"], id="two causes"),
        pytest.param("", ["nobody could be verified"], id="nothing"),
    ],
)
def test_every_cause_is_told_and_no_consequence(toml: str, told_keys: list[str]) -> None:
    told = problems(toml)
    assert [one[: len(key)] for one, key in zip(told, told_keys, strict=True)] == told_keys, told


def test_what_stands_in_a_variable_that_cannot_be_read_is_not_missing() -> None:
    assert problems("", {"FORWARD_AUTH_USERS__FILE_FILE": "/nowhere", "FORWARD_AUTH_USERS__ROLE": "viewer"}) == [
        "FORWARD_AUTH_USERS__FILE_FILE: /nowhere cannot be read: No such file or directory"
    ]
    told = problems("", {"FORWARD_AUTH_ISUER__URL": "https://a.example", "FORWARD_AUTH_ISSUER__ROLE": "boss"})
    assert [one.partition(":")[0] for one in told] == [
        "FORWARD_AUTH_ISUER__URL",
        "issuer.audiences",
        "issuer.role",
    ]


def test_what_kubernetes_adds_stands_for_no_key() -> None:
    assert problems("", {"FORWARD_AUTH_SERVICE_HOST": "10.0.0.1", "FORWARD_AUTH_ISUERS": ""}) == problems("")


def test_a_draft_has_what_is_right() -> None:
    Path("forward-auth.toml").write_text("prot = 1\n[users]\nfile = 'u'\nmax_cost = 'x'\n[log]\nlevel = 'debug'")
    with pytest.raises(ConfigError) as error:
        load({})
    draft = error.value.draft
    assert draft is not None
    assert draft.users is not None
    assert (str(draft.users.file), draft.users.max_cost, draft.log.level) == ("u", 14, "debug")
