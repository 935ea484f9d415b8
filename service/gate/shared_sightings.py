"""Where sessions were seen, shared by replicas through the store, sealed under the session key."""

import asyncio
import json
import logging
from typing import Final

from service.adapters.store import Store, StoreUnavailable
from service.authn.seal import Seal
from service.state.sightings import MAX_OF_PERSON, Person, Sighting, Sightings

log = logging.getLogger(__name__)

WRITE_SECONDS: Final = 0.25  # between two batches
RETRY_SECONDS: Final = 2.0  # after the store did not answer
_BATCH: Final = 100
_PURPOSE: Final = "sighting"


class SharedSightings:
    """Writes what this replica has seen, and reads what others have. They are kept for ``seconds`` in the store."""

    def __init__(self, store: Store, seal: Seal, sightings: Sightings, seconds: float) -> None:
        self._store, self._seal, self._sightings, self._seconds = store, seal, sightings, seconds
        self._problem = ""

    async def write(self) -> None:
        """Write new sightings until cancelled. While the store is away, the latest ones wait."""
        news = self._sightings.news
        while True:
            await asyncio.sleep(RETRY_SECONDS if self._problem else WRITE_SECONDS)
            batch = [news.popleft() for _ in range(min(_BATCH, len(news)))]
            latest = {(person, one.session): one for person, one in batch}
            while latest:
                (person, session), sighting = next(iter(latest.items()))
                try:
                    await self._write(person, sighting)
                except (StoreUnavailable, asyncio.CancelledError) as problem:
                    news.extendleft((person, one) for (person, _), one in reversed(latest.items()))
                    if isinstance(problem, asyncio.CancelledError):  # the generation ends: the next one writes them
                        raise
                    self._is_away(problem)
                    break
                del latest[person, session]
                self._problem = ""

    async def of(self, person: Person) -> list[Sighting]:
        """Return what was seen of a person anywhere, the latest last; what this replica knows without the store."""
        found = {one.session: one for one in self._sightings.of(person)}
        try:
            there = await self._store.members(self._name_of(person))
        except StoreUnavailable as problem:
            self._is_away(problem)
            there = {}
        for text in there.values():
            sighting = self._opened(person, text)
            known = found.get(sighting.session) if sighting is not None else None
            if sighting is not None and (known is None or known.seen < sighting.seen):
                found[sighting.session] = sighting
        return sorted(found.values(), key=lambda one: one.seen)

    async def _write(self, person: Person, sighting: Sighting) -> None:
        name = self._name_of(person)
        text = self._seal.seal(_PURPOSE, json.dumps([person, sighting]).encode())
        count = await self._store.put(name, sighting.session, text, self._seconds)
        if count > 2 * MAX_OF_PERSON:
            there = {key: self._opened(person, text) for key, text in (await self._store.members(name)).items()}
            oldest = sorted(there, key=lambda key: one.seen if (one := there[key]) is not None else 0.0)
            await self._store.remove(name, *oldest[:-MAX_OF_PERSON])

    def _opened(self, person: Person, text: str) -> Sighting | None:
        """Return a sighting of this person, or None if it was sealed with another key, or is of a later version."""
        document = self._seal.open(_PURPOSE, text)
        try:
            whose, values = json.loads(document or b"")
            return Sighting(*values) if tuple(whose) == person else None
        except (ValueError, TypeError):
            return None

    def _name_of(self, person: Person) -> str:
        return "seen:" + self._seal.name_of(json.dumps(["seen", *person]).encode())

    def _is_away(self, problem: StoreUnavailable) -> None:
        if not self._problem:
            log.warning("store: out of reach, sessions that are seen elsewhere are not listed here: %s", problem)
        self._problem = str(problem)
