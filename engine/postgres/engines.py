"""Which engine processes are alive, by Postgres's clock.

Owns the table `engines` and the number that makes a process's tags unique for ever. For recovery only: safety never
asks who is alive.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.model import HeartbeatReply
from engine.postgres.database import Database


async def register_engine(database: Database) -> int:
    """A number never given before, and a row that says this process is alive."""
    # Silent for a day: swept away. A process that wakes even later writes itself anew.
    await database.execute("DELETE FROM engines WHERE heartbeat_at < clock_timestamp() - interval '1 day'")
    rows = await database.fetch("INSERT INTO engines (id) VALUES (nextval('engine_number')) RETURNING id")
    return int(rows[0]["id"])


async def heartbeat(
    database: Database, number: int, dead_after_seconds: float, now_us: Callable[[], int]
) -> HeartbeatReply:
    """Say that this process is alive; hear who else is, and how far our clock is off."""
    sent_us = now_us()
    rows = await database.fetch(
        """
        WITH own AS (INSERT INTO engines (id) VALUES ($1)
                     ON CONFLICT (id) DO UPDATE SET heartbeat_at = clock_timestamp())
        SELECT clock_timestamp() AS now,
               (SELECT last_value FROM engine_number) AS newest,
               array(SELECT id FROM engines
                      WHERE heartbeat_at >= clock_timestamp() - $2 * interval '1 second') AS alive
        """,
        number,
        dead_after_seconds,
    )
    half_way_us = (sent_us + now_us()) // 2
    row = rows[0]
    return HeartbeatReply(half_way_us - row["now"], frozenset(row["alive"]) | {number}, row["newest"])


async def clock_offset_us(database: Database, now_us: Callable[[], int]) -> int:
    """Our clock minus Postgres's, half of the round trip counted."""
    sent_us = now_us()
    rows = await database.fetch("SELECT clock_timestamp() AS now")
    return (sent_us + now_us()) // 2 - int(rows[0]["now"])


async def retire_engine(database: Database, number: int) -> None:
    """A clean stop: nothing of this process is left to recover."""
    await database.execute("DELETE FROM engines WHERE id = $1", number)
