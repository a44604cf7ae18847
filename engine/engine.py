"""The engine as its listeners see it: events in, verdicts out; campaigns and reports.

Owns the bounds on what is inside and the deadline of every request. Knows no HTTP, and the stores only through
their ports.
"""

from __future__ import annotations

import logging
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec
import trio

from config.settings import Settings
from engine import metrics
from engine.arrival import ArrivalLimits, arrive
from engine.clock_check import ClockCheck
from engine.derived_ids import DerivedIds
from engine.errors import CampaignNotFound
from engine.model import (
    Campaign,
    CampaignId,
    CampaignSpend,
    CampaignView,
    Event,
    Invalid,
    Micros,
    Reason,
    Report,
    Status,
    Verdict,
)
from engine.pacing import spend_day
from engine.plans import read_change, read_new
from engine.ports import CampaignStore, Clock
from engine.registry import Registry
from engine.submission import Entry, Submission
from engine.verdicts import OVERLOADED, UNAVAILABLE

log = logging.getLogger(__name__)

# How often deadlines are looked at: a late answer is late by this much at most.
_TICK_SECONDS = 0.25
# Events of one request that are handed on in one step: 3 ms of them, some 10 ms where each is of a campaign of its own.
HANDED_ON_MAX: Final = 1_000

_Placed = tuple[int, Event]  # an event, and its place in its request


