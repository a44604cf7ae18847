"""One seed from its beginning to its end, and what it showed.

Owns what surrounds a run: its random scheduling, its bounds, and that whatever raises is told with its seed.
"""

from __future__ import annotations

import logging
import random
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Final

import trio
from trio._core import _run
from trio.testing import MockClock

from tests.simulation.checker import Checker
from tests.simulation.cluster import simulated
from tests.simulation.simulation import Simulation
from tests.simulation.world import World

Script = Callable[[Simulation], Awaitable[None]]
VIOLATIONS_SHOWN: Final = 5
# No step takes longer, nor does the rest; and no seed takes longer of our own time (a second, as a rule).
STEP_SECONDS: Final = 10
END_SECONDS: Final = 1_000
WALL_SECONDS: Final = 120


@dataclass(slots=True)
class Outcome:
    """What one seed showed."""

    seed: int
    steps: int
    violations: list[str]
    digest: str
    lines: list[str]
    counts: Counter[str]
    sent: int
    acknowledged: int

    @property
    def told(self) -> str:
        """Its violations, and how to see them again; nothing if there are none."""
        if not self.violations:
            return ""
        again = f"seed {self.seed}; again: make sim SEED={self.seed} STEPS={self.steps}"
        return "\n".join([again, *self.violations])


@contextmanager
def _scheduled_by(source: random.Random) -> Iterator[None]:
    """Trio picks the next task at random, on purpose; let it do so by the seed.

    It has a switch for just that, made for Hypothesis: tasks in the order of their making, then shuffled by `_r`.
    """
    kept = _run._r, _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._r = random.Random(source.getrandbits(64))
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    try:
        yield
    finally:
        _run._r, _run._ALLOW_DETERMINISTIC_SCHEDULING = kept  # type: ignore[misc]


def simulate(seed: int, steps: int, say: Callable[[str], None] | None = None) -> Outcome:
    """Run one seed; `say` hears every line of its trace."""
    return play(seed, steps, partial(_take_steps, steps=steps), say)


def play(seed: int, steps: int, script: Script, say: Callable[[str], None] | None = None) -> Outcome:
    """Let `script` do what it likes to a new cluster; then everything is mended and checked."""
    source = random.Random(seed)

    ran: list[Simulation] = []
    broken: list[str] = []

    async def main() -> None:
        # (Whatever waits for ever waits for less than that in the simulation's own time; what computes for ever does
        # so in ours.)
        with trio.fail_after(steps * STEP_SECONDS + END_SECONDS):
            async with trio.open_nursery() as nursery:
                world = World(source, nursery, say)
                ran.append(Simulation(world, halts=seed % 4 == 2))
                with simulated(world), _logged_to(world.checker):
                    await script(ran[0])
                    if not world.checker.violations:
                        await ran[0].mend()
                        ran[0].check()
                        await ran[0].outlive_campaigns()
                nursery.cancel_scope.cancel()

    try:
        with _scheduled_by(source), _bounded():
            trio.run(main, clock=MockClock(autojump_threshold=0))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as fault:  # noqa: BLE001  # whoever raised it: this seed did not keep every promise
        broken.append("the run ended:\n" + "".join(traceback.format_exception(fault)))
    return _outcome(seed, steps, ran[0] if ran else None, broken)


def _outcome(seed: int, steps: int, ran: Simulation | None, broken: list[str]) -> Outcome:
    if ran is None:
        return Outcome(seed, steps, broken, "", [], Counter(), 0, 0)
    world, checker = ran.world, ran.world.checker
    violations = (checker.violations + broken)[:VIOLATIONS_SHOWN]
    return Outcome(
        seed, steps, violations, world.digest, list(world.lines), world.counts,
        ran.clients.sent_events, checker.acknowledged,
    )  # fmt: skip


@contextmanager
def _logged_to(checker: Checker) -> Iterator[None]:
    """The engine's errors are the checker's, and nobody else's."""
    log = logging.getLogger("engine")
    level, propagate = log.level, log.propagate
    log.propagate = False
    log.addHandler(checker)
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.removeHandler(checker)
        log.setLevel(level)  # (which also makes its children forget what was not told meanwhile)
        log.propagate = propagate


class TooSlow(BaseException):
    """A seed that does not end; nothing in the engine may catch it."""


@contextmanager
def _bounded() -> Iterator[None]:
    """Interrupt a seed that computes for ever, where a process can be interrupted: in its main thread."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise TooSlow(f"no end after {WALL_SECONDS} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(WALL_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, kept)


async def _take_steps(simulation: Simulation, steps: int) -> None:
    """What the seed draws."""
    checker = simulation.world.checker
    await simulation.set_up()
    for _ in range(steps):
        await simulation.step()
        if checker.violations:
            return
