"""Write the documents that are made from the code: `python -m docs.generate`, or `--check` to hold them to it."""

import sys
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from service.core.prefect.roles import BUILT_IN
from service.core.prefect.routes import MEANING, Capability, Route, known_routes
from service.settings.schema import PREFIX, Settings

FOLDER = Path(__file__).parent
CONFIGURATION = """# Configuration

<!-- made by docs/generate.py from service/settings/schema.py: `make docs` -->

Sources, strongest first:

1. the command line (`--host`, `--port`, `--uds`, `--workers`)
2. the environment: `FORWARD_AUTH_` and the key, nested with `__`; an empty variable is not given
3. files: `…_FILE` beside any variable names a file that holds the value; `FORWARD_AUTH_SECRETS_DIR` names a folder
   of files that are named like the variables, in any case (Docker's `/run/secrets`, a mounted Kubernetes Secret)
4. the secrets file: `secrets.toml` beside `forward-auth.toml`, or what `--secrets` or `FORWARD_AUTH_SECRETS_FILE`
   names
5. the secrets managers that `secrets_from` names
6. `forward-auth.toml` in the working directory, or the file that `--config` or `FORWARD_AUTH_CONFIG` names
7. the defaults below

`prefect-forward-auth config init` writes both files, with every key, its meaning and its default.

A key that does not exist is refused, wherever it stands. `prefect-forward-auth config check` lists every problem at
once; `config show` prints the values in force with the source of each. Lists are
comma-separated in a variable.

Several issuers are `[[issuers]]` tables with the keys of `[issuer]`, or JSON in `FORWARD_AUTH_ISSUERS`. Both may
stand side by side.

```toml
[[issuers]]
url = "https://idp.example.com/realms/data"
audiences = ["prefect"]
role = "worker"

[[issuers]]
url = "https://token.actions.githubusercontent.com"
audiences = ["prefect"]
required_claims = { repository_owner = ["acme"] }
role = "deployer"

[users]
file = "/run/secrets/users.htpasswd"
role = "viewer"
```

## Clients with an id and a secret

A machine that knows a client id and a secret, and cannot fetch a token itself, sends
`PREFECT_API_AUTH_STRING=client_id:client_secret`; the service fetches one for it, at the issuer's token endpoint (RFC
6749 §4.4). That token is judged like one that a caller sends: it must be a JWT of this issuer, for one of
`audiences`, with `required_scopes` and all the rest; roles and grants see its claims.

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

`clients` decides whose check a name is for, so no two issuers' patterns may be met by one name, and a user whose name
meets one can only sign in at the page. A colon in a client id cannot be sent (RFC 7617). An issuer that is away is
503, which a worker sits out, and never 401. What the issuer granted is remembered for `remember` seconds at most, and
with a `store` and `session.keys` replicas share it: sealed, under a name that tells nothing.

## Roles and grants

`role` of an issuer, of `[users]` and of `[oidc]` is for all of theirs; `[[grants]]` give more, to those who meet every
condition that a grant names. Roles add up; without any, everything is refused. The five roles that are built in, the
capabilities and the routes: [roles.md](roles.md).

```toml
[[grants]]                                   # people of these groups, at the provider
issuer = "https://idp.example.com/realms/people"
groups = ["data-engineers", "prefect-admins"]
roles = ["deployer"]

[[grants]]                                   # a CI system's tokens, of one branch
issuer = "https://token.actions.githubusercontent.com"
roles = ["deployer"]
claims = { repository = "acme/flows", ref = { glob = ["refs/heads/release-*"] } }

[[grants]]                                   # a client, with a scope
issuer = "https://idp.example.com/realms/data"
clients = ["night-worker"]
scopes = ["prefect"]
roles = ["night"]

[[grants]]
issuer = "local"                             # the users file
users = ["alice", "ops-*"]
roles = ["admin"]

[roles.night]                                # a role of one's own
capabilities = ["read", "read-secret", "report", "emit", "slots", "variables", "work"]
routes = ["POST /api/flow_runs/{id}/resume"]
work_pools = ["night-*"]
```

A claim's rule is one of `equals`, `any_of`, `all_of` and `glob`, or several, of which each must hold; a word or a list
is `any_of`. Dots lead into nested claims. In patterns `*` is any text without `/`, `:` and `@`, `**` any text at all.

A session keeps the claims that grants asked for when it began, and is granted roles anew whenever it is used: a grant
that is added, changed or removed holds at the next start or SIGHUP, for sessions and remembered passwords, too. A rule
for a claim that no grant asked for before holds once the provider has been asked again (`oidc.check`).

`prefect-forward-auth explain` tells what a role, a user, a token or its claims may, and which grant was not met.

## Secrets

Any key may come from any source; these are for what nobody else should read.

**The secrets file** is refused, unread, if anybody but its owner may read it. Where root owns it, its group may: that
is how Kubernetes gives a file to a process that is not root (`defaultMode: 0440` and an `fsGroup`).
`config edit-secrets` opens it in `$VISUAL` or `$EDITOR`, and replaces it, whole and with mode 0600, only if the draft
brings no new mistake; an interrupted editor changes nothing. `config show` masks every secret.

**Secrets managers** are asked for what is named like the variables, and for nothing else. The SDK signs in with what
it finds: a workload's identity, a profile, a variable. One that cannot be read stops the start.

| `FORWARD_AUTH_SECRETS_FROM` | holds | extra |
| --- | --- | --- |
| `gcp:PROJECT` | a secret a key, such as `FORWARD_AUTH_SESSION__KEYS`; its latest version | `gcp` |
| `aws:SECRET-ID` | one secret, a JSON object of such names; the region from an ARN or `AWS_REGION` | `aws` |
| `azure:https://VAULT.vault.azure.net` | a secret a key, with dashes: `FORWARD-AUTH-SESSION--KEYS` | `azure` |

The extras are packages: `pip install 'prefect-forward-auth[gcp]'`. The permissions to grant are listing and reading
secrets; for Amazon, `secretsmanager:GetSecretValue` on that one. Several places are separated by commas, the first the
strongest.

## Changing it while the service runs

SIGHUP (`kill -HUP`, `systemctl reload`, `docker kill -s HUP`) lets the service read all sources again. The variables
of a running process stay what they are; files and secrets managers may have changed.

- All of it takes effect between two calls, or none of it. If anything is wrong, an unreachable secrets manager
  included, the configuration before stays in force, the log lists every problem, `/readyz` says `degraded`, and
  `forward_auth_config_broken` is 1.
- No call is refused or dropped. Those under way end with what they began with. Remembered verdicts are forgotten;
  issuers' keys, sessions, sign-outs, counted failures and metrics are kept.
- `host`, `port`, `uds`, `workers` and `shutdown_grace` take a restart; the log says so.
- With `--workers`, signal the first process: it tells the others.
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

ROLES = """# Roles

