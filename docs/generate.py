"""Write the documents that are generated from the code: `python -m docs.generate`; `--check` only compares them."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from service.core.identity.presets import PRESETS, PRESETS_FOR_PEOPLE
from service.core.prefect.roles import BUILT_IN
from service.core.prefect.routes import Capability, Route, known_routes
from service.rendering.capabilities import MEANING
from service.rendering.presets import WORDS, WORDS_FOR_PEOPLE, people_lines, preset_lines
from service.settings.schema import PREFIX, Settings

FOLDER = Path(__file__).parent
CONFIGURATION = """# Configuration

<!-- made by docs/generate.py from service/settings/schema.py: `make docs` -->

The service reads its settings from these sources. A source overrides those below it:

1. the command line (`--host`, `--port`, `--uds`, `--workers`)
2. the environment: `FORWARD_AUTH_` and the key, nested with `__`; an empty variable counts as not set
3. files: a variable with `_FILE` appended to its name gives the path of a file that holds the value;
   `FORWARD_AUTH_SECRETS_DIR` names a folder of files that are named like the variables, in upper or lower case
   (Docker's `/run/secrets`, a mounted Kubernetes Secret)
4. the secrets file: `secrets.toml` beside `forward-auth.toml`, or the file that `--secrets` or
   `FORWARD_AUTH_SECRETS_FILE` names
5. the secrets managers that `secrets_from` names
6. `forward-auth.toml` in the working directory, or the file that `--config` or `FORWARD_AUTH_CONFIG` names
7. the defaults below

`prefect-forward-auth config init` writes both files, with every key, its meaning and its default.

The service refuses a key that does not exist, in every source. `prefect-forward-auth config check` lists every
problem at once, and warns of what is valid but weak. It exits with 2 if there is a problem, and with 1 if nobody has a
role or, with `--strict`, if there is a warning. `config show` prints the values in force as TOML, with the source of
each. In a variable, separate the members of a list with commas.

For several issuers, write `[[issuers]]` tables with the keys of `[issuer]`, or JSON in `FORWARD_AUTH_ISSUERS`. You
can use `[issuer]` and `[[issuers]]` together.

```toml
[[issuers]]
url = "https://idp.example.com/realms/data"
audiences = ["prefect"]
role = "worker"

[[issuers]]
url = "https://token.actions.githubusercontent.com"
audiences = ["prefect"]
required_claims = { repository_id = ["123456789"], environment = ["production"] }
role = "deployer"

[users]
file = "/run/secrets/users.htpasswd"
role = "viewer"
```

An issuer such as GitHub's or GitLab's vouches for everybody's CI jobs. Require a claim that names one repository, and
one that says which of its jobs: for GitHub `repository_id` (`gh api repos/OWNER/NAME --jq .id`) and an `environment`
with rules of its own, or `ref`; for GitLab `project_id` with `ref_protected` or `environment`. Numbers are better than
names, because somebody else can take over a name. `repository_owner` alone lets every repository and every branch of
the owner in, pull requests included. `job_workflow_ref` names a shared workflow, and not who calls it, so it is only
good in addition. `config check` warns if no repository is named.

A `preset` sets what fits a provider's tokens, and refuses a configuration that would let strangers in. There are
presets for GitHub Actions, GitLab, Kubernetes, Google, Entra ID, Keycloak, Auth0, Okta, authentik, Cognito and ZITADEL,
and for people also for Dex, Ory Hydra and Authelia: [presets.md](presets.md).

## Clients with an id and a secret

A machine may know a client id and a secret but be unable to fetch a token itself. It then sends
`PREFECT_API_AUTH_STRING=client_id:client_secret`, and the service fetches the token from the issuer's token endpoint
(RFC 6749 §4.4). The service checks that token like one that a caller sends: it must be a JWT of this issuer, for one
of `audiences`, with `required_scopes` and everything else. Roles and grants use its claims.

```toml
[issuer]
url = "https://idp.example.com/realms/data"
audiences = ["prefect"]
role = "worker"

[issuer.client_credentials]
clients = ["prefect-*"]      # these are clients; every other name is a user of the users file
scopes = ["prefect"]         # Entra ID: ["api://prefect/.default"]
audience = "prefect"         # Auth0; elsewhere leave it out
```

- `clients` decides who checks a name. The patterns of two issuers must therefore not match the same name. A user
  whose name matches a pattern can sign in only at the sign-in page.
- A client id must not contain a colon (RFC 7617).
- If the issuer cannot be reached, the answer is 503, which a worker waits out, and never 401.
- The service remembers what the issuer granted for at most `remember` seconds. With a `store` and `session.keys`,
  replicas share it: it is encrypted, and its key in the store reveals neither id nor secret.

## Opaque tokens

Some issuers give access tokens that are no JWTs: only the issuer can tell whose they are. With
`[issuer.introspection]`, the service asks it (RFC 7662), and checks the answer like the claims of a JWT.

```toml
[issuer]
url = "https://idp.example.com/realms/data"
audiences = ["prefect"]
role = "worker"

[issuer.introspection]
client_id = "prefect-forward-auth"     # a client of this service's own, which may introspect
# client_secret: in the secrets file, or FORWARD_AUTH_ISSUER__INTROSPECTION__CLIENT_SECRET_FILE
```

- A token with two dots is a JWT and is never sent to the issuer. Every other token is opaque: send it as
  `PREFECT_API_KEY=<token>` or `PREFECT_API_AUTH_STRING="Bearer <token>"`. In `user:password` and in a URL, an opaque
  token cannot be told from a password, and counts as one.
- The answer must have `"active": true`, one of `audiences` in `aud`, and `exp`. If it has `iss`, that must be the
  issuer's URL. `required_scopes`, `required_claims` and everything else apply to its members. `principal_claim` can be
  `username`.
- Tokens of client credentials often have no `sub` in the answer. They are accepted with
  `principal_claim = "client_id"`.
- A refresh token is refused: an answer must have the `token_type` Bearer or, without one, an `aud`.
- A revoked token is accepted until the answer is `remember` seconds old. Then its WebSockets end, too. While the issuer
  does not answer, or not clearly, the answer is 503, and its WebSockets end as well.
- Only one issuer can have this. An opaque token does not say whose it is, and asking a second issuer about it would
  give it away. Write that issuer as `[issuer]`, so that the secret can come from a source of its own.
- Signed answers (RFC 9701) are not supported.

## Roles and grants

The `role` of an issuer, of `[users]` and of `[oidc]` applies to all of their callers. `[[grants]]` give more roles to
callers that meet every condition of the grant. Roles add up. A caller without any role is refused everything.
[roles.md](roles.md) lists the five built-in roles, the capabilities and the routes.

```toml
[[grants]]                                   # people of these groups, at the provider
issuer = "https://idp.example.com/realms/people"
groups = ["data-engineers", "prefect-admins"]
roles = ["deployer"]

[[grants]]                                   # a CI system's tokens, of one branch
issuer = "https://token.actions.githubusercontent.com"
roles = ["deployer"]
claims = { repository_id = "123456789", ref = { glob = ["refs/heads/release-*"] } }

[[grants]]                                   # a client, with a scope
issuer = "https://idp.example.com/realms/data"
clients = ["night-worker"]
scopes = ["prefect"]
roles = ["night"]

[[grants]]
issuer = "local"                             # the users file
users = ["alice", "ops-*"]
roles = ["admin"]

[roles.night]                                # a role of your own
capabilities = ["read", "read-secret", "report", "emit", "slots", "variables", "work"]
routes = ["POST /api/flow_runs/{id}/resume"]
work_pools = ["night-*"]
```

A rule for a claim uses `equals`, `any_of`, `all_of` or `glob`. If it uses several, the claim must satisfy each. A
word or a list instead of a rule means `any_of`. Dots lead into nested claims. In patterns `*` matches any text
without `/`, `:` and `@`, and `**` matches any text.

A session stores the claims that grants used when it began, and the service computes its roles again at every use. A
grant that you add, change or remove therefore takes effect at the next start or SIGHUP, also for sessions and
remembered passwords. A rule for a claim that no grant used before takes effect after the provider was asked again
(`oidc.check`).

`prefect-forward-auth explain` shows what a role, a user, a token or its claims may do, and which grant was not met.

## Secrets

Any key may come from any source. The following sources are made for secrets.

**The secrets file** is refused, unread, if anybody but its owner may read it. If root owns it, its group may read it,
too: this is how Kubernetes gives a file to a process that is not root (`defaultMode: 0440` and an `fsGroup`). `config
edit-secrets` opens a draft in `$VISUAL` or `$EDITOR`. It replaces the file in one step, with mode 0600, and only if
the draft has no new mistake. An interrupted editor changes nothing. `config show` masks every secret.

**Secrets managers** are asked only for names that are those of variables. The SDK signs in with what it finds: a
workload's identity, a profile, a variable. If a secrets manager cannot be read, the service does not start.

| `FORWARD_AUTH_SECRETS_FROM` | contains | extra |
| --- | --- | --- |
| `gcp:PROJECT` | one secret per key, such as `FORWARD_AUTH_SESSION__KEYS`; its latest version | `gcp` |
| `aws:SECRET-ID` | one secret, a JSON object of such names; the region from an ARN or `AWS_REGION` | `aws` |
| `azure:https://VAULT.vault.azure.net` | one secret per key, with dashes: `FORWARD-AUTH-SESSION--KEYS` | `azure` |

Each needs an extra of the package: `pip install '.[gcp]'` in a clone. Grant the service permission to list and read
secrets; for Amazon, `secretsmanager:GetSecretValue` on that one secret. Separate several places with commas; a place
overrides those after it.

## Changing it while the service runs

On SIGHUP (`kill -HUP`, `systemctl reload`, `docker kill -s HUP`) the service reads all sources again. The variables
of a running process cannot change, but files and secrets managers can.

- The new configuration takes effect as a whole, between two calls, or not at all. If anything is wrong, or a secrets
  manager cannot be reached, the previous configuration stays in force. The log then lists every problem, `/readyz`
  says `degraded`, and `forward_auth_config_broken` is 1.
- No call is refused or dropped. Calls in progress end with the configuration that they began with. The service
  forgets remembered verdicts. It keeps issuers' keys, sessions, sign-outs, counted failures and metrics.
- `host`, `port`, `uds`, `workers` and `shutdown_grace` need a restart; the log says so.
- With `--workers`, send the signal to the first process. It tells the others.
"""

FILES = """## Who may read and write the files

| file | who besides its owner | else |
| --- | --- | --- |
| `secrets.toml` | nobody; the group may read it if root owns it | refused, unread |
| a file that `…_FILE` names, for a key that is a secret | the same | refused, unread |
| the secrets directory | nobody may write to it, unless it is mounted read-only | nothing in it is read |
| each file in the secrets directory that is named like a key | the same as for `secrets.toml` | refused, unread |
| the users file | all may read it, nobody may write to it | refused; a running service keeps the users that it has |

- **Kubernetes** mounts a Secret with mode 0644. Set `defaultMode: 0440`, and `fsGroup` to the service's group. The
  users file may keep 0644. On a persistent volume, `fsGroup` makes files writable by the group at each mount: set
  `fsGroupChangePolicy: OnRootMismatch`, or mount the users file from a Secret.
- **Docker** mounts secrets with mode 0444, or with the mode that a file has on the host. Set `mode: 0440` and `gid` to
  the service's group (65532 in the image), or `chmod 600` and `chown 65532` the file on the host.
- **systemd** credentials (`LoadCredential=`) need nothing.
- The users file holds bcrypt hashes, not passwords, so reading it does not open a door. Keep it from others all the
  same: a short password can be guessed from its hash.
"""
OUTBOUND = """## Proxies and certificate authorities

Calls to issuers, providers and Prefect follow the variables that other programs follow, too. They are checked like a
setting: what cannot be used stops the start, with one line that names the variable.

- **`HTTPS_PROXY`, `HTTP_PROXY`**: the proxy for calls to `https://` and to `http://` URLs, as `http://HOST:PORT` or
  `https://HOST:PORT`. Put `USER:PASSWORD@` before the host if the proxy asks for it.
- **`ALL_PROXY`**: the proxy for calls that have none of their own. SOCKS is not supported.
- **`NO_PROXY`**: what is called without a proxy, separated by commas. A host name stands for itself and all names below
  it (`example.com`, or `.example.com`); an address or a network for itself (`10.0.0.0/8`, `fd00::/8`). Each may have a
  `:PORT`, and is then for that port alone. `*` is everything.
- **`SSL_CERT_FILE`**: a PEM file with the authorities that vouch for servers. It replaces those that come with the
  service.
- **`SSL_CERT_DIR`**: the same as a folder, or several with `:` between them. `openssl rehash` gives the files the names
  that are needed. It is not read if `SSL_CERT_FILE` is set.

Rules:

- The proxy variables may be in lower case. If both spellings are there, the lower-case one counts, even if it is empty.
- `localhost` and loopback addresses are never called through a proxy.
- Networks in `NO_PROXY` are compared with addresses in URLs. Host names are not looked up for that.
- A running service keeps the proxies and authorities that it was started with.
- `.netrc` is not read. The SDKs of secrets managers read the environment in their own way.
"""

PRESETS_PAGE = """# Presets

<!-- made by docs/generate.py from service/core/identity/presets.py and service/rendering/presets.py: `make docs` -->

A preset is what this service knows of a provider. One in `[oidc]` is about people who sign in there, and one in the
section of an issuer about the tokens of machines:

```toml
[oidc]
preset = "keycloak"
issuer = "https://idp.example.com/realms/data"
client_id = "prefect"

[issuer]
preset = "github-actions"
audiences = ["prefect"]
required_claims = { repository_id = ["123456789"] }
role = "deployer"
```

- A preset sets **defaults**: which claims name the caller, the e-mail address and the groups, which `typ` and which
  algorithms are accepted; for people also which scopes are requested, and how one signs out or switches accounts. A
  key that you set yourself overrides its default.
- A preset has **rules**, which you cannot override. Many providers sign tokens for everybody. A configuration that
  would let strangers in is refused: the service does not start, and `config check` says what to add.
- `prefect-forward-auth config presets` lists the presets, and `config presets NAME` shows one. `config show` marks the
  values that come from a preset.
- A value in `required_claims` is compared as a whole, and has no wildcards. Patterns are for the
  [grants](configuration.md#roles-and-grants). A rule is met by any value that you name: check that it is yours.

What is set up at the provider is on its page in [providers](providers/README.md). Each example here works as it
stands, except for the names.

"""
FOR_PEOPLE = """# For people: `[oidc]`

A preset that was run against the provider says with which version. The others follow the provider's documentation.

"""
FOR_MACHINES = """# For machines: `[issuer]` and `[[issuers]]`

The claims and the rules follow each provider's documentation, and the tests use tokens of the shape that is documented
there.

"""
ROLES = """# Roles

<!-- made by docs/generate.py from service/core/prefect/table.py and service/core/prefect/roles.py: `make docs` -->

Prefect's server has no users and no roles. This service adds them. It matches each request, by method and path, to
the route that the server will execute, exactly as the server's own router does. Each route needs one capability out
of those in its row. A role is a set of capabilities. A caller without a role has no access, and a route that is not
in the table below is for `admin` only. A refusal is 403 `insufficient_scope`; it says who was refused, what the
request needs, and which roles have it.

| role | may |
| --- | --- |
| `viewer` | see everything except the secrets of blocks, in both UIs, too |
| `runner` | also start, cancel, retry, pause and resume runs |
| `worker` | do what workers and flow runs do: take runs, report states and logs, read secrets, set variables |
| `deployer` | deploy and serve flows, create work pools and blocks |
| `admin` | everything, including routes that are not known |

The table knows every route of Prefect 3.4 to 3.9. It also knows reads that use POST, secrets that a flag in the body
asks for, and the DELETE calls that a deployment needs. Before you upgrade Prefect, `prefect-forward-auth routes diff
URL` lists the routes that are new. [configuration.md](configuration.md#roles-and-grants) describes how callers get
roles, and roles of your own.

## Capabilities
"""
NOTES = """## Secrets of blocks

`include_secrets` in a query needs `read-secret`, on every route and in every spelling that does not plainly mean no.
For `POST /api/block_documents/filter` Prefect reads the flag from the body. A role without `read-secret` may call
that route only if the proxy sends the body along, the body is JSON, and it does not ask for secrets. Both UIs need
that route for their block pages.

## What a role cannot hold back

- A caller who may start a run chooses its parameters and job variables. If the work pool's template lets those set
  the command or the environment, as the template of a process pool does, `run` is the right to run code there, with
  the worker's credential.
- A starting worker writes the job template of its work pool if there is none, and Prefect has no narrower right for
  that than to change any pool. If you give workers a role without `join`, somebody else must create their pools
  completely. A role that is limited to work pools can change only those.
- A caller who deploys decides what workers run, and can therefore do what the workers can do.
- Parameters, variables, logs and artifacts are in plain text for everybody who may read. Put secrets into blocks.
- `report`, `emit` and `work` apply to all runs: Prefect does not say whose a run is.
- A limit to work pools, flows or deployments applies only where a path contains the name. Most paths contain ids, and
  lists contain everything. A limit keeps a worker to its pools; it does not separate tenants.
"""


def rows(section: type[BaseModel], at: str = "") -> list[str]:
    """Return one table row a key, sections in their order."""
    found = []
    for name, field in section.model_fields.items():
        below = next((one for one in (field.annotation, *get_args(field.annotation)) if _is_section(one)), None)
        if name == "issuers":
            continue
        many = get_origin(field.annotation) in {tuple, dict}
        description = (field.description or "").replace("|", "\\|")
        key = f"`{at}{name}`"
        if "[" not in at and "<" not in at:  # what stands in a list, or under any name, is JSON in a variable
            key += f"<br>`{PREFIX}{f'{at}{name}'.upper().replace('.', '__')}`"
        if below is None or many:
            found.append(f"| {key} | {_default(field, name)} | {description} |")
        if below is not None:
            inside = "[]." if get_origin(field.annotation) is tuple else ".<name>." if many else "."
            found += rows(below, f"{at}{name}{inside}")
    return found


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _default(field: Any, name: str) -> str:
    if field.default is PydanticUndefined:
        return "one less than the processors" if field.default_factory else "**required**"
    value = field.default
    if name == "algorithms":
        return "all ten"
    if isinstance(value, frozenset | tuple):
        return ", ".join(f"`{one}`" if str(one) else "(empty)" for one in sorted(value, key=str)) or "none"
    if value is None or value in ("", {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def configuration() -> str:
    """Return the page of the settings."""
    table = ["## All keys", "", "| key and variable | default | meaning |", "| --- | --- | --- |", *rows(Settings)]
    return "\n".join([CONFIGURATION, FILES, OUTBOUND, *table, ""])


def roles() -> str:
    """Return the page of the roles, capabilities and routes."""
    held = ["| capability | " + " | ".join(BUILT_IN) + " | the right to |", "| --- " * (len(BUILT_IN) + 2) + "|"]
    for capability, meaning in MEANING.items():
        cells = ["yes" if _holds(role, capability) else "" for role in BUILT_IN]
        held.append(f"| `{capability}` | {' | '.join(cells)} | {meaning} |")
    routes = ["## Routes", "", "| route | opened by | remark |", "| --- | --- | --- |", *map(_route, known_routes())]
    return "\n".join([ROLES, *held, "", NOTES, *routes, ""])


def _holds(role: str, capability: Capability) -> bool:
    return not BUILT_IN[role].capabilities.isdisjoint({capability, Capability.ADMIN}) or capability is Capability.ANY


def _route(route: Route) -> str:
    opened = ", ".join(f"`{one}`" for one in sorted(route.capabilities))
    return f"| `{route.rule}` | {opened} | {route.why} |"


def presets() -> str:
    """Return the page of the presets."""
    people = [_section(WORDS_FOR_PEOPLE[name].title, name, people_lines(name)) for name in PRESETS_FOR_PEOPLE]
    machines = [_section(WORDS[name].title, name, preset_lines(name)) for name in PRESETS]
    return "\n".join([PRESETS_PAGE, FOR_PEOPLE, *people, FOR_MACHINES, *machines])


def _section(title: str, name: str, lines: Iterable[str]) -> str:
    return f"## {title}: `{name}`\n\n" + "\n".join(lines) + "\n"


PAGES = {"configuration.md": configuration, "presets.md": presets, "roles.md": roles}


def main() -> None:
    """Write the pages, or with --check exit 1 if one is not what the code says."""
    if "--check" not in sys.argv[1:]:
        for name, page in PAGES.items():
            (FOLDER / name).write_text(page(), "utf-8")
        return
    stale = [name for name, page in PAGES.items() if (FOLDER / name).read_text("utf-8") != page()]
    if stale:
        sys.exit(f"{', '.join(stale)}: not what the code says, run `make docs`")
    print(f"{', '.join(PAGES)}: up to date")


if __name__ == "__main__":
    main()
