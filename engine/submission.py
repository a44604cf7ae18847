"""One request's events on their way through the engine, and the verdicts as they come in.

Owns the count of what is still open and the single call back to the listener. Knows no HTTP and no store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from engine.model import CampaignId, Event, EventId, EventType, Invalid, Micros, StoredEvent, Verdict

NOT_LOOKED_UP: Final = (-1, -1)


class Entry(msgspec.Struct, eq=False, gc=False):
    """One event inside the engine: checked, encoded once, and bound to the request that brought it.

    The collector does not look at entries (there may be 100,000, and it would look at all of them again and again).
    So an entry must be in no circle: it lets go of its request when it has its verdict.
    """

    submission: Submission | None  # None: it has its verdict
    index: int
    campaign_id: CampaignId
    event_id: bytes
    event_type: EventType
    user_id: str
    user: bytes
    ad: bytes | None
    occurred_us: int
    received_us: int
    id_time_us: int  # what the event itself says of its time; `NO_TIME`: nothing
    day: int  # identity day
    refusal: Verdict | None = None  # what it hears unless it turns out to be the repeat of an accepted event
    made_here: bool = False  # the server has made its id: nobody else can have sent it before its first call
    cost_micros: int = 0  # set when it is reserved
    attempts: int = 0  # calls of reserve that carried it
    # Generation and bucket that were known when Postgres was last asked for it; a look-up counts under no others.
    looked_up_under: tuple[int, int] = NOT_LOOKED_UP
    repeats: list[Entry] | None = None  # the same id again, while this one is under way

    @property
    def settled(self) -> bool:
        """It has its verdict."""
        return self.submission is None

    def settle(self, verdict: Verdict | None) -> None:
        """Give the event its verdict, None for accepted. What comes after the deadline's is dropped."""
        submission = self.submission
        if submission is None:
            return
        self.submission = None
        if verdict is not None:
            submission.verdicts[self.index] = verdict
        submission.open -= 1
        if submission.open == 0:
            submission.done(submission)

    def join(self, entry: Entry) -> None:
        """Another one with this id came while this one is under way: it shares its fate."""
        if self.repeats is None:
            self.repeats = []
        self.repeats.append(entry)

    def settle_all(self, verdict: Verdict) -> None:
        """The same, for those too that joined it, which goes on."""
        for entry in (self, *(self.repeats or ())):
            entry.settle(verdict)

    def same_event(self, stored: StoredEvent) -> bool:
        """Whether a stored event with this id is this one: same user, ad and type.

        Times are left out: a sender that replays a log may well shift them.
        """
        ad = None if self.ad is None else self.ad.decode()
        return stored.user_id == self.user_id and stored.ad_id == ad and stored.event_type == self.event_type

    def as_stored(self, batch: int) -> StoredEvent:
        """What its row says, once it is committed under this tag."""
        return StoredEvent(
            EventId(self.event_id),
            self.campaign_id,
            None if self.ad is None else self.ad.decode(),
            self.user_id,
            self.event_type,
            Micros(self.cost_micros),
            self.occurred_us,
            batch,
        )


class Submission:
    """The events of one request.

    `entries[i]` is event i: an `Entry` if it was taken, an `Invalid` that says what is wrong with it, or the event as
    it was sent if it was refused before anybody looked at it. `verdicts` holds every event that was not accepted.
    `answer` is the listener's: it is called exactly once, when all have a verdict.
    """

    __slots__ = ("answer", "deadline", "done", "entries", "open", "received_us", "verdicts")

    def __init__(
        self,
        received_us: int,
        deadline: float,
        done: Callable[[Submission], None],
        answer: Callable[[Submission], None],
    ) -> None:
        self.received_us = received_us
        self.deadline = deadline  # in trio's time
        self.done = done  # the engine's, which ends in `answer`
        self.answer = answer
        self.entries: list[Entry | Event | Invalid] = []
        self.verdicts: dict[int, Verdict] = {}
        self.open = 1  # events without a verdict, and one more until all of them have been handed on

    def handed_on(self) -> None:
        """Every event is with its actor or has its verdict."""
        self.open -= 1
        if self.open == 0:
            self.done(self)

    def verdict_counts(self) -> list[tuple[Verdict, int]]:
        """Every verdict but "accepted", and how many events have it: of one request, many have the very same one."""
        if not self.verdicts:  # as of most requests
            return []
        verdicts = {id(verdict): verdict for verdict in self.verdicts.values()}
        return [(verdicts[key], count) for key, count in Counter(map(id, self.verdicts.values())).items()]

    def abandon(self, verdict: Verdict) -> None:
        """Give this verdict to every event that has none, be it with its actor or not, and end."""
        for index, entry in enumerate(self.entries):
            if not isinstance(entry, Entry):
                self.verdicts.setdefault(index, verdict)
            elif not entry.settled:
                entry.submission = None
                self.verdicts[index] = verdict
        self.open = 0
        self.done(self)

    def expire(self, verdict: Verdict) -> None:
        """Give every event that has no verdict yet this one."""
        for entry in self.entries:
            if isinstance(entry, Entry):
                entry.settle(verdict)
