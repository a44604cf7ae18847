"""What was stored under ids that are known already, asked of Postgres by the peers that use asyncpg.

Owns one query. First the day that the event itself names, which is one probe of the unique key; what is not there is
looked for on every day. Leaves out: an id that stands on two days gives either of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import asyncpg

from engine import Entry, StoredEvent
from engine.postgres.recovery import stored_event

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

_COLUMNS: Final = "event_id, campaign_id, ad_id, user_id, event_type, cost_micros, occurred_at, batch"
_ON_DAY: Final = f"""
    SELECT e.* FROM unnest($1::bigint[], $2::uuid[], $3::date[]) AS w (campaign_id, event_id, day)
     CROSS JOIN LATERAL (SELECT {_COLUMNS} FROM events AS e WHERE e.campaign_id = w.campaign_id
                            AND e.event_id = w.event_id AND e.day = w.day LIMIT 1) AS e
"""  # noqa: S608 - put together from the names of our own columns
_ON_ANY_DAY: Final = f"""
    SELECT e.* FROM unnest($1::bigint[], $2::uuid[]) AS w (campaign_id, event_id)
     CROSS JOIN LATERAL (SELECT {_COLUMNS} FROM events AS e WHERE e.campaign_id = w.campaign_id
                            AND e.event_id = w.event_id LIMIT 1) AS e
"""  # noqa: S608


async def look_up(pool: Pool, entries: Sequence[Entry]) -> dict[tuple[int, bytes], StoredEvent]:
    """Those that are stored, by campaign and id. The pool's sessions speak the forms of `teach_forms`."""
    columns = [entry.campaign_id for entry in entries], [entry.event_id for entry in entries]
    rows = await pool.fetch(_ON_DAY, *columns, [entry.day for entry in entries])
    found = {(row["campaign_id"], row["event_id"]): stored_event(row) for row in rows}
    rest = [entry for entry in entries if (entry.campaign_id, entry.event_id) not in found]
    if rest:
        columns = [entry.campaign_id for entry in rest], [entry.event_id for entry in rest]
        rows = await pool.fetch(_ON_ANY_DAY, *columns)
        found |= {(row["campaign_id"], row["event_id"]): stored_event(row) for row in rows}
    return found
