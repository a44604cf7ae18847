"""The verdicts that are the same for every event: why one is refused, or must be sent again.

Owns their reasons and texts. What depends on the event (a cap, pacing, a duplicate) is made where it is decided.
"""

from __future__ import annotations

from typing import Final

from engine.model import Reason, Status, Verdict

INACTIVE: Final = Verdict(Status.REJECTED, Reason.INACTIVE, "the campaign is not active")
ID_REUSED: Final = Verdict(
    Status.REJECTED, Reason.ID_REUSED, "event_id: was used for another event of this campaign (other user, ad or type)"
)
TOTAL_BUDGET: Final = Verdict(Status.REJECTED, Reason.TOTAL_BUDGET, "the total budget has no room for this event")
DAILY_BUDGET: Final = Verdict(Status.REJECTED, Reason.DAILY_BUDGET, "today's budget has no room for this event")
UNKNOWN_CAMPAIGN: Final = Verdict(Status.REJECTED, Reason.UNKNOWN_CAMPAIGN, "there is no campaign with this id")
IN_FLIGHT: Final = Verdict(Status.RETRY, Reason.IN_FLIGHT, "an event with this id is under way elsewhere", 1)
UNAVAILABLE: Final = Verdict(Status.RETRY, Reason.UNAVAILABLE, "a store gave no certain answer; a retry is safe", 1)
# Users can't be forgotten before their day is over, so this may last; minutes later, campaigns may have ended, or an
# operator has given Redis more.
NO_ROOM: Final = Verdict(Status.RETRY, Reason.OVERLOADED, "there is no memory left to count another user's events", 300)
OVERLOADED: Final = Verdict(Status.RETRY, Reason.OVERLOADED, "more events are waiting than may wait", 1)
