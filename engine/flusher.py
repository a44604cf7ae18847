"""Carries reservations into Postgres: one transaction for all campaigns of the moment.

Owns the queue between the ledger round and Postgres, and what a refused transaction means for the others in
it. Knows of Postgres only `EventStore.flush`. While a flush is under way, the next one gathers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio

from engine import metrics
from engine.actor import Actor
from engine.campaign import Reservation
from engine.model import CampaignId
from engine.ports import EventStore, FlushReply, NotRun, Refused

_Waiting = tuple[Actor, Reservation]


class Flusher:
    """`put` reservations; `run` one worker a connection."""

    def __init__(self, store: EventStore, *, flush_events_max: int, queue_events_max: int) -> None:
        self._store = store
        self._flush_events_max = flush_events_max
        self._queue_events_max = queue_events_max
        self._queue: deque[_Waiting] = deque()
        self._events = 0
        self._events_under_way = 0
        self._idle = trio.lowlevel.ParkingLot()  # workers without work
        self._room = trio.Event()
        self._room.set()

    @property
    def events_waiting(self) -> int:
        """Events that wait for a flush."""
        return self._events

    @property
    def events_under_way(self) -> int:
        """Events that wait for a flush, or for its outcome."""
        return self._events_under_way

    def put(self, actor: Actor, reservation: Reservation) -> None:
        """Queue one reservation. Never refuses: the ledger round waits for `room` before it reserves more.

        If nothing is being flushed, it goes at once; else with the rest of its round.
        """
        if self._events_under_way == self._events:
            self._idle.unpark()
        self._queue.append((actor, reservation))
        self._events += len(reservation.rows)
        self._events_under_way += len(reservation.rows)
        if self._events >= self._queue_events_max and self._room.is_set():
            self._room = trio.Event()

    def round_over(self) -> None:
        """Flush what is here: for a moment, nothing will be put to it."""
        self._idle.unpark_all()

    async def room(self) -> None:
        """Wait until the queue is below its bound."""
        if not self._room.is_set():
            await self._room.wait()

    async def run(self) -> None:
        """One worker: flush after flush, for ever."""
        while True:
            if waiting := self._take():
                await self._flush(waiting)
            else:
                await self._idle.park()

    def _take(self) -> list[_Waiting]:
        """The next flush: in order, within the bound, one generation and spend day a campaign."""
        taken: list[_Waiting] = []
        left: list[_Waiting] = []
        under: dict[CampaignId, tuple[int, int]] = {}
        events = 0
        while self._queue:
            _, reservation = waiting = self._queue.popleft()
            if events and events + len(reservation.rows) > self._flush_events_max:
                self._queue.appendleft(waiting)
                break
            terms = (reservation.generation, reservation.spend_day)
            if under.setdefault(reservation.campaign_id, terms) != terms:
                left.append(waiting)
                continue
            taken.append(waiting)
            events += len(reservation.rows)
        self._queue.extendleft(reversed(left))
        self._events -= events
        if self._events < self._queue_events_max:
            self._room.set()
        return taken

    async def _flush(self, waiting: Sequence[_Waiting]) -> None:
        """One transaction, and more for what a culprit kept out of it; each carries fewer reservations."""
        parts = [waiting]
        while parts:
            part = parts.pop()
            reply = await self._transaction(part)
            if isinstance(reply, Refused):
                innocent = [each for each in part if each[1].campaign_id not in reply.causes]
                assert len(innocent) < len(part), "a refusal names at least one campaign of the flush"
                self._tell([each for each in part if each[1].campaign_id in reply.causes], reply)
                if innocent:
                    parts.append(innocent)
            elif isinstance(reply, NotRun) and reply.data and len(part) > 1:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
            else:
                self._tell(part, reply)

    async def _transaction(self, part: Sequence[_Waiting]) -> FlushReply:
        reservations = [reservation for _, reservation in part]
        started = trio.current_time()
        reply = await self._store.flush(reservations)
        metrics.flush_seconds.observe(trio.current_time() - started)
        metrics.flush_events.observe(sum(len(reservation.rows) for reservation in reservations))
        metrics.flushes.labels(type(reply).__name__.lower()).inc()
        return reply

    def _tell(self, part: Sequence[_Waiting], reply: FlushReply) -> None:
        for actor, reservation in part:
            self._events_under_way -= len(reservation.rows)
            try:
                actor.flushed(reservation, reply)
            except Exception:  # noqa: BLE001 - boundary: boundary.py
                actor.fail()
