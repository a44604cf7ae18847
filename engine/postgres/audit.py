"""What the audit asks of Postgres: sums of the events beside the rows that claim them.

Owns the SQL. Each check is one pass over the events, whatever the number of campaigns, and all of them see one
snapshot: a flush writes events, ledger and rollups in one transaction, so a running engine makes no difference here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import asyncpg
import trio_asyncio  # type: ignore[import-untyped]

from engine.audit import CampaignFacts, HourCounts, HourDifference, LedgerFacts, PlanFacts, RedisFacts
from engine.errors import StoreUnavailable
from engine.model import DAY_US
from engine.postgres.database import LONG_READER, Connection, Database

# Passes over all events: an hour is some hundred million of them.
PASS_SECONDS_MAX: Final = 3_600
# Hours shown, of all campaigns: whoever has more has one cause, not a thousand.
HOURS_MAX: Final = 1_000

_SUMS: Final = """
    WITH days AS (
        SELECT campaign_id, spend_day, count(*) AS events, sum(cost_micros) AS spend FROM events GROUP BY 1, 2
    ), sums AS (
        SELECT d.campaign_id, sum(d.events)::bigint AS events, sum(d.spend)::bigint AS event_spend,
               coalesce(sum(d.spend) FILTER (WHERE d.spend_day = l.day), 0)::bigint AS event_today,
               max(d.spend_day) AS latest_day, max(d.spend)::bigint AS day_max
          FROM days AS d LEFT JOIN ledger AS l USING (campaign_id) GROUP BY 1
    )
    SELECT coalesce(c.id, s.campaign_id) AS campaign_id, s.events, s.event_spend, s.event_today, s.latest_day,
           s.day_max, c.version, c.total_budget_micros, c.daily_budget_micros, c.freq_cap_impressions_per_day AS cap,
           l.gen, l.spent, l.day, l.today, l.total_budget, l.daily_budget, l.halted
      FROM campaigns AS c
      LEFT JOIN ledger AS l ON l.campaign_id = c.id
      FULL JOIN sums AS s ON s.campaign_id = c.id
     ORDER BY 1
"""

_HOURS: Final = """
    WITH counted AS (
        SELECT campaign_id, date_bin('1 hour', occurred_at, timestamptz '1970-01-01T00:00Z') AS hour,
               count(*) FILTER (WHERE event_type = 0) AS impressions,
               count(*) FILTER (WHERE event_type = 1) AS clicks,
               count(*) FILTER (WHERE event_type = 2) AS conversions,
               sum(cost_micros)::bigint AS spend
          FROM events GROUP BY 1, 2
    )
    SELECT campaign_id, hour,
           coalesce(e.impressions, 0) AS e0, coalesce(e.clicks, 0) AS e1, coalesce(e.conversions, 0) AS e2,
           coalesce(e.spend, 0) AS e3,
           coalesce(r.impressions, 0) AS r0, coalesce(r.clicks, 0) AS r1, coalesce(r.conversions, 0) AS r2,
           coalesce(r.spend, 0) AS r3
      FROM counted AS e FULL JOIN rollup AS r USING (campaign_id, hour)
     WHERE (e.impressions, e.clicks, e.conversions, e.spend)
           IS DISTINCT FROM (r.impressions, r.clicks, r.conversions, r.spend)
     ORDER BY 1, 2 LIMIT $1
"""

_ABOVE_CAP: Final = """
    SELECT campaign_id, count(*) AS users, max(impressions) AS most
      FROM (SELECT e.campaign_id, count(*) AS impressions
              FROM events AS e JOIN campaigns AS c ON c.id = e.campaign_id
             WHERE e.event_type = 0 AND c.freq_cap_impressions_per_day IS NOT NULL
             GROUP BY e.campaign_id, e.spend_day, e.user_id, c.freq_cap_impressions_per_day
            HAVING count(*) > c.freq_cap_impressions_per_day) AS above
     GROUP BY 1
