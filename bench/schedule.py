"""When an open loop sends its requests: at a rate, or as a log has them.

Pure: knows no clock. Seconds count from the start of the load.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import ceil, inf


class EvenSchedule:
    """Request k is planned at k / rate; with bursts, the time between them does not count."""

    def __init__(self, rate: float, burst_seconds: float) -> None:
        self._rate = rate
        self._burst = burst_seconds

    def due(self, elapsed: float) -> int:
        """How many requests are planned by then."""
        if not self._burst:
            return ceil(elapsed * self._rate)
        whole, rest = divmod(elapsed, 2 * self._burst)
        return ceil((whole * self._burst + min(rest, self._burst)) * self._rate)

    def at(self, request: int) -> float:
        """Seconds from the start."""
        load = request / self._rate
        return load if not self._burst else load + int(load / self._burst) * self._burst


class LogSchedule:
    """Requests as a log has them."""

    def __init__(self, times: Sequence[float]) -> None:
        self._times = times

    def due(self, elapsed: float) -> int:
        """How many requests are planned by then."""
        return bisect_right(self._times, elapsed)

    def at(self, request: int) -> float:
        """Seconds from the start."""
        return self._times[request] if request < len(self._times) else inf
