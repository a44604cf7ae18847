"""Asks Postgres for events by id, many campaigns in one query, one query after the other.

Owns the queue of look-ups. Knows nothing of why they are made. While a query is under way, the next gathers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio

from engine import metrics
from engine.errors import StoreUnavailable
from engine.model import DAY_US
from engine.ports import NO_TIME, Clock, EventStore, Wanted
from engine.services import Absent, LookUp
from engine.submission import Entry


class LookUps:
    """`put` look-ups; `run` answers them. What does not fit in the queue is answered at once: nothing is known."""

    def __init__(self, store: EventStore, clock: Clock, *, events_max: int, queue_events_max: int) -> None:
        self._store = store
        self._clock = clock
        self._events_max = events_max
        self._queue_events_max = queue_events_max
        self._queue: deque[LookUp] = deque()
        self._work = trio.Event()

    def put(self, look_ups: Sequence[LookUp]) -> None:
        """Queue them; each is answered once, by `looked_up` or `look_up_failed` of its actor."""
        if len(self._queue) + len(look_ups) > self._queue_events_max:
            # Requests end by their deadline, and others take their place; what they wait for here does not.
            for each in look_ups:
                each.actor.look_up_failed(each)
            return
        self._queue.extend(look_ups)
        self._work.set()

    async def run(self) -> None:
        """Query after query, for ever."""
        while True:
            await self._work.wait()
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._events_max))]
            if not batch:
                self._work = trio.Event()
                continue
            await self._answer(batch)

    async def _answer(self, batch: Sequence[LookUp]) -> None:
        started, now_us = trio.current_time(), self._clock.now_us()
        for each in batch:
            each.actor.state.looking_up(each.entry)
        try:
            found = await self._store.look_up(
                [Wanted(each.entry.campaign_id, each.entry.event_id, days_of(each.entry, now_us)) for each in batch]
            )
            # Redis may know an id from another identity day: an event whose time was changed by its sender.
            elsewhere = [
                Wanted(each.entry.campaign_id, each.entry.event_id, None)
                for each in batch
                if each.absent is not Absent.AGAIN and (each.entry.campaign_id, each.entry.event_id) not in found
            ]
            if elsewhere:
                found = {**found, **await self._store.look_up(elsewhere)}
        except StoreUnavailable:
            for each in batch:
                each.actor.look_up_failed(each)
            return
        finally:
            metrics.look_up_seconds.observe(trio.current_time() - started)
        # Newest first, because each goes back to the front of its mailbox: so they keep their order.
        for each in reversed(batch):
            each.actor.looked_up(each, found.get((each.entry.campaign_id, each.entry.event_id)))


def days_of(entry: Entry, now_us: int) -> Sequence[int]:
    """The identity days under which an event may have been committed: its own, if it tells a time.

    Otherwise that is the day on which it was received first: up to two days before it was received here (duplicates are
    known for 48 hours). Nor is today the last: another try, received beyond midnight by a clock that is ahead, may have
    been committed already.
    """
    if entry.id_time_us != NO_TIME:
        return [entry.day]
    return range(entry.received_us // DAY_US - 2, now_us // DAY_US + 2)
