"""What can happen between an engine and its stores."""

from __future__ import annotations

from tests.faults.proxy import Flow
from tests.faults.world import Fault, World


async def latency(world: World) -> None:
    """Every piece takes up to 0.15 s, each way, to one store or both."""
    for engine in world.engines:
        for proxy in (engine.redis, engine.postgres):
            proxy.there.delay_seconds = world.source.choice([0, 0.02, 0.15])
            proxy.back.delay_seconds = world.source.choice([0, 0.02, 0.15])
    await world.pause(0.5, 1.5)
    for engine in world.engines:
        engine.redis.mend()
        engine.postgres.mend()
    world.clear()


async def cut(world: World) -> None:
    """Connections are cut, and for a moment there are no new ones."""
    for _ in range(world.source.randint(1, 4)):
        await world.pause(0.0, 0.3)
        proxy = world.source.choice([proxy for engine in world.engines for proxy in (engine.redis, engine.postgres)])
        proxy.refusing = world.source.random() < 0.5
        proxy.cut()
        await world.pause(0.0, 0.4)
        proxy.mend()
    world.clear()


async def black_hole(world: World) -> None:
    """Bytes vanish, one way or both, and nobody is told."""
    await world.pause(0.0, 0.3)
    proxy = world.source.choice([world.first.redis, world.first.postgres])
    for direction in world.source.choice([[proxy.there], [proxy.back], [proxy.there, proxy.back]]):
        direction.flow = Flow.VANISH
    await world.pause(0.3, 2.5)
    proxy.mend()
    world.clear()
    await world.pause(0.1, 0.3)


async def late_delivery(world: World) -> None:
    """What one engine has sent arrives when the others have taken it for dead and recovered what it held."""
    await world.pause(0.0, 0.3)
    stalled = world.source.choice(
        [[world.first.redis], [world.first.postgres], [world.first.redis, world.first.postgres]]
    )
    for proxy in stalled:
        proxy.there.flow = Flow.STALL
    await world.pause(1.6, 3.0)
    for proxy in stalled:
        proxy.there.flow = Flow.PASS
    world.clear()
    await world.pause(0.2, 0.5)


FAULTS = [
    Fault("network: latency", latency),
    Fault("network: cut", cut),
    Fault("network: black hole", black_hole),
    Fault("network: bytes delivered after a takeover", late_delivery),
]
