"""What can happen to Postgres."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import trio

from tests.faults.of_engines import COMMITTED
from tests.faults.proxy import Flow
from tests.faults.servers import wait_until
from tests.faults.world import Fault, World

FLUSH = "headrace flush"
HOURS_BACK = 47  # accepted, and on a day that no other event of a seed is on


async def do(world: World, query: str, *values: object) -> list[tuple[Any, ...]]:
    """One statement as superuser, past every proxy."""
    return await trio.to_thread.run_sync(partial(world.postgres.do, query, *values))


async def _stopped(world: World, sign: signal.Signals) -> None:
    await world.pause(0.0, 0.5)
    await world.postgres.stop(sign)
    await world.pause(0.0, 0.5)
    await world.postgres.start()
    world.clear()
    await world.pause(0.1, 0.4)


async def killed(world: World) -> None:
    """The postmaster is killed; its backends find out by themselves."""
    await _stopped(world, signal.SIGKILL)


async def fast(world: World) -> None:
    """A fast restart: sessions are ended, transactions rolled back."""
    await _stopped(world, signal.SIGINT)


async def immediate(world: World) -> None:
    """An immediate restart: as after a crash."""
    await _stopped(world, signal.SIGQUIT)


async def backend_killed(world: World) -> None:
    """One flush backend is killed: Postgres ends all sessions and replays its log."""
    await world.pause(0.0, 0.4)
    for pid in (await trio.to_thread.run_sync(world.postgres.backends, FLUSH))[:1]:
        world.postgres.kill_backend(pid, signal.SIGKILL)
    await trio.to_thread.run_sync(wait_until, world.postgres.answers)
    world.clear()
    await world.pause(0.1, 0.4)


async def backends_terminated(world: World) -> None:
    """An administrator ends every session of ours, some of them in the middle of a flush."""
    for _ in range(3):
        await world.pause(0.0, 0.3)
        await do(
            world, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'headrace%%'"
            " AND pid <> pg_backend_pid()"
        )  # fmt: skip
        world.clear()
    await world.pause(0.1, 0.4)


async def commit_swallowed(world: World) -> None:
    """Postgres commits, and its answer never arrives: the connection hangs, or is cut."""
    for _ in range(2):
        back = world.first.postgres.back
        swallowed = trio.Event()

        def swallow(back: Any = back, swallowed: trio.Event = swallowed) -> None:
            back.flow = Flow.VANISH
            swallowed.set()

        back.watch(COMMITTED, swallow)
        with trio.fail_after(10):
            await swallowed.wait()
        if world.source.random() < 0.5:
            await world.pause(0.0, 2.0)
        world.first.postgres.mend()
    world.clear()
    await world.pause(0.1, 0.3)


async def frozen_inside_copy(world: World) -> None:
    """A flush stops in the middle of its rows, and its backend is frozen there."""
    there = world.first.postgres.there
    begun = trio.Event()

    def stall() -> None:
        there.flow = Flow.STALL
        begun.set()

    there.watch(b"PGCOPY", stall)  # the first rows wait in the proxy
    with trio.fail_after(10):
        await begun.wait()
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND state = 'active' AND query LIKE 'BEGIN%%'"
    pids = [row[0] for row in await do(world, query, FLUSH)]
    for pid in pids:
        world.postgres.kill_backend(pid, signal.SIGSTOP)
    there.flow = Flow.PASS
    await world.pause(0.5, 3.0)
    for pid in pids:
        world.postgres.kill_backend(pid, signal.SIGCONT)
    world.clear()
    await world.pause(0.1, 0.3)


async def frozen_inside_commit(world: World) -> None:
    """Commits are on disk and hold their locks, but wait for a standby that is not there; then it is not needed."""
    await world.pause(0.0, 0.3)
    await trio.to_thread.run_sync(world.postgres.configure, "synchronous_standby_names", "'nobody'")
    await world.pause(0.5, 3.0)
    if world.source.random() < 0.5:
        await trio.to_thread.run_sync(_freeze_committing, world)
    await _configure_again(world, "synchronous_standby_names")
    world.clear()
    await world.pause(0.1, 0.3)


def _freeze_committing(world: World) -> None:
    """Freeze, for two seconds, the backends that are inside COMMIT."""
    query = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    pids = [row[0] for row in world.postgres.do(query)]
    for sign in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            world.postgres.kill_backend(pid, sign)
        if sign is signal.SIGSTOP:
            time.sleep(2)


async def _configure_again(world: World, name: str) -> None:
    await trio.to_thread.run_sync(world.postgres.configure, name, None)


async def disk_full(world: World) -> None:
    """No room for rows or log: Postgres refuses, or stops itself; then there is room."""
    await world.pause(0.0, 0.3)
    await trio.to_thread.run_sync(world.postgres.disk.fill)
    await world.pause(0.5, 1.5)
    world.postgres.disk.empty()
    await world.postgres.start()
    world.clear()
    await world.pause(0.1, 0.3)


async def table_locked(world: World) -> None:
    """Somebody holds a lock that every flush needs."""
    await world.pause(0.0, 0.3)
    table = world.source.choice(["events", "ledger", "rollup"])
    hold_seconds = world.source.uniform(0.5, 3.0)

    def hold() -> None:
        with psycopg.connect(world.postgres.url) as connection:
            connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            time.sleep(hold_seconds)

    await trio.to_thread.run_sync(hold)
    world.clear()
    await world.pause(0.1, 0.3)


async def read_only(world: World) -> None:
    """It takes no writes but those that insist; then sessions are ended, and it takes none at all for a while."""
    await world.pause(0.0, 0.3)
    await trio.to_thread.run_sync(world.postgres.configure, "default_transaction_read_only", "on")
    await world.pause(0.4, 1.2)

    def reset() -> None:
        with psycopg.connect(world.postgres.url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")

    await trio.to_thread.run_sync(reset)
    world.clear()
    await world.pause(0.1, 0.3)


async def connections_used_up(world: World) -> None:
    """Others hold every connection, and ours are cut."""
    await world.pause(0.0, 0.3)
    taken: list[psycopg.Connection] = []

    def take() -> None:
        with suppress(psycopg.OperationalError):
            while len(taken) < 100:
                taken.append(psycopg.connect(world.postgres.url, connect_timeout=2))

    for engine in world.engines:
        engine.postgres.refusing = True
        engine.postgres.cut()
    with trio.move_on_after(10):
        while not taken or not await trio.to_thread.run_sync(_is_full, world):
            await trio.to_thread.run_sync(take)
            await trio.sleep(0.1)
    for engine in world.engines:
        engine.postgres.refusing = False
    await world.pause(0.3, 1.0)
    for connection in taken:
        connection.close()
    world.clear()
    await world.pause(0.1, 0.3)


def _is_full(world: World) -> bool:
    try:
        psycopg.connect(world.postgres.url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return True
    return False


async def partition_missing(world: World) -> None:
    """Events of a day that has no partition, nor a default one; then it has."""
    world.load.hours_back = HOURS_BACK
    day = (datetime.now(UTC) - timedelta(hours=HOURS_BACK)).date()
    days = await do(
        world, "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits"
        " JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'events'::regclass"
    )  # fmt: skip
    name, bounds = next(each for each in days if f"FROM ('{day}')" in each[1])
    # What earlier seeds have there comes back with it.
    await do(world, f"BEGIN; CREATE TABLE kept AS TABLE {name}; DROP TABLE {name}; DROP TABLE events_default; COMMIT")
    await world.pause(0.4, 1.0)
    await do(
        world, f"BEGIN; CREATE TABLE {name} PARTITION OF events {bounds}; INSERT INTO {name} TABLE kept;"
        " DROP TABLE kept; CREATE TABLE events_default PARTITION OF events DEFAULT; COMMIT"
    )  # fmt: skip
    world.clear()
    await world.pause(0.1, 0.3)


FAULTS = [
    Fault("postgres: postmaster killed", killed),
    Fault("postgres: fast restart", fast),
    Fault("postgres: immediate restart", immediate),
    Fault("postgres: backend killed", backend_killed),
    Fault("postgres: sessions terminated", backends_terminated),
    Fault("postgres: answer to COMMIT swallowed", commit_swallowed),
    Fault("postgres: backend frozen inside COPY", frozen_inside_copy),
    Fault("postgres: backends frozen inside COMMIT", frozen_inside_commit),
    Fault("postgres: disk full", disk_full),
    Fault("postgres: table locked", table_locked),
    Fault("postgres: read-only", read_only),
    Fault("postgres: connections used up", connections_used_up),
    Fault("postgres: partition missing", partition_missing),
]
