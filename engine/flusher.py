"""Carries reservations into Postgres: one transaction for all campaigns of the moment.

Owns the queue between the ledger round and Postgres, what a refused transaction means for the others in it, and the
lane apart: a campaign whose rows another session holds is flushed beside the others, so that they don't wait for it
again and again. Knows of Postgres only `EventStore.flush`. While a flush is under way, the next one gathers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import trio

from engine import metrics
from engine.actor import Actor
from engine.locks import SEARCH_SECONDS, Locked, Suspects
from engine.model import CampaignId
from engine.outages import HELD_ROWS, Outages
from engine.ports import Committed, EventStore, FlushReply, NotRun, Refused
from engine.reservations import Reservation

_Waiting = tuple[Actor, Reservation]


class Flusher:
    """`put` reservations; `run` one worker a connection."""

    def __init__(self, store: EventStore, outages: Outages, *, flush_events_max: int, queue_events_max: int) -> None:
        self._store = store
        self._outages = outages
        self._flush_events_max = flush_events_max
        self._queue_events_max = queue_events_max
        self._queue: deque[_Waiting] = deque()
        self._events = 0
        self._events_under_way = 0
        self._suspects = Suspects()
        self._apart: deque[_Waiting] = deque()  # the lane of suspects
        self._events_apart = 0
        self._apart_under_way = False
        self._apart_is_next = False
        self._idle = trio.lowlevel.ParkingLot()  # workers without work
        self._room = trio.Event()
        self._room.set()

    @property
    def events_waiting(self) -> int:
        """Events that wait for a flush."""
        return self._events + self._events_apart

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
        self._events_under_way += len(reservation.rows)
        self._count_queued(len(reservation.rows))

    def _count_queued(self, events: int) -> None:
        self._events += events
        if self._events < self._queue_events_max:
            self._room.set()
        elif self._room.is_set():
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
            self._suspects.forget(trio.current_time())
            if self._is_turn_of_suspects:
                self._apart_under_way, self._apart_is_next = True, False
                try:
                    await self._flush(self._take_apart(), apart=True)
                finally:
                    self._apart_under_way = False
            elif waiting := self._take():
                self._apart_is_next = True
                await self._flush(waiting, apart=False)
            elif not self._is_turn_of_suspects:
                await self._idle.park()

    # --- what goes together ---------------------------------------------------------------------------------

    @property
    def _is_turn_of_suspects(self) -> bool:
        """They may wait long: one worker serves them at most, and one that is alone serves the others in between."""
        return bool(self._apart) and not self._apart_under_way and (self._apart_is_next or not self._queue)

    def _take(self) -> list[_Waiting]:
        """The next flush of those that nobody holds up."""
        taken, suspect = self._taken(self._queue)
        self._count_queued(-_events(taken) - _events(suspect))
        self._set_apart(suspect)
        return taken

    def _take_apart(self) -> list[_Waiting]:
        """The next flush of suspects."""
        lane, self._apart = self._apart, deque()
        taken, _ = self._taken(lane, suspects=True)
        self._apart.extendleft(reversed(lane))
        self._events_apart -= _events(taken)
        return taken

    def _taken(self, queue: deque[_Waiting], *, suspects: bool = False) -> tuple[list[_Waiting], list[_Waiting]]:
        """From the front: in order, within the bound, one generation and spend day a campaign; and suspects, if apart.

        What is neither stays in the queue.
        """
        taken: list[_Waiting] = []
        left: list[_Waiting] = []
        apart: list[_Waiting] = []
        under: dict[CampaignId, tuple[int, int]] = {}
        events = 0
        while queue:
            _, reservation = waiting = queue.popleft()
            if not suspects and reservation.campaign_id in self._suspects:
                apart.append(waiting)
                continue
            if events and events + len(reservation.rows) > self._flush_events_max:
                queue.appendleft(waiting)
                break
            terms = (reservation.generation, reservation.spend_day)
            if under.setdefault(reservation.campaign_id, terms) != terms:
                left.append(waiting)
                continue
            taken.append(waiting)
            events += len(reservation.rows)
        queue.extendleft(reversed(left))
        return taken, apart

    def _set_apart(self, suspects: Sequence[_Waiting]) -> None:
        """Into their lane, which has room for a whole queue: a disk that stalls makes suspects of all that is in it."""
        for waiting in suspects:
            events = len(waiting[1].rows)
            if self._events_apart and self._events_apart + events > self._queue_events_max:
                self._tell([waiting], NotRun("too much waits for rows that another session holds"))
            else:
                self._apart.append(waiting)
                self._events_apart += events

    def _put_back(self, waiting: Sequence[_Waiting], *, apart: bool) -> None:
        """To the front, in order."""
        if apart:
            self._apart.extendleft(reversed(waiting))
            self._events_apart += _events(waiting)
        else:
            self._queue.extendleft(reversed(waiting))
            self._count_queued(_events(waiting))
            self._apart_is_next = False
        self._idle.unpark_all()

    # --- what becomes of it ---------------------------------------------------------------------------------

    async def _flush(self, waiting: Sequence[_Waiting], *, apart: bool) -> None:
        """One transaction, and more for what a culprit kept out of it; each carries fewer reservations."""
        parts = [waiting]
        hasty = False  # a lock was waited for
        ends = math.inf
        while parts:
            if trio.current_time() > ends:
                self._put_back([each for part in reversed(parts) for each in part], apart=apart)
                return
            part = parts.pop()
            reply = await self._transaction(part, hasty=hasty)
            now = trio.current_time()
            if isinstance(reply, Refused):
                innocent = [each for each in part if each[1].campaign_id not in reply.causes]
                assert len(innocent) < len(part), "a refusal names at least one campaign of the flush"
                self._tell([each for each in part if each[1].campaign_id in reply.causes], reply)
                if innocent:
                    parts.append(innocent)
            elif isinstance(reply, Locked):
                others = self._blame(part, reply, now, apart=apart)
                # The first time, they all may be through at once; after that, those who wait are sought by halves.
                parts += _halves(others) if hasty else [others] if others else []
                hasty, ends = True, min(ends, now + SEARCH_SECONDS)
            elif isinstance(reply, NotRun) and reply.data and len(part) > 1 and now <= ends:
                parts += _halves(part)
                hasty, ends = True, min(ends, now + SEARCH_SECONDS)
            else:
                if isinstance(reply, Committed):
                    self._suspects.committed(reservation.campaign_id for _, reservation in part)
                self._tell(part, reply)

    def _blame(self, part: Sequence[_Waiting], reply: Locked, now: float, *, apart: bool) -> list[_Waiting]:
        """Whose rows are held is tried once more in its own lane; there, it did certainly not run. The others."""
        named = [each for each in part if each[1].campaign_id in reply.campaigns]
        assert named, "a lock was waited for by a campaign of the flush"
        self._suspects.waited_for(reply.campaigns, now)
        if apart:
            numbers = ", ".join(map(str, sorted(reply.campaigns)))
            self._outages.failed(HELD_ROWS, f"campaigns {numbers}: {reply.detail}", now, blocks=False)
            # (With what waits in the lane for the same rows: a flood of it would keep others waiting there.)
            named += [each for each in self._apart if each[1].campaign_id in reply.campaigns]
            self._apart = deque(each for each in self._apart if each[1].campaign_id not in reply.campaigns)
            self._events_apart = _events(self._apart)
            self._tell(named, NotRun(reply.detail))
        else:
            self._set_apart(named)
        return [each for each in part if each[1].campaign_id not in reply.campaigns]

    async def _transaction(self, part: Sequence[_Waiting], *, hasty: bool) -> FlushReply:
        reservations = [reservation for _, reservation in part]
        started = trio.current_time()
        reply = await self._store.flush(reservations, hasty=hasty)
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


def _events(waiting: Sequence[_Waiting]) -> int:
    return sum([len(reservation.rows) for _, reservation in waiting])


def _halves(part: Sequence[_Waiting]) -> list[Sequence[_Waiting]]:
    """Both halves of it, the first one on top."""
    half = len(part) // 2
    return [each for each in (part[half:], part[:half]) if each]
