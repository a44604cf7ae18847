"""What can happen to Redis."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from config.settings import Settings
from engine.model import DAY_US, SECOND_US, CampaignId, CampaignSpend, Micros
from engine.ports import Done
from engine.redis.ledger import RedisLedger, open_ledger
from engine.steps import Begin, Emptied, Ready
from tests.contract.reservations import fill
from tests.faults.load import ANSWER_SECONDS, client_of
from tests.faults.servers import RedisServer
from tests.faults.waiting import WAIT_SECONDS, until, until_told, within
from tests.faults.world import LOST_REDIS_SECONDS, Fault, World

ENDED = {"name": "ended", "pricing_model": "cpm", "unit_price": "1.00", "total_budget": "1", "daily_budget": "1"}
ENDED_CHUNKS = 10  # of 1,000 ids: 0.8 MB a campaign
ENDED_BYTES = 4 << 20  # what campaigns that are over may fill, so that it takes no minute to fill it
FULL_SECONDS = 10.0  # a pass of the sweep, twice, on two busy cores
EVICTION = ("CONFIG", "SET", "maxmemory-policy")


async def do(world: World, *command: Any) -> Any:
    """One command to Redis, past every proxy."""
    return await trio.to_thread.run_sync(partial(world.redis.do, *command))


async def restart(world: World) -> None:
    """Killed, and started again: empty, and another memory image."""
    await world.pause(0.0, 0.5)
    generations = await world.generations()
    await world.redis.stop()
    await world.pause(0.0, 0.8)
    await world.redis.start()
    world.clear()
    await world.recovered(generations)
    await world.pause(0.1, 0.4)


async def emptied(world: World) -> None:
    """Its memory is wiped while it runs."""
    for _ in range(world.source.randint(1, 3)):
        await world.pause(0.0, 0.4)
        generations = await world.generations()
        await do(world, "FLUSHALL")
        world.clear()
        await world.recovered(generations)
    await world.pause(0.1, 0.4)


async def old_copy(world: World) -> None:
    """It comes back with what it knew a while ago."""
    await do(world, "SAVE")
    await world.pause(0.2, 0.6)
    generations = await world.generations()
    await world.redis.stop()
    await world.redis.start()
    assert await do(world, "DBSIZE"), "it has read the old copy"
    world.clear()
    await world.recovered(generations)
    await world.pause(0.1, 0.4)
    await do(world, "CONFIG", "SET", "save", "")
    world.redis.dump.unlink(missing_ok=True)


async def _replica(world: World) -> RedisServer:
    """A replica that follows the primary, and has caught up."""
    replica = world.new_redis()
    await replica.start()
    await trio.to_thread.run_sync(replica.do, "REPLICAOF", "127.0.0.1", world.redis.port)
    await until_told(partial(_follows, replica), "the replica has caught up")
    return replica


async def _follows(replica: RedisServer) -> bool:
    told: Any = await trio.to_thread.run_sync(replica.do, "INFO", "replication")
    return bool(told["master_link_status"] == "up")


async def _promote(world: World, replica: RedisServer) -> None:
    """It leads from now on, and knows only what it had heard by the time it was frozen."""
    replica.send_signal(signal.SIGCONT)
    await trio.to_thread.run_sync(replica.do, "REPLICAOF", "NO", "ONE")
    world.redis = replica


async def _lag(replica: RedisServer) -> None:
    """From here it hears nothing."""
    replica.send_signal(signal.SIGSTOP)
    await until(lambda: replica.frozen, "the replica is frozen")


async def failover(world: World) -> None:
    """The primary dies, and a replica takes over that had not heard everything."""
    replica = await _replica(world)
    old = world.redis
    await _lag(replica)
    await world.pause(0.1, 0.4)
    generations = await world.generations()
    await old.stop()
    await _promote(world, replica)
    for engine in world.engines:
        engine.redis.target = replica.port
        engine.redis.cut()
    world.clear()
    await world.recovered(generations)
    await world.pause(0.1, 0.4)


async def two_leaders(world: World) -> None:
    """A replica was promoted, and one engine still talks to the old primary for a while."""
    replica = await _replica(world)
    old = world.redis
    await _lag(replica)
    await world.pause(0.1, 0.3)
    generations = await world.generations()
    await _promote(world, replica)
    world.second.redis.target = replica.port
    world.second.redis.cut()
    await world.recovered(generations)
    await world.pause(0.5, 1.5)
    world.first.redis.target = replica.port
    world.first.redis.cut()
    await old.stop()
    world.clear()
    await world.pause(0.1, 0.4)


async def frozen(world: World) -> None:
    """It says nothing for five seconds, and then does what it was told meanwhile."""
    await world.pause(0.0, 0.4)
    world.redis.send_signal(signal.SIGSTOP)
    await until(lambda: world.redis.frozen, "Redis is frozen")
    await trio.sleep(5)
    world.redis.send_signal(signal.SIGCONT)
    world.clear()
    await world.pause(0.1, 0.4)


async def out_of_memory(world: World) -> None:
    """Full: it refuses whatever needs memory."""
    await world.pause(0.0, 0.4)
    refusals = await _refusals(world, "OOM")
    await do(world, "CONFIG", "SET", "maxmemory", "1mb")
    await _refused(world, "OOM", refusals)
    await world.pause(0.3, 1.0)
    await do(world, "CONFIG", "SET", "maxmemory", world.redis.memory)
    world.clear()
    await world.pause(0.1, 0.4)


async def full_by_ended_campaigns(world: World) -> None:
    """Campaigns of yesterday have left it no memory: a new one must get its 200s all the same, soon."""
    await world.pause(0.0, 0.4)
    refusals = await _refusals(world, "OOM")
    used = (await do(world, "INFO", "memory"))["used_memory"]
    await do(world, "CONFIG", "SET", "maxmemory", used + ENDED_BYTES)
    async with open_ledger(world.stores()["REDIS_URL"], Settings()) as ledger:
        while await _end_campaign(world, ledger):
            pass
    await _refused(world, "OOM", refusals)
    load = world.load_on(world.second, await world.create())
    event = load.event()
    world.clear()
    async with client_of(ANSWER_SECONDS) as client:

        async def recorded() -> bool:
            return bool(await load.attempt(client, [event], keep=True))

        await until_told(recorded, "a new campaign has its first 200", FULL_SECONDS)
    await do(world, "CONFIG", "SET", "maxmemory", world.redis.memory)
    await world.pause(0.1, 0.4)


async def _end_campaign(world: World, ledger: RedisLedger) -> bool:
    """One that was last used yesterday, with as many ids as there is room for; whether there is room for another."""
    made = await world.second.call("POST", "/campaigns/", json=ENDED)
    campaign = CampaignId(made.json()["id"])
    used_us = int(time.time() - 86_400) * SECOND_US
    day = used_us // DAY_US
    assert await ledger.begin([Begin(campaign, 0)]) == [Emptied()]
    nothing = CampaignSpend(Micros(0), day, Micros(0))
    assert await ledger.ready([Ready(campaign, 0, nothing, 1, 0, used_us, users_loaded=True)]) == [Done()]
    return await fill(ledger, campaign, 0, day, used_us, ENDED_CHUNKS)


async def disk_full(world: World) -> None:
    """It can't save what it was told to save, and refuses to write."""
    await world.pause(0.0, 0.3)
    world.redis.disk.fill()
    await do(world, "CONFIG", "SET", "save", "3600 1000000")
    refusals = await _refusals(world, "MISCONF")
    await _save_in_background(world, "err")
    await _refused(world, "MISCONF", refusals)
    await world.pause(0.3, 0.8)
    world.redis.disk.empty()
    await _save_in_background(world, "ok")
    await do(world, "CONFIG", "SET", "save", "")
    world.redis.dump.unlink(missing_ok=True)
    world.clear()
    await world.pause(0.1, 0.4)


