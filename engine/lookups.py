"""Asks Postgres for events by id, many campaigns in one query: a lane of its own, beside that of events.

Owns the queues of look-ups, and what may wait in them. A few queries are under way at once; meanwhile, the next
gathers. Half of a query is for ids that Redis knows, and half for those that it does not, or more where the other queue
has less: a storm of the one sort does not keep the other waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import trio

from config.settings import Settings
from engine import metrics
from engine.days import EVER_ACCEPTED
from engine.errors import StoreUnavailable
from engine.model import DAY_US, SECOND_US
from engine.pace import Pace
from engine.ports import NO_TIME, Clock, EventStore, Wanted
from engine.services import Absent, Found, LookUp
from engine.shedding import Shedding
from engine.submission import Entry
from engine.verdicts import OVERLOADED, UNAVAILABLE

# Ids that Redis knows may take a quarter of what may be inside the engine, and the others half: so a quarter of the
# engine always has room for events that need no look-up, whoever sends ids that do. (Half is 50,000 events by default:
# at full rate, 32 senders of batches of 1,000 have 32,000 in it.)
KNOWN_SHARE: Final = 4
UNKNOWN_SHARE: Final = 2
# An event that would wait longer than half of a request's deadline is refused at once: after its look-up, it may need a
# second one, and a reservation and a flush. (A second in which Postgres stands still refuses nothing at full rate.)
DEADLINE_SHARE: Final = 2
# Ids that Redis knows, and that are on none of their own days: so many in one query over every partition there is,
# where an id costs a hundred times as much; and so many such queries may wait.
ELSEWHERE_EVENTS_MAX: Final = 100
_ELSEWHERE_QUERIES_MAX: Final = 10


class LookUps:
    """`put` look-ups; `run` answers them, one query after the other, in as many tasks as queries may be under way.

    `run_elsewhere`, in a task of its own, goes on with ids that Redis knows and their own days do not show. What would
    wait too long, or take too much room, is answered `overloaded` at once.
    """

    def __init__(self, store: EventStore, clock: Clock, settings: Settings) -> None:
        self._store = store
        self._clock = clock
        self._events_max = settings.lookup_events_max
        self._at_once = settings.look_ups_at_once
        # A mailbox always has room for a request that needs no look-up, as the engine has. (And a campaign at rest
        # takes a whole request of events that do.)
        request_events_max = settings.request_events_max
        self._campaign_events_max = max(settings.mailbox_events_max - request_events_max, request_events_max)
        self._wait_seconds = settings.request_deadline_seconds / DEADLINE_SHARE
        # Two clocks, each off by as much as is allowed, one to each side.
        self._clocks_differ_us = round(2 * settings.clock_refuse_seconds * SECOND_US)
        engine_events_max = settings.engine_events_max
        self._known = _Queue(max(engine_events_max // KNOWN_SHARE, request_events_max))  # to Redis
        self._unknown = _Queue(max(engine_events_max // UNKNOWN_SHARE, request_events_max))
        self._elsewhere = _Queue(ELSEWHERE_EVENTS_MAX * _ELSEWHERE_QUERIES_MAX)
        self._work, self._elsewhere_work = trio.Event(), trio.Event()
        self._known_first = False
        self.pace = Pace()
        self.shedding = Shedding()

    def put(self, look_up: LookUp) -> None:
        """Queue its entries; each is answered once, by `looked_up` or `look_up_failed` of its actor."""
        queue = self._queue_of(look_up)
        if look_up.tag is None:  # (what was reserved must be settled, and is bounded by what may be reserved)
            others_away = look_up.actor.mailbox.away - len(look_up.entries)
            in_queue_max = min(queue.events_max, self._events_in_time())
            look_up = self._shed(look_up, min(in_queue_max - queue.events, self._campaign_events_max - others_away))
        if look_up.entries:
            queue.put(look_up)
            self._work.set()

    def _events_in_time(self) -> int:
        """How many may be in a queue so that the last one is answered in time, if queries go on as they went lately.

        Whatever those carried: queries of an engine at rest are small and fast, so much fits; if larger ones turn out
        to be slower, less does. What can be under way at once always fits.
        """
        return (self._at_once + self.pace.queries_within(self._wait_seconds, self._at_once)) * self._events_max

    def _shed(self, look_up: LookUp, room: int) -> LookUp:
        """What there is room for; the rest hears `overloaded`."""
        room = max(room, 0)
        if len(look_up.entries) <= room:
            return look_up
        shed = look_up._replace(entries=look_up.entries[room:])
        self.shedding.refused(len(shed.entries))
        shed.actor.look_up_failed(shed, OVERLOADED)
        return look_up._replace(entries=look_up.entries[:room])

    async def run(self) -> None:
        """Query after query, for ever."""
        while True:
            await self._work.wait()
            batch = self._taken()
            if not batch:
                if self._work.is_set():  # (another task that waits again already would never hear of the next work)
                    self._work = trio.Event()
                continue
            query = self.pace.begin()
            try:
                await self._answer(batch)
            finally:
                metrics.look_up_seconds.observe(self.pace.end(query))
            metrics.look_ups.inc(_events(batch))
            for look_up in batch:
                self._queue_of(look_up).asked -= len(look_up.entries)

    async def run_elsewhere(self) -> None:
        """The same, for ids that Redis knows and that are on none of their own days."""
        while True:
            await self._elsewhere_work.wait()
            batch = self._elsewhere.take(ELSEWHERE_EVENTS_MAX)
            if not batch:
                self._elsewhere_work = trio.Event()
                continue
            await self._answer_elsewhere(batch)
            self._elsewhere.asked -= _events(batch)

    def _queue_of(self, look_up: LookUp) -> _Queue:
        return self._unknown if look_up.absent is Absent.AGAIN else self._known

    def _taken(self) -> list[LookUp]:
        """What goes into one query, of both queues: they take turns in being first."""
        self._known_first = not self._known_first
        first, second = (self._known, self._unknown) if self._known_first else (self._unknown, self._known)
        taken = first.take(max(1, self._events_max // 2, self._events_max - second.waiting))
        return taken + second.take(self._events_max - _events(taken))

    async def _answer(self, batch: Sequence[LookUp]) -> None:
        now_us, differ_us = self._clock.now_us(), self._clocks_differ_us
        wanted: list[Wanted] = []
        for look_up in batch:
            state, entries = look_up.actor.state, look_up.entries
            state.looking_up(entries)
            campaign_id = state.campaign_id
            wanted += [Wanted(campaign_id, each.event_id, days_of(each, now_us, differ_us)) for each in entries]
        try:
            found = await self._store.look_up(wanted)
        except StoreUnavailable:
            _fail(batch)
            return
        for look_up in reversed(batch):  # the oldest end up in front
            if look_up.absent is Absent.CONTRADICTION:
                self._put_elsewhere(_answered(look_up, found))
            else:
                look_up.actor.looked_up(look_up, found)

    def _put_elsewhere(self, look_up: LookUp) -> None:
        look_up = self._shed(look_up, self._elsewhere.events_max - self._elsewhere.events)
        if look_up.entries:
            self._elsewhere.put(look_up)
            self._elsewhere_work.set()

    async def _answer_elsewhere(self, batch: Sequence[LookUp]) -> None:
        # Redis may know an id from another identity day: an event whose time was changed by its sender. Days that are
        # left out make a contradiction of it, so in the end all are asked.
        now_us = self._clock.now_us()
        for days in (EVER_ACCEPTED.days_of_receipt(now_us, now_us + 1), None):
            wanted = [Wanted(each.campaign_id, each.event_id, days) for look_up in batch for each in look_up.entries]
            try:
                found = await self._store.look_up(wanted)
            except StoreUnavailable:
                _fail(batch)
                return
            batch = [rest for look_up in batch if (rest := _answered(look_up, found)).entries]
            if not batch:
                return
        for look_up in batch:
            look_up.actor.looked_up(look_up, {})


class _Queue:
    """Look-ups that wait, first in first out."""

    def __init__(self, events_max: int) -> None:
        self.events_max = events_max  # whoever puts them heeds it
        self._look_ups: deque[LookUp] = deque()
        self.waiting = 0  # events
        self.asked = 0  # events, in queries that are under way

    @property
    def events(self) -> int:
        """All of them."""
        return self.waiting + self.asked

    def put(self, look_up: LookUp) -> None:
        """Behind all others."""
        self._look_ups.append(look_up)
        self.waiting += len(look_up.entries)

    def take(self, events_max: int) -> list[LookUp]:
        """The next ones for which somebody waits, at most so many events, for a query."""
        taken: list[LookUp] = []
        room = events_max
        while self._look_ups and room > 0:
            look_up = self._look_ups.popleft()
            self.waiting -= len(look_up.entries)
            look_up = _awaited(look_up)
            if len(look_up.entries) > room:
                rest = look_up._replace(entries=look_up.entries[room:])
                self._look_ups.appendleft(rest)
                self.waiting += len(rest.entries)
                look_up = look_up._replace(entries=look_up.entries[:room])
            if look_up.entries:
                taken.append(look_up)
                room -= len(look_up.entries)
        self.asked += events_max - room
        return taken


def _events(look_ups: Sequence[LookUp]) -> int:
    return sum(len(each.entries) for each in look_ups)


def _awaited(look_up: LookUp) -> LookUp:
    """Without those whose requests are over: to look them up would let others wait until theirs are over, too.

    (Those whose outcome is unknown stay: they are under way in their actor until it is known.)
    """
    awaited = [each for each in look_up.entries if each.submission is not None]
    if len(awaited) == len(look_up.entries) or look_up.tag is not None:
        return look_up
    over = look_up._replace(entries=[each for each in look_up.entries if each.submission is None])
    over.actor.look_up_failed(over, UNAVAILABLE)
    return look_up._replace(entries=awaited)


def _answered(look_up: LookUp, found: Found) -> LookUp:
    """Answer those that were found; the others are returned."""
    campaign_id = look_up.actor.state.campaign_id
    rest = [each for each in look_up.entries if (campaign_id, each.event_id) not in found]
    if len(rest) < len(look_up.entries):
        entries = [each for each in look_up.entries if (campaign_id, each.event_id) in found]
        look_up.actor.looked_up(look_up._replace(entries=entries), found)
    return look_up._replace(entries=rest)


def _fail(look_ups: Sequence[LookUp]) -> None:
    """Postgres could not be asked: nothing is known, a retry is safe."""
    for each in look_ups:
        each.actor.look_up_failed(each, UNAVAILABLE)


def days_of(entry: Entry, now_us: int, clocks_differ_us: int) -> Sequence[int]:
    """The identity days under which an event may have been committed: its own, if it tells a time.

    Otherwise that is the day on which it was received first: up to two days before it was received here (duplicates are
    known for 48 hours), by a clock that may have been behind ours. Nor is today the last: another try, received beyond
    midnight by a clock that is ahead, may have been committed already.
    """
    if entry.id_time_us != NO_TIME:
        return (entry.day,)
    return _days((entry.received_us - clocks_differ_us) // DAY_US - 2, now_us // DAY_US + 2)


@lru_cache(maxsize=64)  # all that are received on a day have the same
def _days(first: int, end: int) -> tuple[int, ...]:
    return tuple(range(first, end))
