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


# What a body counts for that waits to be read: its task and its request are as large.
WAITING_BYTES_MIN: Final = 4_096
_FULL: Final = problem(503, "overloaded", "too many long bodies are waiting to be read", retry_after_seconds=1)


def next_slice(reading: Reading) -> Events | None:
    """Read one more slice: all events if it was the last one. Raises `BadRequest` for a body that can't be taken."""
    try:
        next(reading)
    except StopIteration as end:
        events: Events = end.value
        return events
    return None


class Turns:
    """Long bodies that are read at the same time: one slice of one of them, then the loop has a turn, then the next.

    Half of the bytes that may be arriving is for bodies as they were sent, half for what is decoded of them.
    """

    def __init__(self, settings: Settings) -> None:
        half = settings.intake_bytes_max // 2
        self._bytes_max = max(half, settings.request_bytes_max)
        self._bytes = 0
        self._begun = trio.CapacityLimiter(max(1, half // settings.request_bytes_max))
        self._turn = trio.Lock()  # fair: first come, first served
        # As long as the engine may take: most senders wait for both.
        self._deadline_seconds = settings.request_deadline_seconds

    async def finish(self, reading: Reading, size: int, given_up: Callable[[], bool] | None = None) -> Events | None:
        """Read all of a body of `size` bytes, as it was sent; None when nobody waits for it any more.

        Raises `BadRequest`: 503 when there is no room or no time for it, and what the reading raises.
        """
        size = max(size, WAITING_BYTES_MIN)
        if self._bytes + size > self._bytes_max:
            raise BadRequest(_FULL)
        self._bytes += size
        try:
            with trio.move_on_after(self._deadline_seconds):
                async with self._begun:
                    while given_up is None or not given_up():
                        async with self._turn:
                            events = next_slice(reading)
                        if events is not None:
                            # What the engine and the answer make of 5,000 bad events takes as long as two slices.
                            await trio.lowlevel.checkpoint()
                            return events
                    return None
            raise BadRequest(_FULL)
        finally:
            self._bytes -= size
            reading.close()
