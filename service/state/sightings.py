"""Where sessions were seen: what their own person is told of them.

A session exists only in its cookie, so a process knows those that it has seen since it started. Nothing is decided by
what is noted here.
"""

from collections import deque
from typing import Final, NamedTuple

from service.core.model import Session
from service.state.bounded import drop_oldest

MAX_PEOPLE: Final = 10_000
MAX_OF_PERSON: Final = 50
MAX_NEWS: Final = 10_000

Person = tuple[str, str]  # issuer and subject


class Sighting(NamedTuple):
    """One session, as it was seen last. ``began`` and ``seen`` are in seconds since the epoch."""

    session: str  # its id
    device: str
    address: str  # empty if the proxy names none
    began: float
    seen: float
    provider_sid: str

    def __repr__(self) -> str:
        return f"Sighting({self.device!r})"


class Sightings:
    """The latest sightings of the people seen last. ``news`` are those that other replicas do not know of yet."""

    def __init__(self) -> None:
        self.news: deque[tuple[Person, Sighting]] = deque(maxlen=MAX_NEWS)
        self._of: dict[Person, dict[str, Sighting]] = {}  # both the oldest first

    def note(self, session: Session, device: str, address: str, now: float) -> None:
        """Remember that a valid session was seen."""
        person = session.issuer, session.subject
        sighting = Sighting(session.id, device, address, session.began, now, session.provider_sid)
        of_person = self._of.pop(person, {})
        of_person.pop(session.id, None)
        of_person[session.id] = sighting
        self._of[person] = of_person
        drop_oldest(of_person, MAX_OF_PERSON)
        drop_oldest(self._of, MAX_PEOPLE)
        self.news.append((person, sighting))

    def of(self, person: Person) -> list[Sighting]:
        """Return what was seen of a person here, the latest last."""
        return list(self._of.get(person, {}).values())