"""

# The unique key is of one identity day: an id on two days is found here only. (LIMIT: a probe for each of the few.)
_IDS_TWICE: Final = """
    SELECT campaign_id, count(*) AS ids
      FROM (SELECT campaign_id, event_id FROM events GROUP BY 1, 2 HAVING count(*) > 1) AS twice
     CROSS JOIN LATERAL (
         SELECT FROM events AS e JOIN events AS f ON f.campaign_id = e.campaign_id AND f.event_id = e.event_id
          WHERE e.campaign_id = twice.campaign_id AND e.event_id = twice.event_id AND e.day < f.day
            AND f.received_at < e.received_at + interval '48 hours'
            AND e.received_at < f.received_at + interval '48 hours' LIMIT 1) AS soon
     GROUP BY 1
"""

_LEDGER: Final = """
    SELECT campaign_id, gen, spent, day, today, total_budget, daily_budget, halted FROM ledger
     WHERE campaign_id = ANY ($1::bigint[]) ORDER BY campaign_id
"""

# An event of each pending reservation: all of a batch commit together, so any of them tells.
_COMMITTED: Final = """
    SELECT e.campaign_id, e.batch
      FROM unnest($1::bigint[], $2::uuid[], $3::bigint[]) AS w (campaign_id, event_id, batch)
     CROSS JOIN LATERAL (SELECT * FROM events AS e WHERE e.campaign_id = w.campaign_id
                            AND e.event_id = w.event_id AND e.batch = w.batch LIMIT 1) AS e
"""

# An event's id time is its `occurred_at` where its sender told one, else that in its UUIDv7 (RFC 9562, section 5.7); an
# id that tells none is below every watermark. `day` is the date of that time.
_IDS_ABOVE: Final = """
    SELECT campaign_id, event_id, id_time, gen
      FROM (SELECT e.campaign_id, e.event_id, l.gen, w.watermark,
                   CASE WHEN e.occurred_at <> e.received_at
                        THEN (extract(epoch FROM e.occurred_at) * 1000000)::bigint
                        WHEN e.event_id::text ~ '^.{14}7.{4}[89ab]'
                        THEN ('x' || substr(replace(e.event_id::text, '-', ''), 1, 12))::bit(48)::bigint * 1000
                   END AS id_time
              FROM unnest($1::bigint[], $2::bigint[]) AS w (campaign_id, watermark)
              JOIN ledger AS l USING (campaign_id)
              JOIN events AS e USING (campaign_id)
             WHERE e.day >= $3::date) AS timed
     WHERE id_time > watermark
