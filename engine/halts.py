"""Campaigns that are out of service, because their books differ; and how a difference puts one there.

Owns what this process knows of halted campaigns: a cache of `halted` in their ledger rows, whose generation was raised
so that nothing reserved can commit. Knows no actor, and Postgres only as `EventStore.halt`.

What is known is read again whenever it may be old: at once when Postgres says that the generation rose (a `headrace
recover` raises it); with the next mail when that news was interrupted, and after a while in any case.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from engine import metrics
from engine.errors import StoreUnavailable
from engine.model import CampaignId, Reason, Status, Verdict, instant_text
from engine.ports import Clock, EventStore

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 30  # an operator has to come first
HALTED: Final = Verdict(
    Status.RETRY,
    Reason.UNAVAILABLE,
    "the campaign is halted: its books differ; an operator must run headrace recover",
    RETRY_SECONDS,
)
# Pauses between attempts to write a halt while Postgres is away; the last one goes on until it is back.
_PAUSES_SECONDS: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 2.0)


def halt_reason(now_us: int, who: str, what: str) -> str:
    """What stands in the ledger row of a halted campaign."""
    return f"{instant_text(now_us)} {who}: {what}"


class Halts:
    """Which campaigns are halted, as far as this process has met them."""

    def __init__(self, store: EventStore, clock: Clock, nursery: trio.Nursery) -> None:
        self._store = store
        self._clock = clock
        self._nursery = nursery
        # The generation of the halted row, and when it is to be read again, in trio's time.
        self._known: dict[CampaignId, tuple[int, float]] = {}
        self._writing: set[CampaignId] = set()  # differences that Postgres does not know yet

    def __len__(self) -> int:
        return len(self._writing | self._known.keys())

    def refuses(self, campaign_id: CampaignId) -> bool:
        """Whether its mail is answered `HALTED`."""
        if campaign_id in self._writing:
            return True
        _, until = self._known.get(campaign_id, (0, 0.0))
        return until > trio.current_time()

    def met(self, campaign_id: CampaignId, generation: int, reason: str) -> None:
        """Its row says so."""
        log.error(
            "campaign %s is halted; `headrace recover %s` rebuilds its books: %s", campaign_id, campaign_id, reason
        )
        self._known[campaign_id] = generation, trio.current_time() + RETRY_SECONDS

    def served(self, campaign_id: CampaignId) -> None:
        """Its row says that it is in service."""
        self._known.pop(campaign_id, None)

    def raised(self, campaign_id: CampaignId, generation: int) -> bool:
        """Whether its row may say so by now, and is to be read: this is news of a campaign that was halted."""
        known, _ = self._known.get(campaign_id, (generation, 0.0))
        if known < generation:
            self._known[campaign_id] = generation, 0.0
        return known < generation

    def forget(self) -> None:
        """All rows may have changed."""
        self._known.clear()

    def differs(self, campaign_id: CampaignId, what: str) -> None:
        """A difference was found here: log it, count it, and halt the campaign for every engine."""
        log.error("campaign %s: %s", campaign_id, what)
        metrics.differences.inc()
        if campaign_id not in self._writing:
            self._writing.add(campaign_id)
            self._nursery.start_soon(self._write, campaign_id, halt_reason(self._clock.now_us(), "engine", what))

    async def _write(self, campaign_id: CampaignId, reason: str) -> None:
        """Write it, however long Postgres is away; the campaign takes no mail here meanwhile."""
        attempt = 0
        while True:
            try:
                generation = await self._store.halt(campaign_id, reason)
            except StoreUnavailable as away:
                if attempt == 0:
                    log.warning("campaign %s: its halt is not written yet, and will be: %s", campaign_id, away)
                await trio.sleep(_PAUSES_SECONDS[min(attempt, len(_PAUSES_SECONDS) - 1)])
                attempt += 1
            else:
                break
        self.met(campaign_id, generation or 0, reason)
        self._writing.discard(campaign_id)
