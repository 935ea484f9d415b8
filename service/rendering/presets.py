"""The words about presets: what their claims say, what their rules are for, and an example of each.

``config presets`` and docs/presets.md show them, and the sentences about a broken rule use them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from service.core.identity.presets import PRESETS, PRESETS_FOR_PEOPLE, Preset


@dataclass(frozen=True, slots=True)
class Words:
    """What is said about one preset.

    ``strangers``, ``url``, ``audience`` and ``refused`` are the reasons for its rules, as parts of sentences; ``pin``
    is how a claim is required. ``claims`` has what each claim says. ``example`` is TOML, complete but for the names.
    ``groups`` is how people get groups into their tokens, as part of a sentence. ``run`` is the version that it was
    tried with; what has none is by the provider's documentation.
    """

    title: str
    documentation: str
    example: str
    claims: Mapping[str, str]
    strangers: str = ""
    pin: str = ""
    url: str = ""
    audience: str = ""
    refused: str = ""
    groups: str = ""
    run: str = ""
    notes: tuple[str, ...] = field(default=())


WORDS: Final[Mapping[str, Words]] = {
    "github-actions": Words(
        "GitHub Actions",
        "https://docs.github.com/en/actions/reference/security/oidc",
        """\
[[issuers]]
preset = "github-actions"
audiences = ["prefect"]
required_claims = { repository_id = ["123456789"] }

[[grants]]
issuer = "https://token.actions.githubusercontent.com"
claims = { ref = ["refs/heads/main"], event_name = ["push", "workflow_dispatch"] }
roles = ["deployer"]
""",
        {
            "repository": "owner and name of the repository",
            "repository_id": "the same as a number, which nobody else can take over",
            "repository_owner": "the user or organization that owns it",
            "repository_owner_id": "the same as a number",
            "repository_visibility": "`public`, `private` or `internal`",
            "ref": "the branch or tag, such as `refs/heads/main`",
            "ref_type": "`branch` or `tag`",
            "environment": "the job's environment, if it has one",
            "event_name": "what started the workflow, such as `push` or `pull_request`",
            "workflow_ref": "the workflow's file, with its repository and ref",
            "job_workflow_ref": "the reusable workflow of the job, which anybody may call",
            "actor_id": "the account that started the run, as a number",
            "runner_environment": "`github-hosted` or `self-hosted`",
        },
        strangers="each repository on GitHub gets tokens of this issuer, for any audience",
        pin='required_claims = { repository_id = ["123456789"] }',
        refused="whoever writes a workflow, or opens a pull request, chooses it. Use workflow_ref, ref or environment",
        notes=(
            "`gh api repos/OWNER/NAME --jq .id` prints a repository's number.",
            (
                "An owner alone lets in every repository and every branch of that owner. Give roles with grants that "
                "name a branch or an environment."
            ),
            "For GitHub Enterprise Server set `url` to `https://HOSTNAME/_services/token`.",
        ),
    ),
    "gitlab-ci": Words(
        "GitLab CI/CD",
        "https://docs.gitlab.com/ci/secrets/id_token_authentication/",
        """\
[[issuers]]
preset = "gitlab-ci"
audiences = ["prefect"]
required_claims = { project_id = ["12345678"] }

[[grants]]
issuer = "https://gitlab.com"
claims = { ref = ["main"], ref_type = ["branch"], ref_protected = ["true"] }
roles = ["deployer"]
""",
        {
            "project_path": "group and name of the project",
            "project_id": "the same as a number, which nobody else can take over",
            "namespace_path": "the group or user that has the project",
            "namespace_id": "the same as a number",
            "ref": "the branch or tag, without `refs/heads/`",
            "ref_type": "`branch` or `tag`",
            "ref_path": "the whole ref, such as `refs/heads/main`",
            "ref_protected": "`true` if the branch or tag is protected",
            "environment": "the job's environment, if it has one",
            "environment_protected": "`true` if that environment is protected",
            "deployment_tier": "that environment's tier",
            "pipeline_source": "what started the pipeline, such as `push` or `merge_request_event`",
            "user_id": "the account that runs the job",
            "runner_environment": "`gitlab-hosted` or `self-hosted`",
        },
        strangers="each project on the GitLab instance gets tokens of this issuer, for any audience",
        pin='required_claims = { project_id = ["12345678"] }',
        notes=(
            "A branch and a tag may have the same name: name `ref_type`, too, or use `ref_path`.",
            "For your own GitLab set `url`.",
        ),
    ),
    "kubernetes": Words(
        "Kubernetes service accounts",
        "https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/",
        """\
