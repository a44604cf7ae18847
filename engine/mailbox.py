"""The bounded inbox of an actor. Full means refuse, not wait.

Owns the order of waiting entries. Knows nothing of what they are about.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.submission import Entry


class Mailbox(list[Entry]):
    """First in, first out; what has to go again goes to the front.

    (A list itself, because everybody asks whether there is mail; an empty deque takes as much room as the rest of an
    idle actor.)
    """

    __slots__ = ("_events_max", "away")

    def __init__(self, events_max: int) -> None:
        self._events_max = events_max
        self.away = 0  # entries that are being looked up: they keep their room, and come back or are answered

    def has_room(self, events: int) -> bool:
        """Whether so many more may be put in."""
        return len(self) + self.away + events <= self._events_max

    def put(self, entries: Sequence[Entry]) -> None:
        """Take entries that it has room for."""
        self.extend(entries)
        assert len(self) <= self._events_max, "more mail than was asked for"

    def put_back(self, entries: Sequence[Entry]) -> None:
        """Return entries to the front, in their order. They had their place before, so this never refuses."""
        self[:0] = entries

    def take(self, events_max: int) -> list[Entry]:
        """The next entries, at most so many."""
        taken = self[:events_max]
        del self[:events_max]
        return taken
