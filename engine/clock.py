"""The engine's clock: wall time that never steps by itself.

Owns the sum of a clock that runs evenly and an offset. The machine's clock may be set at any moment, by an hour or a
year; what it says reaches the engine only when it was found right (clock_check.py, at each heartbeat).
Until then, no day begins too early, and Redis is not told to forget ids that are still young.
"""

from __future__ import annotations

import time
from typing import Final

# Goes on while the machine sleeps, where the kernel has such a clock.
_EVEN: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
# A slewed clock drifts by less than a millisecond while one answer is waited for; whoever sets one moves it more.
_STEP_US: Final = 100_000


def machine_us() -> int:
    """What the machine's clock says: microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1_000


def even_us() -> int:
    """A clock that nobody sets: microseconds since some moment of its own."""
    return time.clock_gettime_ns(_EVEN) // 1_000


class SteadyClock:
    """See `engine.ports.Clock`."""

    def __init__(self) -> None:
        self._offset_us = self.reading_us()
        self._found_right = False

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 UTC, by the machine's clock as it was when it was last followed."""
        return even_us() + self._offset_us

    def reading_us(self) -> int:
        """How far the machine's clock is ahead of the even one: to be taken, compared, and followed if it is right."""
        return machine_us() - even_us()

    def behind_us(self, reading_us: int) -> int | None:
        """How far this clock is behind the machine's, by a reading of that; None: it was never found right so far."""
        return reading_us - self._offset_us if self._found_right else None

    def follow(self, reading_us: int, *, found_right: bool = True) -> None:
        """Take over a reading that was compared, unless the machine's clock was set meanwhile.

        `found_right`: exactly enough that later readings are held to it.
        """
        if abs(self.reading_us() - reading_us) < _STEP_US:
            self._offset_us = reading_us
            self._found_right |= found_right
