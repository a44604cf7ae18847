"""One request's events on their way through the engine, and the verdicts as they come in.

Owns the count of what is still open and the single call back to the listener. Knows no HTTP and no store.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.model import CampaignId, EventType, Invalid, Verdict


class Entry:
    """One event inside the engine: checked, encoded once, and bound to the request that brought it."""

    __slots__ = (
        "ad", "campaign_id", "cost_micros", "day", "event_id", "event_type", "index", "looked_up",
        "occurred_us", "received_us", "repeats", "submission", "told_us", "user", "user_id",
    )  # fmt: skip

    def __init__(
        self, submission: Submission, index: int, campaign_id: CampaignId, event_id: bytes,
        event_type: EventType, user_id: str, user: bytes, ad: bytes | None,
        occurred_us: int, received_us: int, told_us: int | None, day: int,
    ) -> None:  # fmt: skip
        self.submission = submission
        self.index = index
        self.campaign_id = campaign_id
        self.event_id = event_id
        self.event_type = event_type
        self.user_id = user_id
        self.user = user
        self.ad = ad
        self.occurred_us = occurred_us
        self.received_us = received_us
        self.told_us = told_us  # what the event itself says of its time; None: nothing
        self.day = day  # identity day
        self.cost_micros = 0  # set when it is reserved
        self.looked_up = False  # Postgres was asked, and did not have it
        self.repeats: list[Entry] | None = None  # the same id again, while this one is under way


class Submission:
    """The events of one request.

    `entries[i]` is event i, or an `Invalid` that says what is wrong with it. `verdicts` holds every
    event that was not accepted. `done` is called exactly once, when the last event has its verdict or the deadline has passed.
    """

    __slots__ = ("deadline_us", "done", "entries", "finished", "open", "received_us", "verdicts")

    def __init__(self, received_us: int, deadline_us: int, done: Callable[[Submission], None]) -> None:
        self.received_us = received_us
        self.deadline_us = deadline_us
        self.done = done
        self.entries: list[Entry | Invalid] = []
        self.verdicts: dict[int, Verdict] = {}
        self.open = 0
        self.finished = False