async def _refusals(world: World, code: str) -> int:
    return await trio.to_thread.run_sync(world.redis.refusals, code)


async def _refused(world: World, code: str, above: int) -> None:
    """Wait until it has refused somebody with this error."""

    async def more() -> bool:
        return await _refusals(world, code) > above

    await until_told(more, f"Redis refuses a command with {code}")


async def _save_in_background(world: World, status: str) -> None:
    with within(WAIT_SECONDS, f"a background save ends with {status}"):
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
        await until_told(partial(do, world, "FUNCTION", "LIST"), "an engine has loaded the library again")
    await world.pause(0.1, 0.4)


def unsafe(*commands: tuple[str, ...]) -> Callable[[World], Awaitable[None]]:
    """Redis can't be trusted: engines stop taking events, and none starts, until the last command puts that right."""

    async def refused(world: World) -> None:
        await world.pause(0.0, 0.3)
        for command in commands[:-1]:
            await do(world, *command)

        async def noticed() -> bool:
            return not (await world.first.ready() or await world.second.ready())

        await until_told(noticed, "no engine is ready")
        await world.first.kill()
        world.first.launch()
        assert not await world.first.addresses(), "an engine must not start on such a Redis"
        assert await world.first.ended() == 1
        await do(world, *commands[-1])
        world.clear()
        await world.pause(0.1, 0.4)

    return refused


async def made_a_replica(world: World) -> None:
    """Somebody makes the primary a replica of another server, which leaves it nothing; and a primary again."""
    other = world.new_redis()
    await other.start()
    put_right = ("REPLICAOF", "NO", "ONE")
    await unsafe(("REPLICAOF", "127.0.0.1", str(other.port)), put_right)(world)
    await other.stop()


FAULTS = [
    Fault("redis: killed and restarted", restart, recovery_seconds_max=LOST_REDIS_SECONDS),
    Fault("redis: emptied", emptied, recovery_seconds_max=LOST_REDIS_SECONDS),
    Fault("redis: old copy restored", old_copy, recovery_seconds_max=LOST_REDIS_SECONDS),
    Fault("redis: failover to a lagging replica", failover, recovery_seconds_max=LOST_REDIS_SECONDS),
    Fault("redis: two that both lead", two_leaders, recovery_seconds_max=LOST_REDIS_SECONDS),
    Fault("redis: frozen for 5 s", frozen),
    Fault("redis: out of memory", out_of_memory),
    Fault("redis: full by ended campaigns", full_by_ended_campaigns),
    Fault("redis: disk full", disk_full),
    Fault("redis: functions flushed", functions_flushed, recovery_seconds_max=LOST_REDIS_SECONDS),
    Fault("redis: may drop keys", unsafe((*EVICTION, "allkeys-lru"), (*EVICTION, "noeviction"))),
    Fault("redis: made a replica", made_a_replica, recovery_seconds_max=LOST_REDIS_SECONDS),
]
