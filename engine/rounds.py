"""The ledger round: every actor that has mail, one pipelined round trip to Redis, again and again.

Owns the run queue. Knows of Redis only `Ledger.round`. While a round trip is under way, the next gathers, and for a
moment while much is being flushed, too; so batches grow with the load, and a lone event waits for nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

import trio

from engine import metrics
from engine.actor import Actor
from engine.flusher import Flusher
from engine.ports import Clock, Ledger, Reserve, ReserveReply, Resolve, ResolveReply

# A committed tag travels with the campaign's next reserve, which costs nothing. If none comes for so long, it is told
# in a call of its own: until then, other engines ask Postgres about its ids.
RESOLVE_LINGER_SECONDS: Final = 0.05
# While rounds are full, such a call takes a place from mail that somebody waits for: then it waits for so long.
CROWDED_LINGER_SECONDS: Final = 1.0
# Events that every campaign of a round may bring: a call costs Redis as much as ten events.
SHARE_MIN: Final = 10
# A round travels in parts of so many calls, or events: Redis works on one while the engine makes the next and applies
# the one before. Smaller ones gain nothing more, and each costs a write.
PART_CALLS: Final = 30
PART_EVENTS: Final = 500
# Part of a round's places for those whose mail did not all find room in the one before. What is left of it is older
# than what others wait with, and every request that has an event of theirs waits for it. More would leave no place to
# those who have not been served at all.
OVERDUE_PART: Final = 1 / 10
# A campaign floods if it has more than so many times the mail of all those with less. Beside them it brings no more
# than that, or what is worth a round: else they would all wait for its thousands, in Redis and again in Postgres. Where
# the way to Redis is long, a round is worth more: a flood may have so many a second in any case.
FLOOD_TIMES: Final = 10
FLOOD_EVENTS_MIN: Final = 250
FLOOD_EVENTS_A_SECOND: Final = 20_000
# A round and its flush cost much besides their events. While others are being flushed, a round waits for this part of
# their number, which the flush's answers will bring; but not for longer than a small flush takes, as one that hangs
# must not hold up other campaigns; and not for more than what makes an event cheap.
GATHERED_PART: Final = 1 / 3
GATHER_SECONDS: Final = 0.005
GATHERED_EVENTS: Final = 500


class Rounds:
    """`run_soon` puts an actor in the queue; `run` carries their calls."""

    def __init__(self, ledger: Ledger, flusher: Flusher, clock: Clock, *, events_max: int) -> None:
        self._ledger = ledger
        self._flusher = flusher
        self._clock = clock
        self._events_max = events_max
        self._riders_max = 1 + events_max // SHARE_MIN
        self._overdue_max = int(OVERDUE_PART * self._riders_max)
        self._asked: deque[list[tuple[Actor, Reserve | Resolve]]] = deque()  # parts without a reply yet
        self._queue: deque[Actor] = deque()
        self._queued: set[Actor] = set()
        self._overdue: set[Actor] = set()  # rode in the latest round, and are the first in the next
        self._round_seconds = 0.0  # of the latest, from its first call to its last reply
        self._resolve_later: dict[Actor, float] = {}  # since when
        self._resolve_work = trio.Event()
        self._work = trio.Event()
        self._news = trio.Event()  # of an actor: it has more mail, or less at the flusher

    def run_soon(self, actor: Actor) -> None:
        """Let the next round have this actor, if it has anything to say."""
        self._news.set()
        if actor in self._queued:
            return
        if actor.wants_round:
            self._enqueue(actor)
        elif actor not in self._resolve_later and actor.wants_resolve:
            self._resolve_later[actor] = trio.current_time()
            self._resolve_work.set()

    def _enqueue(self, actor: Actor) -> None:
        self._queued.add(actor)
        if actor in self._overdue:
            self._queue.appendleft(actor)
        else:
            self._queue.append(actor)
        self._work.set()

    async def resolve(self) -> None:
        """Tell Redis, for ever, what is committed and did not travel with a reserve; nobody waits for that."""
        while True:
            await self._resolve_work.wait()
            await trio.sleep(RESOLVE_LINGER_SECONDS)
            crowded = len(self._queue) >= self._riders_max
            latest = trio.current_time() - (CROWDED_LINGER_SECONDS if crowded else 0)
            for actor in [actor for actor, since in self._resolve_later.items() if since <= latest]:
                del self._resolve_later[actor]
                if actor.wants_resolve and actor not in self._queued:
                    self._enqueue(actor)
            if not self._resolve_later:
                self._resolve_work = trio.Event()

    async def run(self) -> None:
        """Round after round, for ever."""
        while True:
            await self._work.wait()
            await self._flusher.room()
            if not self._gathered():
                await self._gather()
            riders = [self._queue.popleft() for _ in range(min(len(self._queue), self._riders_max))]
            if not riders:
                self._work = trio.Event()
                continue
            started = trio.current_time()
            parts = self._parts(riders)
            first = next(parts, None)
            if first is None:
                continue  # all of their mail is looked up first, say
            await self._ledger.round(chain([first], parts), self._heard)
            assert not self._asked, "a call without a reply"
            self._flusher.round_over()
            self._round_seconds = trio.current_time() - started
            metrics.reserve_seconds.observe(self._round_seconds)

    def _heard(self, replies: Sequence[ReserveReply | ResolveReply]) -> None:
        now_us = self._clock.now_us()
        for (actor, call), reply in zip(self._asked.popleft(), replies, strict=True):
            try:
                actor.replied(call, reply, now_us)
            except Exception:  # noqa: BLE001 - boundary: boundary.py
                actor.fail()

    def _gathered(self) -> bool:
        """Whether there is mail enough for a round."""
        enough = min(GATHERED_EVENTS, GATHERED_PART * self._flusher.events_under_way)
        return len(self._queue) >= enough or sum(map(_mail, self._queue)) >= enough

    async def _gather(self) -> None:
        with trio.move_on_after(GATHER_SECONDS):
            while not self._gathered():
                self._news = trio.Event()
                await self._news.wait()

    def _parts(self, riders: list[Actor]) -> Iterator[list[Reserve | Resolve]]:
        """The calls of a round: actors in turn, each with its share of the round.

        Who has less mail than its share leaves the rest to those with more. So a round carries the oldest mail of all
        campaigns, not all mail of some: requests over many campaigns end one after the other. Who did not find room
        for all of it is first in the next one. What a flood may bring is bounded by what the others do.
        """
        self._overdue.clear()
        now_us = self._clock.now_us()
        riders.sort(key=_mail)
        part: list[tuple[Actor, Reserve | Resolve]] = []
        events, events_before, share_max = 0, 0, self._events_max
        for left, actor in zip(range(len(riders), 0, -1), riders, strict=True):
            self._queued.discard(actor)
            if not (actor.wants_round or actor.wants_resolve):
                continue
            if 0 < FLOOD_TIMES * events < _mail(actor):
                worth = max(FLOOD_EVENTS_MIN, round(FLOOD_EVENTS_A_SECOND * self._round_seconds))
                share_max = min(share_max, max(worth, FLOOD_TIMES * events))
            share = min(share_max, max(SHARE_MIN, (self._events_max - events) // left))
            try:
                calls = actor.calls(now_us, share)
            except Exception:  # noqa: BLE001 - boundary: boundary.py
                actor.fail()
                continue
            if not calls:
                self.run_soon(actor)  # all of its mail is looked up first; there may be more
            for call in calls:
                part.append((actor, call))
                if isinstance(call, Reserve):
                    events += len(call.kinds)
            if actor.mailbox and left <= self._overdue_max:
                self._overdue.add(actor)
            if len(part) >= PART_CALLS or events - events_before >= PART_EVENTS:
                yield self._asking(part)
                part, events_before, now_us = [], events, self._clock.now_us()
        if part:
            yield self._asking(part)
        if events:
            metrics.reserve_events.observe(events)

    def _asking(self, part: list[tuple[Actor, Reserve | Resolve]]) -> list[Reserve | Resolve]:
        self._asked.append(part)
        return [call for _, call in part]


def _mail(actor: Actor) -> int:
    return len(actor.mailbox)
