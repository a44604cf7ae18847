"""The engine's words: campaigns, events, verdicts, and the integers that money and time are.

Owns the types that cross borders and the arithmetic of money, days and ids. Knows no I/O: only the standard
library and msgspec.

Units: money is integer micros (`_micros`, 1.50 = 1_500_000); instants are integer microseconds since
1970-01-01 UTC (`_us`); days are integers since 1970-01-01 (`day`); anything else says its unit in its name.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Annotated, Final, Literal, NewType

import msgspec

CampaignId = NewType("CampaignId", int)
EventId = NewType("EventId", bytes)  # the 16 bytes of a UUID
Micros = NewType("Micros", int)

SECOND_US: Final = 1_000_000
DAY_US: Final = 86_400 * SECOND_US
MICROS_MAX: Final = 2**53 - 1  # Lua's numbers are doubles: integers are exact below this
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICRO: Final = Decimal("0.000001")


class EventType(IntEnum):
    """What happened. The number is what the stores keep."""

    IMPRESSION = 0
    CLICK = 1
    CONVERSION = 2


EVENT_TYPES: Final = {kind.name.lower(): kind for kind in EventType}
EVENT_TYPE_NAMES: Final = tuple(EVENT_TYPES)


class PricingModel(StrEnum):
    """What an advertiser pays for: 1,000 impressions, a click, or a conversion."""

    CPM = "cpm"
    CPC = "cpc"
    CPA = "cpa"


BILLABLE: Final = {
    PricingModel.CPM: EventType.IMPRESSION,
    PricingModel.CPC: EventType.CLICK,
    PricingModel.CPA: EventType.CONVERSION,
}


class Pacing(StrEnum):
    """How a daily budget is spread: as fast as events come, or evenly over the campaign's day."""

    ASAP = "asap"
    EVEN = "even"


class Event(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One event as its sender wrote it. What the types can't say is checked by `campaign.enter`."""

    campaign_id: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    user_id: str
    event_type: Literal["impression", "click", "conversion"]
    ad_id: str | None = None
    event_id: uuid.UUID | None = None
    occurred_at: Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})] | None = None


class Invalid(msgspec.Struct, frozen=True, gc=False):
    """Stands in for an event that could not be decoded; `detail` tells its sender what was wrong."""

    detail: str
    event_id: EventId | None = None
    campaign_id: int | None = None  # where it could still be read: the event keeps its place among that campaign's


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """One committed event, as its row has it."""

    event_id: EventId
    campaign_id: CampaignId
    ad_id: str | None
    user_id: str
    event_type: EventType
    cost_micros: Micros
    occurred_us: int
    batch: int


class Status(StrEnum):
    """What an event's sender needs to know first."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"
    RETRY = "retry"


class Reason(StrEnum):
    """Why an event was not accepted. The names are part of the HTTP contract."""

    INVALID = "invalid"
    UNKNOWN_CAMPAIGN = "unknown_campaign"
    ID_REUSED = "id_reused"
    INACTIVE = "inactive"
    FREQUENCY_CAPPED = "frequency_capped"
    PACED = "paced"
    TOTAL_BUDGET = "total_budget"
    DAILY_BUDGET = "daily_budget"
    IN_FLIGHT = "in_flight"
    UNAVAILABLE = "unavailable"
    OVERLOADED = "overloaded"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The engine's answer to one event that is not accepted (accepted events have no verdict object).

    `reason` is None for a duplicate only; `event` is then what was stored.
    """

    status: Status
    reason: Reason | None = None
    detail: str | None = None
    retry_after_seconds: int | None = None
    event: StoredEvent | None = None


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign and its plan. `version` rises with every change."""

    id: CampaignId
    name: str
    pricing_model: PricingModel
    unit_price_micros: Micros
    total_budget_micros: Micros
    daily_budget_micros: Micros
    freq_cap_impressions_per_day: int | None
    active: bool
    pacing: Pacing
    timezone: str
    version: int
    created_us: int

    @property
    def cost_micros(self) -> Micros:
        """Cost of one billable event, fixed when it is reserved."""
        return cost_per_event(self.pricing_model, self.unit_price_micros)


class NewCampaign(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a campaign to be created, validated by `engine/plans.py`."""

    name: str
    pricing_model: PricingModel
    unit_price_micros: Micros
    total_budget_micros: Micros
    daily_budget_micros: Micros
    freq_cap_impressions_per_day: int | None = None
    active: bool = True
    pacing: Pacing = Pacing.ASAP
    timezone: str = "UTC"


