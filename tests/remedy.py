"""A recovery as tests ask for it: how each campaign ended, and which generations it was told."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from engine.model import CampaignId
from engine.recovery import Case, Outcome, Reads, Recovery


class Asked:
    """Recovers campaigns, and keeps what it is told of each, in order."""

    def __init__(self, recovery: Recovery) -> None:
        self.recovery = recovery
        self.raised: dict[int, list[int]] = {}
        self.ended: dict[int, Outcome] = {}

    async def recover(
        self,
        campaigns: Sequence[int],
        reads: Reads = Reads.LITTLE,
        *,
        wait: bool = False,
        counts_users_from: int | None = 0,
    ) -> dict[int, Outcome]:
        """How each ended; asserts that each did, and once. Users are counted, of whatever day the ledger says."""
        self.ended = {}
        await self.recovery.recover(
            [self._case(campaign, counts_users_from) for campaign in campaigns], reads, wait=wait
        )
        assert self.ended.keys() == set(campaigns)
        return self.ended

    def _case(self, campaign: int, counts_users_from: int | None) -> Case:
        told = partial(self._raise, campaign), partial(self._end, campaign)
        return Case(CampaignId(campaign), 1, counts_users_from, *told)

    def _raise(self, campaign: int, generation: int) -> None:
        self.raised.setdefault(campaign, []).append(generation)

    def _end(self, campaign: int, outcome: Outcome) -> None:
        assert campaign not in self.ended
        self.ended[campaign] = outcome


async def recover_alone(recovery: Recovery, campaign: int) -> Outcome:
    """Recover one, as whoever has only one."""
    return (await Asked(recovery).recover([campaign], wait=True))[campaign]
