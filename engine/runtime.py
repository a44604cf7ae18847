"""The composition root: settings -> a running engine.

Owns the order in which things are opened and closed. The only module that imports both stores' adapters.
Opening: Postgres, Redis, registration, actors. Closing is the other way round: take nothing more, drain, say
goodbye to the other engines, close Redis, close Postgres.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from config.settings import Settings
from engine import metrics
from engine.clock import SteadyClock
from engine.clock_check import Compared
from engine.engine import Engine
from engine.errors import ConfigurationUnsafe, StoreUnavailable
from engine.failpoints import Failpoint
from engine.model import DAY_US, SECOND_US, HeartbeatReply
from engine.ports import Clock, Ledger, Roster
from engine.postgres.store import open_store
from engine.processes import Engines
from engine.redis.ledger import open_ledger
from engine.registry import Registry
from engine.watched import POSTGRES

log = logging.getLogger(__name__)

# A drain when a part of the process has failed: its senders are gone, and who replaces it waits for its end. What is
# under way with the stores takes milliseconds; what is left is found by the other engines, as after a kill -9.
FAILED_DRAIN_SECONDS = 2.0
# Longer, and what Redis says of its clock is worth little. With a check of Redis that hangs (5 s) and the pause (2 s) a
# heartbeat still comes within the 8 s after which others take an engine for dead.
_REDIS_CLOCK_SECONDS = 0.5
# A clock that was found right by a slow answer may be wrong by half of the time that it took, and once followed it is
# what later ones are held to. A slower Postgres keeps nobody from serving; the clock then runs on evenly.
_PRECISE_US = 2 * SECOND_US
# Every engine looks for reservations of dead engines when one dies, and so often besides.
_ORPHANS_SECONDS = 60.0


@asynccontextmanager
async def open_engine(settings: Settings, *, db_url: str, redis_url: str) -> AsyncIterator[Engine]:
    """A running engine on these stores; it drains and stops when the block ends.

    Raises `StoreUnavailable` when a store can't be reached, and `ConfigurationUnsafe` when one is set up so that
    a 200 could be wrong.
    """
    clock = SteadyClock()
    async with open_store(db_url, settings) as store, open_ledger(redis_url, settings) as ledger:
        if settings.failpoint:
            failpoint = Failpoint(settings.failpoint)
            store, ledger = failpoint.around("store", store), failpoint.around("ledger", ledger)
        engines = Engines(await store.register_engine())
        reading_us = clock.reading_us()
        first = await store.heartbeat(engines.own)
        engines.heard(first)  # so that a living engine is not taken for a dead one
        await _end_dead_sessions(store, engines)
        async with trio.open_nursery() as nursery:
            registry = Registry(settings, ledger, store, clock, engines, nursery)
            engine = Engine(settings, registry, store, clock)
            judge_clock(engine, clock, reading_us, first, await _redis_clock(ledger))
            registry.start()
            nursery.start_soon(engine.tick)
            nursery.start_soon(heartbeats, engine, registry, engines, clock, store, ledger)
            nursery.start_soon(_housekeeping, store, clock)
            async with store.listening(registry.plan_changed, registry.generation_raised, registry.read_all_again):
                drain_seconds = settings.drain_seconds / 2  # the listeners have had the first half of it
                try:
                    yield engine
                except BaseException:
                    drain_seconds = min(drain_seconds, FAILED_DRAIN_SECONDS)
                    raise
                finally:
                    # Also when we are being cancelled: what was accepted is finished, within a bound.
                    with trio.CancelScope(shield=True), trio.move_on_after(drain_seconds) as bound:
                        await engine.drain()
                    if bound.cancelled_caught:
                        log.warning("not everything was finished within %g s", drain_seconds)
            nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.move_on_after(settings.query_timeout_seconds):
            try:
                await store.retire_engine(engines.own)
            except StoreUnavailable as away:
                log.warning("not signed off, so that others miss its heartbeat first: %s", away)


async def heartbeats(
    engine: Engine, registry: Registry, engines: Engines, clock: SteadyClock, roster: Roster, ledger: Ledger
) -> None:
    """Say that we live, for ever; learn who died, how far our clock is off, and whether the stores are safe."""
    looked_at = trio.current_time()
    while True:
        reading_us = clock.reading_us()
        try:
            reply = await roster.heartbeat(engines.own, registry.forgetting.slowest_look_up_us)
        except StoreUnavailable as away:
            registry.outages.failed(POSTGRES, f"no heartbeat: {away}", trio.current_time())
        except ConfigurationUnsafe as found:
            _judge_stores(engine, str(found))
        else:
            died = engines.alive - reply.alive - {engines.own}
            engines.heard(reply)
            registry.forgetting.heard(reply.slowest_look_up_us)
            judge_clock(engine, clock, reading_us, reply, await _redis_clock(ledger))
            _judge_stores(engine, await ledger.unsafe())
            if died or trio.current_time() - looked_at > _ORPHANS_SECONDS:
                looked_at = trio.current_time()
                await _end_dead_sessions(roster, engines)  # first: a recovery waits for the locks that they hold
                await registry.recover_orphans()
        await trio.sleep(engine.settings.heartbeat_seconds)


async def _end_dead_sessions(roster: Roster, engines: Engines) -> None:
    try:
        await roster.end_dead_sessions(engines.own)
    except StoreUnavailable as away:
        log.warning("sessions of dead engines may be left in Postgres: %s", away)


def judge_clock(
    engine: Engine, clock: SteadyClock, reading_us: int, reply: HeartbeatReply, redis_us: int | None
) -> None:
    """Follow the machine's clock only while it is right; else the engine refuses, and its own clock runs on evenly.

    `reading_us` was taken before the machine's clock was compared with the stores'; `reply` says how far it is from
    Postgres's, and `redis_us` from Redis's.
    """
    postgres_us = reply.clock_offset_us
    metrics.clock_offset_seconds.set(postgres_us / SECOND_US)
    behind_us = clock.behind_us(reading_us)
    even_us = None if behind_us is None else postgres_us - behind_us
    precise = reply.round_trip_us <= _PRECISE_US
    # (Until a clock was found right, ours is the machine's as it was at the start, which may have been set since.)
    if engine.clocks.check(Compared(postgres_us, redis_us, even_us)) and (precise or behind_us is None):
        clock.follow(reading_us, found_right=precise)


async def _redis_clock(ledger: Ledger) -> int | None:
    """How far this machine's clock is ahead of Redis's. A Redis that hangs must not hold up the heartbeat."""
    with trio.move_on_after(_REDIS_CLOCK_SECONDS):
        return await ledger.clock_offset_us()
    return None


def _judge_stores(engine: Engine, unsafe: str | None) -> None:
    if unsafe and not engine.unsafe:
        log.error("no events are taken: %s", unsafe)
    elif engine.unsafe and not unsafe:
        log.warning("events are taken again: the stores are safe")
    engine.unsafe = unsafe


async def _housekeeping(roster: Roster, clock: Clock) -> None:
    """Make tomorrow's partitions, for ever, shortly after each midnight (UTC)."""
    while True:
        await trio.sleep((DAY_US - clock.now_us() % DAY_US) / SECOND_US + 1)  # Postgres may be a little behind
        try:
            await roster.make_partitions()
        except StoreUnavailable as away:
            # There are a week's partitions ahead, and the default partition after them.
            log.warning("partitions were not made, tomorrow again: %s", away)
