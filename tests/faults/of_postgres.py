"""What can happen to Postgres."""

from __future__ import annotations

import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import trio

from bench.proxy import Flow
from tests.faults.of_engines import COMMITTED
from tests.faults.servers import is_frozen
from tests.faults.waiting import WAIT_SECONDS, until, until_told, within
from tests.faults.world import OTHERS_SECONDS, Fault, World

FLUSH = "headrace % flush"
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
    since = world.postgres.log_end()
    world.postgres.kill_backend((await _flushing(world))[0], signal.SIGKILL)
    await _said(world, "all server processes terminated", since)
    await world.postgres.start()
    world.clear()
    await world.pause(0.1, 0.4)


async def _flushing(world: World, condition: str = "true") -> list[int]:
    """Wait for backends that serve flushes, and of which this holds."""
    query = f"SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s AND {condition}"
    rows = await until_told(lambda: do(world, query, FLUSH), f"a flush backend has {condition}")
    return [row[0] for row in rows]


async def _said(world: World, text: str, since: int) -> None:
    """Wait until Postgres's log has this: the fault has met somebody, or itself."""
    await until(lambda: world.postgres.said(text, since), f"Postgres logs {text!r}")


async def backends_terminated(world: World) -> None:
    """An administrator ends every session of ours, some of them in the middle of a flush."""
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'headrace%%'"
        " AND pid <> pg_backend_pid()"
    )
    for _ in range(3):
        await world.pause(0.0, 0.3)
        await until_told(lambda: do(world, query), "there is a session to end")
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
        with within(WAIT_SECONDS, "the first engine is told COMMIT"):
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
    with within(WAIT_SECONDS, "the first engine sends rows"):
        await begun.wait()
    pids = await _flushing(world, "state = 'active' AND query LIKE 'BEGIN%%'")
    await _freeze(world, pids)
    there.flow = Flow.PASS
    await world.pause(0.5, 3.0)
    for pid in pids:
        world.postgres.kill_backend(pid, signal.SIGCONT)
    world.clear()
    await world.pause(0.1, 0.3)


async def frozen_inside_commit(world: World) -> None:
    """Commits are on disk and hold their locks, but wait for a standby that is not there; some freeze doing so."""
    await world.pause(0.0, 0.3)
    await trio.to_thread.run_sync(world.postgres.configure, "synchronous_standby_names", "'nobody'")
    pids = await _flushing(world, "wait_event = 'SyncRep'")
    await _freeze(world, pids)
    await world.pause(0.3, 2.5)
    await trio.to_thread.run_sync(world.postgres.configure, "synchronous_standby_names", None)
    await world.pause(0.0, 0.5)
    for pid in pids:
        world.postgres.kill_backend(pid, signal.SIGCONT)
    world.clear()
    await world.pause(0.1, 0.3)


async def _freeze(world: World, pids: list[int]) -> None:
    for pid in pids:
        world.postgres.kill_backend(pid, signal.SIGSTOP)
    await until(lambda: any(is_frozen(pid) for pid in pids), "a flush backend is frozen")


async def disk_full(world: World) -> None:
    """No room for rows or log: Postgres refuses, or stops itself; then there is room."""
    await world.pause(0.0, 0.3)
    since = world.postgres.log_end()
    await trio.to_thread.run_sync(world.postgres.disk.fill)
    await _said(world, "No space left on device", since)
    await world.pause(0.2, 1.0)
    world.postgres.disk.empty()
    await world.postgres.start()
    world.clear()
    await world.pause(0.1, 0.3)


async def table_locked(world: World) -> None:
    """Somebody holds a lock that every flush needs."""
    await world.pause(0.0, 0.3)
    table = world.source.choice(["events", "ledger", "rollup"])
    hold_seconds = world.source.uniform(0.5, 3.0)

    def lock() -> psycopg.Connection:
        connection = psycopg.connect(world.postgres.url)
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        return connection

    connection = await trio.to_thread.run_sync(lock)
    try:
        await _flushing(world, "wait_event_type = 'Lock'")
        await trio.sleep(hold_seconds)
    finally:
        connection.close()
    world.clear()
    await world.pause(0.1, 0.3)


async def standby(world: World) -> None:
    """It comes back as a standby, which takes no writes at all, and is promoted after a while."""
    await world.pause(0.0, 0.3)
    await world.postgres.stop(signal.SIGINT)
    world.postgres.become_standby()
    await world.postgres.start()
    with trio.fail_after(20):
        while await world.first.ready() or await world.second.ready():
            await trio.sleep(0.05)
    await world.pause(0.2, 0.8)
    await do(world, "SELECT pg_promote()")
    world.clear()
    await world.pause(0.1, 0.3)


async def read_only(world: World) -> None:
    """By default it takes no writes: flushes say that they write, so they go on; whatever else writes is refused."""
    await world.pause(0.0, 0.3)
    since = world.postgres.log_end()
    await trio.to_thread.run_sync(world.postgres.configure, "default_transaction_read_only", "on")
    await _said(world, "read-only transaction", since)
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
    with within(WAIT_SECONDS, "every connection is taken"):
        while not taken or not await trio.to_thread.run_sync(_is_full, world):
            await trio.to_thread.run_sync(take)
            await trio.sleep(0.1)
    since = world.postgres.log_end()
    for engine in world.engines:
        engine.postgres.refusing = False
    await _said(world, "too many clients already", since)
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
    day = (datetime.now(UTC) - timedelta(hours=HOURS_BACK)).date()
    days = await do(
        world, "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits"
        " JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'events'::regclass"
    )  # fmt: skip
    name, bounds = next(each for each in days if f"FROM ('{day}')" in each[1])
    since = world.postgres.log_end()
    # What is there comes back with it. Locked first: a row that committed between the copy and the drop would be lost.
    await do(
        world, "BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE;"
        f" CREATE TABLE kept AS TABLE {name}; DROP TABLE {name}; DROP TABLE events_default; COMMIT"
    )  # fmt: skip
    # From now on: a repeat of what had been accepted would find its row gone, which is a loss, and halts its campaign.
    world.load.hours_back = HOURS_BACK
    await _said(world, "no partition of relation", since)
    await world.pause(0.2, 0.8)
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
    Fault("postgres: backend frozen inside COPY", frozen_inside_copy, others_seconds_max=OTHERS_SECONDS),
    Fault("postgres: backends frozen inside COMMIT", frozen_inside_commit),
    Fault("postgres: disk full", disk_full),
    Fault("postgres: table locked", table_locked),
    Fault("postgres: read-only, a standby", standby),
    Fault("postgres: read-only by default", read_only),
    Fault("postgres: connections used up", connections_used_up),
    Fault("postgres: partition missing", partition_missing),
]
