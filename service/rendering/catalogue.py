"""The catalogue: each problem as a sentence, which says what is wrong and what to do next.

A sentence is a template, filled with facts of the cause by ``sentences``, which also has the format specifications such
as ``{holders:ask}``. ``{form}`` is always there: the form in which the client's version of Prefect sends a credential.
No fact is a secret.
"""

from collections.abc import Mapping
from typing import Final

from service.core.problems import Problem

_P: Final = Problem
_WHO: Final = "You are {name!r} of {issuer}, {roles:held}."
_PERSON: Final = "You are signed in as {name}, {roles:held}."
_UNREADABLE: Final = "This token cannot be read: copy it again, whole."
_SIGN_IN_AGAIN: Final = "Your session has ended: reload the page to sign in."
_SESSION_UNREADABLE: Final = "Your session cannot be read: reload the page to sign in again."
_OUT_OF_REACH: Final = "The identity provider cannot be reached just now: try again shortly."
_PAIR_WRONG: Final = "The user name or the password is wrong: check PREFECT_API_AUTH_STRING ('user:password')."
_NOT_BEGUN: Final = "This sign-in was not begun in this browser, was used already, or took too long: sign in again."
_UNPROVEN: Final = "The identity provider's answer could not be verified: sign in again, or tell whoever runs this."

