"""Recovers the campaigns of actors: all that wait together, one bulk after the other; some of them alone.

Owns the queue, how many recoveries run at once, and the pauses between attempts. Knows of a recovery only how each
campaign ends, and nothing of its steps. While a bulk is under way, the next gathers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from engine import metrics
from engine.actor import Actor
from engine.lifecycle import Phase
from engine.outages import Outages
from engine.recovery import Alone, Case, Failed, Followed, Halted, Outcome, Recovery
from engine.verdicts import UNAVAILABLE

log = logging.getLogger(__name__)

# Campaigns of one bulk: its exchanges take some 10 ms each, and the first campaigns of a flood are back in 0.2 s.
BULK_MAX: Final = 1_000
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
        self._alone = trio.CapacityLimiter(recoveries_max - 1)  # besides the bulk
        self._recovered = recovered
        self._halted = halted
        self._outages = outages
        self._queue: deque[tuple[Actor, int]] = deque()  # and its attempts so far
        self._work = trio.Event()
        self._followed = 0  # campaigns that were recovered so far

    def put(self, actor: Actor, attempts: int = 0) -> None:
        """Have it recovered. It stays closed until then, so it is here once."""
        self._queue.append((actor, attempts))
        self._work.set()

    async def run(self) -> None:
        """Bulk after bulk, for ever."""
        while True:
            await self._work.wait()
            taken = [self._queue.popleft() for _ in range(min(len(self._queue), BULK_MAX))]
            if not taken:
                self._work = trio.Event()
                continue
            started, followed = trio.current_time(), self._followed
            cases = [self._case(actor, attempts) for actor, attempts in taken if actor.state.phase is Phase.CLOSED]
            await self._recovery.recover(cases)
            if followed := self._followed - followed:
                log.info("campaigns recovered: %s, in %.2f s", followed, trio.current_time() - started)

    def _case(self, actor: Actor, attempts: int) -> Case:
        state = actor.state
        assert state.plan is not None
        ended = partial(self._ended, actor, attempts, trio.current_time())
        return Case(state.campaign_id, state.plan.version, actor.generation_raised, ended)

    def _ended(self, actor: Actor, attempts: int, started: float, outcome: Outcome) -> None:
        """What becomes of one campaign of a recovery; the others may be under way still."""
        campaign_id = actor.state.campaign_id
        if actor.state.phase is not Phase.CLOSED:
            return  # its actor failed meanwhile; the next one recovers it again
        match outcome:
            case Followed(generation):
                log.debug("campaign %s: recovered, generation %s", campaign_id, generation)
                metrics.recoveries.labels("done").inc()
                self._followed += 1
                metrics.recovery_seconds.observe(trio.current_time() - started)
                if attempts and not self._outages:
                    log.warning("campaign %s: recovered, after %d failed attempts", campaign_id, attempts)
                self._recovered(actor, generation)
            case Halted(generation, reason):
                self._halted(actor, generation, reason)
            case Alone():
                self._nursery.start_soon(self._recover_alone, actor, attempts)
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
            if actor.state.phase is Phase.CLOSED:
                await self._recovery.recover([self._case(actor, attempts)], alone=True)

    async def _put_later(self, actor: Actor, attempts: int) -> None:
        await trio.sleep(PAUSES_SECONDS[min(attempts, len(PAUSES_SECONDS) - 1)])
        self.put(actor, attempts + 1)
