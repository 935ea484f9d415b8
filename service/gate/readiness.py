"""The readiness document."""

from typing import Any

from service.authn.issuers import Issuer
from service.gate.generation import Generation


def readiness(generation: Generation) -> dict[str, Any]:
    """Return the answer of `/readyz`. A cold issuer, or a problem, makes the status ``degraded``, not ``not ready``."""
    wiring = generation.wiring
    issuers = {url: _of_issuer(one) for url, one in wiring.issuers.items()}
    provider = _of_issuer(wiring.provider_issuer) if wiring.provider_issuer is not None else None
    if provider is not None and wiring.provider_fault:
        provider["problem"] = f"it does not take this service as its client: {wiring.provider_fault}"
    users = {"count": len(wiring.users.users.hashes), "problem": wiring.users.problem} if wiring.users else None
    store = wiring.revocation_log.state()
    tokens = wiring.own_issuer.issued.state() if wiring.own_issuer is not None else None
    config_problem = wiring.telemetry.config_problem
    whole = (
        all(one["state"] == "warm" for one in (*issuers.values(), provider) if one is not None)
        and not (users and users["problem"])
        and not (tokens and tokens["problem"])
        and not store["problem"]
        and not config_problem
        and not wiring.provider_fault
    )
    return {
        "status": ("ready" if whole else "degraded") if generation.ready else "not ready",
        "issuers": issuers,
        "provider": provider,
        "users": users,
        "tokens": tokens,
        "store": store,
        "configuration": {"problem": config_problem},
    }


def _of_issuer(issuer: Issuer) -> dict[str, Any]:
    return {"state": "warm" if issuer.warm else "cold", "keys": issuer.key_count, "problem": issuer.problem}
