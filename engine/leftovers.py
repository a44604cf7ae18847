"""What Redis holds of campaigns that nobody uses any more, and what of it to give back.

Owns the messages between the sweep and the ledger, their door, and the decision about one campaign. Pure: knows no
store, no actor and no clock. No 200 depends on it: what is dropped is LOST at its next use, as if Redis had forgotten
it, and rebuilt from Postgres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from engine.memory import SPREAD
from engine.model import DAY_US, SECOND_US, CampaignId
from engine.ports import Closed, Done, Ledger, Lost, NotRun, Stale, Unknown

# A campaign with nothing but its sums left is dropped when it was used neither today nor yesterday. Its next use costs
# a rebuild then, so this is no matter of minutes.
IDLE_DAYS: Final = 2
# A bucket closes with the first call after its time, put off by a second at most: one that has begun so long before
# its time was over is that of a campaign without calls.
PUT_OFF_US: Final = 2 * SECOND_US
# No zone's day begins sooner before UTC's than that of Kiribati's Line Islands.
EARLIEST_ZONE_US: Final = 14 * 3_600 * SECOND_US
# A campaign is closed while it is rebuilt, and in a bulk of 5,000 it waits for those before it, some of which may take
# minutes. To drop a rebuild that goes on costs that rebuild; one that has stopped costs its memory for so long.
ABANDONED_SECONDS: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class Held:
    """The state of one campaign in Redis. `day`, `bucket`, `began_us` and `used_us` are 0 while it is rebuilt."""

    campaign_id: CampaignId
    generation: int
    ours: bool  # written by the memory image that Redis is now
    open: bool
    day: int
    bucket: int  # the current one of the dedup window
    began_us: int  # when that began, also if a sweep closed the one before
    used_us: int  # when a call last accepted an event or closed a bucket; 0: none has
    pending: int  # reservations that nobody has settled
    users: int  # of `day`
    ids: int  # of the dedup window


@dataclass(frozen=True, slots=True)
class Survey:
    """Some of the campaigns in Redis, and where to go on; at 0 that was all."""

    cursor: int
    held: Sequence[Held]


@dataclass(frozen=True, slots=True)
class Advance:
    """Move the day on, and close the bucket if it is as old as `bucket_us` now: both forget what they leave behind."""

    campaign_id: CampaignId
    generation: int
    day: int
    at_us: int
    bucket_us: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a campaign whole, if it is still as it was found."""

    held: Held


@dataclass(frozen=True, slots=True)
class Used:
    """It was used since it was found, or holds what may commit still: nothing was dropped."""


class Leave(Enum):
    """Nothing to do for now."""

    LEAVE = "leave"


class Recover(Enum):
    """It holds reservations: those of dead engines are to be recovered first."""

    RECOVER = "recover"


LEAVE: Final = Leave.LEAVE
RECOVER: Final = Recover.RECOVER
Decision = Advance | Drop | Leave | Recover
GiveBackReply = Done | Used | Lost | Stale | Closed | NotRun | Unknown


class SweptLedger(Ledger, Protocol):
    """`Ledger`, and what only the sweep asks of it."""

    async def survey(self, cursor: int) -> Survey | NotRun:
        """What Redis holds of some campaigns: those that it finds from there on, a bounded number of keys."""
        ...

    async def give_back(self, calls: Sequence[Advance | Drop]) -> list[GiveBackReply]:
        """Free what idle campaigns hold, if they are still as they were found. It works in a full Redis, too."""
        ...


def decide_untrusted(held: Held, unchanged_seconds: float) -> Decision | None:
    """What to do with a state that no caller would take as it is; None: it is open, and of this memory image.

    `unchanged_seconds`: for how long it was found exactly so.
    """
    if not held.ours:
        return Drop(held)
    if not held.open:
        return Drop(held) if unchanged_seconds >= ABANDONED_SECONDS else LEAVE
    return None


def is_due(held: Held, now_us: int, bucket_us: int) -> bool:
    """Whether the bucket of an open campaign should have closed: no call has come since."""
    return _is_old(held.began_us, now_us, bucket_us)


def _is_old(since_us: int, now_us: int, age_us: int) -> bool:
    return now_us - since_us >= age_us * (1 + SPREAD) + PUT_OFF_US


def latest_day(now_us: int) -> int:
    """The number of the day where it begins first: no campaign's spend day is later by a clock that is right."""
    return (now_us + EARLIEST_ZONE_US) // DAY_US


def decide_due(held: Held, today: int | None, now_us: int, bucket_us: int, idle_us: int, *, pressed: bool) -> Decision:
    """What to do with such a campaign, whose spend day it is `today`; None: Postgres does not know it.

    What is left alone on some day is left alone on every day before it.
    `pressed`: Redis refuses for want of memory. Then a campaign goes whole that was used by nobody for `idle_us`, with
    the users of the present day: a rebuild reads them again.
    """
    if held.pending:
        return LEAVE if today is None else RECOVER
    if today is None:
        return Drop(held)
    idle = _is_old(held.used_us or held.began_us, now_us, idle_us)
    advance = Advance(held.campaign_id, held.generation, max(held.day, today), now_us, bucket_us)
    if held.ids and not (idle and pressed):
        return advance
    if held.users or held.ids:
        if held.day < today:
            return advance
        return Drop(held) if idle and pressed else LEAVE
    return Drop(held) if held.day <= today - IDLE_DAYS else LEAVE
