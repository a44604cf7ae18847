"""Rows that fill the events table before a measurement: as many as you like, as real traffic would have left them.

Owns what they are; bench/history.py lays them in. They are spread evenly over the days that an engine still accepts
events of, today included, so that the partition and the index that new events go to are large. They are clicks of CPM
campaigns: these cost nothing and count for no cap, so neither a ledger's sums nor Redis needs to know of them, whatever
the engine does meanwhile; only the rollups do. Their tags are negative, which no engine's is: the audit of a run knows
them by that.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import psycopg

from bench.history import History, lay_history, span_of

DAYS: Final = 4  # today, and those for which an engine makes partitions at its start
FIRST_TAG: Final = -1 << 62


def fill_events(db_url: str, rows: int) -> None:
    """Write them, and leave the table as it is when nothing has been written for a while: vacuumed and on disk."""
    span = span_of(f"{rows}/{DAYS}d", datetime.now(UTC))
    lay_history(db_url, History([span], clicks_share=1.0, first_tag=FIRST_TAG, events_a_user=1))


def empty_events(db_url: str) -> None:
    """All of them away. Nothing but `fill_events` may have written any."""
    with psycopg.connect(db_url, autocommit=True) as connection:
        connection.execute("TRUNCATE events, rollup")
        connection.execute("CHECKPOINT")
