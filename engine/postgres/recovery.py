"""What recovery and late look-ups ask the judge.

Owns the SQL behind the remedy: raise a generation, find committed events by id, and stream what a rebuild of Redis
loads. All of it is true after `raise_generation` has returned: every older batch is then in or out for good.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

import asyncpg

from engine.model import DAY_US, CampaignId, EventId, EventType, Micros, StoredEvent
from engine.ports import LedgerRow, Wanted
from engine.postgres.campaigns import ledger_row
from engine.postgres.copy import TO_2000_US
from engine.postgres.database import Database

CHUNK: Final = 1_000  # the ledger's load takes so many at once
_FETCH: Final = 5  # chunks a round trip: 0.2 MB

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

# What a rebuild loads comes a chunk a row, packed: a million rows of their own would keep Python, and all who wait for
# it, busy (bench/rebuild.py).
_USERS: Final = """
    SELECT array_agg(user_id), array_agg(impressions)
      FROM (SELECT user_id, count(*) AS impressions, (row_number() OVER () - 1) / $4 AS chunk FROM events
             WHERE campaign_id = $1 AND spend_day = $2 AND event_type = 0 AND received_at >= $3 GROUP BY user_id) AS u
     GROUP BY chunk
"""
_IDS: Final = """
    SELECT string_agg(uuid_send(event_id) || timestamptz_send(received_at), '')
      FROM (SELECT event_id, received_at, (row_number() OVER () - 1) / $3 AS chunk FROM events
             WHERE campaign_id = $1 AND received_at >= $2) AS e
     GROUP BY chunk
"""
_ID_AND_TIME: Final = struct.Struct("!16sq")


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


async def raise_generation(database: Database, campaign_id: CampaignId) -> LedgerRow | None:
    """Raise the generation and tell every engine; waits for a flush that holds the row."""
    rows = await database.fetch(
        """
        WITH raised AS (UPDATE ledger SET gen = gen + 1 WHERE campaign_id = $1
                        RETURNING campaign_id AS id, gen, spent, day, today, halted)
        SELECT *, pg_notify('headrace_generation', id || ' ' || gen) FROM raised
        """,
        campaign_id,
    )
    return ledger_row(rows[0]) if rows else None


async def users_on(
    database: Database, campaign_id: CampaignId, spend_day: int, timeout_seconds: float
) -> AsyncGenerator[Sequence[tuple[str, int]], None]:
    """Impressions a user on a spend day, in chunks.

    No event of a spend day was received more than two days before that date in UTC (zones reach 14 h ahead), which
    lets BRIN leave out older partitions.
    """
    since_us = max(0, spend_day - 2) * DAY_US
    async with aclosing(_rows(database, timeout_seconds, _USERS, campaign_id, spend_day, since_us, CHUNK)) as rows:
        async for users, impressions in rows:
            yield list(zip(users, impressions, strict=True))


async def ids_received(
    database: Database, campaign_id: CampaignId, since_us: int, timeout_seconds: float
) -> AsyncGenerator[Sequence[tuple[EventId, int]], None]:
    """Ids and receive times since then, in chunks."""
    async with aclosing(_rows(database, timeout_seconds, _IDS, campaign_id, since_us, CHUNK)) as rows:
        async for (packed,) in rows:
            yield [(event_id, us_2000 + TO_2000_US) for event_id, us_2000 in _ID_AND_TIME.iter_unpack(packed)]


async def _rows(
    database: Database, timeout_seconds: float, query: str, *args: object
) -> AsyncGenerator[asyncpg.Record, None]:
    """Row by row, from one snapshot."""
    async with database.cursor(query, *args, timeout_seconds=_STREAM_PATIENCE * timeout_seconds) as fetch:
        while rows := await fetch(_FETCH):
            for row in rows:
                yield row


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
