"""Recovers the campaigns of actors: all that wait together, one bulk after the other.

Owns the queues, how many recoveries run at once, the pauses between attempts, and what the log says of it. Knows of a
recovery only how each campaign ends, and nothing of its steps. Three bulks at a time, one of each kind (`Reads`): every
campaign begins in one that reads no users, and is open again within a moment if it needs none; the others follow in one
that reads a few users by their key, and in one that reads many in one pass. While a bulk is under way, the next of its
kind gathers. Campaigns whose rows a flush holds begin alone, and then join the others.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final

import trio

from engine import metrics
from engine.actor import Actor
from engine.clock import machine_us
from engine.lifecycle import Phase
from engine.model import SECOND_US, CampaignId
from engine.outages import Outages
from engine.recovery import Alone, Case, Failed, Followed, Halted, Large, Left, Outcome, Reads, Recovery, Unread
from engine.verdicts import UNAVAILABLE

log = logging.getLogger(__name__)

# Campaigns of one bulk: its exchanges take some 20 ms for each thousand.
BULK_MAX: Final = 5_000
# One bulk of each kind is under way, however many wait: what waits is read together with the next one. Two that read by
# the key would share one disk, and each campaign would wait for twice as long. Each uses one connection to Postgres.
BULKS: Final = len(Reads)
# Campaigns that are closed for longer are told, and again after twice as long as the time before, at most a minute.
TOLD_SECONDS: Final = 10.0
TOLD_SECONDS_MAX: Final = 60.0
# What is closed within so short a time is told together, when all of it is open.
TOGETHER_SECONDS: Final = 1.0
NAMED_MAX: Final = 10  # campaigns that a line names
# A campaign that another engine has closed is left to it as long as it lives, but no longer than a read may take
# (engine/postgres/recovery.py). It is met again every 2.5 s (patience.py): what was not for so long is another matter.
LEFT_SECONDS_MAX: Final = 1_800.0
LEFT_AGAIN_SECONDS: Final = 30.0
# Pauses between attempts to recover while a store is away. The last one goes on until the store is back:
# there is no other way back, and it costs one small query.
PAUSES_SECONDS: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 2.0)


class Recoveries:
    """`put` actors that are closed; `run` brings them back, however long that takes."""

    def __init__(
        self,
        recovery: Recovery,
        nursery: trio.Nursery,
        *,
        recoveries_max: int,
        recovered: Callable[[Actor, int], None],
        halted: Callable[[Actor, int, str], None],
        outages: Outages,
        others: Callable[[], frozenset[int]],
    ) -> None:
        """`others` tells which other engines live."""
        self._recovery = recovery
        self._nursery = nursery
        self._alone = trio.CapacityLimiter(recoveries_max - BULKS)
        self._recovered = recovered
        self._halted = halted
        self._outages = outages
        self._queues = {reads: _Queue() for reads in Reads}
        self._closed: dict[Actor, float] = {}  # since when each campaign is closed
        self._others = others
        self._ours: dict[CampaignId, int] = {}  # those that we raised and have not opened, and the generation
        self._left: dict[CampaignId, _Left] = {}
        self._spell: _Spell | None = None
        self._spell_began = trio.Event()

    def put(self, actor: Actor, attempts: int = 0) -> None:
        """Have it recovered. It stays closed until then, so it is here once."""
        now = trio.current_time()
        self._closed.setdefault(actor, now)
        if self._spell is None:
            self._spell = _Spell(now, users_before=self._recovery.users_read)
            self._spell_began.set()
        self._spell.newest = now
        self._queues[Reads.NONE].put(actor, attempts)

    def __len__(self) -> int:
        """How many campaigns are closed: actors that failed meanwhile may wait here still, and count no more."""
        return sum(actor.state.phase is Phase.CLOSED for actor in self._closed)

    async def run(self) -> None:
        """Bring back what is closed, and tell of it, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell)
            for reads in Reads:
                nursery.start_soon(self._serve, reads)

    async def _serve(self, reads: Reads) -> None:
        while True:
            await self._recover(await self._queues[reads].take(BULK_MAX), reads)

    async def _recover(self, bulk: Sequence[tuple[Actor, int]], reads: Reads, *, wait: bool = False) -> None:
        cases = []
        for actor, attempts in bulk:
            if actor.state.phase is Phase.CLOSED:
                cases.append(self._case(actor, attempts, leave=reads is Reads.NONE))
            else:
                self._closed.pop(actor, None)
        await self._recovery.recover(cases, reads, wait=wait)

    async def _tell(self) -> None:
        """One line for all that was closed together, when it is open again; progress while that takes long."""
        while True:
            await self._spell_began.wait()
            assert self._spell is not None
            spell, pause = self._spell, TOLD_SECONDS
            told_at = spell.since + pause
            while len(self) or trio.current_time() < spell.newest + TOGETHER_SECONDS:
                await trio.sleep(TOGETHER_SECONDS)
                if trio.current_time() >= told_at and len(self):
                    pause = min(2 * pause, TOLD_SECONDS_MAX)
                    told_at = trio.current_time() + pause
                    if not self._outages.problems():  # (a store that is away was told, and is the reason)
                        self._tell_progress(spell)
            if spell.recovered:
                spell.tell(self._recovery.users_read)
            self._spell, self._spell_began = None, trio.Event()

    def _tell_progress(self, spell: _Spell) -> None:
        log.info(
            "campaigns that are closed until they are recovered: %d; %d are open again, %.0f s after the first was "
            "closed; users read: %d",
            len(self),
            spell.recovered,
            trio.current_time() - spell.since,
            self._recovery.users_read - spell.users_before,
        )

    def _case(self, actor: Actor, attempts: int, *, leave: bool) -> Case:
        state = actor.state
        assert state.plan is not None
        ended = partial(self._ended, actor, attempts)
        users_from = state.counts_users_from(self._recovery.clock.now_us())
        left_to = state.generation if leave and self._may_be_anothers(state.campaign_id, state.generation) else None
        raised = partial(self._raised, actor)
        return Case(state.campaign_id, state.plan.version, users_from, raised, ended, left_to)

    def _may_be_anothers(self, campaign_id: CampaignId, generation: int) -> bool:
        """Whether an engine that lives may have closed it under that generation, and go on."""
        left, now = self._left.get(campaign_id), trio.current_time()
        if left is None or now >= left.latest + LEFT_AGAIN_SECONDS:
            self._left.pop(campaign_id, None)
            left = _Left(self._others(), now, now)
        alive = bool(left.others) and left.others <= self._others()
        return alive and now < left.since + LEFT_SECONDS_MAX and self._ours.get(campaign_id) != generation

    def _leave(self, actor: Actor, generation: int) -> None:
        """Another engine recovers it: the actor looks again until it is open."""
        now = trio.current_time()
        if len(self._left) >= BULK_MAX:
            self._left = {each: left for each, left in self._left.items() if now < left.latest + LEFT_AGAIN_SECONDS}
        left = self._left.setdefault(actor.state.campaign_id, _Left(self._others(), now, now))
        left.latest = now
        self._recovered(actor, generation)

    def _raised(self, actor: Actor, generation: int) -> None:
        self._ours[actor.state.campaign_id] = generation
        actor.generation_raised(generation)

    def _ended(self, actor: Actor, attempts: int, outcome: Outcome) -> None:
        """What becomes of one campaign of a recovery; the others may be under way still."""
        campaign_id, now = actor.state.campaign_id, trio.current_time()
        if isinstance(outcome, Followed | Halted | Left) or actor.state.phase is not Phase.CLOSED:
            closed_since = self._closed.pop(actor, now)
        if isinstance(outcome, Followed | Halted):
            self._ours.pop(campaign_id, None)
            self._left.pop(campaign_id, None)
        if actor.state.phase is not Phase.CLOSED:
            return  # its actor failed meanwhile; the next one recovers it again
        match outcome:
            case Followed(generation):
                self._opened(actor, attempts, generation, closed_since)
            case Halted(generation, reason):
                self._halted(actor, generation, reason)
            case Left(generation):
                self._leave(actor, generation)
            case Alone():
                self._nursery.start_soon(self._recover_alone, actor, attempts)
            case Unread():
                self._queues[Reads.LITTLE].put(actor, attempts)
            case Large():
                self._queues[Reads.MUCH].put(actor, attempts)
            case Failed(detail):
                self._failed(actor, attempts, detail)

    def _opened(self, actor: Actor, attempts: int, generation: int, closed_since: float) -> None:
        campaign_id, now = actor.state.campaign_id, trio.current_time()
        log.debug("campaign %s: recovered, generation %s", campaign_id, generation)
        metrics.recoveries.labels("done").inc()
        metrics.recovery_seconds.observe(now - closed_since)
        assert self._spell is not None, "it was closed until now"
        self._spell.count(campaign_id, now)
        if attempts and not self._outages:
            log.warning("campaign %s: recovered, after %d failed attempts", campaign_id, attempts)
        self._recovered(actor, generation)

    def _failed(self, actor: Actor, attempts: int, detail: str) -> None:
        # A store that is away was told once, for all campaigns; of what else there is, each doubling is told.
        if not self._outages and attempts & (attempts + 1) == 0:
            told = "campaign %s: not recovered yet, after %d attempts: %s"
            log.warning(told, actor.state.campaign_id, attempts + 1, detail)
        metrics.recoveries.labels("failed").inc()
        # Whoever waits is answered after each failure, so nobody waits for a dead store.
        with actor.boundary:
            actor.refuse_mail(UNAVAILABLE)
        self._nursery.start_soon(self._put_later, actor, attempts)

    async def _recover_alone(self, actor: Actor, attempts: int) -> None:
        async with self._alone:
            await self._recover([(actor, attempts)], Reads.NONE, wait=True)

    async def _put_later(self, actor: Actor, attempts: int) -> None:
        await trio.sleep(PAUSES_SECONDS[min(attempts, len(PAUSES_SECONDS) - 1)])
        self.put(actor, attempts + 1)


