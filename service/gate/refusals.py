"""The page of the gate's refusals: made in the background, since its template engine loads slowly."""

import asyncio
import logging

from service.core.request.redirects import HOME, sign_in_href, switch_account_href
from service.rendering.refusal_page import RefusalPage
from service.settings import Settings

log = logging.getLogger(__name__)


class RefusalPages:
    """Makes the page once for a configuration, for the first person who is refused."""

    def __init__(self) -> None:
        self._settings: Settings | None = None
        self._made: asyncio.Task[RefusalPage | None] | None = None

    async def page(self, settings: Settings) -> RefusalPage | None:
        """Return the page, or None if it cannot be made."""
        if self._made is None or self._settings is not settings:
            self._settings = settings
            self._made = asyncio.create_task(asyncio.to_thread(_make, settings))
        return await asyncio.shield(self._made)


def switch_href(settings: Settings, return_to: str = HOME) -> str:
    """Return where one signs in with another account: at the form if there is one, else at the provider."""
    if settings.local_sign_in:
        return sign_in_href(return_to, switch=settings.oidc is not None)
    return switch_account_href(return_to)


def _make(settings: Settings) -> RefusalPage | None:
    try:
        from service.rendering.pages import pages_of  # noqa: PLC0415 - the gate does not wait for Jinja at its start

        allow_http = settings.oidc is not None and settings.oidc.allow_http
        pages = pages_of(settings.sign_in.title, settings.sign_in.help, allow_http=allow_http)
        return pages.refusal_page(switch_href=switch_href(settings))
    except Exception:
        log.exception("the page for people who are refused cannot be made")
        return None
