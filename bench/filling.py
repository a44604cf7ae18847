"""Rows that fill the events table before a measurement: as many as you like, as real traffic would have left them.

Owns what they are. They are spread evenly over the days that an engine still accepts events of, today included, so
that the partition and the index that new events go to are large; they come in order of their time, over all campaigns,
with ids that are UUIDv7 of then. They are clicks of CPM campaigns: these cost nothing and count for no cap, so neither
a ledger row nor Redis needs to know of them, whatever the engine does meanwhile; only the rollups do. Their tag is
negative, which no engine's is: the audit of a run knows them by it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import psycopg

from bench.stand import StandFailed

DAYS: Final = 4  # today, and those for which an engine makes partitions at its start
CONNECTIONS: Final = 2
CHUNK: Final = 500_000  # rows of a transaction
BYTES_A_ROW: Final = 300  # with its index, and the log that is written meanwhile
TAG: Final = -1

# Parameters: number of the first row and of the one after the last, start of the day's rows, microseconds between two.
_INSERT: Final = f"""
INSERT INTO events (campaign_id, cost_micros, occurred_at, received_at, batch, event_id, day, spend_day, event_type,
                    user_id, ad_id)
SELECT ids[1 + n %% cardinality(ids)], 0, at, at, {TAG}, uuidv7(at - clock_timestamp()),
       at::date, at::date, 1, 'u-' || md5(n::text), 'ad-' || n %% 20
  FROM (SELECT n, %(start)s + (n - %(first)s) * %(apart)s AS at
          FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n) AS rows,
       (SELECT array_agg(id) AS ids FROM campaigns) AS known
"""  # noqa: S608 - a number of ours
_ROLLUP: Final = f"""
INSERT INTO rollup AS r (campaign_id, hour, impressions, clicks, conversions, spend)
SELECT campaign_id, date_trunc('hour', occurred_at), 0, count(*), 0, 0 FROM events WHERE batch = {TAG} GROUP BY 1, 2
    ON CONFLICT (campaign_id, hour) DO UPDATE SET clicks = r.clicks + excluded.clicks
"""  # noqa: S608 - a number of ours

Chunk = dict[str, int | datetime | timedelta]


def fill_events(db_url: str, rows: int) -> None:
    """Write them, and leave the table as it is when nothing has been written for a while: vacuumed and on disk."""
    with psycopg.connect(db_url, autocommit=True) as connection:
        (folder,) = connection.execute("SHOW data_directory").fetchone() or ("",)
        if (free := shutil.disk_usage(folder).free) < rows * BYTES_A_ROW:
            raise StandFailed(f"{rows:,} rows need {rows * BYTES_A_ROW >> 30} GB of disk, and {free >> 30} GB are free")
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(partial(_insert, db_url), chunks(rows, datetime.now(UTC))))
        connection.execute(_ROLLUP)
        connection.execute("VACUUM (ANALYZE) events")
        connection.execute("CHECKPOINT")


def empty_events(db_url: str) -> None:
    """All of them away. Nothing but `fill_events` may have written any."""
    with psycopg.connect(db_url, autocommit=True) as connection:
        connection.execute("TRUNCATE events, rollup")
        connection.execute("CHECKPOINT")


def chunks(rows: int, now: datetime) -> Iterator[Chunk]:
    """What is inserted together, in order of time: a part of a day each. Today's rows end before `now`."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    a_day = -(-rows // DAYS)
    for back in reversed(range(DAYS)):
        start = today - timedelta(days=back)
        apart = min(timedelta(days=1), now - start) / a_day
        for first in range(0, a_day, CHUNK):
            size = min(CHUNK, a_day - first)
            number = (DAYS - 1 - back) * a_day + first
            yield {"first": number, "last": number + size - 1, "start": start + first * apart, "apart": apart}


def _insert(db_url: str, chunk: Chunk) -> None:
    with psycopg.connect(db_url) as connection:
        connection.execute(_INSERT, chunk)