"""
_PIECE: Final = 5_000

ReadRedis = Callable[[Sequence[int]], Awaitable[Mapping[int, RedisFacts]]]


async def read_facts(database: Database) -> list[CampaignFacts]:
    """All campaigns, and what their events add up to, in order. Raises `StoreUnavailable`."""

    async def read(connection: Connection) -> list[CampaignFacts]:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(f"SET LOCAL statement_timeout = {PASS_SECONDS_MAX * 1_000}; {LONG_READER}")
            return await _read_all(connection)

    try:
        return await database.run(read)
    except StoreUnavailable as error:
        if not isinstance(error.__cause__, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
            raise
        what = "no tables" if isinstance(error.__cause__, asyncpg.UndefinedTableError) else "older tables"
        message = f"Postgres: this database has {what} of Headrace yet; an engine makes them at its start"
        raise StoreUnavailable(message, certain=True) from error


async def read_both(
    database: Database, campaign_ids: Sequence[int], read_redis: ReadRedis, *, hold: bool
) -> dict[int, tuple[LedgerFacts, RedisFacts | None, frozenset[int]]]:
    """Ledger rows, what Redis holds, and which of the tags pending there are committed.

    With `hold`, no flush of these campaigns can commit while both are read, so they fit each other exactly; flushes
    wait meanwhile. Without, a flush may come in between. Raises `StoreUnavailable`.
    """

    async def read(connection: Connection) -> dict[int, tuple[LedgerFacts, RedisFacts | None, frozenset[int]]]:
        if not hold:
            await connection.execute(LONG_READER)
        rows = await connection.fetch(_LEDGER + (" FOR SHARE" if hold else ""), campaign_ids)
        found = await trio_asyncio.trio_as_aio(read_redis)(campaign_ids)
        committed = await _committed(connection, found)
        return {
            row["campaign_id"]: (_ledger(row), found.get(row["campaign_id"]), frozenset(committed[row["campaign_id"]]))
            for row in rows
        }

    return await database.transaction(read)


async def ids_above(
    database: Database, watermarks: Mapping[int, int]
) -> AsyncGenerator[Sequence[tuple[int, bytes, int, int]], None]:
    """Committed events above their campaign's watermark: campaign, id, id time, the ledger's generation.

    All of one snapshot, in pieces of at most 5,000 rows. Raises `StoreUnavailable`. Use `aclosing`.
    """
    wanted = list(watermarks), list(watermarks.values()), min(watermarks.values()) // DAY_US
    async with database.cursor(_IDS_ABOVE, *wanted, timeout_seconds=PASS_SECONDS_MAX) as fetch:
        while rows := await fetch(_PIECE):
            yield [(row["campaign_id"], row["event_id"], row["id_time"], row["gen"]) for row in rows]


async def _read_all(connection: Connection) -> list[CampaignFacts]:
    async def rows(query: str, *args: object) -> list[asyncpg.Record]:
        return await connection.fetch(query, *args, timeout=PASS_SECONDS_MAX)

    facts: dict[int, dict[str, Any]] = {row["campaign_id"]: _sums(row) for row in await rows(_SUMS)}
    hours: dict[int, list[HourDifference]] = defaultdict(list)
    for row in await rows(_HOURS, HOURS_MAX):
        counts = [HourCounts(*(row[f"{side}{column}"] for column in range(4))) for side in "er"]
        hours[row["campaign_id"]].append(HourDifference(row["hour"], *counts))
    for campaign, differences in hours.items():
        _of(facts, campaign)["hours"] = tuple(differences)
    for row in await rows(_ABOVE_CAP):
        _of(facts, row["campaign_id"]).update(users_above_cap=row["users"], impressions_max=row["most"])
    for row in await rows(_IDS_TWICE):
        _of(facts, row["campaign_id"])["ids_twice"] = row["ids"]
    return [CampaignFacts(campaign, **values) for campaign, values in facts.items()]


def _of(facts: dict[int, dict[str, Any]], campaign: int) -> dict[str, Any]:
    """The facts of a campaign; a rollup may stand there without any other row."""
    return facts.setdefault(campaign, {"plan": None, "ledger": None})


def _sums(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "plan": None if row["version"] is None else _plan(row),
        "ledger": None if row["gen"] is None else _ledger(row),
        "events": row["events"] or 0,
        "spent_micros": row["event_spend"] or 0,
        "today_micros": row["event_today"] or 0,
        "latest_day": row["latest_day"],
        "day_max_micros": row["day_max"] or 0,
    }


def _plan(row: asyncpg.Record) -> PlanFacts:
    return PlanFacts(row["version"], row["total_budget_micros"], row["daily_budget_micros"], row["cap"])


def _ledger(row: asyncpg.Record) -> LedgerFacts:
    names = ("gen", "spent", "day", "today", "total_budget", "daily_budget", "halted")
    return LedgerFacts(*(row[name] for name in names))


async def _committed(connection: Connection, found: Mapping[int, RedisFacts]) -> dict[int, set[int]]:
    """The pending tags, by campaign, whose events are rows."""
    pending = [(campaign, each) for campaign, redis in found.items() for each in redis.pending]
    tags: dict[int, set[int]] = defaultdict(set)
    if pending:
        columns = (
            [campaign for campaign, _ in pending],
            [each.event_id for _, each in pending],
            [each.tag for _, each in pending],
        )
        for row in await connection.fetch(_COMMITTED, *columns):
            tags[row["campaign_id"]].add(row["batch"])
    return tags
