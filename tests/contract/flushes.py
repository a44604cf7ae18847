"""Campaigns, rows and batches that store tests start from."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from engine.model import (
    DAY_US,
    CampaignId,
    EventType,
    Micros,
    NewCampaign,
    PricingModel,
    new_event_id,
)
from engine.ports import CampaignStore, EventStore, LedgerRow, Roster, Row

COST = 1_000


def now() -> int:
    """Wall time."""
    return time.time_ns() // 1_000


class Store(EventStore, CampaignStore, Roster, Protocol):
    """All that the engine asks of Postgres."""

    async def register_engine(self) -> int:
        """A number for this process, never given before."""
        ...

    async def retire_engine(self, number: int) -> None:
        """Say goodbye."""
        ...

    def listening(
        self,
        plan_changed: Callable[[CampaignId, int], None],
        generation_raised: Callable[[CampaignId, int], None],
        lost: Callable[[], None],
    ) -> AbstractAsyncContextManager[None]:
        """Tell these of news while the block runs."""
        ...


@dataclass(slots=True)
class Line:
    """One accepted event (`ports.Row`)."""

    event_id: bytes
    user: bytes
    ad: bytes | None
    event_type: EventType
    cost_micros: int
    occurred_us: int
    received_us: int
    day: int
    id_time_us: int


@dataclass(slots=True)
class Bunch:
    """The accepted events of one reservation (`ports.Batch`)."""

    campaign_id: CampaignId
    generation: int
    tag: int
    spend_day: int
    amount_micros: int
    rows: Sequence[Row]


def impression(now_us: int, **fields: Any) -> Line:
    """An impression of user ada at 0.001, with an id of its own, changed by `fields`."""
    values: dict[str, Any] = {
        "event_id": new_event_id(now_us, random.randbytes(10)),
        "user": b"ada",
        "ad": None,
        "event_type": EventType.IMPRESSION,
        "cost_micros": COST,
        "occurred_us": now_us,
        "received_us": now_us,
        "day": now_us // DAY_US,
        "id_time_us": now_us,
    }
    return Line(**{**values, **fields})


def click(now_us: int, **fields: Any) -> Line:
    """A free click."""
    return impression(now_us, **{"event_type": EventType.CLICK, "cost_micros": 0, **fields})


def bunch(
    campaign_id: CampaignId, rows: Sequence[Line], *, generation: int = 0, tag: int = 1 << 40, day: int | None = None
) -> Bunch:
    """A batch of these rows; its spend day is the first row's day unless told."""
    return Bunch(
        campaign_id,
        generation,
        tag,
        rows[0].day if day is None else day,
        sum(row.cost_micros for row in rows),
        rows,
    )


async def new_campaign(store: CampaignStore, **fields: Any) -> CampaignId:
    """A cpm campaign with room for a million impressions, changed by `fields`."""
    values: dict[str, Any] = {
        "name": "spring",
        "pricing_model": PricingModel.CPM,
        "unit_price_micros": Micros(1_000_000),
        "total_budget_micros": Micros(1_000_000_000),
        "daily_budget_micros": Micros(1_000_000_000),
    }
    plan, _ = await store.create_campaign(NewCampaign(**{**values, **fields}))
    return plan.id


async def raise_generation(store: EventStore, campaign_id: CampaignId) -> LedgerRow:
    """Raise one generation, after whatever flush holds the row."""
    row = (await store.raise_generations([campaign_id], wait=True))[campaign_id]
    assert row is not None
    return row


async def ledger_of(store: EventStore, campaign_id: CampaignId) -> LedgerRow:
    """The judge's row."""
    return (await store.plans([campaign_id]))[campaign_id][1]
