"""The small doors between the engine and its stores: `Ledger` (Redis), `EventStore` (Postgres), `Clock`.

Owns the messages that cross them. Knows neither Redis nor Postgres; every adapter, and the fakes in
`tests/fakes`, pass the contract tests in `tests/contract`. The protocol behind them is told in
`docs/architecture.md`.

A port raises nothing about the protocol: what can happen is a value. Two kinds of failure matter, and each
answer is exactly one of them: it *certainly* had no effect, or nobody knows.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

import msgspec

from engine.letters import AHEAD as AHEAD
from engine.letters import BILLABLE as BILLABLE
from engine.letters import COUNTS_FOR_CAP as COUNTS_FOR_CAP
from engine.letters import FREE as FREE
from engine.letters import Letter as Letter
from engine.locks import Locked
from engine.memory import MemoryUse
from engine.model import (
    Campaign,
    CampaignId,
    CampaignSpend,
    EventType,
    NewCampaign,
    Report,
    StoredEvent,
)
from engine.roster import Roster as Roster
from engine.steps import Begin, Emptied, Kept, LoadUsers, Mismatch, Ready

NO_CAP: Final = -1
NO_TIME: Final = -1  # the id time of an event whose id tells none
ALL_LOOKED_UP: Final = 2**53 - 1  # `Reserve.unlooked_us`: later than every id time
NONE_LOOKED_UP: Final = -1  # `Reserve.looked_bucket`
UNTOUCHED_DAY: Final = 0  # `LedgerRow.spend.day` before the first commit


# --- Ledger: what goes to Redis, and what comes back ---


class Reserve(msgspec.Struct, frozen=True, gc=False):
    """Reserve money, cap and ids for up to 1,000 events of one campaign; all or nothing is written.

    `kinds` has a byte an event (flags above), `ids` 16 bytes an event, `users` a string an event.
    `committed` are tags of earlier reservations that are durable: their pending records are dropped.

    `unlooked_us` is the least id time among those events that were not looked up in Postgres: what is at or below the
    watermark must be. The others were looked up while `looked_bucket` was the current bucket, which it must be still.
    `most_us` and `most_ahead_us` are the greatest id times of events that are not ahead, and of those that are. Its
    bucket closes with this call if it is `bucket_us` old at `at_us`, by Redis's clock.
    """

    campaign_id: CampaignId
    generation: int
    tag: int
    plan_version: int
    day: int
    at_us: int
    bucket_us: int
    unlooked_us: int
    looked_bucket: int
    most_us: int
    most_ahead_us: int
    total_budget_micros: int
    daily_budget_micros: int
    allowance_micros: int
    cap: int
    cost_micros: int
    new_users: bool
    kinds: bytes
    ids: bytes
    users: Sequence[str]
    committed: Sequence[int] = ()


class Resolve(msgspec.Struct, frozen=True, gc=False):
    """Settle one reservation: `commit` makes it durable, otherwise it is undone. Repeatable at will."""

    campaign_id: CampaignId
    generation: int
    tag: int
    commit: bool


class Reserved(msgspec.Struct, frozen=True, gc=False):
    """One letter an event, the sums afterwards (micros, reservations included), and the dedup window's place."""

    letters: bytes
    total_micros: int
    today_micros: int
    bucket: int
    watermark_us: int


@dataclass(frozen=True, slots=True)
class Done:
    """The call did what it says."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Redis knows nothing of this campaign, or it is another memory image than the one that wrote it."""


@dataclass(frozen=True, slots=True)
class Stale:
    """Redis holds another generation."""

    generation: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The campaign is being recovered (or, for a recoverer, is open already)."""


@dataclass(frozen=True, slots=True)
class PlanBehind:
    """Another engine knows a newer plan."""

    version: int


@dataclass(frozen=True, slots=True)
class DayBehind:
    """A later spend day is reached: decide again."""

    day: int


@dataclass(frozen=True, slots=True)
class Behind:
    """The dedup window has moved on: some of the events have to be looked up, or looked up again, under this bucket."""

    bucket: int
    watermark_us: int


@dataclass(frozen=True, slots=True)
class NotRun:
    """The store said no, or could not be reached: the call certainly had no effect.

    `data` is true when a flush was refused because of what it carried (not because Postgres is away), and
    nobody can say which of its campaigns is the culprit: the caller halves it. `full`: for want of memory, which Redis
    has again once something is given back.
    """

    detail: str
    data: bool = False
    full: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer: the call may have run, or may still run."""

    detail: str


