"""Taking a campaign out of service, and rebuilding its books from its events.

Owns the SQL of both. While a campaign is halted nothing of it can commit: its generation was raised, and whoever
recovers it stops at `halted` before Redis would follow. So `rebuild` may read all of its events without holding the
ledger row; the row is held only from its UPDATE to the COMMIT, and flushes of other campaigns never wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import asyncpg

from engine.model import CampaignId
from engine.postgres.database import LONG_READER, Connection, Database

# A pass over all events of a campaign, as long as one of the audit.
REBUILD_SECONDS_MAX: Final = 3_600

_LOCK: Final = int.from_bytes(b"hr-r", "big")  # first key of the advisory lock; the second is the campaign's number

_HALT: Final = """
    WITH halted AS (UPDATE ledger SET halted = $2, gen = gen + 1 WHERE campaign_id = $1 AND halted IS NULL
                    RETURNING campaign_id AS id, gen)
    SELECT pg_notify('headrace_generation', id || ' ' || gen) FROM halted
"""

_READ: Final = """
    SELECT l.halted, l.gen, l.spent, l.day, l.today, l.total_budget, l.daily_budget, c.version
      FROM ledger AS l JOIN campaigns AS c ON c.id = l.campaign_id WHERE l.campaign_id = $1
"""

_REWRITE_HOURS: Final = """
    WITH counted AS (
        SELECT date_bin('1 hour', occurred_at, timestamptz '1970-01-01T00:00Z') AS hour,
               count(*) FILTER (WHERE event_type = 0) AS impressions,
               count(*) FILTER (WHERE event_type = 1) AS clicks,
               count(*) FILTER (WHERE event_type = 2) AS conversions,
               sum(cost_micros)::bigint AS spend
          FROM events WHERE campaign_id = $1 GROUP BY 1
    ), removed AS (
        DELETE FROM rollup WHERE campaign_id = $1 AND hour NOT IN (SELECT hour FROM counted) RETURNING hour
    ), written AS (
        INSERT INTO rollup AS r (campaign_id, hour, impressions, clicks, conversions, spend)
        SELECT $1, hour, impressions, clicks, conversions, spend FROM counted
            ON CONFLICT (campaign_id, hour) DO UPDATE
           SET impressions = excluded.impressions, clicks = excluded.clicks,
               conversions = excluded.conversions, spend = excluded.spend
         WHERE (r.impressions, r.clicks, r.conversions, r.spend)
            <> (excluded.impressions, excluded.clicks, excluded.conversions, excluded.spend)
        RETURNING hour
    )
    SELECT (SELECT count(*) FROM removed) + (SELECT count(*) FROM written)
"""

# With the sums the highest id time, or a receipt. An event's id time is its `occurred_at` where its sender told one,
# else that in its UUIDv7, which no setting lets be more than an hour ahead: one beyond that came with an `occurred_at`.
_SUM: Final = """
    WITH days AS (
        SELECT spend_day, sum(cost_micros)::bigint AS spend,
               max(greatest(occurred, CASE WHEN of_id <= received + 3600000000 THEN of_id END)) AS latest
          FROM (SELECT spend_day, cost_micros, (extract(epoch FROM occurred_at) * 1000000)::bigint AS occurred,
                       (extract(epoch FROM received_at) * 1000000)::bigint AS received,
                       CASE WHEN occurred_at = received_at AND substr(event_id::text, 15, 1) = '7' THEN
                           ('x' || substr(replace(event_id::text, '-', ''), 1, 12))::bit(48)::bigint * 1000
                       END AS of_id
                  FROM events WHERE campaign_id = $1) AS timed GROUP BY 1
    )
    SELECT coalesce(sum(spend), 0)::bigint AS spent, coalesce(max(spend_day), date '1970-01-01') AS day,
           coalesce((array_agg(spend ORDER BY spend_day DESC))[1], 0) AS today, coalesce(max(latest), 0) AS latest
      FROM days
"""

# A statement of its own, so that the next one sees a budget that was changed up to now.
_HOLD: Final = "SELECT FROM ledger WHERE campaign_id = $1 FOR NO KEY UPDATE"

# The raised generation is the news for engines. By two: `begin` keeps only the direct predecessor's state, so whoever
# is the first to make Redis follow keeps nothing of what it had. Whatever was wrong with the row, no committed id has a
# time above `latest` then.
_REWRITE_LEDGER: Final = """
    WITH rewritten AS (
        UPDATE ledger AS l
           SET spent = $2, day = $3, today = $4, latest = greatest(l.latest, $5), halted = NULL,
               gen = greatest(l.gen, $6) + 2,
               total_budget = c.total_budget_micros, daily_budget = c.daily_budget_micros
          FROM campaigns AS c
         WHERE l.campaign_id = $1 AND c.id = $1
        RETURNING l.*
    )
    SELECT *, pg_notify('headrace_generation', campaign_id || ' ' || gen) FROM rewritten
"""


@dataclass(frozen=True, slots=True)
class Books:
    """What the ledger row of a campaign says."""

    generation: int
    spent_micros: int
    day: int
    today_micros: int
    total_budget_micros: int
    daily_budget_micros: int


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild found and left. `hours` is the number of rollup rows that were wrong."""

    reason: str
    before: Books
    after: Books
    hours: int
    plan_version: int


async def halt(database: Database, campaign_id: int, reason: str) -> int | None:
    """Take it out of service and tell every engine, after a flush that holds the row; the generation that stands."""
    await database.execute(_HALT, campaign_id, reason)
    rows = await database.fetch("SELECT gen FROM ledger WHERE campaign_id = $1", campaign_id)
    return int(rows[0]["gen"]) if rows else None


async def rebuild(database: Database, campaign_id: CampaignId, *, above_generation: int = 0) -> Rebuilt | None:
    """Rewrite ledger row and rollup of a halted campaign from its events, and put it back in service.

    One transaction; the generation that it leaves is above `above_generation`. None: the campaign is not halted.
    """

    async def work(connection: Connection) -> Rebuilt | None:
        # Two rebuilds follow each other: only they clear `halted`, so it stands until this one is through. Nobody else
        # waits for it before it holds the ledger row, and its flushes are fenced off even then.
        await connection.execute(f"SET LOCAL lock_timeout = {REBUILD_SECONDS_MAX * 1_000}; {LONG_READER}")
        await connection.execute("SELECT pg_advisory_xact_lock($1, hashint8($2))", _LOCK, campaign_id)
        await connection.execute(f"SET LOCAL statement_timeout = {REBUILD_SECONDS_MAX * 1_000}")
        was = await connection.fetchrow(_READ, campaign_id)
        if was is None or was["halted"] is None:
            return None
        hours = await connection.fetchval(_REWRITE_HOURS, campaign_id, timeout=REBUILD_SECONDS_MAX)
        sums = await connection.fetchrow(_SUM, campaign_id, timeout=REBUILD_SECONDS_MAX)
        assert sums is not None
        await connection.execute(_HOLD, campaign_id)
        now = await connection.fetchrow(_REWRITE_LEDGER, campaign_id, *sums, above_generation)
        assert now is not None, "a ledger row is never deleted"
        return Rebuilt(was["halted"], _books(was), _books(now), hours, was["version"])

    return await database.transaction(work)


def _books(row: asyncpg.Record) -> Books:
    return Books(*(row[name] for name in ("gen", "spent", "day", "today", "total_budget", "daily_budget")))
