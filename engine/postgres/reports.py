"""Reports: what a campaign delivered and spent between two instants, to the micro.

Owns the cut of a time span into whole hours, which the rollup has, and ragged edges, which are counted from the
events of the identity days that they can have. One statement is one snapshot, so the parts tie: to each other, and to
every 200 given before.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from engine.days import Accepted
from engine.model import CampaignId, Micros, Report
from engine.postgres.copy import HOUR_US
from engine.postgres.database import Database
from engine.postgres.days import days_sql

# Outside of every instant an event can have: an open bound.
ALWAYS_US: Final = 0
NEVER_US: Final = 253_402_300_800_000_000  # 10000-01-01


class Cut(NamedTuple):
    """A span as whole hours, and what is left before and after; each half open, empty when start is its end."""

    hours: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]


def cut_span(start_us: int | None, end_us: int | None) -> Cut:
    """Cut a span (start included, end not, None for open); no instant is in two parts."""
    start = ALWAYS_US if start_us is None else start_us
    end = max(start, NEVER_US if end_us is None else end_us)
    first = -(-start // HOUR_US) * HOUR_US
    last = end // HOUR_US * HOUR_US
    if first >= last:  # within one hour, or across one full hour's turn: all of it is edge
        return Cut((first, first), (start, end), (end, end))
    return Cut((first, last), (start, first), (last, end))


_QUERY: Final = """
    SELECT coalesce(sum(impressions), 0)::bigint AS impressions, coalesce(sum(clicks), 0)::bigint AS clicks,
           coalesce(sum(conversions), 0)::bigint AS conversions, coalesce(sum(spend), 0)::bigint AS spend,
           EXISTS (SELECT FROM campaigns WHERE id = $1) AS known
      FROM (SELECT impressions, clicks, conversions, spend
              FROM rollup WHERE campaign_id = $1 AND hour >= $2 AND hour < $3{edges}) AS parts
"""
_EDGE: Final = """
             UNION ALL
            SELECT (event_type = 0)::int, (event_type = 1)::int, (event_type = 2)::int, cost_micros
              FROM events
             WHERE campaign_id = $1 AND day IN {days} AND occurred_at >= ${start} AND occurred_at < ${end}"""


async def read_report(
    database: Database, accepted: Accepted, campaign_id: CampaignId, start_us: int | None, end_us: int | None
) -> Report | None:
    """What a campaign delivered by `occurred_at`, from start up to end. None: no such campaign."""
    cut = cut_span(start_us, end_us)
    edges, bounds = "", [*cut.hours]
    for edge in (cut.before, cut.after):
        if edge[0] < edge[1]:
            # An event without `occurred_at` has that of its receipt, and its identity day is that of its id's time.
            days = days_sql(accepted.days_of_receipt(*edge))
            edges += _EDGE.format(days=days, start=len(bounds) + 2, end=len(bounds) + 3)
            bounds += edge
    row = (await database.fetch(_QUERY.format(edges=edges), campaign_id, *bounds))[0]
    if not row["known"]:
        return None
    return Report(campaign_id, row["impressions"], row["clicks"], row["conversions"], Micros(row["spend"]))