[[issuers]]
preset = "kubernetes"
url = "https://kubernetes.default.svc.cluster.local"
audiences = ["prefect"]
required_claims = { "kubernetes.io.namespace" = ["prefect"] }
jwks_url = "https://kubernetes.default.svc/openid/v1/jwks"
jwks_token_file = "/var/run/secrets/kubernetes.io/serviceaccount/token"
jwks_ca_file = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"

[[grants]]
issuer = "https://kubernetes.default.svc.cluster.local"
users = ["system:serviceaccount:prefect:worker"]
roles = ["worker"]
""",
        {
            "sub": "`system:serviceaccount:NAMESPACE:NAME`",
            "kubernetes.io.namespace": "the namespace",
            "kubernetes.io.serviceaccount.name": "the name of the service account, within its namespace",
            "kubernetes.io.serviceaccount.uid": "its id, which is new whenever it is created again",
            "kubernetes.io.pod.name": "the pod",
            "kubernetes.io.node.name": "the node, from Kubernetes 1.30 on",
        },
        strangers="each pod of the cluster can get tokens of this issuer, for any audience",
        pin='required_claims = { "kubernetes.io.namespace" = ["prefect"] }',
        audience="each pod has a token for the API server. Project one for an audience of its own "
        "(serviceAccountToken.audience)",
        notes=(
            "`kubectl get --raw /.well-known/openid-configuration` prints the issuer's URL.",
            (
                "Inside of the cluster, the API server gives its keys only to service accounts, with a certificate of "
                "the cluster's own authority: this is what `jwks_token_file` and `jwks_ca_file` are for. Both files "
                "are read at each fetch. An issuer that is public (EKS, GKE, AKS) needs neither, and no `jwks_url`."
            ),
            (
                "The manifests in deploy/kubernetes mount no token into the service: add a projected volume with a "
                "`serviceAccountToken` and the ConfigMap `kube-root-ca.crt`. Their NetworkPolicy lets it out to port "
                "443: add the API server's own port, often 6443."
            ),
            "A token is accepted until it expires, even if its pod is gone: keep `expirationSeconds` short.",
        ),
    ),
    "google": Words(
        "Google service accounts",
        "https://cloud.google.com/docs/authentication/get-id-token",
        """\
[[issuers]]
preset = "google"
audiences = ["prefect"]
required_claims = { email = ["worker@my-project.iam.gserviceaccount.com"] }
role = "worker"
""",
        {
            "email": "the service account's address; the metadata server adds it only for `format=full`",
            "sub": "the service account's number",
            "azp": "as `sub`",
            "hd": "the organization of an account of Google Workspace; service accounts have none",
            "google.compute_engine.project_id": "the project of a virtual machine, with `format=full`",
            "google.compute_engine.project_number": "the same as a number",
            "google.compute_engine.instance_id": "the virtual machine",
            "google.compute_engine.zone": "its zone",
        },
        strangers="everybody with a Google account can get tokens of this issuer, for any audience",
        pin='required_claims = { email = ["worker@my-project.iam.gserviceaccount.com"] }',
        notes=(
            (
                "`gcloud auth print-identity-token --impersonate-service-account=ACCOUNT --audiences=prefect "
                "--include-email` prints a token. One without that option has no `email`: require `sub` for it."
            ),
        ),
    ),
    "entra": Words(
        "Microsoft Entra ID",
        "https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference",
        """\
[[issuers]]
preset = "entra"
url = "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/v2.0"
audiences = ["66666666-7777-8888-9999-000000000000"]

