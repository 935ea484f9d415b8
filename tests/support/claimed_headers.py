"""Headers in which a caller could claim who it is, or where and how its request was made.

Prefect reads none of them, but a proxy, a middleware or a log beside it may. No proxy passes any of them on.
"""

from __future__ import annotations

from typing import Final

IDENTITY: Final = tuple(f"X-Auth-Request-{name}" for name in ("User", "Email", "Groups", "Roles", "Issuer"))

WHO: Final = (
    *IDENTITY,
    "X-Auth-Request-Access-Token",
    "X-Auth-Request-Preferred-Username",
    "X-Auth-Request-Redirect",
    "X-Auth-Status",
    "X-Auth-Detail",
    "X-Auth-Redirect",
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Forwarded-Groups",
    "X-Forwarded-Preferred-Username",
    "X-Forwarded-Access-Token",
    "X-Remote-User",
    "X-Webauth-User",
    "Remote-User",
    "Remote-Email",
    "Remote-Groups",
    "Remote-Name",
    # gates of the clouds
    "Cf-Access-Authenticated-User-Email",
    "Cf-Access-Jwt-Assertion",
    "X-Amzn-Oidc-Accesstoken",
    "X-Amzn-Oidc-Data",
    "X-Amzn-Oidc-Identity",
    "X-Goog-Authenticated-User-Email",
    "X-Goog-Authenticated-User-Id",
    "X-Goog-Iap-Jwt-Assertion",
    "X-Ms-Client-Principal",
    "X-Ms-Client-Principal-Id",
    "X-Ms-Client-Principal-Idp",
    "X-Ms-Client-Principal-Name",
    "Tailscale-User-Login",
    "Tailscale-User-Name",
    # client certificates
    "X-Forwarded-Client-Cert",
    "X-Forwarded-Tls-Client-Cert",
    "X-Forwarded-Tls-Client-Cert-Info",
    "X-Client-Cert",
    "X-Ssl-Client-Cert",
    "Ssl-Client-Cert",
)

WHERE_FROM: Final = (
    "Forwarded",
    "Forwarded-For",
    "X-Forwarded",
    "X-Forwarded-By",
    "X-Forwarded-For",
    "X-Original-Forwarded-For",
    "X-Real-Ip",
    "X-Client-Ip",
    "Client-Ip",
    "X-Cluster-Client-Ip",
    "X-Remote-Addr",
    "X-Remote-Ip",
    "X-Originating-Ip",
    "True-Client-Ip",
    "Cf-Connecting-Ip",
    "Cf-Connecting-Ipv6",
    "Fastly-Client-Ip",
    "X-Azure-Clientip",
    "X-Azure-Socketip",
    "X-Appengine-User-Ip",
    "X-Envoy-External-Address",
)

HOW: Final = (
    "X-Forwarded-Host",
    "X-Forwarded-Server",
    "X-Original-Host",
    "X-Host",
    "X-Http-Host-Override",
    "X-Forwarded-Port",
    "X-Forwarded-Proto",
    "X-Forwarded-Protocol",
    "X-Forwarded-Scheme",
    "X-Forwarded-Ssl",
    "X-Scheme",
    "X-Url-Scheme",
    "Front-End-Https",
    "X-Forwarded-Method",
    "X-Original-Method",
    "X-Http-Method",
    "X-Http-Method-Override",
    "X-Method-Override",
    "X-Forwarded-Path",
    "X-Forwarded-Prefix",
    "X-Forwarded-Uri",
    "X-Original-Uri",
    "X-Original-Url",
    "X-Rewrite-Url",
    "X-Envoy-Original-Path",
)

CLAIMED: Final = (*WHO, *WHERE_FROM, *HOW)
