"""The one remedy: raise the generation in Postgres, then make Redis follow (protocol.md, section 5).

Owns the order of the steps, each of which is one exchange for many campaigns. Safe to run by anybody, at any time,
twice at once. Knows Redis and Postgres only through their ports, and no actor: who asks is told through its `Case`.

Campaigns are recovered together and end one by one: whoever is halted, overtaken, or has to start over leaves the
others' way. Nor does anybody wait for one of them: a campaign whose ledger row a flush holds ends as `Alone`, and is to
be recovered by itself; one whose rebuild reads much ends as `Large`, and is to be recovered with others of the kind.

A rebuild loads no id: what is committed is at or below the watermark, which comes from the ledger row. It loads the
users of the ledger's day, where a cap asks for them today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeVar

from engine.days import EVER_ACCEPTED
from engine.errors import StoreUnavailable
from engine.model import CampaignId
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
from engine.steps import Begin, Emptied, Kept, LoadUsers, Pending, Ready

T = TypeVar("T")

# How often one recovery starts over (a MISMATCH rebuilds the second time) before it reports that it failed.
ROUNDS_MAX: Final = 4
# Events that a recovery reads by the unique key, campaign by campaign, the smallest first: a second or two. What is
# more is cheaper in one pass over the day's rows. They are read in portions: about half a second, after which those
# campaigns go on.
KEYED_EVENTS: Final = 200_000
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
    """Others would have to wait for its row: recover it by itself."""


@dataclass(frozen=True, slots=True)
class Large:
    """Others would have to wait for its users: recover it together with those of which the same is said."""


Outcome = Followed | Failed | Halted | Alone | Large


class Reads(Enum):
    """How much a recovery may read, and wait for, without others in the way."""

    LITTLE = "little"  # no row that a flush holds, and no more than `KEYED_EVENTS`
    MUCH = "much"  # one pass over the day's rows for all of its campaigns
    ALL = "all"  # for one campaign: the row is waited for, too


@dataclass(frozen=True, slots=True)
class Case:
    """A campaign to recover, and who is told of it.

    `counts_users_from`: a cap is in force, and it is this spend day (None: no cap is). Users of an earlier one are not
    read: should anybody reserve for it yet, Redis has it rebuilt. `raised` is called with each generation that Postgres
    has committed, before Redis is touched: from then on, batches of older generations are in or out for good. `ended`
    is called once, as soon as it is known how it ends.
    """

    campaign_id: CampaignId
    plan_version: int
    counts_users_from: int | None
    raised: Callable[[int], None]
    ended: Callable[[Outcome], None]


class Recovery:
    """`recover` campaigns."""

    def __init__(self, ledger: Ledger, store: EventStore, clock: Clock) -> None:
        self.ledger = ledger
        self.store = store
        self.clock = clock
        self.users_read = 0  # by all recoveries so far

    async def recover(self, cases: Iterable[Case], reads: Reads = Reads.LITTLE) -> int:
        """Fence what is under way, then bring Redis to what Postgres says. Each campaign once; raises nothing.

        How many users were read for them.
        """
        waiting = {case.campaign_id: case for case in cases}
        assert len(waiting) == 1 or reads is not Reads.ALL
        users_read = 0
        for _ in range(ROUNDS_MAX):
            if not waiting:
                break
            attempt = _Attempt(waiting)
            try:
                await self._raise(attempt, wait=reads is Reads.ALL)
                await self._follow(attempt, reads)
            except StoreUnavailable as away:
                for campaign_id in list(attempt.cases):
                    attempt.end(campaign_id, Failed(str(away)))
            assert not attempt.cases, "every campaign ends, or starts over"
            users_read += attempt.users_read
            waiting = attempt.again
        for campaign_id, case in waiting.items():
            case.ended(Failed(f"Redis did not follow campaign {campaign_id} in {ROUNDS_MAX} rounds"))
        return users_read

    async def _raise(self, attempt: _Attempt, *, wait: bool) -> None:
        """Step 1, of which one more does no harm: an unknown outcome is repeated by the next recovery."""
        rows = await self.store.raise_generations(list(attempt.cases), wait=wait)
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

    async def _follow(self, attempt: _Attempt, reads: Reads) -> None:
        """Steps 2 to 4, each under its new generation."""
        if not attempt.rows:
            return
        calls = [Begin(row.campaign_id, row.generation) for row in attempt.rows.values()]
        kept: dict[CampaignId, Sequence[Pending]] = {}
        untouched: list[CampaignId] = []
        to_read: list[LedgerRow] = []
        uncounted: list[CampaignId] = []
        for call, begun in zip(calls, await self.ledger.begin(calls), strict=True):
            row = attempt.rows[call.campaign_id]
            match begun:
                case Kept(pending):
                    kept[row.campaign_id] = pending
                case Emptied() if row.untouched:
                    # Before its first commit there is nothing to read, and every older batch is out since the raise.
                    untouched.append(row.campaign_id)
                case Emptied() if attempt.counts_users(row):
                    to_read.append(row)
                case Emptied():
                    uncounted.append(row.campaign_id)
                case _:
                    attempt.heed(row.campaign_id, begun)
        await self._settle(attempt, kept)
        await self._ready(attempt, [*kept, *untouched], users_loaded=True)
        await self._ready(attempt, uncounted, users_loaded=False)
        if not to_read:
            return
        if reads is Reads.LITTLE:
            for portion in await self._portions(attempt, to_read):
                await self._rebuild(attempt, portion, whole=False)
            return
        await self._rebuild(attempt, to_read, whole=reads is Reads.MUCH or await self._is_large(to_read))

    async def _settle(self, attempt: _Attempt, kept: Mapping[CampaignId, Sequence[Pending]]) -> None:
        """Every pending reservation: commit it if its first id stands under its very tag."""
        settled = [(attempt.rows[campaign_id], each) for campaign_id, pending in kept.items() for each in pending]
        for part in _parts(settled, SETTLED_MAX):
            wanted = [
                Wanted(row.campaign_id, each.first_id, EVER_ACCEPTED.days_of_spend_day(each.day)) for row, each in part
            ]
            found = await self.store.look_up(wanted)
            calls = []
            for row, each in part:
                stored = found.get((row.campaign_id, each.first_id))
                commit = stored is not None and stored.batch == each.tag
                calls.append(Resolve(row.campaign_id, row.generation, each.tag, commit=commit))
            attempt.heed_all(calls, await self.ledger.settle(calls))

    async def _ready(self, attempt: _Attempt, campaign_ids: Iterable[CampaignId], *, users_loaded: bool) -> None:
        """Open those that are still under way."""
        now_us = self.clock.now_us()
        calls = []
        for row in [attempt.rows[each] for each in campaign_ids if each in attempt.rows]:
            version = attempt.cases[row.campaign_id].plan_version
            calls.append(
                Ready(row.campaign_id, row.generation, row.spend, version, row.latest_us, now_us, users_loaded)
            )
        if calls:
            attempt.heed_all(calls, await self.ledger.ready(calls))
            for call in calls:
                if call.campaign_id in attempt.rows:
                    attempt.end(call.campaign_id, Followed(call.generation))

    async def _is_large(self, rows: Sequence[LedgerRow]) -> bool:
        events = await self.store.events_since({row.campaign_id: row.spend.day for row in rows})
        return sum(events.values()) > KEYED_EVENTS

    async def _portions(self, attempt: _Attempt, rows: Sequence[LedgerRow]) -> Iterable[Sequence[LedgerRow]]:
        """Who is read together, by the unique key, the small ones first. Their sizes are a matter of time only."""
        events = await self.store.events_since({row.campaign_id: row.spend.day for row in rows})
        portions: list[list[LedgerRow]] = [[]]
        read = read_before = 0
        for row in sorted(rows, key=lambda row: events[row.campaign_id]):
            read += events[row.campaign_id]
            if read > KEYED_EVENTS:
                attempt.end(row.campaign_id, Large())
                continue
            if read - read_before > PORTION_EVENTS and portions[-1]:
                portions.append([])
                read_before = read - events[row.campaign_id]
            portions[-1].append(row)
        return filter(None, portions)

    async def _rebuild(self, attempt: _Attempt, portion: Sequence[LedgerRow], *, whole: bool) -> None:
        """Users of the ledger's day, read after the raise. They come campaign by campaign, and so each is opened."""
        days = {row.campaign_id: row.spend.day for row in portion if row.campaign_id in attempt.rows}
        complete: set[CampaignId] = set()
        latest: CampaignId | None = None
        async with aclosing(self.store.users_on(days, whole=whole)) as pieces:
            async for users in pieces:
                assert complete.isdisjoint(users), "users of a campaign that was opened without them"
                attempt.users_read += (count := sum(map(len, users.values())))
                self.users_read += count
                calls = list(attempt.loads_of_users(users))
                attempt.heed_all(calls, await self.ledger.load(calls))
                met = dict.fromkeys([latest, *users] if latest is not None else users)
                latest = list(users)[-1]
                del met[latest]
                complete.update(met)
                await self._ready(attempt, met, users_loaded=True)
                if not any(campaign_id in attempt.rows for campaign_id in days):
                    return  # nobody is left to go on for
        await self._ready(attempt, days, users_loaded=True)


class _Attempt:
    """One way through the steps: who is under way, and who has to start over."""

    def __init__(self, cases: Mapping[CampaignId, Case]) -> None:
        self.cases = dict(cases)  # under way
        self.rows: dict[CampaignId, LedgerRow] = {}  # those of them whose generation was raised
        self.again: dict[CampaignId, Case] = {}
        self.users_read = 0

    def end(self, campaign_id: CampaignId, outcome: Outcome) -> None:
        """It leaves the way of the others."""
        self.rows.pop(campaign_id, None)
        self.cases.pop(campaign_id).ended(outcome)

    def counts_users(self, row: LedgerRow) -> bool:
        """Whether a cap asks for the users of the ledger's day."""
        today = self.cases[row.campaign_id].counts_users_from
        return today is not None and row.spend.day >= today

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

    def heed_all(self, calls: Sequence[Resolve | LoadUsers | Ready], replies: Sequence[object]) -> None:
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


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
