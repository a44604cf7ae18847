"""What lies behind a world: events of the last ten minutes over many campaigns, and a quarter of daily partitions.

Owns what is laid in, and what it came to in each campaign. Senders of a seed send to these campaigns, too, so that
their recoveries are a part of it. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg

from bench.history import History, Span, lay_history, make_past_partitions, span_of
from bench.stand import copy_campaigns

CAMPAIGNS = 100
MINUTES = 10
DAYS = 90
OLDER_SHARE = 0.01  # of the rows lie on the days before, evenly


@dataclass(frozen=True)
class Before:
    """What a campaign had spent before a seed: in all, and on its latest day."""

    spent: int
    day: date
    today_micros: int


@dataclass(frozen=True)
class Past:
    """Campaigns that have a history, and the first tag of its rows."""

    campaigns: dict[int, Before]
    first_tag: int

    def records(self) -> Iterator[dict[str, Any]]:
        """For a journal, one a campaign."""
        for campaign, before in self.campaigns.items():
            yield {
                "campaign": campaign, "first_tag": self.first_tag, "spent": before.spent, "day": str(before.day),
                "today_micros": before.today_micros,
            }  # fmt: skip


def lay_past(db_url: str, rows: int, first_campaign: int) -> Past:
    """So many rows, over this campaign and copies of it; engines may run, if nobody sends them anything."""
    copy_campaigns(db_url, CAMPAIGNS - 1)
    make_past_partitions(db_url, DAYS)
    now = datetime.now(UTC)
    older = int(OLDER_SHARE * rows)
    last = span_of(f"{rows - older}/{MINUTES}min", now)
    days = Span(older, now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=DAYS), last.start)
    with psycopg.connect(db_url) as connection:
        query = "SELECT id FROM campaigns WHERE id >= %s ORDER BY id LIMIT %s"
        campaigns = [campaign for (campaign,) in connection.execute(query, [first_campaign, CAMPAIGNS]).fetchall()]
        assert len(campaigns) == CAMPAIGNS
        laid = lay_history(db_url, History([days, last]), campaigns)
        query = "SELECT campaign_id, spent, day, today FROM ledger WHERE campaign_id = ANY (%s)"
        ledger = connection.execute(query, [campaigns]).fetchall()
    return Past({campaign: Before(spent, day, today) for campaign, spent, day, today in ledger}, laid.first_tag)
