"""A Postgres of plain Python: rows under a unique key, a ledger with row locks, the guard, and faults on demand.

Passes the same contract tests as the real store. Faults: `trouble` is consumed one a flush; `away` makes every read
raise `StoreUnavailable` and every flush `NotRun`; `hold` is awaited while a flush holds its ledger rows.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeVar

import msgspec
import trio

from engine.errors import StoreBusy, StoreUnavailable
from engine.locks import HASTY_LOCK_SECONDS, LOCK_SECONDS, Locked
from engine.model import (
    DAY_US,
    Campaign,
    CampaignId,
    CampaignSpend,
    EventId,
    EventType,
    HeartbeatReply,
    Micros,
    NewCampaign,
    Report,
    StoredEvent,
)
from engine.ports import (
    Batch,
    Committed,
    FlushReply,
    LedgerRow,
    NotRun,
    RefusalCause,
    Refused,
    Row,
    Unknown,
    Wanted,
)

PIECE = 10_000
# For a row that a flush holds: of somebody who changes a campaign, and of a recovery.
WAIT_SECONDS = 1.0
RECOVERY_WAIT_SECONDS = 3.0
T = TypeVar("T")


class Trouble(Enum):
    """What befalls one flush."""

    NOT_RUN = auto()  # certainly rolled back
    CULPRIT_UNNAMED = auto()  # rolled back because of its data, and nobody knows whose
    UNKNOWN_BEFORE = auto()  # no answer, and it never commits
    UNKNOWN_AFTER = auto()  # no answer, though it did commit


@dataclass(slots=True)
class Line:
    """One ledger row, and its lock."""

    gen: int = 0
    spent: int = 0
    day: int = 0
    today: int = 0
    halted: str | None = None
    latest_us: int = 0
    lock: trio.Lock = field(default_factory=trio.Lock)


@dataclass(frozen=True, slots=True)
class Kept:
    """One row of `events`."""

    event: StoredEvent
    day: int
    spend_day: int
    received_us: int


class FakeStore:
    """`EventStore`, `CampaignStore` and `Roster` in memory."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self.now_us = now_us
        self.campaigns: dict[CampaignId, Campaign] = {}
        self.ledger: dict[CampaignId, Line] = {}
        self.events: dict[tuple[CampaignId, bytes, int], Kept] = {}
        self.engines: dict[int, int] = {}  # number -> last heartbeat
        self.slowest_look_ups_us: dict[int, int] = {}
        self.newest_engine = 0
        self.sessions: defaultdict[int, set[str]] = defaultdict(set)  # of engines, by the newest one's number
        self.dead_after_us = 15_000_000
        self.trouble: deque[Trouble | None] = deque()
        self.hold: Callable[[], Awaitable[None]] | None = None
        self.away = False
        self.flushes = 0
        self._listeners: list[tuple[Callable[[CampaignId, int], None], Callable[[CampaignId, int], None]]] = []

    @contextlib.contextmanager
    def commits_hang(self) -> Iterator[None]:
        """No COMMIT is through while the block runs, and each holds its rows."""
        before, ended = self.hold, trio.Event()
        self.hold = ended.wait
        try:
            yield
        finally:
            self.hold = before
            ended.set()

    # --- EventStore ---

    async def flush(self, batches: Sequence[Batch], *, hasty: bool = False) -> FlushReply:
        """Judge, and keep all or nothing."""
        await trio.lowlevel.checkpoint()
        self.flushes += 1
        self.sessions[self.newest_engine] |= {"flush"}
        if self.away:
            return NotRun("the fake is away")
        trouble = self.trouble.popleft() if self.trouble else None
        if trouble is Trouble.NOT_RUN:
            return NotRun("as the test wished")
        if trouble is Trouble.CULPRIT_UNNAMED:
            return NotRun("as the test wished", data=True)
        if trouble is Trouble.UNKNOWN_BEFORE:
            return Unknown("as the test wished")
        reply = await self._transaction(batches, HASTY_LOCK_SECONDS if hasty else LOCK_SECONDS)
        return Unknown("as the test wished") if trouble is Trouble.UNKNOWN_AFTER else reply

    async def _transaction(self, batches: Sequence[Batch], lock_seconds: float) -> FlushReply:
        merged = _merge(batches)
        async with contextlib.AsyncExitStack() as locks:
            wanted = sorted(merged.keys() & self.ledger.keys())
            for place, campaign_id in enumerate(wanted):
                with trio.move_on_after(lock_seconds) as waiting:
                    await locks.enter_async_context(self.ledger[campaign_id].lock)
                if waiting.cancelled_caught:
                    held = [each for each in wanted[place:] if self.ledger[each].lock.locked()]
                    return Locked(frozenset(held), "somebody holds these") if held else NotRun("now free", data=True)
            twice = self._duplicate_of(batches)
            if twice is not None:
                return Refused({twice: RefusalCause.DUPLICATE})
            causes = {
                campaign_id: cause
                for campaign_id, sums in merged.items()
                if (cause := self._refusal(campaign_id, sums)) is not None
            }
            if causes:
                return Refused(causes)
            if self.hold is not None:
                await self.hold()
            for campaign_id, sums in merged.items():
                line = self.ledger[campaign_id]
                line.today = (line.today if line.day == sums.spend_day else 0) + sums.amount
                line.day = sums.spend_day
                line.spent += sums.amount
                line.latest_us = max(line.latest_us, sums.latest_us)
            for batch in batches:
                for row in batch.rows:
                    self.events[batch.campaign_id, row.event_id, row.day] = _kept(batch, row)
        return Committed()

    def _duplicate_of(self, batches: Sequence[Batch]) -> CampaignId | None:
        seen: set[tuple[CampaignId, bytes, int]] = set()
        for batch in batches:
            for row in batch.rows:
                key = (batch.campaign_id, row.event_id, row.day)
                if key in seen or key in self.events:
                    return batch.campaign_id
                seen.add(key)
        return None

    def _refusal(self, campaign_id: CampaignId, sums: _Sums) -> RefusalCause | None:
        line = self.ledger.get(campaign_id)
        if line is None or line.gen != sums.generation:
            return RefusalCause.GENERATION
        if line.day > sums.spend_day:
            return RefusalCause.DAY
        plan = self.campaigns[campaign_id]
        today = line.today if line.day == sums.spend_day else 0
        fits = line.spent + sums.amount <= plan.total_budget_micros and today + sums.amount <= plan.daily_budget_micros
        return None if fits or sums.amount == 0 else RefusalCause.BUDGET

    async def plans(self, campaign_ids: Sequence[CampaignId]) -> dict[CampaignId, tuple[Campaign, LedgerRow]]:
        """Plan and ledger row of those campaigns that exist."""
        await self._answer()
        return {
            campaign_id: (self.campaigns[campaign_id], self._row(campaign_id))
            for campaign_id in campaign_ids
            if campaign_id in self.campaigns
        }

    async def look_up(self, wanted: Sequence[Wanted]) -> dict[tuple[CampaignId, bytes], StoredEvent]:
        """Those of the wanted events that are committed."""
        await self._answer()
        found: dict[tuple[CampaignId, bytes], StoredEvent] = {}
        for each in wanted:
            days = each.days
            if days is None:
                days = [
                    day
                    for campaign, event, day in self.events
                    if (campaign, event) == (each.campaign_id, each.event_id)
                ]
            for day in days:
                kept = self.events.get((each.campaign_id, each.event_id, day))
                if kept is not None:
                    found[each.campaign_id, each.event_id] = kept.event
        return found

    async def raise_generations(
        self, campaign_ids: Sequence[CampaignId], *, wait: bool
    ) -> dict[CampaignId, LedgerRow | None]:
        """`gen + 1`, after the flush that holds the row, or of those that none holds."""
        await self._answer()
        rows: dict[CampaignId, LedgerRow | None] = dict.fromkeys(self.ledger.keys() & set(campaign_ids))
        async with contextlib.AsyncExitStack() as locks:
            free = sorted(each for each in rows if wait or not self.ledger[each].lock.locked())
            for campaign_id in free:
                await locks.enter_async_context(self._held(campaign_id, RECOVERY_WAIT_SECONDS))
            for campaign_id in free:
                self.ledger[campaign_id].gen += 1
                rows[campaign_id] = self._row(campaign_id)
        for campaign_id, row in rows.items():
            for _, generation_raised in self._listeners:
                if row is not None:
                    generation_raised(campaign_id, row.generation)
        return rows

    async def halt(self, campaign_id: CampaignId, reason: str) -> int | None:
        """The reason and `gen + 1`, after the flush that holds the row."""
        await self._answer()
        if campaign_id not in self.ledger:
            return None
        if self.ledger[campaign_id].halted is None:
            await self.raise_generations([campaign_id], wait=True)
            self.ledger[campaign_id].halted = self.ledger[campaign_id].halted or reason
        return self.ledger[campaign_id].gen

    async def events_since(self, days: Mapping[CampaignId, int]) -> dict[CampaignId, int]:
        """How many events each has since its spend day began, somewhere on earth."""
        await self._answer()
        return {
            campaign_id: sum(kept.event.occurred_us >= (day - 1) * DAY_US for kept in self._events_of(campaign_id))
            for campaign_id, day in days.items()
        }

    async def users_on(
        self, days: Mapping[CampaignId, int], *, whole: bool
    ) -> AsyncGenerator[Mapping[CampaignId, Sequence[tuple[str, int]]], None]:
        """Impressions a user, each campaign on its spend day, however they are read."""
        assert whole in (True, False)
        await self._answer()
        users = Counter(
            (campaign_id, kept.event.user_id)
            for campaign_id, day in days.items()
            for kept in self._events_of(campaign_id)
            if kept.spend_day == day and kept.event.event_type is EventType.IMPRESSION
        )
        for piece in _pieces([(campaign_id, (user, seen)) for (campaign_id, user), seen in users.items()]):
            yield piece
            await self._answer()

    # --- CampaignStore ---

    async def create_campaign(self, new: NewCampaign) -> tuple[Campaign, CampaignSpend]:
        """A new campaign and its ledger row."""
        await self._answer()
        campaign_id = CampaignId(len(self.campaigns) + 1)
        plan = Campaign(id=campaign_id, version=1, created_us=self.now_us(), **msgspec.structs.asdict(new))
        self.campaigns[campaign_id] = plan
        self.ledger[campaign_id] = Line()
        self._tell_plan(plan)
        return plan, self._row(campaign_id).spend

    async def campaign(self, campaign_id: CampaignId) -> tuple[Campaign, CampaignSpend] | None:
        """A campaign and its spend, or None."""
        await self._answer()
        return (self.campaigns[campaign_id], self._row(campaign_id).spend) if campaign_id in self.campaigns else None

    async def page_campaigns(self, after: int, limit: int) -> list[tuple[Campaign, CampaignSpend]]:
        """Up to `limit` campaigns with numbers above `after`, in order."""
        await self._answer()
        page = sorted(campaign_id for campaign_id in self.campaigns if campaign_id > after)[:limit]
        return [(self.campaigns[campaign_id], self._row(campaign_id).spend) for campaign_id in page]

    async def update_campaign(
        self, campaign_id: CampaignId, changes: Mapping[str, object]
    ) -> tuple[Campaign, CampaignSpend] | None:
        """Change the named fields; `version + 1`, unless there are none."""
        await self._answer()
        plan = self.campaigns.get(campaign_id)
        if plan is not None and changes:
            async with self._held(campaign_id):
                plan = self.campaigns[campaign_id]  # (as it is once we hold the lock)
                plan = msgspec.structs.replace(plan, version=plan.version + 1, **changes)
                self.campaigns[campaign_id] = plan
            self._tell_plan(plan)
        return None if plan is None else (plan, self._row(campaign_id).spend)

    async def report(self, campaign_id: CampaignId, start_us: int | None, end_us: int | None) -> Report | None:
        """Counts and spend of events that occurred from start up to end."""
        await self._answer()
        if campaign_id not in self.campaigns:
            return None
        within = [
            kept.event
            for kept in self._events_of(campaign_id)
            if (start_us is None or start_us <= kept.event.occurred_us)
            and (end_us is None or kept.event.occurred_us < end_us)
        ]
        counts = Counter(event.event_type for event in within)
        return Report(
            campaign_id,
            counts[EventType.IMPRESSION],
            counts[EventType.CLICK],
            counts[EventType.CONVERSION],
            Micros(sum(event.cost_micros for event in within)),
        )

    async def probe(self) -> str | None:
        """Why it takes nothing, if so."""
        await trio.lowlevel.checkpoint()
        return "the fake is away" if self.away else None

    # --- Roster ---

    async def register_engine(self) -> int:
        """A number never given before."""
        await self._answer()
        self.newest_engine += 1
        self.engines[self.newest_engine] = self.now_us()
        return self.newest_engine

    async def heartbeat(self, number: int, slowest_look_up_us: int = 0) -> HeartbeatReply:
        """Say that this engine lives. The fake's clock is everybody's."""
        await self._answer()
        self.engines[number] = self.now_us()
        self.slowest_look_ups_us[number] = slowest_look_up_us
        heard_us = self.now_us() - self.dead_after_us
        alive = frozenset(engine for engine, seen_us in self.engines.items() if seen_us >= heard_us)
        slowest_us = max((self.slowest_look_ups_us.get(engine, 0) for engine in alive - {number}), default=0)
        return HeartbeatReply(0, alive, self.newest_engine, slowest_look_up_us=slowest_us)

    async def end_dead_sessions(self, number: int) -> dict[int, int]:
        """End what engines opened that are silent by now."""
        await self._answer()
        heard_us = self.now_us() - self.dead_after_us
        alive = {engine for engine, seen_us in self.engines.items() if seen_us >= heard_us} | {number}
        return {dead: len(self.sessions.pop(dead)) for dead in self.sessions.keys() - alive}

    async def retire_engine(self, number: int) -> None:
        """Say goodbye."""
        await self._answer()
        self.engines.pop(number, None)

    async def make_partitions(self) -> None:
        """Nothing to do: a dict has room for every day."""
        await self._answer()

    @contextlib.asynccontextmanager
    async def listening(
        self,
        plan_changed: Callable[[CampaignId, int], None],
        generation_raised: Callable[[CampaignId, int], None],
        lost: Callable[[], None],
    ) -> AsyncIterator[None]:
        """Tell these of news while the block runs."""
        listener = (plan_changed, generation_raised)
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    @contextlib.asynccontextmanager
    async def _held(self, campaign_id: CampaignId, seconds: float = WAIT_SECONDS) -> AsyncIterator[None]:
        """Hold its row, or give up waiting for it."""
        with trio.move_on_after(seconds) as waiting:
            await self.ledger[campaign_id].lock.acquire()
        if waiting.cancelled_caught:
            raise StoreBusy("somebody holds it", certain=True)
        try:
            yield
        finally:
            self.ledger[campaign_id].lock.release()

    # --- For tests ---

    def rows_of(self, campaign_id: CampaignId) -> list[Kept]:
        """What is committed for a campaign."""
        return list(self._events_of(campaign_id))

    def _events_of(self, campaign_id: CampaignId) -> Iterator[Kept]:
        return (kept for (campaign, _, _), kept in self.events.items() if campaign == campaign_id)

    def _row(self, campaign_id: CampaignId) -> LedgerRow:
        line = self.ledger[campaign_id]
        spend = CampaignSpend(Micros(line.spent), line.day, Micros(line.today), line.halted)
        return LedgerRow(campaign_id, line.gen, spend, line.latest_us)

    def _tell_plan(self, plan: Campaign) -> None:
        for plan_changed, _ in self._listeners:
            plan_changed(plan.id, plan.version)

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable("the fake is away", certain=True)


