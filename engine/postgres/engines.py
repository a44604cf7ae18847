"""Which engine processes are alive, by Postgres's clock, and the end of the sessions of those that are not.

Owns the table `engines` and the number that makes a process's tags unique for ever. For recovery only: safety never
asks who is alive.
"""

# ruff: noqa: S608
# SQL is put together here from a pattern of our own, never from values.

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import asyncpg
import trio

from engine.model import HeartbeatReply
from engine.postgres.database import Database
from engine.postgres.sessions import NUMBERED

log = logging.getLogger(__name__)

# A session that is told to end rolls back first, which takes some ms. One that does not end within this (its backend is
# frozen, say) keeps nobody else waiting here.
_ENDING_SECONDS: Final = 1.0
_ENDING_LOOK_SECONDS: Final = 0.02

# (Of our own role: those of another one we may not end.)
_NUMBERED_SESSIONS: Final = f"""
    SELECT pid, backend_start FROM pg_stat_activity
     WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
       AND application_name ~ '{NUMBERED}'
"""
# Read after the sessions: an engine registers before it opens one with its number, so each of these that is alive has
# a row that this statement sees.
_END_DEAD: Final = f"""
    SELECT number, pid, backend_start, pg_terminate_backend(pid)
      FROM (SELECT pid, backend_start, substring(application_name FROM '{NUMBERED}')::bigint AS number
              FROM pg_stat_activity WHERE (pid, backend_start) IN (SELECT * FROM unnest($1::int[], $2::timestamptz[]))
               AND application_name ~ '{NUMBERED}' OFFSET 0) AS s
     WHERE number <> $3
       AND number NOT IN (SELECT id FROM engines WHERE heartbeat_at >= clock_timestamp() - $4 * interval '1 second')
"""
_LEFT: Final = """
    SELECT pid FROM pg_stat_activity
     WHERE (pid, backend_start) IN (SELECT * FROM unnest($1::int[], $2::timestamptz[]))
"""


async def register_engine(database: Database) -> int:
    """A number never given before, and a row that says this process is alive."""
    # Silent for a day: swept away. A process that wakes even later writes itself anew.
    await database.execute("DELETE FROM engines WHERE heartbeat_at < clock_timestamp() - interval '1 day'")
    rows = await database.fetch("INSERT INTO engines (id) VALUES (nextval('engine_number')) RETURNING id")
    return int(rows[0]["id"])


async def heartbeat(
    database: Database, number: int, slowest_look_up_us: int, dead_after_seconds: float, now_us: Callable[[], int]
) -> HeartbeatReply:
    """Say that this process is alive, and how slow its look-ups are; hear of others, and how far our clock is off."""
    sent_us = now_us()
    rows = await database.fetch(
        """
        WITH own AS (INSERT INTO engines (id, slowest_look_up_us) VALUES ($1, $3)
                     ON CONFLICT (id) DO UPDATE SET heartbeat_at = clock_timestamp(),
                                                    slowest_look_up_us = excluded.slowest_look_up_us),
             living AS (SELECT id, slowest_look_up_us FROM engines
                         WHERE heartbeat_at >= clock_timestamp() - $2 * interval '1 second')
        SELECT clock_timestamp() AS now,
               (SELECT last_value FROM engine_number) AS newest,
               array(SELECT id FROM living) AS alive,
               (SELECT coalesce(max(slowest_look_up_us), 0) FROM living WHERE id <> $1) AS slowest
        """,
        number,
        dead_after_seconds,
        slowest_look_up_us,
    )
    row, heard_us = rows[0], now_us()
    offset_us = (sent_us + heard_us) // 2 - row["now"]
    alive = frozenset(row["alive"]) | {number}
    return HeartbeatReply(offset_us, alive, row["newest"], heard_us - sent_us, row["slowest"])


async def end_dead_sessions(database: Database, own: int | None, dead_after_seconds: float) -> dict[int, int]:
    """End the sessions of engines that are dead, and wait a moment until they have ended; how many, by engine.

    Engine `own`, which asks, is alive whatever its row says.
    """
    sessions = await database.fetch(_NUMBERED_SESSIONS)
    if not sessions:
        return {}
    of_dead = await database.fetch(_END_DEAD, *_columns(sessions), -1 if own is None else own, dead_after_seconds)
    ended = Counter[int](row["number"] for row in of_dead)
    for number, count in sorted(ended.items()):
        log.warning("engine %s is dead: %s of its sessions in Postgres are ended", number, count)
    with trio.move_on_after(_ENDING_SECONDS):
        while of_dead and await database.fetch(_LEFT, *_columns(of_dead)):  # noqa: ASYNC110 - Postgres tells nobody
            await trio.sleep(_ENDING_LOOK_SECONDS)
    return dict(ended)


def _columns(sessions: Sequence[asyncpg.Record]) -> tuple[list[int], list[int]]:
    return [row["pid"] for row in sessions], [row["backend_start"] for row in sessions]


async def clock_offset_us(database: Database, now_us: Callable[[], int]) -> int:
    """Our clock minus Postgres's, half of the round trip counted."""
    sent_us = now_us()
    rows = await database.fetch("SELECT clock_timestamp() AS now")
    return (sent_us + now_us()) // 2 - int(rows[0]["now"])


async def retire_engine(database: Database, number: int) -> None:
    """A clean stop: nothing of this process is left to recover."""
    await database.execute("DELETE FROM engines WHERE id = $1", number)