ReserveReply = Reserved | Lost | Stale | Closed | PlanBehind | DayBehind | Behind | NotRun | Unknown
ResolveReply = Done | Lost | Stale | Closed | NotRun | Unknown
BeginReply = Kept | Emptied | Stale | NotRun | Unknown
LoadReply = Done | Lost | Stale | Closed | NotRun | Unknown
ReadyReply = Done | Mismatch | Lost | Stale | Closed | NotRun | Unknown


class Ledger(Protocol):
    """Fast reservations. Nothing here raises but `Cancelled`."""

    async def round(
        self,
        parts: Iterable[Sequence[Reserve | Resolve]],
        heard: Callable[[Sequence[ReserveReply | ResolveReply]], None],
    ) -> None:
        """All calls in one pipelined round trip, in order; one reply a call.

        Redis works on a part while the next one is made: each is asked for when the one before is sent, and all of
        them are. `heard` gets the replies of each part, in order, as a rule as soon as all of them are there.
        """
        ...

    async def begin(self, calls: Sequence[Begin]) -> list[BeginReply]:
        """All of them in one pipelined round trip, as each of the following; one reply a call."""
        ...

    async def settle(self, calls: Sequence[Resolve]) -> list[LoadReply]:
        """For a recoverer: works while the campaign is closed."""
        ...

    async def load(self, calls: Sequence[LoadUsers]) -> list[LoadReply]:
        """Chunks of a rebuild."""
        ...

    async def ready(self, calls: Sequence[Ready]) -> list[ReadyReply]:
        """Open campaigns again."""
        ...

    async def pending_tags(self, campaign_ids: Sequence[CampaignId]) -> dict[CampaignId, list[int]] | NotRun:
        """Tags of all reservations that wait for their commit."""
        ...

    async def probe(self, campaign_id: CampaignId) -> NotRun | Unknown | None:
        """How a reserve for this campaign would fail now; None if Redis would decide it. Nothing is written."""
        ...

    async def memory(self) -> MemoryUse | None:
        """Bytes that Redis uses and may use, and its time; None: it can't be asked."""
        ...

    async def clock_offset_us(self) -> int | None:
        """How far this machine's clock is ahead of Redis's, half of the round trip counted; None: it can't be asked."""
        ...

    async def unsafe(self) -> str | None:
        """Why this Redis, as it is set up now, could forget a budget; None if it could not, or can't be asked."""
        ...


# --- EventStore: what goes to Postgres, and what comes back ---


class Row(Protocol):
    """One accepted event on its way into Postgres (the engine's `Entry` is one)."""

    event_id: bytes
    user: bytes  # UTF-8
    ad: bytes | None  # UTF-8
    event_type: EventType
    cost_micros: int
    occurred_us: int
    received_us: int
    day: int  # identity day
    id_time_us: int  # `NO_TIME` if it tells none


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """The judge's row of one campaign. `latest_us` is the highest id time of what was ever committed."""

    campaign_id: CampaignId
    generation: int
    spend: CampaignSpend
    latest_us: int

    @property
    def halted(self) -> str | None:
        """Why the campaign is out of service; None if it is in service."""
        return self.spend.halted

    @property
    def untouched(self) -> bool:
        """Whether no flush of this campaign has ever committed: each, of free events too, writes its spend day."""
        return self.spend.day == UNTOUCHED_DAY


@dataclass(frozen=True, slots=True)
class Committed:
    """Postgres answered `COMMIT`: every row of the flush is durable and counted."""


class RefusalCause(Enum):
    """What the guard or the unique key found wrong with a batch."""

    GENERATION = "generation"
    BUDGET = "budget"
    DAY = "day"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class Refused:
    """Rolled back, because of these campaigns."""

    causes: Mapping[CampaignId, RefusalCause]


