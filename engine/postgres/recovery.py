"""What recovery and late look-ups ask the judge.

Owns the SQL behind the remedy: raise a generation, find committed events by id, and stream what a rebuild of Redis
loads. All of it is true after `raise_generation` has returned: every older batch is then in or out for good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Final

import asyncpg

from engine.model import DAY_US, CampaignId, EventId, EventType, Micros, StoredEvent
from engine.ports import LedgerRow, Wanted
from engine.postgres.campaigns import ledger_row
from engine.postgres.database import Connection, Database

CHUNK: Final = 1_000  # the ledger's load takes so many at once
# Rows of a piece: for one campaign a chunk; for many campaigns more, so that each of them has several in it.
PIECE_MAX: Final = 10_000
_FETCHED: Final = 5_000  # rows a round trip, if a piece is not larger: 0.2 MB of ids

# A rebuild may read a campaign of many millions: ten times the time of any other query.
_STREAM_PATIENCE: Final = 10

# LIMIT makes each wanted id a probe of its own (never a join over whole partitions): one partition's unique key when
# the day is given, each partition's when it is not. The same id on two days: the one received last.
_LOOK_UP: Final = """
    SELECT e.event_id, e.campaign_id, e.ad_id, e.user_id, e.event_type, e.cost_micros, e.occurred_at, e.batch
      FROM unnest($1::bigint[], $2::uuid[], $3::date[]) AS w (campaign_id, event_id, day)
     CROSS JOIN LATERAL (SELECT * FROM events AS e WHERE e.campaign_id = w.campaign_id
                            AND e.event_id = w.event_id AND e.day = w.day LIMIT 1) AS e
     UNION ALL
    SELECT e.event_id, e.campaign_id, e.ad_id, e.user_id, e.event_type, e.cost_micros, e.occurred_at, e.batch
      FROM unnest($4::bigint[], $5::uuid[]) AS w (campaign_id, event_id)
     CROSS JOIN LATERAL (SELECT * FROM events AS e WHERE e.campaign_id = w.campaign_id
                            AND e.event_id = w.event_id ORDER BY e.received_at DESC LIMIT 1) AS e
"""

# The recovery of one campaign waits so long for its row: a COMMIT on a disk that stalls ends meanwhile. Only this
# campaign's events wait for it; they are answered after that, and it is tried again.
_ROW_WAIT_MS: Final = 3_000

# In order of campaign, as the guard of a flush locks: nobody waits in a circle. With SKIP LOCKED nobody waits at all.
_RAISE: Final = """
    WITH held AS MATERIALIZED (
        SELECT campaign_id FROM ledger WHERE campaign_id = ANY ($1) ORDER BY campaign_id FOR NO KEY UPDATE {locked}
    ), raised AS (
        UPDATE ledger AS l SET gen = gen + 1 FROM held WHERE l.campaign_id = held.campaign_id
        RETURNING l.campaign_id AS id, gen, spent, day, today, halted, latest
    )
    SELECT *, pg_notify('headrace_generation', id || ' ' || gen) FROM raised
     UNION ALL
    SELECT campaign_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM ledger AS l
     WHERE campaign_id = ANY ($1) AND NOT EXISTS (SELECT FROM raised WHERE raised.id = l.campaign_id)
"""
_RAISE_WAITING: Final = _RAISE.format(locked="")
_RAISE_WHAT_IS_FREE: Final = _RAISE.format(locked="SKIP LOCKED")

# The rollup counts by the time that events tell of themselves: close to when they came, and a hundredth of the rows.
_EVENTS_SINCE: Final = """
    SELECT w.campaign_id, (SELECT coalesce(sum(impressions + clicks + conversions), 0)::bigint FROM rollup AS r
                            WHERE r.campaign_id = w.campaign_id AND r.hour >= w.since) AS events
      FROM unnest($1::bigint[], $2::timestamptz[]) AS w (campaign_id, since)