[[grants]]
issuer = "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/v2.0"
groups = ["Prefect.Worker"]
roles = ["worker"]
""",
        {
            "roles": "the app roles that were assigned to the caller",
            "groups": "the ids of the caller's groups, if the app asks for them",
            "oid": "the caller: the id of a user or a service principal",
            "sub": "the caller, by an id that is another one for each app",
            "tid": "the tenant",
            "azp": "the client's id (v2.0 tokens)",
            "appid": "the client's id (v1.0 tokens)",
            "idtyp": "`app` if the token is no user's; an optional claim",
            "scp": "the scopes of a user's token",
        },
        strangers="each app of the tenant can get a token for this audience, unless assignment is required",
        pin='required_claims = { roles = ["Prefect.Worker"] }',
        url="that of one tenant with its id, such as "
        "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/v2.0. Tokens of 'common', "
        "'organizations', 'consumers' or of personal accounts come from everybody",
        audience="it is that of Microsoft Graph",
        refused="it may change, and the tenant does not prove it. Use oid",
        notes=(
            (
                "`groups` of a grant are app roles here (`groups_claim` is `roles`): define them in the app's "
                "manifest, and assign them to service principals."
            ),
            (
                'With `groups_claim = "groups"`, a token whose groups do not fit (`hasgroups`, `_claim_names`) is '
                "refused. It never counts as one without groups."
            ),
            (
                "v2.0 tokens have the app's client id as `aud`. v1.0 tokens have its App ID URI, and the issuer "
                "`https://sts.windows.net/TENANT-ID/`. `accessTokenAcceptedVersion` in the manifest decides which."
            ),
            "v1.0 tokens have no `azp`: require `appid` in place of `authorized_parties`.",
        ),
    ),
    "keycloak": Words(
        "Keycloak",
        "https://www.keycloak.org/docs/latest/server_admin/#_audience",
        """\
[[issuers]]
preset = "keycloak"
url = "https://idp.example.com/realms/data"
audiences = ["prefect"]

[[grants]]
issuer = "https://idp.example.com/realms/data"
groups = ["prefect-worker"]
roles = ["worker"]
""",
        {
            "realm_access.roles": "roles of the realm",
            "resource_access.prefect.roles": "roles of the client `prefect`; a client's id may have dots",
            "groups": "groups, if a mapper adds them",
            "azp": "the client",
            "sub": "the caller",
            "scope": "the scopes",
        },
        url="that of a realm, such as https://idp.example.com/realms/data",
        audience="it is in nearly every token of the realm. Add an audience mapper, and name its audience",
        notes=(
            (
                "`groups` of a grant are roles of the realm. For roles of a client set `groups_claim` to "
                "`resource_access.CLIENT-ID.roles`."
            ),
        ),
    ),
    "auth0": Words(
        "Auth0",
        "https://auth0.com/docs/secure/tokens/access-tokens/access-token-profiles",
        """\
[[issuers]]
preset = "auth0"
url = "https://my-tenant.eu.auth0.com/"
audiences = ["https://prefect.example.com"]
required_claims = { gty = ["client-credentials"] }

[[grants]]
issuer = "https://my-tenant.eu.auth0.com/"
groups = ["work:prefect"]
roles = ["worker"]
""",
        {
            "permissions": "the permissions of the API, if RBAC adds them to its tokens",
            "https://example.com/groups": "a claim of your own: an Action must give it a URL as a name",
            "gty": "`client-credentials` for a machine, in tokens of Auth0's own profile",
            "azp": "the client, in tokens of Auth0's own profile",
            "client_id": "the client, in tokens of the RFC 9068 profile",
            "org_id": "the organization that a user signed in to",
            "sub": "the caller; `CLIENT-ID@clients` for a machine",
            "scope": "the scopes",
        },
        strangers="everybody who signs up with the tenant can get a user's token for this audience",
        pin='required_claims = { gty = ["client-credentials"] }',
        url="that of the tenant with the slash at its end, such as https://my-tenant.eu.auth0.com/",
        audience="it is that of Auth0's own API",
        notes=(
            (
                "`groups` of a grant are permissions here. For an Action's claim set `groups_claim` to its whole name, "
                "such as `https://example.com/groups`."
            ),
        ),
    ),
    "okta": Words(
        "Okta",
        "https://developer.okta.com/docs/guides/validate-access-tokens/",
        """\
