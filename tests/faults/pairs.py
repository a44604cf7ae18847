"""Two faults at once."""

from __future__ import annotations

import signal

import trio

from bench.proxy import Flow
from tests.faults.of_engines import COMMITTED
from tests.faults.of_redis import do
from tests.faults.waiting import WAIT_SECONDS, until, within
from tests.faults.world import LOST_REDIS_SECONDS, OTHERS_SECONDS, Fault, World


async def kill_and_rollback(world: World) -> None:
    """An engine is killed, and Redis comes back with what it knew before that."""
    await do(world, "SAVE")
    await world.pause(0.1, 0.5)
    generations = await world.generations()
    await world.first.kill()
    await world.redis.stop()
    await world.redis.start()
    world.clear()
    await world.recovered(generations)
    await world.pause(0.2, 0.5)
    world.redis.dump.unlink(missing_ok=True)


async def zombie_and_empty_redis(world: World) -> None:
    """An engine is frozen, Redis is emptied and rebuilt by the other, and the frozen one goes on."""
    await world.pause(0.0, 0.4)
    world.first.send_signal(signal.SIGSTOP)
    await until(lambda: world.first.frozen, "the first engine is frozen")
    await world.pause(0.0, 0.3)
    generations = await world.generations()
    await do(world, "FLUSHALL")
    await world.pause(1.3, 2.2)
    await world.recovered(generations)
    world.first.send_signal(signal.SIGCONT)
    world.clear()
    await world.pause(0.2, 0.5)


async def both_restart(world: World) -> None:
    """Postgres and Redis restart together."""
    await world.pause(0.0, 0.4)
    generations = await world.generations()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.redis.stop)
        nursery.start_soon(world.postgres.stop, world.source.choice([signal.SIGINT, signal.SIGQUIT, signal.SIGKILL]))
    await world.pause(0.0, 0.4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.redis.start)
        nursery.start_soon(world.postgres.start)
    world.clear()
    await world.recovered(generations)
    await world.pause(0.2, 0.4)


async def swallowed_commit_and_kill(world: World) -> None:
    """Postgres has committed, its answer is lost, and so is the engine that waits for it."""
    back = world.first.postgres.back
    seen = trio.Event()

    def swallow() -> None:
        back.flow = Flow.VANISH
        world.first.send_signal(signal.SIGKILL)
        seen.set()

    back.watch(COMMITTED, swallow)
    with within(WAIT_SECONDS, "the first engine is told COMMIT"):
        await seen.wait()
    await world.first.kill()
    world.clear()
    await world.pause(0.2, 0.5)


FAULTS = [
    Fault("pair: engine kill, Redis rolled back", kill_and_rollback, recovery_seconds_max=LOST_REDIS_SECONDS),
    Fault("pair: zombie, empty Redis", zombie_and_empty_redis, recovery_seconds_max=LOST_REDIS_SECONDS),
    Fault("pair: Postgres restart, Redis restart", both_restart, recovery_seconds_max=LOST_REDIS_SECONDS),
    Fault("pair: swallowed COMMIT, engine kill", swallowed_commit_and_kill, others_seconds_max=OTHERS_SECONDS),
]
