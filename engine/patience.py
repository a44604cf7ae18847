"""How long one campaign's actor bears with a Redis that refuses, before it recovers the campaign itself.

Owns the counts and the pauses. Pure: says what to do, and waits for nothing.
"""

from __future__ import annotations

from typing import Final

# CLOSED means that somebody recovers this campaign: look again after 20, 40, … ms, 2.5 s in all, then recover.
CLOSED_PAUSES_SECONDS: Final = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
# Calls that Redis refuses for want of memory, and that are tried again: ids are forgotten for each. What does not help
# twice running does not help soon, and whoever waits should hear so.
FULL_MAX: Final = 2
# A tag that Redis could not be told is repeated after this pause, for as long as it takes.
REPEAT_PAUSE_SECONDS: Final = 0.5


class Patience:
    """What was refused since the last call that was not."""

    __slots__ = ("_closed", "_full")

    def __init__(self) -> None:
        self._closed = 0
        self._full = 0

    def restore(self) -> None:
        """A call was decided: all is well."""
        self._closed = self._full = 0

    @property
    def meets_closed(self) -> bool:
        """Whether the campaign was closed at the last look."""
        return self._closed > 0

    def closed(self) -> float | None:
        """The campaign is closed: seconds until the next look, None when it is time to recover it."""
        if self._closed == len(CLOSED_PAUSES_SECONDS):
            self._closed = 0
            return None
        self._closed += 1
        return CLOSED_PAUSES_SECONDS[self._closed - 1]

    def full(self) -> bool:
        """Redis has no memory for a call: whether to try it again."""
        if self._full == FULL_MAX:
            self._full = 0
            return False
        self._full += 1
        return True
