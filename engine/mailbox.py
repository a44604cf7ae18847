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

    def put(self, entries: Sequence[Entry]) -> bool:
        """Take all of them, or none and return False when they don't fit."""
        if len(self._entries) + len(entries) > self._events_max:
            return False
        self._entries.extend(entries)
        return True

    def put_back(self, entries: Sequence[Entry]) -> None:
        """Return entries to the front, in their order. They had their place before, so this never refuses."""
        self._entries[:0] = entries

    def take(self, events_max: int) -> list[Entry]:
        """The next entries, at most so many."""
        taken = self._entries[:events_max]
        del self._entries[:events_max]
        return taken
