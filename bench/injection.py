"""Injections: a fault made to happen during a load; when it began, when it was over, and when all was well again.

Owns the thread that makes it, and what `Fault` of a result means. Knows no single fault (bench/chaos.py has them).

A fault is **over** when nothing is left to be done but by the system itself: a store takes clients again, bytes flow,
the new process is launched. What the system takes from there is its recovery.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from bench.results import Fault, Slice, Step
from bench.stand import Stand, StandFailed

BEFORE_SHARE: Final = 1 / 3  # of a step, before the fault: what its throughput is compared with
RECOVERED: Final = 0.9  # of the throughput before

Pause = Callable[[float], None]  # for so many seconds, or until the run is given up


@dataclass(frozen=True, slots=True)
class Injection:
    """`inject` makes the fault happen, and returns when it is over; whatever happens, it leaves nothing frozen."""

    name: str
    inject: Callable[[Stand, Pause], None]
    wired: bool = False  # it needs proxies between the system and its stores


class Injecting:
    """A block during which a fault happens. It ends when the fault is over, or when the block has failed."""

    def __init__(self, injection: Injection, stand: Stand, started: float, seconds: float) -> None:
        """`started`, by the monotonic clock, is where the times of the `Fault` count from."""
        self._injection = injection
        self._stand = stand
        self._started = started
        self._begin_at = started + BEFORE_SHARE * seconds
        self._begun = self._over = started
        self._given_up = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=injection.name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._given_up.set()
        try:
            self._thread.join()
        except BaseException:
            # Interrupted: the thread must end first, because it may be starting what we are about to stop.
            self._given_up.set()
            self._thread.join()
            raise
        if self._error is not None and kind is None:
            raise StandFailed(f"the fault {self._injection.name} could not be made: {self._error}") from self._error

    def _run(self) -> None:
        self._pause(self._begin_at - time.monotonic())
        if self._given_up.is_set():
            return
        self._begun = time.monotonic()
        try:
            self._injection.inject(self._stand, self._pause)
        except Exception as error:  # noqa: BLE001 - told by whoever waits for this thread
            self._error = error
        self._over = time.monotonic()

    def _pause(self, seconds: float) -> None:
        self._given_up.wait(max(0.0, seconds))

    def told(self, step: Step) -> Fault:
        """What it was, once the block has ended."""
        begun, over = self._begun - self._started, self._over - self._started
        recovered = recovered_seconds(step.slices, begun, over, step.seconds)
        return Fault(self._injection.name, round(begun, 3), round(over, 3), recovered)


def recovered_seconds(slices: Sequence[Slice], begun: float, over: float, seconds: float) -> float | None:
    """From `over` until the first slice whose throughput is nine tenths of the median before `begun`.

    None: not before the step ended, or there was nothing before. Slices in which nothing was sent (bursts) don't count.
    """
    width = slices[1].at_seconds - slices[0].at_seconds if len(slices) > 1 else 0.0
    before = [each.events for each in slices if each.at_seconds + width <= begun and each.events]
    if not before:
        return None
    enough = RECOVERED * statistics.median(before)
    for each in slices:
        if over <= each.at_seconds <= seconds - width and each.events >= enough:
            return round(each.at_seconds - over, 3)
    return None
