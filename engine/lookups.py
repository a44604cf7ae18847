"""Asks Postgres for events by id, many campaigns in one query: a lane of its own, beside that of events.

Owns the queue of look-ups, and how long they take. A few queries are under way at once; meanwhile, the next gathers.
Ids that Redis knows go first: they are few, and no new event of theirs will be reserved.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Final

import trio

from engine import metrics
from engine.actor import Actor
from engine.days import EVER_ACCEPTED
from engine.errors import StoreUnavailable
from engine.model import DAY_US, SECOND_US, StoredEvent
from engine.ports import NO_TIME, Clock, EventStore, Wanted
from engine.services import Absent, LookUp
from engine.submission import Entry

# Queries under way: half of the connections. While one waits for the disk or for the engine, Postgres works on others:
# 15 us an id, where one at a time takes 26 (104 million rows, 365 partitions, four days an id).
LOOK_UPS_AT_ONCE: Final = 4


class LookUps:
    """`put` look-ups; `run` answers them, one query after the other, in as many tasks as queries may be under way.

    What does not fit in the queue is answered at once: nothing is known.
    """

    def __init__(self, store: EventStore, clock: Clock, *, events_max: int, queue_events_max: int) -> None:
        self._store = store
        self._clock = clock
        self._events_max = events_max
        self._queue_events_max = queue_events_max
        self._known: deque[LookUp] = deque()  # to Redis
        self._queue: deque[LookUp] = deque()
        self._started: dict[object, float] = {}  # queries under way
        self._slowest_seconds = 0.0
        self._work = trio.Event()

    def put(self, look_ups: Sequence[LookUp]) -> None:
        """Queue them; each is answered once, by `looked_up` or `look_up_failed` of its actor."""
        if len(self._known) + len(self._queue) + len(look_ups) > self._queue_events_max:
            # Requests end by their deadline, and others take their place; what they wait for here does not.
            for each in look_ups:
                each.actor.look_up_failed(each)
            return
        for each in look_ups:
            (self._queue if each.absent is Absent.AGAIN else self._known).append(each)
        self._work.set()

    def slowest_us(self) -> int:
        """How long the slowest query took since this was asked last, with the age of those that are under way."""
        now = trio.current_time()
        slowest = max(self._slowest_seconds, *(now - started for started in self._started.values()), 0.0)
        self._slowest_seconds = 0.0
        return round(slowest * SECOND_US)

    async def run(self) -> None:
        """Query after query, for ever."""
        while True:
            await self._work.wait()
            batch = self._taken()
            if not batch:
                self._work = trio.Event()
                continue
            query = object()
            self._started[query] = trio.current_time()
            try:
                await self._answer(batch)
            finally:
                seconds = trio.current_time() - self._started.pop(query)
                self._slowest_seconds = max(self._slowest_seconds, seconds)
                metrics.look_up_seconds.observe(seconds)
            metrics.look_ups.inc(len(batch))

    def _taken(self) -> list[LookUp]:
        """What goes into one query."""
        taken: list[LookUp] = []
        for queue in (self._known, self._queue):
            taken += [queue.popleft() for _ in range(min(len(queue), self._events_max - len(taken)))]
        return taken

    async def _answer(self, batch: Sequence[LookUp]) -> None:
        now_us = self._clock.now_us()
        for each in batch:
            each.actor.state.looking_up(each.entry)
        try:
            found = await self._store.look_up(
                [Wanted(each.entry.campaign_id, each.entry.event_id, days_of(each.entry, now_us)) for each in batch]
            )
            # Redis may know an id from another identity day: an event whose time was changed by its sender. Days that
            # are left out make a contradiction of it, so in the end all are asked, which costs a hundred times as much.
            for days in (EVER_ACCEPTED.days_of_receipt(now_us, now_us + 1), None):
                elsewhere = [
                    Wanted(each.entry.campaign_id, each.entry.event_id, days)
                    for each in batch
                    if each.absent is not Absent.AGAIN and (each.entry.campaign_id, each.entry.event_id) not in found
                ]
                if elsewhere:
                    found = {**found, **await self._store.look_up(elsewhere)}
        except StoreUnavailable:
            for each in batch:
                each.actor.look_up_failed(each)
            return
        answers: defaultdict[Actor, list[tuple[LookUp, StoredEvent | None]]] = defaultdict(list)
        for each in batch:
            answers[each.actor].append((each, found.get((each.entry.campaign_id, each.entry.event_id))))
        for actor, of_actor in answers.items():
            actor.looked_up(of_actor)


def days_of(entry: Entry, now_us: int) -> Sequence[int]:
    """The identity days under which an event may have been committed: its own, if it tells a time.

    Otherwise that is the day on which it was received first: up to two days before it was received here (duplicates are
    known for 48 hours). Nor is today the last: another try, received beyond midnight by a clock that is ahead, may have
    been committed already.
    """
    if entry.id_time_us != NO_TIME:
        return [entry.day]
    return range(entry.received_us // DAY_US - 2, now_us // DAY_US + 2)
