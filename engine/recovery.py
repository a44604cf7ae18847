"""The one remedy: raise the generation in Postgres, then make Redis follow (protocol.md, section 5).

Owns the order of the steps, each of which is one exchange for many campaigns. Safe to run by anybody, at any time,
twice at once. Knows Redis and Postgres only through their ports, and no actor: who asks is told through its `Case`.

Campaigns are recovered together and end one by one: whoever is halted, overtaken, or has to start over leaves the
others' way. Nor does anybody wait for one of them: a campaign whose ledger row a flush holds, or whose rebuild reads
much, ends as `Alone`, and is to be recovered by itself. That is the same recovery, of one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeVar

from engine.errors import StoreUnavailable
from engine.model import SECOND_US, CampaignId, EventId
from engine.ports import (
    Clock,
    Done,
    EventStore,
    Ledger,
    LedgerRow,
    NotRun,
    Resolve,
    Stale,
    Wanted,
)
from engine.steps import Begin, Emptied, Kept, LoadIds, LoadUsers, Pending, Ready

T = TypeVar("T")

# How often one recovery starts over (a MISMATCH rebuilds the second time) before it reports that it failed.
ROUNDS_MAX: Final = 4
# Receive times are the clocks of engines, which may be off by 30 s: ids are read from a minute earlier.
CLOCK_SLACK_US: Final = 60 * SECOND_US
# What rebuilds read together: about half a second, after which those campaigns go on. Who has more is read alone.
PORTION_EVENTS: Final = 50_000
# Pending reservations that are looked up and settled together, as a look-up of events takes them.
SETTLED_MAX: Final = 5_000
CHUNK: Final = 1_000  # the ledger's load takes so many at once


@dataclass(frozen=True, slots=True)
class Followed:
    """Redis follows. The generation that is in force: ours, or a newer one of somebody who goes on in our place."""

    generation: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A store is away, or Redis would not follow. Nothing is lost: recover again later."""

    detail: str