[[issuers]]
preset = "okta"
url = "https://my-org.okta.com/oauth2/aus1a2b3c4D5e6F7g8h9"
audiences = ["api://prefect"]
required_scopes = ["prefect"]

[[grants]]
issuer = "https://my-org.okta.com/oauth2/aus1a2b3c4D5e6F7g8h9"
claims = { cid = ["0oa1a2b3c4D5e6F7g8h9"] }
roles = ["worker"]
""",
        {
            "groups": "groups, if the authorization server adds such a claim",
            "cid": "the client's id",
            "uid": "the user's id; machines have none",
            "sub": "the user's login, or the client's id",
            "scp": "the scopes",
        },
        strangers="each app and each user that the authorization server's policies allow gets such tokens",
        pin='required_claims = { cid = ["0oa1a2b3c4D5e6F7g8h9"] }',
        url="that of a custom authorization server, such as https://my-org.okta.com/oauth2/default. Okta's own "
        "(https://my-org.okta.com) issues tokens that only Okta may check",
        notes=(
            "Okta names the client `cid`: use it in `claims`, where `clients` and `authorized_parties` find nothing.",
        ),
    ),
    "authentik": Words(
        "authentik",
        "https://docs.goauthentik.io/add-secure-apps/providers/oauth2/machine_to_machine/",
        """\
[[issuers]]
preset = "authentik"
url = "https://authentik.example.com/application/o/prefect/"
audiences = ["prefect"]

[[grants]]
issuer = "https://authentik.example.com/application/o/prefect/"
groups = ["prefect-workers"]
roles = ["worker"]
""",
        {
            "groups": "the names of the caller's groups, with the scope `profile`",
            "azp": "the provider's client id",
            "sub": "the caller, in the form that the provider is set to",
            "preferred_username": "the user name, with the scope `profile`",
            "scope": "the scopes",
        },
        url="that of the provider with the slash at its end, such as "
        "https://authentik.example.com/application/o/prefect/",
        notes=(
            (
                "`audiences` is the provider's client id. Choose a signing key in the provider: without one, authentik "
                "signs with HS256, which is never accepted."
            ),
        ),
    ),
    "cognito": Words(
        "Amazon Cognito",
        "https://docs.aws.amazon.com/cognito/latest/developerguide/amazon-cognito-user-pools-using-the-access-token.html",
        """\
[[issuers]]
preset = "cognito"
url = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI"
audiences = ["1example23456789"]
required_scopes = ["prefect/work"]
role = "worker"
""",
        {
            "client_id": "the app client",
            "scope": "the scopes, as `RESOURCE-SERVER/SCOPE`",
            "cognito:groups": "a user's groups; machines have none",
            "sub": "the user, or the app client",
            "username": "the user name; machines have none",
        },
        notes=(
            "Access tokens have no `aud`: `audiences` are the ids of app clients (`client_id_as_audience`).",
            "A token must have `token_use` `access`: ID tokens are refused.",
        ),
    ),
    "zitadel": Words(
        "ZITADEL",
        "https://zitadel.com/docs/apis/openidoauth/claims",
        """\
[[issuers]]
preset = "zitadel"
url = "https://my-instance.zitadel.cloud"
audiences = ["344374183645413380"]
groups_claim = "urn:zitadel:iam:org:project:344374183645413380:roles"

[[grants]]
issuer = "https://my-instance.zitadel.cloud"
groups = ["worker"]
roles = ["worker"]
""",
        {
            "urn:zitadel:iam:org:project:PROJECT-ID:roles": "the caller's roles in that project: an object by role",
            "sub": "the caller",
            "client_id": "the client",
            "azp": "the client, if it is there",
        },
        strangers="each caller of the instance can ask for a token for any project (scope "
        "urn:zitadel:iam:org:project:id:PROJECT-ID:aud)",
        pin='required_claims = { sub = ["345377791925026818"] }',
        refused="it has the roles of the caller's own project, which its owner names as he likes. Use "
        "urn:zitadel:iam:org:project:PROJECT-ID:roles",
        notes=(
            (
                "Service users get JWTs if their access token type is set to JWT. Request the scopes "
                "`urn:zitadel:iam:org:project:id:PROJECT-ID:aud` and `urn:zitadel:iam:org:projects:roles`."
            ),
            "`groups` of a grant are roles of the project, once `groups_claim` names it.",
        ),
    ),
}


WORDS_FOR_PEOPLE: Final[Mapping[str, Words]] = {
    "keycloak": Words(
        "Keycloak",
        "https://www.keycloak.org/docs/latest/server_admin/#_oidc_clients",
        """\