<!-- made by docs/generate.py from service/core/prefect/table.py and service/core/prefect/roles.py: `make docs` -->

Prefect's server has no users and no roles; here are some. Each request is matched to the route that the server will
execute, by method and path, as exactly as its own router does it. Each route is opened by any one of its capabilities;
a role is a set of those. Whoever has no role gets nothing, and a route that is not in the table below is for `admin`
alone. A refusal is 403 `insufficient_scope` and says who was refused, what was needed and which roles have it.
"""
NOTES = """## Secrets

`include_secrets` in a query needs `read-secret`, on any route and in any spelling that is not a plain no. On
`POST /api/block_documents/filter` Prefect reads it from the body: roles without `read-secret` may call that route only
where the proxy sends the body along, and only if it is JSON that does not ask. Both UIs need that route for their block
pages.

## What a role cannot hold back

- Who may start a run chooses its parameters and job variables. Where a work pool's template lets those set the command
  or the environment, as a process pool's does, `run` is the right to run code there, with the worker's credential.
- A worker that starts writes the job template of its work pool where there is none, and Prefect has no narrower right
  for that than to change any pool. A role of a worker without `join` needs its pools made complete by others; one that
  is limited to its work pools changes those alone.
- Who deploys decides what workers run, and so can do what they can.
- Parameters, variables, logs and artifacts are in plain text for whoever reads: secrets belong in blocks.
- `report`, `emit` and `work` are rights over all runs: Prefect does not say whose a run is.
- A limit to work pools, flows or deployments holds where a path carries the name. Most paths carry ids, and lists are
  of everything: a limit keeps a worker to its pools; it does not keep tenants apart.
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
        return "one less than the processors" if field.default_factory else "**needed**"
    value = field.default
    if name == "algorithms":
        return "all ten"
    if isinstance(value, frozenset | tuple):
        return ", ".join(f"`{one}`" if str(one) else "without" for one in sorted(value, key=str)) or "none"
    if value is None or value in ("", {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def configuration() -> str:
    """Return the page of the settings."""
    table = ["## All keys", "", "| key and variable | default | meaning |", "| --- | --- | --- |", *rows(Settings)]
    return "\n".join([CONFIGURATION, FILES, OUTBOUND, *table, ""])


def roles() -> str:
    """Return the page of the roles, capabilities and routes."""
    held = ["| capability | " + " | ".join(BUILT_IN) + " | means |", "| --- " * (len(BUILT_IN) + 2) + "|"]
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


PAGES = {"configuration.md": configuration, "roles.md": roles}


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