"""

# What a rebuild loads comes a piece a row, packed: a million rows of their own would keep Python, and all who wait for
# it, busy (bench/rebuild.py).
_USERS: Final = """
    SELECT array_agg(campaign_id), array_agg(user_id), array_agg(impressions)
      FROM (SELECT e.campaign_id, e.user_id, count(*) AS impressions, (row_number() OVER () - 1) / $4 AS piece
              FROM events AS e
              JOIN unnest($1::bigint[], $2::date[]) AS w (campaign_id, day)
                ON w.campaign_id = e.campaign_id AND w.day = e.spend_day
             WHERE e.campaign_id = ANY ($1) AND e.event_type = 0 AND e.received_at >= $3
             GROUP BY e.campaign_id, e.user_id) AS u
     GROUP BY piece
"""


async def look_up(database: Database, wanted: Sequence[Wanted]) -> dict[tuple[CampaignId, bytes], StoredEvent]:
    """Those of the wanted events that are committed."""
    dated = [(each.campaign_id, each.event_id, day) for each in wanted if each.days is not None for day in each.days]
    undated = [(each.campaign_id, each.event_id) for each in wanted if each.days is None]
    rows = await database.fetch(
        _LOOK_UP,
        [campaign for campaign, _, _ in dated],
        [event_id for _, event_id, _ in dated],
        [day for _, _, day in dated],
        [campaign for campaign, _ in undated],
        [event_id for _, event_id in undated],
    )
    return {(CampaignId(row["campaign_id"]), row["event_id"]): stored_event(row) for row in rows}


async def raise_generations(
    database: Database, campaign_ids: Sequence[CampaignId], *, wait: bool
) -> dict[CampaignId, LedgerRow | None]:
    """Raise generations and tell every engine; rows that a flush holds are waited for, or left as they are (None).

    Raises `StoreBusy` for a row that stays held: the recovery fails, and is tried again.
    """

    async def raise_them(connection: Connection) -> list[asyncpg.Record]:
        await connection.execute(f"SET LOCAL lock_timeout = {_ROW_WAIT_MS}")
        return await connection.fetch(_RAISE_WAITING, campaign_ids)

    if wait:
        rows = await database.transaction(raise_them)
    else:
        rows = await database.fetch(_RAISE_WHAT_IS_FREE, campaign_ids)
    return {CampaignId(row["id"]): None if row["gen"] is None else ledger_row(row) for row in rows}


async def events_since(database: Database, days: Mapping[CampaignId, int]) -> dict[CampaignId, int]:
    """About how many events each campaign has since its spend day began, whatever its zone."""
    rows = await database.fetch(_EVENTS_SINCE, list(days), [max(0, day - 1) * DAY_US for day in days.values()])
    return {CampaignId(row["campaign_id"]): row["events"] for row in rows}


async def users_on(
    database: Database, days: Mapping[CampaignId, int], timeout_seconds: float
) -> AsyncGenerator[Mapping[CampaignId, Sequence[tuple[str, int]]], None]:
    """Impressions a user, each campaign on its spend day, in pieces.

    No event of a spend day was received more than two days before that date in UTC (zones reach 14 h ahead), which
    lets BRIN leave out older partitions.
    """
    since_us = max(0, min(days.values()) - 2) * DAY_US
    size = min(PIECE_MAX, CHUNK * len(days))
    of_days = (list(days), list(days.values()))
    async with aclosing(_rows(database, timeout_seconds, size, _USERS, *of_days, since_us)) as rows:
        async for piece in rows:
            users: defaultdict[CampaignId, list[tuple[str, int]]] = defaultdict(list)
            for campaign_id, user, impressions in zip(*piece, strict=True):
                users[campaign_id].append((user, impressions))
            yield users


async def _rows(
    database: Database, timeout_seconds: float, size: int, query: str, *args: object
) -> AsyncGenerator[asyncpg.Record, None]:
    """Piece by piece of that size, from one snapshot."""
    async with database.cursor(query, *args, size, timeout_seconds=_STREAM_PATIENCE * timeout_seconds) as fetch:
        while pieces := await fetch(max(1, _FETCHED // size)):
            for piece in pieces:
                yield piece


def stored_event(row: asyncpg.Record) -> StoredEvent:
    """An event as its row in `events` has it."""
    return StoredEvent(
        EventId(row["event_id"]),
        CampaignId(row["campaign_id"]),
        row["ad_id"],
        row["user_id"],
        EventType(row["event_type"]),
        Micros(row["cost_micros"]),
        row["occurred_at"],
        row["batch"],
    )
