"""What can happen to clocks, and to days."""

from __future__ import annotations

import signal

from tests.faults import of_postgres, of_redis
from tests.faults.engines import QUICK
from tests.faults.of_engines import seconds_to_midnight
from tests.faults.waiting import until_told
from tests.faults.world import LOST_REDIS_SECONDS, OTHERS_SECONDS, Fault, World

DAY_SECONDS = 86_400
HEARTBEAT_SECONDS = float(QUICK["HEADRACE_HEARTBEAT_SECONDS"])
FOLLOW_SECONDS = 3 * HEARTBEAT_SECONDS  # every engine has compared its clock by then, if nothing is slow
NOTICED_SECONDS = 5.0
UTC, KOLKATA = "UTC", "Asia/Kolkata"
KOLKATA_SECONDS = 19_800  # the zone of the campaign `daily`, east of Greenwich
WINDOW_SECONDS = 1_200  # two turns of the dedup window, and more


async def leap(world: World, seconds: float) -> None:
    """The whole world, senders included, is at another time; the first engine lags a little behind."""
    await world.load.hold()
    await _move_all(world, seconds)


async def _before_midnight(world: World, zone_seconds: int, seconds: float) -> None:
    """The same, to shortly before a midnight: how far that is, is known only when nothing is under way any more."""
    await world.load.hold()
    await _move_all(world, seconds_to_midnight(zone_seconds) - FOLLOW_SECONDS - seconds)


async def _move_all(world: World, seconds: float) -> None:
    """Nothing is sent meanwhile: engines follow with their next heartbeat, and real ones would not be hours apart."""
    world.load.clock_seconds = seconds
    world.first.move_clock(own_seconds=seconds - world.source.choice([0.0, 0.0, 0.7]))
    world.second.move_clock(own_seconds=seconds)
    await world.clocks_followed()
    world.load.go_on()


def _campaigns_in(world: World, zone: str) -> list[int]:
    return [campaign for campaign in world.campaigns if world.plans[campaign].get("timezone", UTC) == zone]


async def _two_days(world: World, campaigns: list[int]) -> None:
    """Wait until there are events of these campaigns on both sides of a midnight."""
    query = (
        "SELECT campaign_id FROM events WHERE campaign_id = ANY(%s) GROUP BY campaign_id"
        " HAVING count(DISTINCT spend_day) > 1"
    )
    await until_told(lambda: of_postgres.do(world, query, campaigns), "one campaign has events of two spend days")


async def ahead(world: World) -> None:
    """One engine's clock is a day ahead: it refuses as soon as it has compared it with Postgres's."""
    await _wrong(world, DAY_SECONDS)


async def behind(world: World) -> None:
    """One engine's clock is a day behind."""
    await _wrong(world, -DAY_SECONDS)


async def _wrong(world: World, seconds: float) -> None:
    await world.pause(0.0, 0.3)
    world.first.move_clock(own_seconds=seconds, compared_seconds=seconds)

    async def noticed() -> bool:
        return not await world.first.ready()

    await until_told(noticed, "a clock that is a day off is noticed", NOTICED_SECONDS)
    await world.pause(0.2, 0.6)
    world.first.move_clock()
    world.clear()
    await world.pause(0.1, 0.4)


async def whole_host(world: World) -> None:
    """The clock of a host is set by a day, and that of its stores with it: the engines on it refuse, no day begins."""
    await world.pause(0.0, 0.3)
    seconds = world.source.choice([DAY_SECONDS, -DAY_SECONDS])
    world.first.move_clock(own_seconds=seconds, even_seconds=0.0)

    async def noticed() -> bool:
        return not await world.first.ready()

    await until_told(noticed, "a host that was set by a day is noticed", NOTICED_SECONDS)
    await world.pause(0.2, 0.6)
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
    await _before_midnight(world, 0, 0.75)
    await world.pause(1.0, 1.5)
    await _two_days(world, _campaigns_in(world, UTC))


async def midnight_elsewhere(world: World) -> None:
    """Midnight in the zone of a campaign, and not in UTC."""
    await _before_midnight(world, KOLKATA_SECONDS, 0.75)
    await world.pause(1.0, 1.5)
    await _two_days(world, _campaigns_in(world, KOLKATA))


async def _repeat(world: World) -> None:
    """Send mostly what was acknowledged, and wait until that was answered."""
    assert world.load.acknowledged, "there is something to send again"
    world.load.repeats = 0.8
    await world.answered(10)


async def repeat_after_window(world: World) -> None:
    """Acknowledged events are sent again when Redis has forgotten them."""
    await world.pause(0.2, 0.4)
    await leap(world, WINDOW_SECONDS)
    await _repeat(world)


async def repeat_after_midnight(world: World) -> None:
    """Acknowledged events are sent again on another day."""
    await _before_midnight(world, 0, 0.75)
    await world.pause(1.0, 1.2)
    await _repeat(world)
    await _two_days(world, _campaigns_in(world, UTC))


async def repeat_after_rebuild(world: World) -> None:
    """Acknowledged events are sent again when Redis was rebuilt from Postgres."""
    await world.pause(0.2, 0.4)
    generations = await world.generations()
    await of_redis.do(world, "FLUSHALL")
    world.clear()
    await world.recovered(generations)
    await _repeat(world)


async def repeat_after_restart(world: World) -> None:
    """Acknowledged events are sent again to new engines, with a new Redis."""
    await world.pause(0.2, 0.4)
    for engine in world.engines:
        engine.send_signal(signal.SIGKILL if world.source.random() < 0.5 else signal.SIGTERM)
    for engine in world.engines:
        await engine.ended()
    await world.redis.stop()
    await world.mend()
    world.clear()
    await _repeat(world)


FAULTS = [
    Fault("clock: a day ahead", ahead, others_seconds_max=OTHERS_SECONDS),
    Fault("clock: a day behind", behind, others_seconds_max=OTHERS_SECONDS),
    Fault("clock: a host and its stores set by a day", whole_host, others_seconds_max=OTHERS_SECONDS),
    Fault("clock: set back", backwards, others_seconds_max=OTHERS_SECONDS),
    Fault("clock: midnight in UTC", midnight_utc),
    Fault("clock: midnight in another zone", midnight_elsewhere),
    Fault("client: retry after the dedup window", repeat_after_window),
    Fault("client: retry after midnight", repeat_after_midnight),
    Fault("client: retry after a rebuild", repeat_after_rebuild, recovery_seconds_max=LOST_REDIS_SECONDS),
    Fault("client: retry after a restart", repeat_after_restart),
]
