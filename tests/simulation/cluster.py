"""Engine processes: the real engine on a simulated network, which can be killed, frozen and thawed.

Owns the life of a process. Composes the engine as `engine/runtime.py` does, with other stores and clocks.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Final, TypeVar
from unittest.mock import patch

import trio
from trio import sleep

from engine import arrival, rounds
from engine import clock as engine_clock
from engine.clock import SteadyClock
from engine.engine import Engine
from engine.errors import StoreUnavailable
from engine.model import SECOND_US
from engine.processes import Engines
from engine.registry import Registry
from engine.runtime import heartbeats, judge_clock
from tests.fakes import ledger as fake_ledger
from tests.simulation.network import LedgerLink, News, StoreLink, Wire
from tests.simulation.world import World

T = TypeVar("T")
REGISTRATION_PAUSE_SECONDS: Final = 1.0
_current: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Process:
    """One engine process."""

    def __init__(self, world: World, slot: int, incarnation: int) -> None:
        self.world = world
        self.slot = slot
        self.name = f"e{slot}.{incarnation}"
        self.wire = Wire(world, self)
        self.offset_us = world.clock_offset_us()
        self.engine: Engine | None = None  # None: not serving yet, or no more
        self.registry: Registry | None = None
        self.news: News | None = None
        self.thawed_at = 0.0
        self.unanswered = 0  # requests of clients
        self.drained = False  # everything was finished when it was told to end
        self.ended = False
        self._terminated = trio.Event()
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._thawed = trio.Event()
        self._thawed.set()

    def machine_us(self) -> int:
        """The clock of its machine, which may be set at any moment; the engine's own is a `SteadyClock`."""
        return self.world.now_us() + self.offset_us

    # --- life -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start, and serve until killed or told to end."""
        _current.set(self)
        store = StoreLink(self.wire, self.machine_us)
        with self._scope:
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    number = await self._start(nursery, store)
                    await self._terminated.wait()
                    await self._drain()
                    nursery.cancel_scope.cancel()
                with trio.move_on_after(self.world.settings.query_timeout_seconds):
                    await store.retire_engine(number)
            except StoreUnavailable:
                pass  # (nobody was told goodbye: its heartbeat will be missed)
            except Exception as fault:  # noqa: BLE001  # whatever it is, it ended an engine
                self.world.checker.violated(f"{self.name} failed: {fault!r}", fault)
        self.engine = None
        self.ended = True

    async def _drain(self) -> None:
        """As `engine.runtime.open_engine` ends: everything is finished, within a bound."""
        assert self.engine is not None
        with trio.move_on_after(self.world.settings.drain_seconds / 2) as bound:
            await self.engine.drain()
        self.world.note(self.name, f"drained: {not bound.cancelled_caught}")
        self.drained = not bound.cancelled_caught
        if self.drained and self.unanswered:
            self.world.checker.violated(f"{self.name}: drained, and {self.unanswered} requests have no answer")
        self.engine = None

    async def _start(self, nursery: trio.Nursery, store: StoreLink) -> int:
        world, clock = self.world, SteadyClock()
        while True:
            try:
                engines = Engines(await store.register_engine())
                reading_us = clock.reading_us()
                first = await store.heartbeat(engines.own)
                engines.heard(first)
                break
            except StoreUnavailable:
                await trio.sleep(REGISTRATION_PAUSE_SECONDS)
        ledger = LedgerLink(self.wire)
        self.registry = registry = Registry(world.settings, ledger, store, clock, engines, nursery)
        engine = Engine(world.settings, registry, store, clock)
        judge_clock(engine, clock, reading_us, first, None)
        registry.start()
        nursery.start_soon(engine.tick)
        nursery.start_soon(heartbeats, engine, registry, engines, clock, store, ledger)
        self.news = News(self.wire, registry.plan_changed, registry.generation_raised, registry.read_all_again)
        nursery.start_soon(self.news.listen)
        self.engine = engine
        world.note(self.name, f"serves as engine {engines.own}, its clock off by {self.offset_us / SECOND_US:.0f} s")
        return engines.own

    def terminate(self) -> None:
        """As SIGTERM: it takes nothing more, finishes what it has, and ends."""
        self.world.note(self.name, "told to end")
        self._terminated.set()

    def kill(self) -> None:
        """As `kill -9`: at any await; what is on the wire arrives or not."""
        self.world.note(self.name, "killed")
        self.wire.dead = True
        self.engine = None
        self._scope.cancel()
        self._thawed.set()

    def start_soon(self, work: Callable[[], object]) -> None:
        """Run an async function of a client, which ends when this process is killed."""
        if self._nursery is not None and self.engine is not None:
            self._nursery.start_soon(self._as_ours, work)

    async def _as_ours(self, work: Callable[[], object]) -> None:
        _current.set(self)
        await work()  # type: ignore[misc]

    # --- sleep ----------------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether it does nothing now."""
        return not self._thawed.is_set()

    def freeze(self) -> None:
        """Stop all of it where it is: nothing that it awaits comes back, and nobody hears of it."""
        self.world.note(self.name, "frozen")
        self._thawed = trio.Event()

    def thaw(self) -> None:
        """Go on with everything it had decided."""
        self.world.note(self.name, "thawed")
        self.thawed_at = trio.current_time()
        self._thawed.set()

    async def awake(self) -> None:
        """Wait while it is frozen."""
        while not self._thawed.is_set():
            await self._thawed.wait()


class _Randomness:
    """Stands in for `os` where the engine makes ids."""

    def __init__(self, world: World) -> None:
        self.urandom = world.source.randbytes


class _Clocks:
    """Stands in for `time` where the engine reads clocks: one that runs evenly, and that of the machine it is on."""

    def __init__(self, world: World) -> None:
        self._world = world

    def clock_gettime_ns(self, _clock: int) -> int:
        """Since some moment of its own; also while all machines sleep."""
        return (self._world.now_us() - self._world.start_us) * 1_000

    def time_ns(self) -> int:
        """What the machine of whoever asks says."""
        process = _current.get()
        assert process is not None
        return process.machine_us() * 1_000


@contextlib.contextmanager
def simulated(world: World) -> Iterator[None]:
    """Let engines sleep only while they are not frozen, read the world's clocks, and make their ids from the seed.

    Rounds of a few campaigns travel in parts, as those of hundreds do, and few ids that are ahead are many.
    """

    async def gated(seconds: float) -> None:
        await sleep(seconds)
        process = _current.get()
        if process is not None:
            await process.awake()

    with (
        patch.object(trio, "sleep", gated),
        patch.object(rounds, "PART_CALLS", 1),
        patch.object(rounds, "SHARE_MIN", 1),
        patch.object(fake_ledger, "AHEAD_MAX", 1),
        patch.object(arrival, "os", _Randomness(world)),
        patch.object(engine_clock, "time", _Clocks(world)),
    ):
        yield
