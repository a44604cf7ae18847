"""What can happen to Redis."""

from __future__ import annotations

import signal
from functools import partial
from typing import Any

import trio

from tests.faults.servers import RedisServer
from tests.faults.world import Fault, World


async def do(world: World, *command: Any) -> Any:
    """One command to Redis, past every proxy."""
    return await trio.to_thread.run_sync(partial(world.redis.do, *command))


async def restart(world: World) -> None:
    """Killed, and started again: empty, and another memory image."""
    await world.pause(0.0, 0.5)
    await world.redis.stop()
    await world.pause(0.0, 0.8)
    await world.redis.start()
    world.clear()
    await world.pause(0.1, 0.4)


async def emptied(world: World) -> None:
    """Its memory is wiped while it runs."""
    for _ in range(world.source.randint(1, 3)):
        await world.pause(0.0, 0.4)
        await do(world, "FLUSHALL")
        world.clear()
    await world.pause(0.1, 0.4)


async def old_copy(world: World) -> None:
    """It comes back with what it knew a while ago."""
    await do(world, "SAVE")
    await world.pause(0.2, 0.6)
    await world.redis.stop()
    await world.redis.start()
    world.clear()
    await world.pause(0.1, 0.4)
    await do(world, "CONFIG", "SET", "save", "")
    world.redis.dump.unlink(missing_ok=True)


async def _replica(world: World) -> RedisServer:
    """A replica that follows the primary, and has caught up."""
    replica = world.new_redis()
    await replica.start()
    await trio.to_thread.run_sync(replica.do, "REPLICAOF", "127.0.0.1", world.redis.port)
    with trio.fail_after(20):
        while b"master_link_status:up" not in bytes(await trio.to_thread.run_sync(_replication, replica)):
            await trio.sleep(0.02)
    return replica


def _replication(server: RedisServer) -> bytes:
    return (
        str(server.do("INFO", "replication")).encode().replace(b"'master_link_status': 'up'", b"master_link_status:up")
    )


async def _promote(world: World, replica: RedisServer) -> None:
    """It leads from now on, and knows only what it had heard by the time it was frozen."""
    replica.send_signal(signal.SIGCONT)
    await trio.to_thread.run_sync(replica.do, "REPLICAOF", "NO", "ONE")
    world.redis = replica


async def failover(world: World) -> None:
    """The primary dies, and a replica takes over that had not heard everything."""
    replica = await _replica(world)
    old = world.redis
    replica.send_signal(signal.SIGSTOP)  # it lags from here
    await world.pause(0.1, 0.4)
    await old.stop()
    await _promote(world, replica)
    for engine in world.engines:
        engine.redis.target_port = replica.port
        engine.redis.cut()
    world.clear()
    await world.pause(0.1, 0.4)


async def two_leaders(world: World) -> None:
    """A replica was promoted, and one engine still talks to the old primary for a while."""
    replica = await _replica(world)
    old = world.redis
    replica.send_signal(signal.SIGSTOP)
    await world.pause(0.1, 0.3)
    await _promote(world, replica)
    world.second.redis.target_port = replica.port
    world.second.redis.cut()
    await world.pause(0.5, 1.5)
    world.first.redis.target_port = replica.port
    world.first.redis.cut()
    await old.stop()
    world.clear()
    await world.pause(0.1, 0.4)


async def frozen(world: World) -> None:
    """It says nothing for five seconds, and then does what it was told meanwhile."""
    await world.pause(0.0, 0.4)
    world.redis.send_signal(signal.SIGSTOP)
    await trio.sleep(5)
    world.redis.send_signal(signal.SIGCONT)
    world.clear()
    await world.pause(0.1, 0.4)


async def out_of_memory(world: World) -> None:
    """Full: it refuses whatever needs memory."""
    await world.pause(0.0, 0.4)
    await do(world, "CONFIG", "SET", "maxmemory", "1mb")
    await world.pause(0.3, 1.0)
    await do(world, "CONFIG", "SET", "maxmemory", "64mb")
    world.clear()
    await world.pause(0.1, 0.4)


async def disk_full(world: World) -> None:
    """It can't save what it was told to save, and refuses to write."""
    await world.pause(0.0, 0.3)
    world.redis.disk.fill()
    await do(world, "CONFIG", "SET", "save", "3600 1000000")
    await _save_in_background(world, "err")
    await world.pause(0.3, 0.8)
    world.redis.disk.empty()
    await _save_in_background(world, "ok")
    await do(world, "CONFIG", "SET", "save", "")
    world.redis.dump.unlink(missing_ok=True)
    world.clear()
    await world.pause(0.1, 0.4)


async def _save_in_background(world: World, status: str) -> None:
    with trio.fail_after(20):
        await do(world, "BGSAVE")
        while True:
            info = await do(world, "INFO", "persistence")
            if not info["rdb_bgsave_in_progress"] and info["rdb_last_bgsave_status"] == status:
                return
            await trio.sleep(0.05)


async def functions_flushed(world: World) -> None:
    """The library is gone, the data is not."""
    for _ in range(world.source.randint(1, 3)):
        await world.pause(0.0, 0.4)
        await do(world, "FUNCTION", "FLUSH")
        world.clear()
    await world.pause(0.1, 0.4)


async def unsafe(world: World) -> None:
    """Somebody lets it drop keys: engines stop taking events, and none starts, until that is put right."""
    await world.pause(0.0, 0.3)
    await do(world, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with trio.fail_after(10):
        while await world.first.ready() or await world.second.ready():
            await trio.sleep(0.05)
    await world.first.kill()
    world.first.launch()
    assert not await world.first.addresses(), "an engine must not start on a Redis that may drop keys"
    assert await world.first.ended() == 1
    await do(world, "CONFIG", "SET", "maxmemory-policy", "noeviction")
    world.clear()
    await world.pause(0.1, 0.4)


FAULTS = [
    Fault("redis: killed and restarted", restart),
    Fault("redis: emptied", emptied),
    Fault("redis: old copy restored", old_copy),
    Fault("redis: failover to a lagging replica", failover),
    Fault("redis: two that both lead", two_leaders),
    Fault("redis: frozen for 5 s", frozen),
    Fault("redis: out of memory", out_of_memory),
    Fault("redis: disk full", disk_full),
    Fault("redis: functions flushed", functions_flushed),
    Fault("redis: unsafe configuration", unsafe),
]
