"""The bounded inbox of an actor. Full means refuse, not wait.

Owns the order of waiting entries. Knows nothing of what they are about.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.submission import Entry


class Mailbox:
    """First in, first out; what has to go again goes to the front."""

    __slots__ = ("_entries", "_events_max")

    def __init__(self, events_max: int) -> None:
        self._entries: list[Entry] = []  # (an empty deque takes as much room as the rest of an idle actor)
        self._events_max = events_max

    def __len__(self) -> int:
        return len(self._entries)

    def has_room(self, events: int) -> bool:
        """Whether so many more may be put in."""
        return len(self._entries) + events <= self._events_max

    def put(self, entries: Sequence[Entry]) -> None:
        """Take entries that it has room for."""
        assert self.has_room(len(entries)), "more mail than was asked for"
        self._entries.extend(entries)

    def put_back(self, entries: Sequence[Entry]) -> None:
        """Return entries to the front, in their order. They had their place before, so this never refuses."""
        self._entries[:0] = entries

    def take(self, events_max: int) -> list[Entry]:
        """The next entries, at most so many."""
        taken = self._entries[:events_max]
        del self._entries[:events_max]
        return taken
