"""The engine's clock: wall time that never steps by itself.

Owns the sum of a clock that runs evenly and an offset. The machine's clock may be set at any moment, by an hour or a
year; what it says reaches the engine only when it was compared with Postgres's (runtime.py, at each heartbeat).
Until then, no day begins too early, and Redis is not told to forget ids that are still young.
"""

from __future__ import annotations

import time
from typing import Final

# Goes on while the machine sleeps, where the kernel has such a clock.
_EVEN: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def machine_us() -> int:
    """What the machine's clock says: microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1_000


class SteadyClock:
    """See `engine.ports.Clock`."""

    def __init__(self) -> None:
        self._offset_us = 0
        self.follow()

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 UTC, by the machine's clock as it was when it was last followed."""
        return time.clock_gettime_ns(_EVEN) // 1_000 + self._offset_us

    def follow(self) -> None:
        """Take over what the machine's clock says now: it was found to be right."""
        self._offset_us = machine_us() - time.clock_gettime_ns(_EVEN) // 1_000