SENTENCES: Final[Mapping[Problem, str]] = {
    # the forwarded request, or a request for a page
    _P.HEADER_REPEATED: "The header {header} was sent more than once. Send it once.",
    _P.HEADER_MISSING: "The proxy did not send {header}. Check its forward-auth configuration.",
    _P.METHOD_UNKNOWN: "The request's method is not one that Prefect's API has.",
    _P.SCHEME_UNKNOWN: "The forwarded protocol is neither HTTP nor WebSocket.",
    _P.HOST_INVALID: "The forwarded host is not a host name.",
    _P.URL_TOO_LONG: "The request's URL is too long.",
    _P.URL_NOT_PLAIN: "The request's URL is not a plain path and query.",
    _P.URL_NOT_ABSOLUTE: "The original URL is not absolute.",
    _P.PATH_ESCAPE_INCOMPLETE: "The request's path has an incomplete percent-escape.",
    _P.PATH_NOT_UTF8: "The request's path is not UTF-8.",
    _P.PATH_HIDES_CHARACTER: "The request's path hides a character that changes its meaning.",
    _P.PATH_HAS_PARAMETERS: "The request's path has parameters (';').",
    _P.PATH_HAS_EMPTY_OR_DOT_SEGMENTS: "The request's path has empty or dot segments.",
    _P.CLIENT_ADDRESS_INVALID: "The client's address is not an IP address.",
    _P.FORWARDED_FOR_TOO_LONG: "X-Forwarded-For is too long.",
    _P.VERIFY_METHOD_NOT_GET: "The verify endpoint is asked with GET.",
    _P.COOKIES_TOO_LARGE: "Your browser sends more cookies than can be read: delete this site's cookies, then reload "
    "the page.",
    _P.FORM_UNREADABLE: "This form cannot be read: go back and try again.",
    _P.FORM_TYPE_WRONG: "This is not a form of this site: go back and try again.",
    _P.FORM_TOO_LONG: "This form is too long.",
    _P.REQUEST_MISSING: "There is no request.",
    _P.NOT_FOUND: "There is nothing here.",
    _P.METHOD_NOT_ALLOWED: "This path does not take this method.",
    _P.PEER_NOT_TRUSTED: "Only a trusted proxy may send this (trusted_proxies).",
    _P.CROSS_SITE_REQUEST: "Another site made your browser send this request, so it was refused: open Prefect itself "
    "and try there.",
    _P.CROSS_SITE_PREFLIGHT: "Pages of other sites cannot call this host: call it from a program.",
    # nothing was presented
    _P.NO_CREDENTIAL: "Send a credential. {form.either}",
    _P.NO_JWT: "Send a JWT. {form.token}",
    _P.NO_PASSWORD: "Send a user name and password. {form.password}",
    _P.NOT_SIGNED_IN: "You are not signed in: reload the page to sign in.",
    _P.NO_CREDENTIAL_ON_WEBSOCKET: "This WebSocket carried no credential, so events and task-run states are lost: "
    "Prefect does not send PREFECT_API_KEY there. {form.either}",
    # the Authorization header
    _P.AUTHORIZATION_TOO_LARGE: "The Authorization header is too large.",
    _P.AUTHORIZATION_SCHEME_UNKNOWN: "The Authorization header is neither Bearer nor Basic.",
    _P.AUTHORIZATION_SCHEME_DPOP: "DPoP is not supported here. Request a token that is not bound to a key, and send it "
    "as 'Bearer <JWT>'.",
    _P.BEARER_NOT_A_TOKEN: "The Bearer credential is not a token: expected 'Bearer <JWT>'.",
    _P.BASIC_NOT_BASE64: "The Basic credential is not base64 of UTF-8 text (RFC 7617).",
    _P.BASIC_WITHOUT_COLON: "The Basic credential has no colon: it is 'user:password', or 'jwt:<token>' for a JWT.",
    _P.BASIC_TOKEN_AS_NAME: "The token stands where the user name belongs: use 'https://jwt:<token>@host'.",
    _P.PAIR_UNUSABLE: "The user name or password is empty, too long, or has control characters.",
    _P.JWT_NOT_ACCEPTED: "A JWT is not accepted here: send a user name and password.",
    _P.CLIENT_NOT_CONFIGURED: "This name is not a client id that is accepted here (client_credentials.clients), and "
    "there is no users file: correct PREFECT_API_AUTH_STRING, or send a JWT.",
    _P.PASSWORD_NOT_ACCEPTED: "A user name and password are not accepted here: send a JWT.",
    # a WebSocket that is handed over to the relay
    _P.RELAY_WITHOUT_PREFECT: "WebSockets cannot be relayed: tell whoever runs this service to set prefect.url.",
    _P.RELAY_FULL: "Too many WebSockets are open: try again shortly.",
    _P.ONLY_RELAYED: "Every WebSocket has to be relayed here: the proxy must send it to /relay/ (websockets.relay).",
    _P.FIRST_MESSAGE_LATE: "The first message, which carries the credential, did not come in time: connect again.",
    _P.FIRST_MESSAGE_UNREADABLE: 'The first message is not {{"type": "auth", "token": "…"}}: update Prefect.',
    _P.PREFECT_OUT_OF_REACH: "Prefect cannot be reached just now: connect again.",
    # the form and the signature of a JWT
    _P.TOKEN_NOT_A_JWT: "This is not a JWT. Send an access token of your identity provider. {form.token}",
    **dict.fromkeys(
        (
            _P.TOKEN_NOT_BASE64URL,
            _P.TOKEN_NOT_CANONICAL,
            _P.TOKEN_NOT_JSON_OBJECT,
            _P.TOKEN_TOO_MANY_CONTAINERS,
            _P.TOKEN_NAME_REPEATED,
            _P.TOKEN_JSON_CONSTANT,
            _P.TOKEN_HEADER_INVALID,
            _P.TOKEN_UNREADABLE,
            _P.TOKEN_TOO_LONG,
        ),
        _UNREADABLE,
    ),
    _P.TOKEN_EXTENSION_UNSUPPORTED: "This token uses an extension that is not supported here.",
    _P.TOKEN_ENCRYPTED: "This token is encrypted or compressed: send a signed one.",
    _P.ALGORITHM_NOT_ACCEPTED: "This token is signed with an algorithm that is not accepted here.",
    _P.KEY_IDS_MISSING: "This token's key cannot be told, because the identity provider publishes several keys without "
    "an id: tell whoever runs the identity provider to publish a 'kid' for each.",
    _P.SIGNING_KEY_UNKNOWN: "This token's signing key is not one of its issuer's: obtain a new token.",
    _P.SIGNATURE_INVALID: "This token's signature could not be verified: obtain a new one.",
    # the claims of a JWT
    _P.ISSUER_NOT_TRUSTED: "This token's issuer is not trusted here: obtain one from an accepted identity provider.",
    _P.TOKEN_TYPE_NOT_ACCEPTED: "This token's type is not accepted here. Send an access token whose 'typ' is "
    "{expected:some}.",
    _P.NOT_AN_ACCESS_TOKEN: "This is not an access token: send the access token instead.",
    _P.LOOKS_LIKE_ID_TOKEN: "This is an ID token, or looks like one ('at_hash'): send the access token instead. "
    "If the identity provider gives machines no other tokens, as Dex does, tell whoever runs this "
    "(issuer.accept_id_tokens).",
    _P.AUDIENCE_MISSING: "This token names no audience. Request it for {expected:some}.",
    _P.AUDIENCE_OTHER: "This token is for another audience. Request it for {expected:some}.",
    _P.PARTY_NOT_ACCEPTED: "This token was issued to a client that is not accepted here.",
    _P.TOKEN_SENDER_CONSTRAINED: "This token is bound to a key of its client (claim 'cnf'), which cannot be checked "
    "here. Request one that is not bound.",
    _P.EXPIRY_MISSING: "This token never expires: only tokens with an expiry are accepted.",
    _P.TOKEN_EXPIRED: "This token expired {seconds:duration} ago: obtain a new one.",
    _P.TOKEN_NOT_YET_VALID: "This token is not valid yet: check the clocks of the issuer and of this service.",
    _P.DATE_INVALID: "This token's dates cannot be read.",
    _P.SCOPE_MISSING: "This token lacks the scope {scope!r}: request it when you obtain the token.",
    _P.CLAIM_NOT_ACCEPTED: "This token's claim {claim!r} is missing or is not one that is accepted here.",
    _P.PRINCIPAL_NOT_NAMED: "This token's claims 'sub' and {claim!r} do not name one principal.",
    _P.CLAIM_AMBIGUOUS: "This token's claim {claim!r} does not name one principal.",
    _P.CLAIM_UNUSABLE: "This token's claim {claim!r} has characters, or a length, that cannot be used.",
    _P.GROUPS_TOO_MANY: "This token names too many groups.",
    _P.GROUPS_ELSEWHERE: "This token does not contain its groups, because there are too many ({claim!r}): ask for app "
    "roles, or for a claim with fewer groups.",
    _P.TOKEN_NOT_LISTED: "This token is not in the list of tokens that were issued here: obtain a new one.",
    _P.TOKEN_REVOKED: "This token was revoked: obtain a new one.",
    _P.TOKEN_NOT_ACTIVE: "The identity provider says that this token is not valid, or not any more: obtain a new one.",
    _P.TOKEN_CHECKS_FULL: "Too many tokens are being checked at once: try again shortly.",
    _P.TOKENS_OUT_OF_REACH: "The list of issued tokens cannot be read just now: try again shortly.",
    # names and passwords
    **dict.fromkeys((_P.PAIR_WRONG, _P.PASSWORD_CHANGED), _PAIR_WRONG),
    _P.PAIR_WRONG_AT_ISSUER: "The client id or the client secret is wrong: check PREFECT_API_AUTH_STRING "
    "('client_id:client_secret').",
    _P.CLIENT_REFUSED: "The client id or the client secret is wrong, or the identity provider does not allow this "
    "client the client-credentials grant: check PREFECT_API_AUTH_STRING and the client's settings at the provider.",
    _P.CLIENT_NOT_AUTHORIZED: "The identity provider does not allow this client the client-credentials grant, or not "
    "for this API: change the client's settings there.",
    _P.CLIENT_TOKEN_NOT_A_JWT: "The identity provider gave this client an opaque token, which is not accepted here: "
    "set up the client there so that its access tokens are JWTs, or set issuer.introspection.",
    _P.CLIENT_TOKEN_ENCRYPTED: "The identity provider encrypts this client's tokens, which cannot be read here: set up "
    "the client there so that they are only signed.",
    _P.CLIENT_TOKEN_NOT_ACCEPTED: "The identity provider knows this client, but gave it no token that is accepted "
    "here: tell whoever runs this.",
    _P.TOO_MANY_GUESSES: "Too many wrong passwords came from your address: correct PREFECT_API_AUTH_STRING, and wait.",
    _P.PASSWORD_CHECKS_FULL: "Too many passwords are being checked at once: try again shortly.",
    _P.CLIENT_CHECKS_FULL: "Too many clients are being proved at once: try again shortly.",
    # an issuer, or a provider, that does not decide
    _P.ISSUER_OUT_OF_REACH: _OUT_OF_REACH,
    _P.ISSUER_MISCONFIGURED: "What this service reaches is not the identity provider that it is set up for: tell "
    "whoever runs this to check the issuer's URL.",
    _P.NO_USABLE_KEY: "The identity provider publishes no key that this service can use: tell whoever runs this.",
    _P.KEYS_OUT_OF_REACH: "The identity provider's keys cannot be reached just now: try again shortly.",
    _P.KEY_NOT_KNOWN_YET: "This token's key is not known yet: try again shortly.",
    _P.GRANT_REFUSED: "The identity provider does not grant what this service asks for ({error}): tell whoever runs "
    "this.",
    _P.SESSION_NOT_RENEWABLE: "The identity provider cannot be reached, or does not answer this service, so your "
    "session cannot be renewed: try again shortly.",
    # sessions
    **dict.fromkeys(
        (_P.SESSION_UNREADABLE, _P.SESSION_COOKIE_REPEATED, _P.SESSION_COOKIE_INCOMPLETE), _SESSION_UNREADABLE
    ),
    _P.SESSION_OUTDATED: "Your session is of an older version: reload the page to sign in.",
    **dict.fromkeys(
        (_P.SESSION_LIFETIME_OVER, _P.SESSION_FROM_THE_FUTURE, _P.SESSION_WITHOUT_AUTHORITY), _SIGN_IN_AGAIN
    ),
    _P.SESSION_IDLE_TOO_LONG: "Your session ended while it was not used: reload the page to sign in.",
    _P.SESSION_REVOKED: "You were signed out: reload the page to sign in again.",
    _P.SESSION_ENDED_BY_PROVIDER: "The identity provider has ended your session: reload the page to sign in.",
    _P.SESSION_TOO_LARGE: "Your groups do not fit into a session: ask for a claim with fewer of them.",
    # signing in
    _P.SIGN_IN_NOT_SET_UP: "Sign-in is not set up here. Use the API host with a credential.",
    _P.SIGN_IN_NOT_SET_UP_LOCALLY: "Sign-in with a password is not set up here.",
    _P.SIGN_IN_OVER_HTTP: "This address is plain http, over which a session would not be safe: open it with https://, "
    "or permit it with session.allow_http.",
    **dict.fromkeys((_P.SIGN_IN_NOT_BEGUN, _P.PROVIDER_NOT_CONFIGURED), _NOT_BEGUN),
    _P.SIGN_IN_LOOPS: "You signed in twice, but this browser did not keep the session. Check these, then try again.",
    _P.SIGN_IN_UNPROVEN: _UNPROVEN,
    _P.PROVIDER_ENCRYPTS: "The identity provider encrypts what it tells this service, which cannot be read here: tell "
    "whoever runs this to turn encryption off for this client.",
    _P.PROVIDER_DENIED: "The identity provider did not let you in: use another account, or ask for access. If you "
    "stopped there yourself, try again.",
    _P.PROVIDER_CODE_USED: "This sign-in was used already, or took too long: sign in again.",
    _P.PROVIDER_WANTS_INTERACTION: "The identity provider asks for something that was not done there: sign in again.",
    _P.PROVIDER_REFUSES_CLIENT: "The identity provider does not accept this service as it is set up: tell whoever runs "
    "it.",
    _P.PROVIDER_BUSY: "The identity provider has a problem just now: try again in a moment.",
    _P.PROVIDER_ERROR: "The identity provider ended the sign-in: try again.",
    _P.PERSON_NOT_PERMITTED: "You are known to the identity provider, but not permitted to enter here: ask for access.",
    _P.EMAIL_NOT_VERIFIED: "Your e-mail address is not confirmed at the identity provider: confirm it there, then sign "
    "in again.",
    # what a provider signed, or sent, is not what was asked for: the log alone tells them apart
    **dict.fromkeys(
        (
            _P.RESPONSE_ISSUER_OTHER,
            _P.PROVIDER_TOKEN_ISSUER_OTHER,
            _P.NOT_AN_ID_TOKEN,
            _P.ID_TOKEN_PARTY_OTHER,
            _P.ID_TOKEN_AUDIENCES_OTHER,
            _P.ID_TOKEN_NONCE_OTHER,
            _P.ID_TOKEN_WITHOUT_SUBJECT,
            _P.ID_TOKEN_MISSING,
            _P.ACCESS_TOKEN_HASH_OTHER,
            _P.SUBJECT_OTHER,
            _P.NOT_USERINFO,
            _P.USERINFO_REFUSED,
            _P.USERINFO_SUBJECT_OTHER,
            _P.ISSUED_AT_MISSING,
            _P.NOT_A_LOGOUT_TOKEN,
            _P.LOGOUT_TOKEN_TOO_OLD,
            _P.LOGOUT_TOKEN_WITHOUT_SESSION,
            _P.LOGOUT_TOKEN_WITHOUT_ID,
            _P.LOGOUT_TOKEN_USED,
            _P.LOGOUT_TOKEN_UNREADABLE,
        ),
        _UNPROVEN,
    ),
    # no role opens the request
    _P.CAPABILITY_MISSING: f"{_WHO} {{route}} needs {{needed:either}}. {{holders:ask}}",
    _P.ROUTE_UNKNOWN: f"{_WHO} {{route}} needs {{needed:either}}, as no known route of Prefect's. {{holders:ask}}",
    _P.OUTSIDE_LIMITS: f"{_WHO} {{route}} is open to you for other names than the one in this path. {{holders:ask}}",
    _P.SECRETS_NOT_PERMITTED: f"{_WHO} {{route}} with include_secrets needs {{needed:either}}. {{holders:ask}}",
    _P.SECRETS_BODY_NOT_SENT: f"{_WHO} {{route}} may ask for secrets in its body, which the proxy does not send here, "
    "so it needs {needed:either}. {holders:ask}",
    _P.NO_ROLE: "You are signed in, and have no role here: without one, nothing of Prefect is shown.",
    _P.NO_GROUPS: "The identity provider sent no groups for you (claim {claim}), and groups give roles here. If you "
    "should have some, tell whoever runs this: {preset:groups}.",
    _P.ROLES_NOT_ENOUGH: "You are signed in, and what you asked for takes more than your roles.",
    # values of the configuration, and documents
    _P.CLAIM_RULE_EMPTY: "name equals, any_of, all_of or glob: an empty rule would always hold",
    _P.GRANT_INCOMPLETE: "a grant needs roles, and the issuer of those who get them",
    _P.ROLE_LIMITS_INVALID: "the role {role!r} can be limited by {expected:list}, each with at least one pattern",
    _P.ROLE_ADMIN_LIMITED: "the role {role!r} has 'admin', which is everything, so it cannot be limited",
    _P.ROLE_ROUTES_UNKNOWN: "the role {role!r} names routes that are not known: {routes:list}",
    _P.BASE_PATH_INVALID: "a base path begins with a slash and ends without one, and the API's differs from the UI's",
    _P.ROUTE_INCOMPLETE: "{got!r} is not a route: expected METHOD /path and a capability",
    _P.CAPABILITY_UNKNOWN: "{got!r} is not a capability: expected one of {expected:list}",
    _P.PATH_PARAMETER_INVALID: "{got!r} is not a path parameter: expected {{name}}, {{name:uuid}} or {{name:path}}",
    _P.OPENAPI_WITHOUT_PATHS: "this is not an OpenAPI document: it has no paths",
    # an issuer with a preset
    _P.PRESET_ISSUER_OTHER: "the preset expects another URL: {preset:url}",
    _P.PRESET_AUDIENCE_SHARED: "with the audience {got!r}, tokens that were issued for something else would be "
    "accepted: {preset:audience}",
    _P.PRESET_CLAIM_NEEDED: "tokens of strangers would be accepted: {preset:strangers}. Require {claims:or}, such as "
    "{preset:pin}",
    _P.PRESET_ROLE_FOR_ALL: "strangers would get a role: {preset:strangers}. Require {claims:or}, such as "
    "{preset:pin}, or give roles with grants that have conditions",
    _P.PRESET_CLAIM_REFUSED: "the claim {claim!r} cannot decide about access: {preset:refused}",
    _P.INTERNAL: "The auth service failed on this request: try again, and tell its operators.",
}


