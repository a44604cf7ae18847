"""That look-ups are refused: told once when it begins and once when it ends, in the log and to `/readyz`.

Owns what is said of it. What is refused, and why, is decided in `lookups.py`.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

log = logging.getLogger(__name__)

# It has ended when nothing was refused for so long: senders repeat what was refused after a second or more.
QUIET_SECONDS: Final = 10.0

_TOO_MANY: Final = (
    "more events need a look-up in Postgres (ids that tell no time, late events and repeats) than it answers in time"
)
_REFUSED: Final = "those beyond that are answered 503 overloaded; fresh events whose id tells a time are served"


class Shedding:
    """`refused` when it happens; `run` it in the engine's nursery."""

    def __init__(self) -> None:
        self._begun = trio.Event()
        self._latest = 0.0  # in trio's time
        self._events = 0

    def refused(self, events: int) -> None:
        """So many were, just now."""
        self._events += events
        self._latest = trio.current_time()
        self._begun.set()

    async def run(self) -> None:
        """Tell of it, for ever."""
        while True:
            await self._begun.wait()
            log.warning("%s: %s", _TOO_MANY, _REFUSED)
            # (An event for each refusal would be more work than the refusal.)
            while (seconds := self._latest + QUIET_SECONDS - trio.current_time()) > 0:  # noqa: ASYNC110
                await trio.sleep(seconds)
            log.warning("look-ups in Postgres are answered in time again; events refused meanwhile: %d", self._events)
            self._events = 0
            self._begun = trio.Event()

    def notes(self) -> list[str]:
        """What is refused now though the engine is ready, a sentence each."""
        return [f"{_TOO_MANY}: {_REFUSED}"] if self._begun.is_set() else []