FlushReply = Committed | Refused | Locked | NotRun | Unknown


class Batch(Protocol):
    """What a flush needs to know of one reservation's accepted events."""

    campaign_id: CampaignId
    generation: int
    tag: int
    spend_day: int
    amount_micros: int

    @property
    def rows(self) -> Sequence[Row]:
        """Its accepted events."""
        ...


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """An event to look up: by its id, on these identity days, or on every day there is (None)."""

    campaign_id: CampaignId
    event_id: bytes
    days: Sequence[int] | None


class EventStore(Protocol):
    """The judge. `flush` never raises but `Cancelled`; the reads raise `StoreUnavailable`."""

    async def flush(self, batches: Sequence[Batch], *, hasty: bool = False) -> FlushReply:
        """One transaction for all batches; at most one generation and spend day a campaign.

        It waits for each lock of another session for `LOCK_SECONDS`, `hasty` for `HASTY_LOCK_SECONDS`.
        """
        ...

    async def plans(self, campaign_ids: Sequence[CampaignId]) -> dict[CampaignId, tuple[Campaign, LedgerRow]]:
        """Plan and ledger row of those campaigns that exist."""
        ...

    async def look_up(self, wanted: Sequence[Wanted]) -> dict[tuple[CampaignId, bytes], StoredEvent]:
        """Those of the wanted events that are committed, of any number of campaigns, in one query."""
        ...

    async def raise_generations(
        self, campaign_ids: Sequence[CampaignId], *, wait: bool
    ) -> dict[CampaignId, LedgerRow | None]:
        """`gen + 1` of each, committed, after every older batch of it is in or out for good. Absent: no such campaign.

        A flush may hold a row: either all wait for it (for a while), or that campaign is left as it is (None).
        """
        ...

    async def halt(self, campaign_id: CampaignId, reason: str) -> int | None:
        """Take it out of service, and raise its generation with that; whoever is halted already keeps the reason.

        The generation that stands then. None: no such campaign.
        """
        ...

    async def events_since(self, days: Mapping[CampaignId, int]) -> dict[CampaignId, int]:
        """About how many events each has since the first day that one of its spend day may have."""
        ...

    def users_on(
        self, days: Mapping[CampaignId, int], *, whole: bool
    ) -> AsyncGenerator[Mapping[CampaignId, Sequence[tuple[str, int]]], None]:
        """Impressions a user, each campaign on its spend day, in pieces of at most 10,000 users.

        `whole` reads the rows of those days once, for all campaigns: for many events. Otherwise it reads campaign by
        campaign, by the unique key. A campaign may be in many pieces, one behind the other, a user of it in one. It
        holds a connection: use `aclosing`.
        """
        ...

    async def probe(self) -> str | None:
        """Why flushes, plans or look-ups fail now; None if they succeed. Nothing is written."""
        ...


class CampaignStore(Protocol):
    """Campaigns and reports. Everything here raises `StoreUnavailable` when Postgres can't be asked."""

    async def create_campaign(self, new: NewCampaign) -> tuple[Campaign, CampaignSpend]:
        """Write a campaign and its ledger row in one transaction."""
        ...

    async def campaign(self, campaign_id: CampaignId) -> tuple[Campaign, CampaignSpend] | None:
        """A campaign and its spend, or None."""
        ...

    async def page_campaigns(self, after: int, limit: int) -> list[tuple[Campaign, CampaignSpend]]:
        """Up to `limit` campaigns with numbers above `after`, in order."""
        ...

    async def update_campaign(
        self, campaign_id: CampaignId, changes: Mapping[str, object]
    ) -> tuple[Campaign, CampaignSpend] | None:
        """Change the named fields of `Campaign`; `version + 1`, ledger and NOTIFY in the same transaction."""
        ...

    async def report(self, campaign_id: CampaignId, start_us: int | None, end_us: int | None) -> Report | None:
        """Counts and spend of events that occurred from start up to end, exact; None bounds are open."""
        ...


class Clock(Protocol):
    """Wall time. Monotonic time is trio's own."""

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 UTC."""
        ...
