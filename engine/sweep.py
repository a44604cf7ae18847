"""Gives back what ended campaigns hold in Redis: any engine, no leader, a bounded part of Redis a pass.

Owns the loop and its pace, and where in Redis it is. What is done with one campaign is decided in `leftovers.py`. Only
a campaign's own next call moves its day and dedup window on, and a campaign that has ended makes none: without this,
Redis would fill up with campaigns that are over. Knows no actor: what dead engines left pending is handed to `take_up`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

import trio

from engine import metrics
from engine.errors import StoreUnavailable
from engine.leftovers import (
    LEAVE,
    RECOVER,
    Advance,
    Decision,
    Drop,
    Held,
    SweptLedger,
    decide_due,
    decide_untrusted,
    is_due,
    latest_day,
)
from engine.memory import Policy
from engine.model import SECOND_US, CampaignId
from engine.pacing import spend_day
from engine.ports import Clock, Done, EventStore, NotRun

log = logging.getLogger(__name__)

# Between two passes of one engine, each pause cut or stretched by up to a half, so that engines don't go in step. Where
# memory is so short that buckets close sooner than that, those of campaigns that nobody uses have to close as soon.
PAUSE_SECONDS: Final = 60.0
# While Redis refuses for want of memory: events are refused meanwhile, and a pass costs Redis less than 0.1 s.
PRESSED_PAUSE_SECONDS: Final = 2.0
# Surveys of one pass, each of some hundred campaigns: 5,000 campaigns, 15 us of Redis each. The next one goes on there.
SURVEYS_MAX: Final = 50
# Campaigns of dead engines that one pass has recovered: a tenth of a recovery's bulk, so others hardly wait for them.
TAKEN_UP_MAX: Final = 100
# So many passes running that Redis refuses to be looked through are told, once: that is no short outage, which is told
# as such, but a right (SCAN) that is missing.
FAILURES_TOLD: Final = 3
# However short the dedup window is set: what is dropped has its users read again at its next use, all of the day.
IDLE_MIN_US: Final = 300 * SECOND_US
# Closed campaigns that are remembered from one time around to the next; there are more only when Redis was emptied.
CLOSED_MAX: Final = 10_000
# Time zones of campaigns that are remembered: 10 MB. A zone never changes.
ZONES_MAX: Final = 100_000


class Sweep:
    """`run` it in the engine's nursery; `hurry` when Redis is full."""

    def __init__(
        self,
        ledger: SweptLedger,
        store: EventStore,
        clock: Clock,
        *,
        number: int,
        idle_us: int,
        memory_policy: Callable[[], Policy],
        orphaned: Callable[[int], bool],
        take_up: Callable[[CampaignId], None],
    ) -> None:
        """`number` is that of the engine; `orphaned` tells of a tag whether its engine is dead.

        A campaign that nobody has used for `idle_us`, or `IDLE_MIN_US`, is idle.
        """
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._idle_us = max(idle_us, IDLE_MIN_US)
        self._memory_policy = memory_policy
        self._orphaned = orphaned
        self._take_up = take_up
        # Set by the engine. By a wrong clock, days would move on that are not over, and no day moves back.
        self.clock_is_right: Callable[[], bool] = lambda: True
        self._jitter = random.Random(number)
        self._full = trio.Event()
        self._cursor = 0
        self._failures = 0  # passes that Redis has refused, one after the other
        # Closed campaigns as they were found, and since when: the last time around, and this time.
        self._closed: dict[CampaignId, tuple[Held, float]] = {}
        self._closed_now: dict[CampaignId, tuple[Held, float]] = {}
        self._zones: dict[CampaignId, str] = {}

    def hurry(self) -> None:
        """Redis refuses for want of memory: sweep at once."""
        self._full.set()

    async def run(self) -> None:
        """Pass after pass, for ever."""
        while True:
            pause_seconds = min(PAUSE_SECONDS, self._memory_policy().bucket_us / SECOND_US)
            with trio.move_on_after(pause_seconds * self._jitter.uniform(0.5, 1.5)):
                await self._full.wait()
            pressed, self._full = self._full.is_set() or not self._memory_policy().new_users, trio.Event()
            await self.sweep(pressed=pressed)
            if pressed:
                await trio.sleep(PRESSED_PAUSE_SECONDS)

    async def sweep(self, *, pressed: bool) -> None:
        """One pass. It ends early when a store is away; whoever watches that store says so."""
        room = TAKEN_UP_MAX
        for _ in range(SURVEYS_MAX):
            if not self.clock_is_right():
                return
            survey = await self._ledger.survey(self._cursor)
            if isinstance(survey, NotRun):
                self._failures += 1
                if self._failures == FAILURES_TOLD:
                    log.warning("ended campaigns keep their memory, Redis can't be swept: %s", survey.detail)
                return
            self._failures = 0
            try:
                decisions = await self._decide(survey.held, pressed)
            except StoreUnavailable:
                return
            await self._give_back([each for each in decisions.values() if isinstance(each, Advance | Drop)])
            room -= await self._recover([each for each, what in decisions.items() if what is RECOVER], room)
            self._cursor = survey.cursor
            if not self._cursor:
                self._closed, self._closed_now = self._closed_now, {}
                return

    async def _decide(self, found: Sequence[Held], pressed: bool) -> dict[CampaignId, Decision]:
        policy, now_us = self._memory_policy(), self._clock.now_us()
        at_us = now_us + policy.redis_ahead_us
        decisions: dict[CampaignId, Decision] = {}
        due: list[Held] = []
        for held in found:
            decision = decide_untrusted(held, self._unchanged_seconds(held))
            if decision is not None:
                decisions[held.campaign_id] = decision
            elif is_due(held, at_us, policy.bucket_us) and self._may_give(held, now_us, policy, pressed):
                due.append(held)
        if due:
            plans = await self._store.plans([held.campaign_id for held in due])
            now_us = self._clock.now_us()
            for held in due:
                plan, row = plans.get(held.campaign_id, (None, None))
                today = None if plan is None else self._today(plan.id, plan.timezone, now_us)
                # (What Redis holds of a halted campaign is left to whoever looks for what is wrong with its books.)
                halted = row is not None and row.halted is not None
                decisions[held.campaign_id] = LEAVE if halted else self._due(held, today, now_us, policy, pressed)
        return decisions

    def _may_give(self, held: Held, now_us: int, policy: Policy, pressed: bool) -> bool:
        """Whether there is something to ask Postgres for: not on any day that it may be in the campaign's zone."""
        zone = self._zones.get(held.campaign_id)
        today = latest_day(now_us) if zone is None else spend_day(now_us, zone).day
        return self._due(held, today, now_us, policy, pressed) is not LEAVE

    def _due(self, held: Held, today: int | None, now_us: int, policy: Policy, pressed: bool) -> Decision:
        at_us = now_us + policy.redis_ahead_us
        return decide_due(held, today, at_us, policy.bucket_us, self._idle_us, pressed=pressed)

    def _today(self, campaign_id: CampaignId, timezone: str, now_us: int) -> int:
        """The spend day, where it is that campaign's; its zone is remembered."""
        if len(self._zones) >= ZONES_MAX:
            self._zones.clear()
        self._zones[campaign_id] = timezone
        return spend_day(now_us, timezone).day

    def _unchanged_seconds(self, held: Held) -> float:
        """For how long a closed campaign was found exactly so."""
        if held.open:
            return 0.0
        now = trio.current_time()
        before, since = self._closed.get(held.campaign_id, (held, now))
        if before != held:
            since = now
        if len(self._closed_now) < CLOSED_MAX:
            self._closed_now[held.campaign_id] = held, since
        return now - since

    async def _give_back(self, calls: Sequence[Advance | Drop]) -> None:
        if not calls:
            return
        done = {Advance: 0, Drop: 0}
        for call, reply in zip(calls, await self._ledger.give_back(calls), strict=True):
            done[type(call)] += isinstance(reply, Done)  # any other: it was used meanwhile, or the next pass comes by
        metrics.leftovers.labels("advanced").inc(done[Advance])
        metrics.leftovers.labels("dropped").inc(done[Drop])
        if any(done.values()):
            log.info("idle campaigns in Redis: %d moved on, %d dropped", done[Advance], done[Drop])

    async def _recover(self, campaign_ids: Sequence[CampaignId], room: int) -> int:
        """Have those recovered, up to so many, that hold reservations of dead engines; how many that were."""
        if not campaign_ids or not room:
            return 0
        pending = await self._ledger.pending_tags(campaign_ids)
        if isinstance(pending, NotRun):
            return 0
        orphaned = [each for each, tags in pending.items() if any(map(self._orphaned, tags))][:room]
        for campaign_id in orphaned:
            self._take_up(campaign_id)
        return len(orphaned)