class Engine:
    """One engine process. Get it from `engine.runtime.open_engine`."""

    def __init__(self, settings: Settings, registry: Registry, store: CampaignStore, clock: Clock) -> None:
        self.settings = settings
        self.clocks = ClockCheck(settings.clock_warn_seconds, settings.clock_refuse_seconds)
        self.unsafe: str | None = None  # why a store, as it was set up then, could make a 200 wrong
        self._registry = registry
        registry.sweep.clock_is_right = self.clock_is_right
        self._store = store
        self._clock = clock
        self._limits = ArrivalLimits.of(settings)
        self._open: dict[Submission, None] = {}  # in order of deadline
        self._events_open = 0
        self._draining = False

    # --- events ---------------------------------------------------------------------------------------------

    def submit(
        self,
        events: Sequence[Event | Invalid],
        answer: Callable[[Submission], None],
        *,
        idempotency_key: str | None = None,
    ) -> Submission:
        """Take the events of one request. Never waits and never raises for what the events are.

        `answer(submission)` is called exactly once, on the trio thread, maybe before this returns: when every
        event has its verdict, or the deadline has passed.
        """
        now_us = self._clock.now_us()
        # (By the clock that never steps: a machine's clock that is set back must not let a request wait longer.)
        now = trio.current_time()
        submission = Submission(now_us, now + self.settings.request_deadline_seconds, self._done, answer)
        self._open[submission] = None
        self._events_open += len(events)
        try:
            submission.entries = list(events)
            ids = (
                None
                if idempotency_key is None
                else DerivedIds(idempotency_key, [event.campaign_id for event in events])
            )
            self._hand_on(submission, events[:HANDED_ON_MAX], 0, ids, now)
        except BaseException:  # no memory is left, say: there will be no answer, and nothing may wait for one
            del self._open[submission]
            self._events_open -= len(events)
            raise
        if len(events) <= HANDED_ON_MAX:
            submission.handed_on()
        else:
            self._registry.start_soon(partial(self._hand_on_the_rest, submission, events, ids))
        return submission

    async def _hand_on_the_rest(
        self, submission: Submission, events: Sequence[Event | Invalid], ids: DerivedIds | None
    ) -> None:
        """Slice by slice: in between, everybody else has a turn."""
        try:
            for start in range(HANDED_ON_MAX, len(events), HANDED_ON_MAX):
                await trio.lowlevel.checkpoint()
                self._hand_on(submission, events[start : start + HANDED_ON_MAX], start, ids, trio.current_time())
            submission.handed_on()
        except Exception:
            log.exception("a request could not be handed on whole")
            submission.abandon(UNAVAILABLE)

    def _hand_on(
        self,
        submission: Submission,
        events: Sequence[Event | Invalid],
        start: int,
        ids: DerivedIds | None,
        now: float,
    ) -> None:
        """Give each of these events, the first of which is in place `start`, to its campaign's actor, or its verdict.

        One campaign after the other: its entries are used together from now on, and lie side by side in memory.
        """
        refusal = UNAVAILABLE if now >= submission.deadline else self._refusal()
        for placed in _by_campaign(events, start, submission):
            campaign_id = CampaignId(placed[0][1].campaign_id)
            verdict = refusal or self._registry.refusal(campaign_id, len(placed))
            if verdict is not None:
                _refuse(submission, placed, ids, verdict)
            elif entries := self._arrive(submission, placed, ids):
                self._registry.post(campaign_id, entries, now)

    def _arrive(self, submission: Submission, placed: Sequence[_Placed], ids: DerivedIds | None) -> list[Entry]:
        """Make entries of events; those that are invalid are left out, and have their verdict."""
        arrived: list[Entry] = []
        for index, event in placed:
            entry = arrive(event, submission, index, ids, self._limits)
            if isinstance(entry, Invalid):
                _reject(submission, index, entry)
            else:
                submission.entries[index] = entry
                arrived.append(entry)
        submission.open += len(arrived)
        return arrived

    @property
    def full(self) -> bool:
        """Whether there is no room for another request."""
        return self._events_open >= self.settings.engine_events_max

    def overloaded(self) -> bool:
        """Whether a request must be refused, before it is decoded, because there is no room for it; counted."""
        if not self.full:
            return False
        metrics.requests_shed.inc()
        return True

    async def record(self, events: Sequence[Event | Invalid], *, idempotency_key: str | None = None) -> Submission:
        """`submit`, and wait for the verdicts."""
        done = trio.Event()
        submission = self.submit(events, lambda _: done.set(), idempotency_key=idempotency_key)
        await done.wait()
        return submission

    def clock_is_right(self) -> bool:
        """Whether our clock agreed with the stores' at the last heartbeat."""
        return self.clocks.wrong is None

    def _refusal(self) -> Verdict | None:
        """Why nothing is taken now, if so."""
        if self._draining or self.unsafe or self.clocks.wrong:
            return UNAVAILABLE
        if self._events_open > self.settings.engine_events_max:
            return OVERLOADED
        return None

    def _done(self, submission: Submission) -> None:
        """The last verdict is in."""
        del self._open[submission]
        self._events_open -= len(submission.entries)
        metrics.count_submission(submission, self._clock.now_us())
        submission.answer(submission)

    async def tick(self) -> None:
        """End what waits too long, for ever; the work behind it goes on."""
        try:
            while True:
                await trio.sleep(_TICK_SECONDS)
                self._expire(trio.current_time())
                metrics.publish()
                metrics.events_open.set(self._events_open)
                metrics.flush_queue_events.set(self._registry.flusher.events_waiting)
                metrics.actors.set(len(self._registry))
                metrics.campaigns_closed.set(self._registry.campaigns_closed)
                metrics.campaigns_halted.set(len(self._registry.halts))
                metrics.outages.set(len(self._registry.outages))
        finally:
            metrics.publish()  # (another worker may tell it when we have ended)

    def _expire(self, now: float) -> None:
        for submission in list(self._open):
            if submission.deadline > now:
                break
            submission.expire(UNAVAILABLE)

    async def drain(self) -> None:
        """Take nothing more; wait until every request has its answer and Redis knows every outcome."""
        self._draining = True
        # Polled: "quiet" is said of every actor together, and asked for once in an engine's life.
        while self._open or not self._registry.quiet:  # noqa: ASYNC110
            await trio.sleep(0.01)

    # --- campaigns and reports ------------------------------------------------------------------------------

    async def create_campaign(self, fields: Mapping[str, object]) -> CampaignView:
        """Make a campaign. Raises `InvalidCampaign` with every fault at once, and `StoreUnavailable`."""
        new = read_new(fields)
        return self._view(*await self._store.create_campaign(new))

    async def campaign(self, campaign_id: int) -> CampaignView:
        """A campaign and its spend. Raises `CampaignNotFound` and `StoreUnavailable`."""
        return self._view(*await self._stored(campaign_id))

    async def campaigns(self, *, after: int, limit: int) -> list[CampaignView]:
        """Up to `limit` campaigns with numbers above `after`, in order. Raises `StoreUnavailable`."""
        return [self._view(*each) for each in await self._store.page_campaigns(after, limit)]

    async def update_campaign(self, campaign_id: int, fields: Mapping[str, object]) -> CampaignView:
        """Change some fields. Raises `CampaignNotFound`, `InvalidCampaign` and `StoreUnavailable`."""
        current, _ = await self._stored(campaign_id)
        changed = await self._store.update_campaign(CampaignId(campaign_id), read_change(fields, current))
        if changed is None:
            raise CampaignNotFound(f"there is no campaign {campaign_id}")
        self._registry.adopt(changed[0])
        return self._view(*changed)

    async def report(self, campaign_id: int, start_us: int | None, end_us: int | None) -> Report:
        """What a campaign delivered from `start_us` up to `end_us`. Raises `CampaignNotFound`, `StoreUnavailable`."""
        report = await self._store.report(CampaignId(campaign_id), start_us, end_us)
        if report is None:
            raise CampaignNotFound(f"there is no campaign {campaign_id}")
        return report

    async def _stored(self, campaign_id: int) -> tuple[Campaign, CampaignSpend]:
        stored = await self._store.campaign(CampaignId(campaign_id))
        if stored is None:
            raise CampaignNotFound(f"there is no campaign {campaign_id}")
        return stored

    def _view(self, plan: Campaign, spend: CampaignSpend) -> CampaignView:
        today = spend_day(self._clock.now_us(), plan.timezone).day
        spent_today = spend.today_micros if spend.day >= today else Micros(0)
        return CampaignView(plan, spend.spent_micros, spent_today, spend.halted)

    # --- readiness ------------------------------------------------------------------------------------------

    async def problems(self) -> list[str]:
        """Why this engine can't take events now; empty when it can."""
        problems = []
        if self._draining:
            problems.append("draining: the engine is about to stop")
        if self.clocks.wrong:
            problems.append(self.clocks.wrong)
        if self.unsafe:
            problems.append(self.unsafe)
        await self._registry.probes.probe()
        return problems + self._registry.outages.problems()

    def notes(self) -> list[str]:
        """What is refused now though it is ready: some campaigns, or some of their users."""
        return self._registry.notes()