@dataclass(slots=True)
class _Sums:
    generation: int
    spend_day: int
    amount: int = 0
    latest_us: int = 0


def _merge(batches: Sequence[Batch]) -> dict[CampaignId, _Sums]:
    merged: dict[CampaignId, _Sums] = {}
    for batch in batches:
        sums = merged.setdefault(batch.campaign_id, _Sums(batch.generation, batch.spend_day))
        assert (sums.generation, sums.spend_day) == (batch.generation, batch.spend_day), "one of each in one flush"
        assert batch.amount_micros == sum(row.cost_micros for row in batch.rows)
        sums.amount += batch.amount_micros
        sums.latest_us = max(sums.latest_us, *(row.id_time_us for row in batch.rows))
    return merged


def _kept(batch: Batch, row: Row) -> Kept:
    event = StoredEvent(
        EventId(row.event_id),
        batch.campaign_id,
        None if row.ad is None else row.ad.decode(),
        row.user.decode(),
        EventType(row.event_type),
        Micros(row.cost_micros),
        row.occurred_us,
        batch.tag,
    )
    return Kept(event, row.day, batch.spend_day, row.received_us)


def _pieces(items: list[tuple[CampaignId, T]]) -> Iterator[dict[CampaignId, list[T]]]:
    for start in range(0, len(items), PIECE):
        piece: dict[CampaignId, list[T]] = {}
        for campaign_id, item in items[start : start + PIECE]:
            piece.setdefault(campaign_id, []).append(item)
        yield piece