[oidc]
preset = "keycloak"
issuer = "https://idp.example.com/realms/data"
client_id = "prefect"

[[grants]]
issuer = "https://idp.example.com/realms/data"
groups = ["prefect-admin"]
roles = ["admin"]
""",
        {
            "preferred_username": "the user name",
            "email": "the e-mail address",
            "realm_access.roles": "roles of the realm; Keycloak writes them into access tokens alone",
            "resource_access.prefect.roles": "roles of the client `prefect`, in access tokens alone",
            "groups": "groups, if a mapper adds them; with *Full group path* each begins with a slash",
        },
        url="that of a realm, such as https://idp.example.com/realms/data",
        groups="assign the person a role of the realm, or add the mapper 'Group Membership' to the client and set "
        "oidc.groups_claim to its claim (docs/providers/keycloak.md)",
        run="26.7.3",
        notes=(
            (
                "`groups` of a grant are roles of the realm. For roles of a client set `groups_claim` to "
                "`resource_access.CLIENT-ID.roles`, and for groups to the claim of a *Group Membership* mapper."
            ),
            (
                "Do not request `offline_access`: Keycloak then keeps an offline session, which signing out there, an "
                "administrator's sign-out and its idle time do not end."
            ),
            "Somebody else can sign in only after a sign-out at Keycloak, which the service asks for.",
        ),
    ),
    "dex": Words(
        "Dex",
        "https://dexidp.io/docs/configuration/",
        """\
[oidc]
preset = "dex"
issuer = "https://dex.example.com"
client_id = "prefect"

[[grants]]
issuer = "https://dex.example.com"
groups = ["acme:data"]
roles = ["deployer"]
""",
        {
            "email": "the e-mail address",
            "groups": "groups, as the connector names them",
            "preferred_username": "the user name, with some connectors",
            "name": "the full name",
            "sub": "connector and user, encoded: `CiQwOGE4…`",
        },
        groups="not every connector has groups, and some ask for them only if the configuration of Dex says so",
        run="2.41.1",
        notes=(
            (
                "Names are e-mail addresses here, because `sub` is an encoded pair. An address that Dex marks as "
                "unverified signs nobody in."
            ),
            "People in Dex's own list (`staticPasswords`) have no groups: give roles to names, or to all.",
        ),
    ),
    "hydra": Words(
        "Ory Hydra",
        "https://www.ory.com/docs/oauth2-oidc/custom-login-consent/flow",
        """\
[oidc]
preset = "hydra"
issuer = "https://hydra.example.com"
client_id = "prefect"

[[grants]]
issuer = "https://hydra.example.com"
groups = ["data"]
roles = ["deployer"]
""",
        {
            "sub": "the subject that your login app accepts",
            "email": "if your consent app adds it (`session.id_token`)",
            "groups": "likewise",
        },
        groups="the consent app adds them to session.id_token when it accepts the request",
        run="2.3.0",
        notes=(
            "Hydra has no users: claims are what your consent app puts into `session.id_token`.",
            (
                "Hydra refuses a scope that the client is not registered with. Without `offline_access` there is no "
                "refresh token."
            ),
        ),
    ),
    "authentik": Words(
        "authentik",
        "https://docs.goauthentik.io/add-secure-apps/providers/oauth2/",
        """\
[oidc]
preset = "authentik"
issuer = "https://authentik.example.com/application/o/prefect/"
client_id = "prefect"

