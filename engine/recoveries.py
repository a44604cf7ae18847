"""Recovers the campaigns of actors: all that wait together, one bulk after the other.

Owns the queues, how many recoveries run at once, the pauses between attempts, and what the log says of it. Knows of a
recovery only how each campaign ends, and nothing of its steps. Two bulks at a time: one of campaigns that are open
again within a moment, and one of those that have many users to read. While a bulk is under way, the next gathers.
Campaigns whose rows a flush holds are recovered alone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

import trio

from engine import metrics
from engine.actor import Actor
from engine.clock import machine_us
from engine.lifecycle import Phase
from engine.model import SECOND_US
from engine.outages import Outages
from engine.recovery import Alone, Case, Failed, Followed, Halted, Large, Outcome, Reads, Recovery
from engine.verdicts import UNAVAILABLE

log = logging.getLogger(__name__)

# Campaigns of one bulk: its exchanges take some 20 ms for each thousand.
BULK_MAX: Final = 5_000
# A bulk that takes longer tells so, again and again.
TOLD_SECONDS: Final = 10.0
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
    ) -> None:
        self._recovery = recovery
        self._nursery = nursery
        self._alone = trio.CapacityLimiter(recoveries_max - 2)  # besides the bulks
        self._recovered = recovered
        self._halted = halted
        self._outages = outages
        self._waiting = _Queue()
        self._large = _Queue()
        self._closed: dict[Actor, float] = {}  # since when each campaign is closed

    def put(self, actor: Actor, attempts: int = 0) -> None:
        """Have it recovered. It stays closed until then, so it is here once."""
        self._closed.setdefault(actor, trio.current_time())
        self._waiting.put(actor, attempts)

    def __len__(self) -> int:
        """How many campaigns are closed."""
        return len(self._closed)

    async def run(self) -> None:
        """Bulk after bulk of all that are closed, for ever."""
        await self._serve(self._waiting, Reads.LITTLE)

    async def run_large(self) -> None:
        """Bulk after bulk of those that have much to read, for ever."""
        await self._serve(self._large, Reads.MUCH)

    async def _serve(self, queue: _Queue, reads: Reads) -> None:
        while True:
            bulk = _Bulk(await queue.take(BULK_MAX))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_progress, bulk)
                await self._recover(bulk, reads)
                nursery.cancel_scope.cancel()

    async def _recover(self, bulk: _Bulk, reads: Reads) -> None:
        cases = []
        for actor, attempts in bulk.waiting:
            if actor.state.phase is Phase.CLOSED:
                cases.append(self._case(actor, attempts, bulk))
            else:
                self._closed.pop(actor, None)
        users_read = await self._recovery.recover(cases, reads)
        if bulk.followed:
            log.info(
                "campaigns recovered: %d, closed from %s to %s (%.2f s); users read: %d",
                bulk.followed,
                _clock_time(bulk.closed_since),
                _clock_time(trio.current_time()),
                trio.current_time() - bulk.closed_since,
                users_read,
            )

    async def _tell_progress(self, bulk: _Bulk) -> None:
        while True:
            await trio.sleep(TOLD_SECONDS)
            log.info(
                "campaigns to recover: %d of %d are open again after %.0f s; users read since the start: %d",
                bulk.followed,
                len(bulk.waiting),
                trio.current_time() - bulk.started,
                self._recovery.users_read,
            )

    def _case(self, actor: Actor, attempts: int, bulk: _Bulk) -> Case:
        state = actor.state
        assert state.plan is not None
        ended = partial(self._ended, actor, attempts, bulk)
        users_from = state.counts_users_from(self._recovery.clock.now_us())
        return Case(state.campaign_id, state.plan.version, users_from, actor.generation_raised, ended)

    def _ended(self, actor: Actor, attempts: int, bulk: _Bulk, outcome: Outcome) -> None:
        """What becomes of one campaign of a recovery; the others may be under way still."""
        campaign_id = actor.state.campaign_id
        if isinstance(outcome, Followed | Halted) or actor.state.phase is not Phase.CLOSED:
            closed_since = self._closed.pop(actor, bulk.started)
        if actor.state.phase is not Phase.CLOSED:
            return  # its actor failed meanwhile; the next one recovers it again
        match outcome:
            case Followed(generation):
                log.debug("campaign %s: recovered, generation %s", campaign_id, generation)
                metrics.recoveries.labels("done").inc()
                bulk.followed += 1
                bulk.closed_since = min(bulk.closed_since, closed_since)
                metrics.recovery_seconds.observe(trio.current_time() - closed_since)
                if attempts and not self._outages:
                    log.warning("campaign %s: recovered, after %d failed attempts", campaign_id, attempts)
                self._recovered(actor, generation)
            case Halted(generation, reason):
                self._halted(actor, generation, reason)
            case Alone():
                self._nursery.start_soon(self._recover_alone, actor, attempts)
            case Large():
                self._large.put(actor, attempts)
            case Failed(detail):
                # A store that is away was told once, for all campaigns; of what else there is, each doubling is told.
                if not self._outages and attempts & (attempts + 1) == 0:
                    told = "campaign %s: not recovered yet, after %d attempts: %s"
                    log.warning(told, campaign_id, attempts + 1, detail)
                metrics.recoveries.labels("failed").inc()
                # Whoever waits is answered after each failure, so nobody waits for a dead store.
                with actor.boundary:
                    actor.refuse_mail(UNAVAILABLE)
                self._nursery.start_soon(self._put_later, actor, attempts)

    async def _recover_alone(self, actor: Actor, attempts: int) -> None:
        async with self._alone:
            await self._recover(_Bulk([(actor, attempts)]), Reads.ALL)

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


class _Bulk:
    """What becomes of campaigns that are recovered together."""

    def __init__(self, waiting: Sequence[tuple[Actor, int]]) -> None:
        self.waiting = waiting
        self.started = self.closed_since = trio.current_time()
        self.followed = 0


def _clock_time(seconds: float) -> str:
    """A moment of trio's time, by the machine's clock."""
    since_us = machine_us() - round((trio.current_time() - seconds) * SECOND_US)
    return f"{datetime.fromtimestamp(since_us / SECOND_US, UTC):%H:%M:%S.%f}"[:-3] + "Z"
