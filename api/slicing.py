"""Long bodies in slices, so that none holds the loop: what a slice is, and whose turn it is.

Owns the size of a slice and how many long bodies are read at once. A reading is a generator: it yields after each
slice and returns the events. Knows no JSON; each listener has `Turns` of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Final

import trio

from api.errors import BadRequest, problem
from config.settings import Settings
from engine import Event, Invalid

__all__ = ["SLICE_WORK", "Events", "Reading", "Turns", "next_slice"]

# A unit of work is about what a byte costs that is decoded, 4 ns at most; so a slice is some 4 ms. What one step adds
# behind the end of a slice is bounded by each reading: an event of 16 KiB, or a step of a decoder.
SLICE_WORK: Final = 1 << 20

Events = list[Event | Invalid]
Reading = Generator[None, None, Events]


_FULL: Final = problem(503, "overloaded", "too many long bodies are being read at once", retry_after_seconds=1)


def next_slice(reading: Reading) -> Events | None:
    """Read one more slice: all events if it was the last one. Raises `BadRequest` for a body that can't be taken."""
    try:
        next(reading)
    except StopIteration as end:
        events: Events = end.value
        return events
    return None


class Turns:
    """Long bodies that are read at the same time: one slice of one of them, then the loop has a turn, then the next."""

    def __init__(self, settings: Settings) -> None:
        # Each is held as it was sent and as it is decoded: all together are as many bytes as may be arriving.
        self._readings_max = max(1, settings.intake_bytes_max // (2 * settings.request_bytes_max))
        self._readings = 0
        self._deadline_seconds = settings.request_deadline_seconds
        self._turn = trio.Lock()  # fair: first come, first served

    async def finish(self, reading: Reading, given_up: Callable[[], bool] | None = None) -> Events | None:
        """Read the rest; None when nobody waits for it any more.

        Raises `BadRequest`: 503 when too many are being read at once, and what the reading raises.
        """
        if self._readings >= self._readings_max:
            raise BadRequest(_FULL)
        deadline = trio.current_time() + self._deadline_seconds
        self._readings += 1
        try:
            while given_up is None or not given_up():
                if trio.current_time() > deadline:
                    raise BadRequest(_FULL)
                async with self._turn:
                    events = next_slice(reading)
                if events is not None:
                    return events
            return None
        finally:
            self._readings -= 1
            reading.close()
