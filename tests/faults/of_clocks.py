"""What can happen to clocks, and to days."""

from __future__ import annotations

import signal

import trio

from tests.faults.engines import QUICK
from tests.faults.of_engines import seconds_to_midnight
from tests.faults.of_redis import do
from tests.faults.world import Fault, World

DAY_SECONDS = 86_400
HEARTBEAT_SECONDS = float(QUICK["HEADRACE_HEARTBEAT_SECONDS"])
KOLKATA_SECONDS = 19_800  # the zone of the campaign `daily`, east of Greenwich
WINDOW_SECONDS = 1_200  # two turns of the dedup window, and more


async def leap(world: World, seconds: float) -> None:
    """The whole world, senders included, is at another time; the first engine lags a little behind.

    Nothing is sent meanwhile: engines follow with their next heartbeat, and real ones would not disagree for hours.
    """
    await world.load.hold()
    world.load.clock_seconds = seconds
    world.first.move_clock(own_seconds=seconds - world.source.choice([0.0, 0.0, 0.7]))
    world.second.move_clock(own_seconds=seconds)
    await trio.sleep(3 * HEARTBEAT_SECONDS)
    world.load.go_on()


async def ahead(world: World) -> None:
    """One engine's clock is a day ahead: it refuses as soon as it has compared it with Postgres's."""
    await _wrong(world, DAY_SECONDS)


async def behind(world: World) -> None:
    """One engine's clock is a day behind."""
    await _wrong(world, -DAY_SECONDS)


async def _wrong(world: World, seconds: float) -> None:
    await world.pause(0.0, 0.3)
    world.first.move_clock(own_seconds=seconds, compared_seconds=seconds)
    await world.pause(0.5, 1.0)
    assert not await world.first.ready(), "a clock that is a day off is noticed"
    world.first.move_clock()
    world.clear()
    await world.pause(0.1, 0.4)


async def backwards(world: World) -> None:
    """One engine's clock is set back, by seconds or a quarter of an hour."""
    for _ in range(3):
        seconds = world.source.choice([1, 20, 900])
        world.first.move_clock(own_seconds=seconds, compared_seconds=seconds)
        await world.pause(0.1, 0.5)
        world.first.move_clock()
        world.clear()
        await world.pause(0.1, 0.3)


async def midnight_utc(world: World) -> None:
    """Midnight in UTC under load."""
    await leap(world, seconds_to_midnight(0) - 1.5)
    await world.pause(1.5, 2.0)


async def midnight_elsewhere(world: World) -> None:
    """Midnight in the zone of a campaign, and not in UTC."""
    await leap(world, seconds_to_midnight(KOLKATA_SECONDS) - 1.5)
    await world.pause(1.5, 2.0)


async def repeat_after_window(world: World) -> None:
    """Acknowledged events are sent again when Redis has forgotten them."""
    await world.pause(0.2, 0.4)
    await leap(world, WINDOW_SECONDS)
    world.load.repeats = 0.8
    await world.pause(0.5, 1.0)


async def repeat_after_midnight(world: World) -> None:
    """Acknowledged events are sent again on another day."""
    await leap(world, seconds_to_midnight(0) - 1.8)
    await world.pause(1.0, 1.2)
    world.load.repeats = 0.8
    await world.pause(1.0, 1.5)


async def repeat_after_rebuild(world: World) -> None:
    """Acknowledged events are sent again when Redis was rebuilt from Postgres."""
    await world.pause(0.2, 0.4)
    world.load.repeats = 0.8
    await do(world, "FLUSHALL")
    world.clear()
    await world.pause(0.5, 1.0)


async def repeat_after_restart(world: World) -> None:
    """Acknowledged events are sent again to new engines, with a new Redis."""
    await world.pause(0.2, 0.4)
    world.load.repeats = 0.8
    for engine in world.engines:
        engine.send_signal(signal.SIGKILL if world.source.random() < 0.5 else signal.SIGTERM)
    for engine in world.engines:
        await engine.ended()
    await world.redis.stop()
    await world.mend()
    world.clear()
    await world.pause(0.5, 1.0)


FAULTS = [
    Fault("clock: a day ahead", ahead),
    Fault("clock: a day behind", behind),
    Fault("clock: set back", backwards),
    Fault("clock: midnight in UTC", midnight_utc),
    Fault("clock: midnight in another zone", midnight_elsewhere),
    Fault("client: retry after the dedup window", repeat_after_window),
    Fault("client: retry after midnight", repeat_after_midnight),
    Fault("client: retry after a rebuild", repeat_after_rebuild),
    Fault("client: retry after a restart", repeat_after_restart),
]