# what the log adds to a problem: the setting, here or at the identity provider, that helps
FOR_OPERATORS: Final[Mapping[Problem, str]] = {
    _P.AUDIENCE_MISSING: "request the token for an audience, which the client must be allowed: for client ids and "
    "secrets that is issuer.client_credentials.audience",
    _P.LOOKS_LIKE_ID_TOKEN: "if the issuer gives machines no other tokens, set issuer.accept_id_tokens",
    _P.ID_TOKEN_AUDIENCES_OTHER: "the ID token names other audiences and no azp: if they are yours, list them in "
    "oidc.other_audiences",
}


# what people read on a page, where that is something else: they have no environment variables and know no routes
FOR_PEOPLE: Final[Mapping[Problem, str]] = {
    _P.GROUPS_ELSEWHERE: "You are in more groups than the identity provider tells this service: ask whoever runs it to "
    "give roles by application roles.",
    **dict.fromkeys((_P.PAIR_WRONG, _P.PASSWORD_CHANGED), "The user name or the password is wrong."),
    _P.TOO_MANY_GUESSES: "There were too many wrong passwords.",
    **dict.fromkeys((_P.NOT_FOUND, _P.METHOD_NOT_ALLOWED), "No page has this address: check it for a mistake."),
    _P.CAPABILITY_MISSING: f"{_PERSON} This takes the right to {{needed:right}}. {{holders:ask-least}}",
    _P.ROUTE_UNKNOWN: f"{_PERSON} This address is not known here, so only the role admin opens it.",
    _P.OUTSIDE_LIMITS: f"{_PERSON} Your roles open other names than the one in this address. {{holders:ask-least}}",
    **dict.fromkeys(
        (_P.SECRETS_NOT_PERMITTED, _P.SECRETS_BODY_NOT_SENT),
        f"{_PERSON} This takes the right to {{needed:right}}. {{holders:ask-least}}",
    ),
}
