"""What recovery and late look-ups ask the judge.

Owns the SQL behind the remedy: raise a generation, find committed events by id, and stream what a rebuild of Redis
loads. All of it is true after `raise_generation` has returned: every older batch is then in or out for good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import lru_cache
from typing import Final

import asyncpg

from engine.days import Accepted
from engine.model import DAY_US, CampaignId, EventId, EventType, Micros, StoredEvent
from engine.ports import LedgerRow, Wanted
from engine.postgres.campaigns import ledger_row
from engine.postgres.database import Connection, Database
from engine.postgres.days import day_sql, days_sql

CHUNK: Final = 1_000  # the ledger's load takes so many at once
_FETCHED: Final = 10  # chunks a round trip: 0.3 MB, and 3 ms of Python

# Until the first users come, all rows of a day are read and sorted: a thousand million of them in half an hour. (Giving
# up earlier would keep campaigns closed for ever: the next attempt takes as long.)
_USERS_SECONDS_MAX: Final = 1_800.0

# LIMIT makes each wanted id a probe of its own (never a join over whole partitions) of one partition's unique key. In
# order of the key, because neighbours share its pages: a fifth of the time.
_WANTED: Final = """
    {wanted} AS MATERIALIZED (SELECT * FROM unnest({campaigns}::bigint[], {ids}::uuid[]) AS w (campaign_id, event_id)
                               ORDER BY campaign_id, event_id)"""
_ON_DAY: Final = """
    SELECT e.event_id, e.campaign_id, e.ad_id, e.user_id, e.event_type, e.cost_micros, e.occurred_at, e.batch
      FROM {wanted} AS w
     CROSS JOIN LATERAL (SELECT * FROM events AS e WHERE e.campaign_id = w.campaign_id
                            AND e.event_id = w.event_id AND e.day = {day} LIMIT 1) AS e"""
# Every partition is probed. The same id on two days: the one received last.
_ON_ANY_DAY: Final = """
    SELECT e.event_id, e.campaign_id, e.ad_id, e.user_id, e.event_type, e.cost_micros, e.occurred_at, e.batch
      FROM unnest($1::bigint[], $2::uuid[]) AS w (campaign_id, event_id)
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

# What a rebuild loads comes a chunk of one campaign a row: a million rows of their own would keep Python, and all who
# wait for it, busy (bench/rebuild.py).
#
# Campaign by campaign through the unique key, whatever the statistics say: with a new partition they say nothing yet.
_USERS_BY_KEY: Final = """
    SELECT w.campaign_id, u.users, u.impressions
      FROM unnest($1::bigint[], $2::date[]) AS w (campaign_id, day)
     CROSS JOIN LATERAL (
         SELECT array_agg(user_id) AS users, array_agg(impressions) AS impressions
           FROM (SELECT user_id, count(*) AS impressions, (row_number() OVER () - 1) / {chunk} AS chunk
                   FROM events AS e
                  WHERE e.campaign_id = w.campaign_id AND e.day IN {days} AND e.spend_day = w.day AND e.event_type = 0
                  GROUP BY user_id) AS counted
          GROUP BY chunk) AS u
"""
_BY_KEY: Final = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"
# One pass over the day's rows. BRIN knows which parts of other identity days' partitions have rows of the spend day.
_USERS_WHOLE: Final = """
    SELECT campaign_id, array_agg(user_id), array_agg(impressions)
      FROM (SELECT *, (row_number() OVER (PARTITION BY campaign_id ORDER BY user_id) - 1) / {chunk} AS chunk
              FROM (SELECT e.campaign_id, e.user_id COLLATE "C" AS user_id, count(*) AS impressions
                      FROM events AS e
                      JOIN unnest($1::bigint[], $2::date[]) AS w (campaign_id, day)
                        ON w.campaign_id = e.campaign_id AND w.day = e.spend_day
                     WHERE e.day IN {days} AND e.spend_day BETWEEN {first} AND {last} AND e.event_type = 0
                     GROUP BY e.campaign_id, e.user_id COLLATE "C") AS counted) AS chunked
     GROUP BY campaign_id, chunk ORDER BY campaign_id
"""
# Sorted, then grouped: ten million users need 32 MB and half a gigabyte of temporary files, and come in order of
# campaign. Grouping them by hash takes twice the time, whatever the memory.
_WHOLE: Final = (
    "SET LOCAL enable_nestloop = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_hashagg = off;"
    "SET LOCAL work_mem = '32MB'"
)