@dataclass(frozen=True, slots=True)
class Halted:
    """Its books differ: Redis is left as it is, so nothing reserved can commit before an operator has looked."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Alone:
    """Others would have to wait for it: recover it by itself."""


Outcome = Followed | Failed | Halted | Alone


@dataclass(frozen=True, slots=True)
class Case:
    """A campaign to recover, and who is told of it.

    `raised` is called with each generation that Postgres has committed, before Redis is touched: from then on, batches
    of older generations are in or out for good. `ended` is called once, as soon as it is known how it ends.
    """

    campaign_id: CampaignId
    plan_version: int
    raised: Callable[[int], None]
    ended: Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class Recovery:
    """`recover` campaigns. `turn_us` is the length of the dedup window's turn."""

    ledger: Ledger
    store: EventStore
    clock: Clock
    turn_us: int

    async def recover(self, cases: Iterable[Case], *, alone: bool = False) -> None:
        """Fence what is under way, then bring Redis to what Postgres says. Each campaign once; raises nothing.

        `alone`, which is for one campaign: wait for a flush that holds its row, and read whatever there is.
        """
        waiting = {case.campaign_id: case for case in cases}
        assert len(waiting) == 1 or not alone
        for _ in range(ROUNDS_MAX):
            if not waiting:
                return
            attempt = _Attempt(waiting)
            try:
                await self._raise(attempt, alone=alone)
                await self._follow(attempt, alone=alone)
            except StoreUnavailable as away:
                for campaign_id in list(attempt.cases):
                    attempt.end(campaign_id, Failed(str(away)))
            assert not attempt.cases, "every campaign ends, or starts over"
            waiting = attempt.again
        for campaign_id, case in waiting.items():
            case.ended(Failed(f"Redis did not follow campaign {campaign_id} in {ROUNDS_MAX} rounds"))

    async def _raise(self, attempt: _Attempt, *, alone: bool) -> None:
        """Step 1, of which one more does no harm: an unknown outcome is repeated by the next recovery."""
        rows = await self.store.raise_generations(list(attempt.cases), wait=alone)
        for campaign_id, case in list(attempt.cases.items()):
            if campaign_id not in rows:
                attempt.end(campaign_id, Failed(f"campaign {campaign_id} is not in Postgres"))
                continue
            row = rows[campaign_id]
            if row is None:
                attempt.end(campaign_id, Alone())
                continue
            attempt.rows[campaign_id] = row
            case.raised(row.generation)
            if row.halted is not None:
                attempt.end(campaign_id, Halted(row.generation, row.halted))

    async def _follow(self, attempt: _Attempt, *, alone: bool) -> None:
        """Steps 2 to 4, each under its new generation."""
        if not attempt.rows:
            return
        calls = [Begin(row.campaign_id, row.generation) for row in attempt.rows.values()]
        kept: dict[CampaignId, Sequence[Pending]] = {}
        emptied: list[LedgerRow] = []
        for call, begun in zip(calls, await self.ledger.begin(calls), strict=True):
            match begun:
                case Kept(pending):
                    kept[call.campaign_id] = pending
                case Emptied():
                    emptied.append(attempt.rows[call.campaign_id])
                case _:
                    attempt.heed(call.campaign_id, begun)
        turn, _ = self._turns()
        await self._settle(attempt, kept)
        # (Before its first commit there is nothing to read, and every older batch is out for good since the raise.)
        at_once = [*kept, *(row.campaign_id for row in emptied if row.untouched)]
        await self._ready(attempt, dict.fromkeys(at_once, turn))
        for portion in await self._portions(attempt, [row for row in emptied if not row.untouched], alone=alone):
            await self._ready(attempt, await self._rebuild(attempt, portion))

    def _turns(self) -> tuple[int, int]:
        """The turn that it is, and the latest that a right clock may have reached."""
        now_us = self.clock.now_us()
        return now_us // self.turn_us, (now_us + CLOCK_SLACK_US) // self.turn_us

    async def _settle(self, attempt: _Attempt, kept: Mapping[CampaignId, Sequence[Pending]]) -> None:
        """Every pending reservation: commit it if its first id stands under its very tag."""
        settled = [(attempt.rows[campaign_id], each) for campaign_id, pending in kept.items() for each in pending]
        for part in _parts(settled, SETTLED_MAX):
            found = await self.store.look_up([Wanted(row.campaign_id, each.first_id, None) for row, each in part])
            calls = []
            for row, each in part:
                stored = found.get((row.campaign_id, each.first_id))
                commit = stored is not None and stored.batch == each.tag
                calls.append(Resolve(row.campaign_id, row.generation, each.tag, commit=commit))
            attempt.heed_all(calls, await self.ledger.settle(calls))

    async def _ready(self, attempt: _Attempt, turns: Mapping[CampaignId, int]) -> None:
        """Open those that are still under way, each with the turn that its window has reached."""
        calls = [
            Ready(row.campaign_id, row.generation, row.spend, turn, attempt.cases[row.campaign_id].plan_version)
            for row, turn in ((attempt.rows[each], turn) for each, turn in turns.items() if each in attempt.rows)
        ]
        if calls:
            attempt.heed_all(calls, await self.ledger.ready(calls))
            for call in calls:
                if call.campaign_id in attempt.rows:
                    attempt.end(call.campaign_id, Followed(call.generation))

    async def _portions(
        self, attempt: _Attempt, rows: Sequence[LedgerRow], *, alone: bool
    ) -> Iterable[Sequence[LedgerRow]]:
        """Who is rebuilt together, the small ones first. How large they are is a matter of time only."""
        if alone or not rows:
            return [rows] if rows else []
        events = await self.store.events_since({row.campaign_id: row.spend.day for row in rows})
        portions: list[list[LedgerRow]] = [[]]
        read = 0
        for row in sorted(rows, key=lambda row: events[row.campaign_id]):
            size = events[row.campaign_id]
            if size > PORTION_EVENTS:
                attempt.end(row.campaign_id, Alone())
                continue
            if read + size > PORTION_EVENTS:
                portions.append([])
                read = 0
            portions[-1].append(row)
            read += size
        return filter(None, portions)

    async def _rebuild(self, attempt: _Attempt, portion: Sequence[LedgerRow]) -> dict[CampaignId, int]:
        """Users of the ledger's day, and ids received in the last two turns, read after the raise; the turns reached.

        That is one more than ours where an engine's clock is ahead of it: its ids stay as long as it expects. It is
        never beyond `latest`, which no right clock has passed: whoever has the time would be refused until then.
        """
        turn, latest = self._turns()
        reached = dict.fromkeys([row.campaign_id for row in portion], turn)
        async with aclosing(self.store.users_on({row.campaign_id: row.spend.day for row in portion})) as pieces:
            async for users in pieces:
                if not await self._load(attempt, reached, attempt.loads_of_users(users)):
                    return reached
        oldest = turn - 1
        since_us = oldest * self.turn_us - CLOCK_SLACK_US
        async with aclosing(self.store.ids_received(list(reached), since_us)) as received:
            async for ids in received:
                calls = list(attempt.loads_of_ids(ids, self.turn_us, oldest, latest))
                for call in calls:
                    reached[call.campaign_id] = max(reached[call.campaign_id], call.turn)
                if not await self._load(attempt, reached, calls):
                    return reached
        return reached

    async def _load(
        self, attempt: _Attempt, portion: Iterable[CampaignId], calls: Iterable[LoadUsers | LoadIds]
    ) -> bool:
        """Load a piece; whether anybody is left to go on for."""
        sent = list(calls)
        attempt.heed_all(sent, await self.ledger.load(sent))
        return any(campaign_id in attempt.rows for campaign_id in portion)