[[grants]]
issuer = "https://authentik.example.com/application/o/prefect/"
groups = ["prefect-admins"]
roles = ["admin"]
""",
        {
            "preferred_username": "the user name",
            "email": "the e-mail address",
            "groups": "the names of the person's groups, with the scope `profile`",
        },
        url="that of the provider with the slash at its end, such as "
        "https://authentik.example.com/application/o/prefect/",
        groups="keep the scope mapping 'profile' selected in the provider, and put the person into a group",
        notes=(
            "Add the scope mapping `offline_access` to the provider: without it there is no refresh token.",
            "Choose a signing key in the provider: without one, authentik signs with HS256, which is never accepted.",
        ),
    ),
    "zitadel": Words(
        "ZITADEL",
        "https://zitadel.com/docs/apis/openidoauth/endpoints",
        """\
[oidc]
preset = "zitadel"
issuer = "https://my-instance.zitadel.cloud"
client_id = "344374183645413380"

[[grants]]
issuer = "https://my-instance.zitadel.cloud"
groups = ["deployer"]
roles = ["deployer"]
""",
        {
            "preferred_username": "the login name",
            "email": "the e-mail address",
            "urn:zitadel:iam:org:project:roles": "roles in the application's own project: an object by role",
            "sub": "the user's id",
        },
        groups="turn on 'Assert Roles on Authentication' in the project, and authorize the person for a role",
        notes=(
            "Allow the grant type *Refresh Token* in the application.",
            (
                "ID tokens have no profile unless *User Info inside ID Token* is on: the service then asks the "
                "userinfo endpoint."
            ),
        ),
    ),
    "entra": Words(
        "Microsoft Entra ID",
        "https://learn.microsoft.com/entra/identity-platform/v2-protocols-oidc",
        """\
[oidc]
preset = "entra"
issuer = "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/v2.0"
client_id = "66666666-7777-8888-9999-000000000000"

[[grants]]
issuer = "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/v2.0"
groups = ["Prefect.Admin"]
roles = ["admin"]
""",
        {
            "roles": "the app roles that were assigned to the person, directly or through a group",
            "groups": "the ids of the person's groups, if the app asks for them",
            "preferred_username": "the sign-in name; an administrator can give it to somebody else",
            "oid": "the person, by an id that stays",
            "sub": "the person, by an id that is another one for each app",
            "tid": "the tenant",
        },
        url="that of one tenant with its id, such as "
        "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/v2.0. 'common', 'organizations', "
        "'consumers' and personal accounts let in everybody",
        refused="it may change, and the tenant does not prove it. Use oid",
        groups="assign the person an app role of this application (Enterprise applications, Users and groups)",
        notes=(
            (
                '`groups` of a grant are app roles here. With `groups_claim = "groups"` they are object ids, and '
                "somebody with more groups than fit has none: app roles are the better way."
            ),
            'Grants with `users` should name object ids: set `principal_claim = "oid"` for that.',
        ),
    ),
    "google": Words(
        "Google",
        "https://developers.google.com/identity/openid-connect/openid-connect",
        """\
[oidc]
preset = "google"
client_id = "1234567890-abc.apps.googleusercontent.com"
required_claims = { hd = ["example.com"] }
role = "viewer"
""",
        {
            "email": "the e-mail address",
            "hd": "the organization of an account of Google Workspace",
            "sub": "the account's number",
        },
        strangers="everybody with a Google account can sign in",
        pin='required_claims = { hd = ["example.com"] }',
        groups="Google sends none: name people in grants (users)",
        notes=(
            'There are no groups: grants name people by address (`users = ["alice@example.com"]`).',
            (
                "There is no refresh token this way, so a session lasts until its own end. Google has no sign-out for "
                "an application either."
            ),
        ),
    ),
    "okta": Words(
        "Okta",
        "https://developer.okta.com/docs/reference/api/oidc/",
        """\
[oidc]
preset = "okta"
issuer = "https://my-org.okta.com"
client_id = "0oa1a2b3c4D5e6F7g8h9"

[[grants]]
issuer = "https://my-org.okta.com"
groups = ["prefect-admins"]
roles = ["admin"]
""",
        {
            "preferred_username": "the login",
            "email": "the e-mail address",
            "groups": "groups, if the application's filter lets them through",
        },
        url="that of the organization, such as https://my-org.okta.com, or of an authorization server",
        groups="set a groups claim filter in the application's Sign On tab, or add a groups claim to the authorization "
        "server",
        notes=("Allow the grant type *Refresh Token* in the application.",),
    ),
    "auth0": Words(
        "Auth0",
        "https://auth0.com/docs/api/authentication/login/oidc-authorize",
        """\
