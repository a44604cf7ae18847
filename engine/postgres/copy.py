"""Rows as Postgres wants them: packed straight into the binary form of COPY, and their sums for the guard.

Owns the byte layout, the column order that goes with it, and the sums per campaign and per campaign and hour.
Pure: knows no connection and no loop.

The layout (PostgreSQL documentation, COPY, "Binary Format"): a header, then for each row the number of its
fields, and each field as its length and its bytes; then a trailer. Fields of fixed width come first, so that one
`Struct` packs all of them; what is the same for a whole batch (campaign, tag, spend day) is packed once a batch.
Instants are microseconds and days are days since 2000-01-01.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from engine.model import DAY_US, CampaignId
from engine.ports import Batch

COLUMNS: Final = (
    "campaign_id, batch, spend_day, event_id, cost_micros, occurred_at, received_at, day, event_type, user_id, ad_id"
)
DAYS_TO_2000: Final = 10_957
TO_2000_US: Final = DAYS_TO_2000 * DAY_US
HOUR_US: Final = 3_600 * 1_000_000

_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # signature, no flags, no extension
_TRAILER: Final = b"\xff\xff"
_OF_BATCH: Final = struct.Struct("!h iq iq ii")  # number of fields; campaign_id, batch, spend_day
_OF_ROW: Final = struct.Struct("!34s i16s iq iq iq ii ih i")  # the above; event_id … event_type; length of user_id
_LENGTH: Final = struct.Struct("!i")
_NULL: Final = _LENGTH.pack(-1)


def pack_rows(batches: Sequence[Batch]) -> bytes:
    """All rows of the batches, in order, as one binary COPY stream of `COLUMNS`."""
    pack = _OF_ROW.pack
    parts = [_HEADER]
    for batch in batches:
        head = _OF_BATCH.pack(11, 8, batch.campaign_id, 8, batch.tag, 4, batch.spend_day - DAYS_TO_2000)
        parts += [
            pack(
                head, 16, row.event_id, 8, row.cost_micros, 8, row.occurred_us - TO_2000_US,
                8, row.received_us - TO_2000_US, 4, row.day - DAYS_TO_2000, 2, row.event_type, len(row.user),
            )
            + row.user
            + (_NULL if row.ad is None else _LENGTH.pack(len(row.ad)) + row.ad)
            for row in batch.rows
        ]  # fmt: skip
    parts.append(_TRAILER)
    return b"".join(parts)


@dataclass(slots=True)
class Sums:
    """What one flush adds to one campaign. `hours` maps an hour since the epoch to [by type …, spend]."""

    generation: int
    spend_day: int
    amount_micros: int = 0
    latest_us: int = 0  # the highest id time of its rows
    hours: dict[int, list[int]] = field(default_factory=dict)


def sum_rows(batches: Sequence[Batch]) -> dict[CampaignId, Sums]:
    """The sums of each campaign, in rising order of campaign.

    Raises `ValueError` for what no reservation may bring: two generations or spend days of one campaign, or an
    amount that its rows don't add up to. Such a flush would make the ledger differ from the events.
    """
    sums: dict[CampaignId, Sums] = {}
    for batch in sorted(batches, key=lambda batch: batch.campaign_id):
        of_campaign = sums.setdefault(batch.campaign_id, Sums(batch.generation, batch.spend_day))
        if (of_campaign.generation, of_campaign.spend_day) != (batch.generation, batch.spend_day):
            raise ValueError(f"campaign {batch.campaign_id}: two generations or spend days in one flush")
        amount = _add_rows(of_campaign.hours, batch)
        if amount != batch.amount_micros:
            raise ValueError(
                f"campaign {batch.campaign_id}: rows cost {amount} micros, {batch.amount_micros} are reserved"
            )
        of_campaign.amount_micros += amount
        of_campaign.latest_us = max(of_campaign.latest_us, max([row.id_time_us for row in batch.rows]))
    return sums


def _add_rows(hours: dict[int, list[int]], batch: Batch) -> int:
    amount = begins_us = ends_us = 0
    of_hour: list[int] = []
    for row in batch.rows:
        if not begins_us <= row.occurred_us < ends_us:  # (rows of one request are mostly of one hour)
            hour = row.occurred_us // HOUR_US
            begins_us, ends_us = hour * HOUR_US, (hour + 1) * HOUR_US
            of_hour = hours.setdefault(hour, [0, 0, 0, 0])
        of_hour[row.event_type] += 1
        if cost := row.cost_micros:
            of_hour[3] += cost
            amount += cost
    return amount


def guard_call(sums: dict[CampaignId, Sums]) -> str:
    """The SQL that calls `headrace_guard` with these sums. Numbers only, so nothing is to be quoted."""
    rollups = [(campaign, hour, *counts) for campaign, added in sums.items() for hour, counts in added.hours.items()]
    columns = [
        sums.keys(),
        [added.generation for added in sums.values()],
        [added.spend_day for added in sums.values()],
        [added.amount_micros for added in sums.values()],
        [added.latest_us for added in sums.values()],
        *(zip(*rollups, strict=True) if rollups else [()] * 6),
    ]
    return f"SELECT headrace_guard({', '.join(_array(column) for column in columns)})"


def _array(numbers: Iterable[int]) -> str:
    return "'{" + ",".join(map(str, numbers)) + "}'"