class _Queue:
    """Actors that wait, each with its attempts so far."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Actor, int]] = deque()
        self._work = trio.Event()

    def put(self, actor: Actor, attempts: int) -> None:
        self._waiting.append((actor, attempts))
        self._work.set()

    async def take(self, most: int) -> list[tuple[Actor, int]]:
        """At least one of them."""
        await self._work.wait()
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), most))]
        if not self._waiting:
            self._work = trio.Event()
        return taken


@dataclass(slots=True)
class _Left:
    """A campaign that is left to other engines: those that lived when it was met first, when that was, and last."""

    others: frozenset[int]
    since: float
    latest: float


@dataclass(slots=True)
class _Spell:
    """Campaigns that were closed together: from the first that was, until none is."""

    since: float
    users_before: int
    until: float = 0.0  # the latest was opened
    newest: float = 0.0  # the latest was closed
    recovered: int = 0
    named: list[CampaignId] = field(default_factory=list)

    def count(self, campaign_id: CampaignId, now: float) -> None:
        """It is open again."""
        self.recovered += 1
        self.until = now
        if len(self.named) < NAMED_MAX:
            self.named.append(campaign_id)

    def tell(self, users_read: int) -> None:
        """All are."""
        more = [f"and {self.recovered - NAMED_MAX} more"] if self.recovered > NAMED_MAX else []
        log.info(
            "campaigns recovered: %d (%s), closed from %s to %s (%.2f s); users read: %d",
            self.recovered,
            ", ".join([*map(str, self.named), *more]),
            _clock_time(self.since),
            _clock_time(self.until),
            self.until - self.since,
            users_read - self.users_before,
        )


def _clock_time(seconds: float) -> str:
    """A moment of trio's time, by the machine's clock."""
    since_us = machine_us() - round((trio.current_time() - seconds) * SECOND_US)
    return f"{datetime.fromtimestamp(since_us / SECOND_US, UTC):%H:%M:%S.%f}"[:-3] + "Z"
