"""What a flush does about locks of other sessions: how long it waits, whom it blames, who is flushed apart.

Owns these bounds, and which campaigns have made a flush wait lately. An engine that freezes in the midst of a flush, or
vanishes behind a network hole, leaves rows locked and unique keys uncommitted until its sessions are ended; only
campaigns that it touched may wait for that. Pure: knows no store and reads no clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from engine.model import CampaignId

# A flush waits so long for one lock. A living flush holds its locks for its COPY, guard and COMMIT: some tens of ms,
# and a few hundred on a disk that stalls. Others of the flush wait as long, and may wait for 2 s in all.
LOCK_SECONDS: Final = 0.5
# Once a flush has waited, its other campaigns are most likely kept by the same session: a hundred of them are found in
# 1.5 s. A campaign that is blamed too soon loses little: it is tried once more, apart and with patience.
HASTY_LOCK_SECONDS: Final = 0.01
# A flush that has met a lock looks for more of them for so long; then others get their turn.
SEARCH_SECONDS: Final = 1.5
# A campaign that made a flush wait is flushed apart for so long after the last time: a frozen engine is taken for dead,
# and its locks are gone, within some such periods.
SUSPECT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Locked:
    """Rolled back: another session holds rows of these campaigns. The others of the flush may go again at once."""

    campaigns: frozenset[CampaignId]
    detail: str


class Suspects(dict[CampaignId, float]):
    """Campaigns that have made a flush wait, and until when they are suspects; `now` is trio's time, in seconds.

    (A dict itself, because each reservation's campaign is looked for.)
    """

    __slots__ = ()

    def waited_for(self, campaigns: Iterable[CampaignId], now: float) -> None:
        """A flush has waited for locks of these."""
        self.update(dict.fromkeys(campaigns, now + SUSPECT_SECONDS))

    def committed(self, campaigns: Iterable[CampaignId]) -> None:
        """Nobody holds their rows any more."""
        if self:
            for campaign_id in campaigns:
                self.pop(campaign_id, None)

    def forget(self, now: float) -> None:
        """Drop those for which no flush has waited lately."""
        for campaign_id in [campaign_id for campaign_id, until in self.items() if until <= now] if self else ():
            del self[campaign_id]
