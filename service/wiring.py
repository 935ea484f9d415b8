"""The adapters, made from the settings: wired to one another, started and stopped together."""

import asyncio
from typing import Any

import httpx

from service import __version__
from service.adapters.issuers import Issuer, KeyPolicy
from service.adapters.passwords import HashingPolicy, Passwords
from service.adapters.telemetry import Telemetry
from service.adapters.tokens import Tokens
from service.adapters.users import UsersFile
from service.adapters.verdicts import Verdicts
from service.core.proxies import TrustedProxies
from service.settings import Settings


class Wiring:
    """Everything outside the core that a decision needs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.telemetry = Telemetry(settings.log.decisions)
        self.proxies = TrustedProxies(settings.trusted_proxies)
        self.verdicts = Verdicts(seconds=settings.verdict_seconds, capacity=settings.verdict_count)
        self.issuers: dict[str, Issuer] = {}
        self.tokens = Tokens(self.issuers)
        self.users: UsersFile | None = None
        self.passwords: Passwords | None = None
        self.ready = False
        self._client = httpx.AsyncClient(
            headers={"user-agent": f"prefect-forward-auth/{__version__}"}, follow_redirects=False
        )
        self._watcher: asyncio.Task[None] | None = None
        if settings.users is not None:
            self.users = UsersFile(settings.users.file, settings.users.max_cost, self._users_changed)
            policy = HashingPolicy(settings.users.concurrency, settings.users.queue, settings.users.remember)
            self.passwords = Passwords(self.users, policy, settings.users.role)

    async def start(self) -> None:
        """Read the users; begin to fetch keys, and do not wait for them."""
        if self.users is not None and self.settings.users is not None:
            self.users.load()
            self._watcher = asyncio.create_task(self.users.watch(self.settings.users.reload))
        for one in self.settings.all_issuers:
            self.issuers[one.url] = issuer = Issuer(
                one.trust(),
                jwks_url=one.jwks_url,
                policy=KeyPolicy(**one.keys.model_dump()),
                allow_http=one.allow_http,
                client=self._client,
                on_change=self.verdicts.forget,
            )
            issuer.start()
        self.ready = True

    async def stop(self) -> None:
        """Stop what start() began; calls under way have been answered by now."""
        self.ready = False
        if self._watcher is not None:
            self._watcher.cancel()
        for issuer in self.issuers.values():
            await issuer.stop()
        await self._client.aclose()
        if self.passwords is not None:
            self.passwords.close()

    def state(self) -> dict[str, Any]:
        """Return what can be relied on now; a cold issuer does not make the whole unready."""
        issuers = {
            url: {"state": "warm" if one.warm else "cold", "keys": one.key_count, "problem": one.last_problem}
            for url, one in self.issuers.items()
        }
        users = {"count": len(self.users.users.hashes), "problem": self.users.problem} if self.users else None
        whole = all(one.warm for one in self.issuers.values()) and not (self.users and self.users.problem)
        status = ("ready" if whole else "degraded") if self.ready else "not ready"
        return {"status": status, "issuers": issuers, "users": users}

    def _users_changed(self) -> None:
        if self.passwords is not None:
            self.passwords.forget()
        self.verdicts.forget()
