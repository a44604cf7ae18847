"""What can happen between an engine and its stores."""

from __future__ import annotations

import trio

from bench.proxy import Direction, Flow
from tests.faults.waiting import WAIT_SECONDS, until, within
from tests.faults.world import OTHERS_SECONDS, Fault, World

RESERVE = b"headrace5_reserve"  # as it stands in a command to Redis


async def latency(world: World) -> None:
    """Every piece takes up to 0.15 s, each way, to one store or both."""
    proxies = [proxy for engine in world.engines for proxy in (engine.redis, engine.postgres)]
    ways = [way for proxy in proxies for way in (proxy.there, proxy.back)]
    disturbed = sum(way.disturbed for way in ways)
    for way in ways:
        way.delay_seconds = world.source.choice([0, 0.02, 0.15])
    world.source.choice(ways).delay_seconds = 0.15
    await world.pause(0.5, 1.5)
    await until(lambda: sum(way.disturbed for way in ways) > disturbed + 10, "pieces are delayed")
    for proxy in proxies:
        proxy.mend()
    world.clear()


async def cut(world: World) -> None:
    """Connections are cut, and for a moment there are no new ones."""
    for _ in range(world.source.randint(1, 4)):
        await world.pause(0.0, 0.3)
        proxy = world.source.choice([proxy for engine in world.engines for proxy in (engine.redis, engine.postgres)])
        proxy.refusing = world.source.random() < 0.5
        await until(proxy.cut, "there is a connection to cut")
        await world.pause(0.0, 0.4)
        proxy.mend()
    world.clear()


async def black_hole(world: World) -> None:
    """Bytes vanish, one way or both, and nobody is told."""
    await world.pause(0.0, 0.3)
    proxy = world.source.choice([world.first.redis, world.first.postgres])
    disturbed = proxy.disturbed
    for direction in world.source.choice([[proxy.there], [proxy.back], [proxy.there, proxy.back]]):
        direction.flow = Flow.VANISH
    await world.pause(0.3, 2.5)
    await until(lambda: proxy.disturbed > disturbed, "bytes vanish")
    proxy.mend()
    world.clear()
    await world.pause(0.1, 0.3)


async def late_to_redis(world: World) -> None:
    """A reservation arrives when its campaign was recovered: it is of an older generation."""
    await _late(world, world.first.redis.there, RESERVE, [world.first.redis.there])


async def late_to_postgres(world: World) -> None:
    """The rows of a flush, and its COMMIT, arrive when another engine has taken its campaigns over.

    It has ended the session, too, so what arrives finds nobody; a generation would refuse it as well.

    With the settings of the others, Postgres would cancel the statement before that (`statement_timeout`), which is
    safe as well, but something else. Nothing else arrives either: a heartbeat would say that the engine lives.
    """
    await world.first.kill()
    world.first.launch(HEADRACE_FLUSH_TIMEOUT_SECONDS="20")
    assert await world.first.addresses()
    there = world.first.postgres.there
    await _late(world, there, b"PGCOPY", [there, world.first.redis.there])


async def _late(world: World, watched: Direction, text: bytes, stalled: list[Direction]) -> None:
    """Hold what the first engine sends from this text on, until a generation was raised."""
    seen = trio.Event()

    def stall() -> None:
        for way in stalled:
            way.flow = Flow.STALL
        seen.set()

    await world.pause(0.0, 0.3)
    watched.watch(text, stall)
    with within(WAIT_SECONDS, f"the first engine sends {text!r}"):
        await seen.wait()
    await world.recovered(await world.generations())
    await world.pause(0.0, 0.5)
    for way in stalled:
        way.flow = Flow.PASS
    world.clear()
    await world.pause(0.2, 0.5)


FAULTS = [
    Fault("network: latency", latency),
    Fault("network: cut", cut),
    Fault("network: black hole", black_hole, others_seconds_max=OTHERS_SECONDS),
    Fault("network: reservation delivered after a takeover", late_to_redis, others_seconds_max=OTHERS_SECONDS),
    Fault("network: rows delivered after a takeover", late_to_postgres, others_seconds_max=OTHERS_SECONDS),
]