[oidc]
preset = "auth0"
issuer = "https://my-tenant.eu.auth0.com/"
client_id = "AbCdEf0123456789"
groups_claim = "https://example.com/groups"

[[grants]]
issuer = "https://my-tenant.eu.auth0.com/"
groups = ["prefect-admins"]
roles = ["admin"]
""",
        {
            "email": "the e-mail address",
            "https://example.com/groups": "a claim of your own: an Action adds it, with a URL as its name",
            "org_id": "the organization that the person signed in to",
            "sub": "connection and user: `auth0|65…`",
        },
        strangers="everybody who signs up with the tenant can sign in",
        pin='required_claims = { org_id = ["org_1234567890"] }',
        url="that of the tenant with the slash at its end, such as https://my-tenant.eu.auth0.com/",
        groups="let an Action set a claim (api.idToken.setCustomClaim) and name it in oidc.groups_claim",
        notes=("Allow the grant type *Refresh Token* in the application.",),
    ),
    "cognito": Words(
        "Amazon Cognito",
        "https://docs.aws.amazon.com/cognito/latest/developerguide/authorization-endpoint.html",
        """\
[oidc]
preset = "cognito"
issuer = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI"
client_id = "1example23456789"

[[grants]]
issuer = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI"
groups = ["prefect-admins"]
roles = ["admin"]
""",
        {
            "cognito:username": "the user name",
            "cognito:groups": "the groups in the user pool",
            "email": "the e-mail address",
            "sub": "the user's id",
        },
        strangers="everybody who signs up with the user pool can sign in",
        pin='required_claims = { "cognito:groups" = ["prefect"] }',
        url="that of the user pool, such as https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI",
        groups="put the person into a group of the user pool",
        notes=(
            "Refresh tokens come without `offline_access`, which is no scope there.",
            (
                "The sign-out of Cognito takes other parameters than the standard's (`logout_uri`), so `logout` is "
                "off: people stay signed in there."
            ),
        ),
    ),
    "gitlab": Words(
        "GitLab",
        "https://docs.gitlab.com/integration/openid_connect_provider/",
        """\
[oidc]
preset = "gitlab"
client_id = "0123456789abcdef"

[[grants]]
issuer = "https://gitlab.com"
groups = ["acme/data"]
roles = ["deployer"]
""",
        {
            "preferred_username": "the user name",
            "email": "the e-mail address",
            "groups": "paths of groups, with those above them; at the userinfo endpoint",
            "groups_direct": "paths of the groups that the person is a direct member of, in the ID token",
            "sub": "the user's number",
        },
        strangers="everybody with an account of that GitLab can sign in",
        pin='required_claims = { groups = ["acme"] }',
        groups="make the person a member of a group",
        notes=(
            "For your own GitLab set `issuer`.",
            (
                "GitLab has no sign-out for an application. Refresh tokens come without `offline_access`, which is no "
                "scope there."
            ),
        ),
    ),
    "authelia": Words(
        "Authelia",
        "https://www.authelia.com/integration/openid-connect/openid-connect-1.0-claims/",
        """\
[oidc]
preset = "authelia"
issuer = "https://auth.example.com"
client_id = "prefect"

