"""A store that died is started again by the program that uses it.

Owns when that is done, how often, and what is said of it: one line when a store died, one when it runs again, one when
it is given up. Engines find it again by themselves. Two programs on one data folder both look; the lock of the starts
lets one of them start it, and the other finds it. A store that hangs is alive: its engines say that it gives no answer.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from functools import partial
from typing import Final, Protocol

import trio

from config.settings import Settings
from engine.embedded.daemon import Stopping
from engine.errors import EngineError

LOOK_SECONDS: Final = 1.0  # a look is a lock that is tried: microseconds
PAUSE_SECONDS: Final = 1.0  # before the second start within the window; doubled for each further one: 15 s for five

_log = logging.getLogger(__name__)


class Store(Protocol):
    """What is kept: see `engine.embedded.Embedded`."""

    @property
    def name(self) -> str:
        """As operators call it."""
        ...

    @property
    def log(self) -> object:
        """Where it says what is wrong."""
        ...

    def is_alive(self) -> bool:
        """Whether one of its processes lives."""
        ...

    def start_again(self, stopping: Stopping) -> bool:
        """Start it. False: another program has."""
        ...


class Starts:
    """The starts of one store within a window, and whether and when there may be one more. Pure."""

    def __init__(self, starts_max: int, window_seconds: float) -> None:
        self._starts_max = starts_max
        self._window_seconds = window_seconds
        self._starts: deque[float] = deque()

    def pause_seconds(self, now: float) -> float | None:
        """How long to wait before the next start: nothing before the first. None: there were too many."""
        while self._starts and self._starts[0] <= now - self._window_seconds:
            self._starts.popleft()
        if len(self._starts) >= self._starts_max:
            return None
        return PAUSE_SECONDS * 2 ** (len(self._starts) - 1) if self._starts else 0.0

    def count(self, now: float) -> None:
        """One more."""
        self._starts.append(now)


async def keep(store: Store, settings: Settings) -> None:
    """Look after one store for ever."""
    starts = Starts(settings.restarts_max, settings.restart_window_seconds)
    while True:
        await trio.sleep(LOOK_SECONDS)
        if _is_dead(store):
            await _revive(store, starts, settings)


def _is_dead(store: Store) -> bool:
    try:
        return not store.is_alive()
    except OSError:  # no descriptor to ask with, say: the next look may have one
        return False


async def _revive(store: Store, starts: Starts, settings: Settings) -> None:
    """Start a dead store until it lives, or it is given up and another program has started it."""
    died = trio.current_time()
    _log.error(
        "the embedded %s has died: none of its processes is left. It is started again; its last words are in %s.1",
        store.name, store.log,
    )  # fmt: skip
    while (pause := starts.pause_seconds(trio.current_time())) is not None:
        await trio.sleep(pause)
        starts.count(trio.current_time())
        try:
            ours = await _start_in_a_thread(store)
        except EngineError as error:
            _log.error("%s", error)
            continue
        by = "" if ours else ", started by another program on this data folder"
        _log.warning("the embedded %s runs again after %.1f s%s", store.name, trio.current_time() - died, by)
        return
    _log.error(
        "the embedded %s was started %d times within %g s and is given up: events are answered 503. See %s, mend what "
        "it says, and start Headrace again",
        store.name, settings.restarts_max, settings.restart_window_seconds, store.log,
    )  # fmt: skip
    # (Somebody's next start on this folder brings it back, and then it is kept as before.)
    while _is_dead(store):  # noqa: ASYNC110 - a lock of another process sets no event
        await trio.sleep(LOOK_SECONDS)
    _log.warning("the embedded %s runs again, started by another program on this data folder", store.name)


async def _start_in_a_thread(store: Store) -> bool:
    """See `Embedded.start_again`. Cancelled, the thread ends by itself, within the pause of its own wait."""
    stopping = threading.Event()
    try:
        return await trio.to_thread.run_sync(partial(store.start_again, stopping.is_set), abandon_on_cancel=True)
    finally:
        stopping.set()