class _Attempt:
    """One way through the steps: who is under way, and who has to start over."""

    def __init__(self, cases: Mapping[CampaignId, Case]) -> None:
        self.cases = dict(cases)  # under way
        self.rows: dict[CampaignId, LedgerRow] = {}  # those of them whose generation was raised
        self.again: dict[CampaignId, Case] = {}

    def end(self, campaign_id: CampaignId, outcome: Outcome) -> None:
        """It leaves the way of the others."""
        self.rows.pop(campaign_id, None)
        self.cases.pop(campaign_id).ended(outcome)

    def heed(self, campaign_id: CampaignId, reply: object) -> None:
        """Let it go on after `Done`; otherwise do what the reply means for a recovery."""
        match reply:
            case Done():
                return
            case Stale(generation) if generation > self.rows[campaign_id].generation:
                # Somebody has raised a newer one, and goes on in our place. (If nobody has, the actor finds out.)
                self.end(campaign_id, Followed(generation))
            case NotRun(detail):
                self.end(campaign_id, Failed(detail))
            case _:
                # LOST, MISMATCH, no answer: Redis forgot or disagreed in the middle. CLOSED in reverse: somebody opened
                # it under this generation. STALE with this very one: Redis had it before us. Raise it again.
                del self.rows[campaign_id]
                self.again[campaign_id] = self.cases.pop(campaign_id)

    def heed_all(self, calls: Sequence[Resolve | LoadUsers | LoadIds | Ready], replies: Sequence[object]) -> None:
        """Of a campaign with many calls the first reply that is not `Done` counts."""
        for call, reply in zip(calls, replies, strict=True):
            if call.campaign_id in self.rows:
                self.heed(call.campaign_id, reply)

    def loads_of_users(self, piece: Mapping[CampaignId, Sequence[tuple[str, int]]]) -> Iterator[LoadUsers]:
        """Chunks of a piece, of those that are under way."""
        for campaign_id, users in piece.items():
            if campaign_id in self.rows:
                for chunk in _parts(users, CHUNK):
                    yield LoadUsers(campaign_id, self.rows[campaign_id].generation, chunk)

    def loads_of_ids(
        self, piece: Mapping[CampaignId, Sequence[tuple[EventId, int]]], turn_us: int, oldest: int, latest: int
    ) -> Iterator[LoadIds]:
        """Chunks of a piece, each id under the turn in which it was received, by its receiver's clock.

        (The ids of every other turn share a bucket; one that stays longer than it must does no harm.)
        """
        for campaign_id, received in piece.items():
            if campaign_id in self.rows:
                of_turn: defaultdict[int, list[EventId]] = defaultdict(list)
                for event_id, received_us in received:
                    of_turn[received_us // turn_us].append(event_id)
                for turn, ids in of_turn.items():
                    for chunk in _parts(ids, CHUNK):
                        generation = self.rows[campaign_id].generation
                        yield LoadIds(campaign_id, generation, min(latest, max(oldest, turn)), chunk)


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