async def look_up(database: Database, wanted: Sequence[Wanted]) -> dict[tuple[CampaignId, bytes], StoredEvent]:
    """Those of the wanted events that are committed."""
    of_days: defaultdict[tuple[int, ...], list[Wanted]] = defaultdict(list)
    anywhere = []
    for each in wanted:
        if each.days is None:
            anywhere.append(each)
        elif each.days:
            of_days[tuple(each.days)].append(each)
    rows = []
    if of_days:
        groups = sorted(of_days.items())
        query = _look_up_on(tuple(days for days, _ in groups))
        rows += await database.fetch(query, *(column for _, group in groups for column in _keys(group)))
    if anywhere:
        rows += await database.fetch(_ON_ANY_DAY, *_keys(anywhere))
    return {(CampaignId(row["campaign_id"]), row["event_id"]): stored_event(row) for row in rows}


def _keys(wanted: Sequence[Wanted]) -> tuple[list[int], list[bytes]]:
    return [each.campaign_id for each in wanted], [each.event_id for each in wanted]


@lru_cache(maxsize=64)  # ids that tell no time, and late ones of some days: a few at a time, others after midnight
def _look_up_on(groups: tuple[tuple[int, ...], ...]) -> str:
    """The query for some groups of wanted events, each with the days on which they are wanted."""
    tables, probes = [], []
    for at, days in enumerate(groups):
        wanted = f"wanted{at}"
        tables.append(_WANTED.format(wanted=wanted, campaigns=f"${2 * at + 1}", ids=f"${2 * at + 2}"))
        probes += [_ON_DAY.format(wanted=wanted, day=day_sql(day)) for day in sorted(set(days))]
    return f"WITH{','.join(tables)}{' UNION ALL'.join(probes)}"


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


async def events_since(database: Database, accepted: Accepted, days: Mapping[CampaignId, int]) -> dict[CampaignId, int]:
    """About how many events each campaign has in the partitions that have those of its spend day, and since then."""
    since_us = [max(0, accepted.days_of_spend_day(day)[0]) * DAY_US for day in days.values()]
    rows = await database.fetch(_EVENTS_SINCE, list(days), since_us)
    return {CampaignId(row["campaign_id"]): row["events"] for row in rows}


async def users_on(
    database: Database, accepted: Accepted, days: Mapping[CampaignId, int], *, whole: bool
) -> AsyncGenerator[Mapping[CampaignId, Sequence[tuple[str, int]]], None]:
    """Impressions a user, each campaign on its spend day, in pieces of at most 10,000 users.

    Either campaign by campaign through the unique key, which costs 3 to 6 us for each of its events since the first of
    the identity days, and on a disk that has to be asked for each of them much more; or, `whole`, in one pass over the
    rows of the spend day, which costs 0.2 us for each row of anybody, and 1 us for each of theirs. So a few small
    campaigns are read by key, and all others at once.
    """
    identity_days = days_sql(each for day in set(days.values()) for each in accepted.days_of_spend_day(day))
    if whole:
        first, last = min(days.values()), max(days.values())
        query = _USERS_WHOLE.format(days=identity_days, first=day_sql(first), last=day_sql(last), chunk=CHUNK)
    else:
        query = _USERS_BY_KEY.format(days=identity_days, chunk=CHUNK)
    async with database.cursor(
        query,
        list(days),
        list(days.values()),
        timeout_seconds=_USERS_SECONDS_MAX,
        planner=_WHOLE if whole else _BY_KEY,
    ) as fetch:
        while chunks := await fetch(_FETCHED):
            piece: defaultdict[CampaignId, list[tuple[str, int]]] = defaultdict(list)
            for campaign_id, users, impressions in chunks:
                piece[CampaignId(campaign_id)] += zip(users, impressions, strict=True)
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