class CampaignSpend(msgspec.Struct, frozen=True):
    """What the ledger row of a campaign says: all committed spend, and that of its latest spend day.

    `halted` is None in service, else why the campaign takes no events: its books differ.
    """

    spent_micros: Micros
    day: int
    today_micros: Micros
    halted: str | None = None


class CampaignView(msgspec.Struct, frozen=True):
    """A campaign as its owner sees it: the plan, all it has spent, and what it has spent on its own calendar today."""

    campaign: Campaign
    spent_total_micros: Micros
    spent_today_micros: Micros
    halted: str | None = None


class HeartbeatReply(msgspec.Struct, frozen=True):
    """What Postgres answers to one heartbeat of an engine process.

    `clock_offset_us` is our clock minus Postgres's (half of the round trip counted), positive when ours is ahead.
    It may be wrong by half of `round_trip_us`, which the answer took.
    `alive` are the numbers of engines that were heard of lately, `newest` the highest number given out so far: what
    was reserved by an engine up to `newest` that is not alive may be recovered.
    `slowest_look_up_us` is how long a look-up took lately in that one of the others that is slowest.
    """

    clock_offset_us: int
    alive: frozenset[int]
    newest: int
    round_trip_us: int = 0
    slowest_look_up_us: int = 0


class Report(msgspec.Struct, frozen=True):
    """What a campaign delivered and spent between two instants (start included, end not)."""

    campaign_id: CampaignId
    impressions: int
    clicks: int
    conversions: int
    spend_micros: Micros


def cost_per_event(model: PricingModel, unit_price_micros: int) -> Micros:
    """Cost of one billable event: CPM is the price of 1,000, rounded half up to a micro."""
    if model is PricingModel.CPM:
        return Micros((unit_price_micros + 500) // 1_000)
    return Micros(unit_price_micros)


def micros_from_decimal(amount: Decimal) -> Micros:
    """Exact micros of a decimal amount. Raises `ValueError` when it is no number, finer than a micro or too large."""
    if not amount.is_finite():
        raise ValueError("must be a number")
    if amount.adjusted() > 15:
        raise ValueError("must be below 9007199254.740992")
    rounded = amount.quantize(_MICRO)  # at most 22 digits by now; a comparison is exact for any number of them
    if rounded != amount:
        raise ValueError("must have at most 6 decimals")
    micros = int(rounded.scaleb(6))
    if abs(micros) > MICROS_MAX:
        raise ValueError("must be below 9007199254.740992")
    return Micros(micros)


def decimal_text(amount_micros: int) -> str:
    """Money at the border: `10_000` micros is "0.010000"."""
    sign = "-" if amount_micros < 0 else ""
    return f"{sign}{abs(amount_micros) // 1_000_000}.{abs(amount_micros) % 1_000_000:06d}"


def us_from_datetime(instant: datetime) -> int:
    """Microseconds since the epoch of an aware datetime, exact."""
    delta = instant - _EPOCH
    return delta.days * DAY_US + delta.seconds * SECOND_US + delta.microseconds


def datetime_from_us(instant_us: int) -> datetime:
    """The UTC datetime of an instant."""
    seconds, microseconds = divmod(instant_us, SECOND_US)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)


def instant_text(instant_us: int) -> str:
    """Time at the border: RFC 3339 in UTC with microseconds, such as 2026-01-31T12:00:00.000000Z."""
    return datetime_from_us(instant_us).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def day_text(day: int) -> str:
    """A day as people read it: 2026-01-31."""
    return (_EPOCH + timedelta(days=day)).date().isoformat()


def new_event_id(now_us: int, randomness: bytes) -> EventId:
    """A UUIDv7 (RFC 9562, section 5.7) from an instant and 10 random bytes."""
    milliseconds = (now_us // 1_000).to_bytes(6, "big")
    return EventId(
        milliseconds
        + bytes([0x70 | randomness[0] & 0x0F, randomness[1], 0x80 | randomness[2] & 0x3F])
        + randomness[3:10]
    )