[[grants]]
issuer = "https://auth.example.com"
groups = ["prefect-admins"]
roles = ["admin"]
""",
        {
            "preferred_username": "the user name",
            "email": "the e-mail address",
            "groups": "the groups; at the userinfo endpoint, unless a claims policy adds them to the ID token",
        },
        groups="the client must be allowed the scope 'groups'",
        notes=(
            "List the scopes `offline_access` and `groups`, and the grant type `refresh_token`, in the client's entry.",
            "Authelia has no sign-out for an application.",
        ),
    ),
}


def cure_for_groups(preset: str) -> str:
    """Return how people get groups into their tokens, as part of a sentence."""
    words = WORDS_FOR_PEOPLE.get(preset)
    return words.groups if words else "the provider must send that claim, or oidc.groups_claim name another"


def words_of(key: str) -> Words | None:
    """Return the words about the preset with this key."""
    of_people = key.startswith("oidc.")
    return WORDS_FOR_PEOPLE.get(key.removeprefix("oidc.")) if of_people else WORDS.get(key)


def list_lines() -> Iterator[str]:
    """Yield a line for each preset: whom it is for, and which provider it is."""
    names = list(dict.fromkeys([*PRESETS, *PRESETS_FOR_PEOPLE]))
    width = max(map(len, names))
    for name in names:
        uses = [use for use, known in (("issuer", PRESETS), ("oidc", PRESETS_FOR_PEOPLE)) if name in known]
        titles = dict.fromkeys(words[name].title for words in (WORDS, WORDS_FOR_PEOPLE) if name in words)
        yield f"{name:{width}}  {' and '.join(uses):16}  {', '.join(titles)}"


def preset_lines(name: str) -> Iterator[str]:
    """Yield what there is to know of a preset for machines, as Markdown, which is plain enough for a terminal."""
    preset, words = PRESETS[name], WORDS[name]
    yield f"Documented at <{words.documentation}>."
    yield from _described(preset, words)


def people_lines(name: str) -> Iterator[str]:
    """Yield what there is to know of a preset for the provider where people sign in, as Markdown."""
    preset, words = PRESETS_FOR_PEOPLE[name], WORDS_FOR_PEOPLE[name]
    if words.run:
        yield f"Run with {words.title} {words.run}. Documented at <{words.documentation}>."
    else:
        yield f"By its documentation, not run: <{words.documentation}>."
    yield from _described(preset, words)


def _described(preset: Preset, words: Words) -> Iterator[str]:
    yield from ("", "```toml", *words.example.splitlines(), "```", "")
    yield from _rules(preset, words)
    yield from (f"- {note}" for note in words.notes)
    yield from ("", "| setting | default here |", "| --- | --- |")
    yield from (f"| `{key}` | {_value(value)} |" for key, value in preset.defaults.items())
    yield from ("", "| claim | what it says |", "| --- | --- |")
    yield from (f"| `{claim}` | {words.claims[claim]} |" for claim in preset.claims)


def _rules(preset: Preset, words: Words) -> Iterator[str]:
    if preset.pins:
        yield f"- **Required:** {_code(preset.pins)} in `required_claims`. Otherwise {words.strangers}."
    if preset.pins_for_all:
        yield (
            f"- **Required for a role of all callers** (`role`, or a grant without conditions): "
            f"{_code(preset.pins_for_all)} in `required_claims`{_narrowed(preset)}. Otherwise {words.strangers}."
        )
    if words.url:
        yield f"- **Required URL:** {words.url}."
    for claim, accepted in preset.required.items():
        yield f"- **Required in each token:** `{claim}` is {_code(sorted(accepted))}. You need not set it."
    if "?P<tid>" in preset.issuer:
        yield "- **Required in each token:** `tid` is the tenant of the URL. You need not set it."
    if preset.refused_audiences:
        audiences = [one.replace("{issuer}", "ISSUER") for one in preset.refused_audiences]
        yield f"- **Refused as an audience:** {_code(audiences)}: {words.audience}."
    if preset.refused:
        yield f"- **Refused where a claim decides:** {_code(sorted(preset.refused))}: {words.refused}."


def _narrowed(preset: Preset) -> str:
    """Return what is as good as a required claim: only machines' tokens have it."""
    if preset.people:
        return ""
    return ", or `authorized_parties`" + (", or `required_scopes`" if preset.scopes_suffice else "")


def _code(names: tuple[str, ...] | list[str]) -> str:
    *others, one = [f"`{name}`" for name in names]
    return f"{', '.join(others)} or {one}" if others else one


def _value(value: Any) -> str:
    if isinstance(value, frozenset):
        return ", ".join(f"`{one}`" if one else "(empty)" for one in sorted(value))
    return "none" if value == "" else f"`{str(value).lower() if isinstance(value, bool) else value}`"