def _by_campaign(events: Sequence[Event | Invalid], start: int, submission: Submission) -> Iterable[Sequence[_Placed]]:
    """Each campaign's events, in order; what is no event gets its verdict."""
    if len(events) == 1 and isinstance(events[0], Event):  # as of most requests
        return (((start, events[0]),),)
    placed: defaultdict[int, list[_Placed]] = defaultdict(list)
    for index, event in enumerate(events, start):
        if isinstance(event, Invalid):
            _reject(submission, index, event)
        else:
            placed[event.campaign_id].append((index, event))
    return placed.values()


def _refuse(submission: Submission, placed: Sequence[_Placed], ids: DerivedIds | None, verdict: Verdict) -> None:
    """Give events their verdict as they came: who sends too much must not cost more than who is served."""
    for index, event in placed:
        submission.verdicts[index] = verdict
        if ids is not None and event.event_id is None:
            # The id that it would have had, so that its sender may send it again in another place.
            own_id = uuid.UUID(bytes=ids.of(index))
            submission.entries[index] = msgspec.structs.replace(event, event_id=own_id)


def _reject(submission: Submission, index: int, invalid: Invalid) -> None:
    submission.entries[index] = invalid
    submission.verdicts[index] = Verdict(Status.REJECTED, Reason.INVALID, invalid.detail)
