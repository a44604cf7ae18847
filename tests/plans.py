"""Campaigns and entries that tests start from."""

from __future__ import annotations

from typing import Any

from engine.arrival import ArrivalLimits, arrive
from engine.derived_ids import DerivedIds
from engine.memory import Policy
from engine.model import (
    Campaign,
    CampaignId,
    Event,
    Invalid,
    Micros,
    Pacing,
    PricingModel,
    Verdict,
    micros_from_decimal,
)
from engine.submission import Entry, Submission

NOON_US = 1_767_268_800_000_000  # 2026-01-01T12:00:00Z
LIMITS = ArrivalLimits(string_bytes_max=128, past_us=172_800_000_000, ahead_us=300_000_000)
POLICY = Policy(bucket_us=480_000_000, new_users=True)  # there is plenty


def plan(**fields: Any) -> Campaign:
    """A cpm campaign at 1.00 (0.001 an impression) with room for 1,000,000 impressions, changed by `fields`."""
    values: dict[str, Any] = {
        "id": CampaignId(7),
        "name": "spring",
        "pricing_model": PricingModel.CPM,
        "unit_price_micros": Micros(1_000_000),
        "total_budget_micros": Micros(1_000_000_000),
        "daily_budget_micros": Micros(1_000_000_000),
        "freq_cap_impressions_per_day": None,
        "active": True,
        "pacing": Pacing.ASAP,
        "timezone": "UTC",
        "version": 1,
        "created_us": NOON_US,
    }
    return Campaign(**{**values, **fields})


def micros(amount: str) -> Micros:
    """Micros of a decimal text."""
    from decimal import Decimal

    return micros_from_decimal(Decimal(amount))


def uuid7_us(event_id: bytes) -> int | None:
    """The time inside a UUIDv7 (RFC 9562, section 5.7), or None for an id of another kind."""
    if event_id[6] >> 4 != 7 or event_id[8] >> 6 != 2:
        return None
    return int.from_bytes(event_id[:6], "big") * 1_000


def submission(now_us: int = NOON_US) -> Submission:
    """A request received now, whose answer goes nowhere."""
    return Submission(now_us, now_us + 10_000_000, lambda _: None, lambda _: None)


def entry(request: Submission | None = None, *, key: str | None = None, now_us: int = NOON_US, **fields: Any) -> Entry:
    """One entry of a request, an impression of one user unless `fields` say otherwise."""
    request = request or submission(now_us)
    values: dict[str, Any] = {"campaign_id": 7, "user_id": "ada", "event_type": "impression"}
    event = Event(**{**values, **fields})
    ids = None if key is None else DerivedIds(key, [each.campaign_id for each in [*request.entries, event]])
    made = arrive(event, request, len(request.entries), ids, LIMITS)
    assert not isinstance(made, Invalid), made.detail
    request.entries.append(made)
    request.open += 1
    _requests[id(made)] = made, request
    return made


def verdict_of(each: Entry) -> Verdict | None:
    """The verdict of a settled entry, None for accepted; by then it has let go of its request."""
    assert each.settled
    same, request = _requests[id(each)]
    assert same is each
    return request.verdicts.get(each.index)


_requests: dict[int, tuple[Entry, Submission]] = {}
