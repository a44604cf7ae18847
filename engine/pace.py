"""How long queries take: the slowest of late, and what that lets one expect of the next ones.

Pure but for trio's clock. Knows nothing of what they ask.
"""

from __future__ import annotations

from typing import Final

import trio

from engine.model import SECOND_US

# A query counts for so much of the mean: some ten of them make a change felt, and one that is slow does not rule.
_WEIGHT: Final = 0.1
# No query is faster: a round trip, and the engine's work for it.
_SECONDS_MIN: Final = 0.001


class Pace:
    """`begin` and `end` each query."""

    def __init__(self) -> None:
        self._started: dict[object, float] = {}  # queries under way
        self._slowest_seconds = 0.0
        self._mean_seconds = _SECONDS_MIN

    def begin(self) -> object:
        """A query is sent; what it is called here."""
        query = object()
        self._started[query] = trio.current_time()
        return query

    def end(self, query: object) -> float:
        """It is answered, or has failed; the seconds that it took."""
        seconds = trio.current_time() - self._started.pop(query)
        self._slowest_seconds = max(self._slowest_seconds, seconds)
        self._mean_seconds += _WEIGHT * (seconds - self._mean_seconds)
        return seconds

    def slowest_us(self) -> int:
        """How long the slowest query took since this was asked last, with the age of those that are under way."""
        slowest = max(self._slowest_seconds, *self._ages(), 0.0)
        self._slowest_seconds = 0.0
        return round(slowest * SECOND_US)

    def queries_within(self, seconds: float, at_once: int) -> int:
        """How many will be answered within this time, so many at once.

        Each task as fast as the mean, or, where its query has taken longer than that already, as fast as this one.
        """
        ages = self._ages()
        paces = [*ages, *[0.0] * (at_once - len(ages))]
        return int(sum(seconds / max(age, self._mean_seconds, _SECONDS_MIN) for age in paces))

    def _ages(self) -> list[float]:
        now = trio.current_time()
        return [now - started for started in self._started.values()]
