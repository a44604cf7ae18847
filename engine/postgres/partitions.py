"""Daily partitions of `events`, made ahead of time.

Owns their names and how they are made beside running flushes: as a table of its own that is then attached, which
locks nothing that a flush needs (CREATE … PARTITION OF would lock all of `events`). A day that can't have a
partition, because the default one holds rows of it already, stays with the default one: nothing is lost.
"""

from __future__ import annotations

import logging
from datetime import date, timedelta
from typing import Final

import asyncpg

from engine.errors import StoreBusy
from engine.postgres.database import Connection, Database

log = logging.getLogger(__name__)

# The oldest event accepted occurred some 48 h ago, so its day is at most three days back.
DAYS_BACK: Final = 3

# Attaching needs the default partition to itself for a moment. Rather than let look-ups queue behind it while it
# waits for a long report, it gives up fast; the days ahead are many, and the next call tries again.
_LOCK_WAIT_MS: Final = 500

_LOCK: Final = int.from_bytes(b"hr-parts", "big")  # key of the advisory lock
_EPOCH: Final = date(1970, 1, 1)


def partition_name(day: int) -> str:
    """Name of a day's partition."""
    return f"events_{_EPOCH + timedelta(days=day):%Y%m%d}"


async def make_partitions(database: Database, ahead_days: int) -> None:
    """Make what is missing from three days ago to `ahead_days` ahead.

    Safe to call by several engines at once, and again and again. Raises `StoreUnavailable`.
    """
    rows = await database.fetch(
        "SELECT (now() AT TIME ZONE 'UTC')::date AS today, array(SELECT relid::regclass::text"
        " FROM pg_partition_tree('events') WHERE isleaf) AS partitions"
    )
    today, there = rows[0]["today"], {name.rpartition(".")[2] for name in rows[0]["partitions"]}
    for day in range(today - DAYS_BACK, today + ahead_days + 1):
        if partition_name(day) in there:
            continue
        try:
            await _make_partition(database, day)
        except asyncpg.CheckViolationError:
            log.warning("%s: the default partition has events of that day, and keeps them", partition_name(day))
        except StoreBusy:
            log.warning("%s and later are not made yet: a long query is in the way", partition_name(day))
            return


async def _make_partition(database: Database, day: int) -> None:
    name = partition_name(day)

    async def make(connection: Connection) -> None:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", name):
            return  # another engine was faster
        await connection.execute(
            f"SET LOCAL lock_timeout = {_LOCK_WAIT_MS}; CREATE TABLE {name} (LIKE events); "
            f"ALTER TABLE events ATTACH PARTITION {name} FOR VALUES FROM ('{_iso(day)}') TO ('{_iso(day + 1)}')"
        )

    await database.transaction(make)


def _iso(day: int) -> str:
    return (_EPOCH + timedelta(days=day)).isoformat()
