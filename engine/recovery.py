"""The one remedy: raise the generation in Postgres, then make Redis follow (protocol.md, section 5).

Owns the order of the steps, each of which is one exchange for many campaigns. Safe to run by anybody, at any time,
twice at once. Knows Redis and Postgres only through their ports, and no actor: who asks is told through its `Case`.

Campaigns are recovered together and end one by one: whoever is halted, overtaken, or has to start over leaves the
others' way. Nor does anybody wait for one of them: a campaign whose ledger row a flush holds ends as `Alone`, and is to
be recovered by itself; one that has users to read ends as `Unread`, or as `Large` where they are many, and is to be
recovered with others of the kind.

A rebuild loads no id: what is committed is at or below the watermark, which comes from the ledger row. It loads the
users of the ledger's day, where a cap asks for them today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeVar

import trio

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
NO_TAG: Final = 0  # engines are numbered from 1
CHUNK: Final = 1_000  # the ledger's load takes so many at once
# A flush holds its rows for some 10 ms, and most are free at the second or third look. All others wait for as long.
HELD_TRIES: Final = 3
HELD_PAUSE_SECONDS: Final = 0.02
# A chunk that Redis has no memory for is loaded again when ids were forgotten: the refusal calls the sweep, and each
# reserve that is refused forgets some of its own campaign. Both buckets of a campaign that nobody uses are gone after
# 9 s (each is due after 2.5 s, and put off by 2 s). To give up at once would cost the whole pass again; the cursor of
# that pass may rest for a minute (database.py).
FULL_PAUSE_SECONDS: Final = 1.0
FULL_PAUSES_MAX: Final = 10  # of one way through the steps: where nothing is given back, campaigns don't add up theirs


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
class Unread:
    """Others would have to wait for its users: recover it together with those of which the same is said."""


@dataclass(frozen=True, slots=True)
class Large:
    """It has too many users to read them by the key. The same as for `Unread`."""


@dataclass(frozen=True, slots=True)
class Left:
    """Somebody else has closed it in Redis under this generation, and was to be left to it. Nothing was done."""

    generation: int


Outcome = Followed | Failed | Halted | Alone | Unread | Large | Left


class Reads(Enum):
    """What users a recovery reads. Those who have more end without them."""

    NONE = "none"  # who has any ends as `Unread`
    LITTLE = "little"  # by the unique key, no more than `KEYED_EVENTS`; the others end as `Large`
    MUCH = "much"  # one pass over the day's rows for all of its campaigns


@dataclass(frozen=True, slots=True)
class Case:
    """A campaign to recover, and who is told of it.

    `counts_users_from`: a cap is in force, and it is this spend day (None: no cap is). Users of an earlier one are not
    read: should anybody reserve for it yet, Redis has it rebuilt. `raised` is called with each generation that Postgres
    has committed, before Redis is touched: from then on, batches of older generations are in or out for good. `ended`
    is called once, as soon as it is known how it ends.

    `left_to`: a generation of somebody else. If Redis is closed under it, they recover the campaign: a raise would undo
    what they have read so far, as theirs would undo what we read (None: raise in any case).
    """

    campaign_id: CampaignId
    plan_version: int
    counts_users_from: int | None
    raised: Callable[[int], None]
    ended: Callable[[Outcome], None]
    left_to: int | None = None


class Recovery:
    """`recover` campaigns."""

    def __init__(self, ledger: Ledger, store: EventStore, clock: Clock) -> None:
        self.ledger = ledger
        self.store = store
        self.clock = clock
        self.users_read = 0  # by all recoveries so far

    async def recover(self, cases: Iterable[Case], reads: Reads = Reads.LITTLE, *, wait: bool = False) -> None:
        """Fence what is under way, then bring Redis to what Postgres says. Each campaign once; raises nothing.

        `wait`, for one campaign only: a flush that holds its row is waited for.
        """
        waiting = {case.campaign_id: case for case in cases}
        assert len(waiting) == 1 or not wait
        await self._leave(waiting)
        for _ in range(ROUNDS_MAX):
            if not waiting:
                break
            attempt = _Attempt(waiting)
            try:
                await self._raise(attempt, wait=wait)
                await self._follow(attempt, reads)
            except StoreUnavailable as away:
                for campaign_id in list(attempt.cases):
                    attempt.end(campaign_id, Failed(str(away)))
            assert not attempt.cases, "every campaign ends, or starts over"
            waiting = attempt.again
        for campaign_id, case in waiting.items():
            case.ended(Failed(f"Redis did not follow campaign {campaign_id} in {ROUNDS_MAX} rounds"))

    async def _leave(self, waiting: dict[CampaignId, Case]) -> None:
        """End those that somebody else has closed, as settling a tag that nobody has tells: it does nothing there."""
        calls = [
            Resolve(campaign_id, case.left_to, NO_TAG, commit=False)
            for campaign_id, case in waiting.items()
            if case.left_to is not None
        ]
        for call, reply in zip(calls, await self.ledger.settle(calls) if calls else (), strict=True):
            if isinstance(reply, Done):
                waiting.pop(call.campaign_id).ended(Left(call.generation))

    async def _raise(self, attempt: _Attempt, *, wait: bool) -> None:
        """Step 1, of which one more does no harm: an unknown outcome is repeated by the next recovery."""
        rows = await self.store.raise_generations(list(attempt.cases), wait=wait)
        for _ in range(HELD_TRIES - 1):
            held = [campaign_id for campaign_id, row in rows.items() if row is None]
            if not held:
                break
            await trio.sleep(HELD_PAUSE_SECONDS)
            rows |= await self.store.raise_generations(held, wait=False)
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
        if to_read:
            await self._read(attempt, to_read, reads)

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

    async def _read(self, attempt: _Attempt, rows: Sequence[LedgerRow], reads: Reads) -> None:
        """Users of these; those of whom more would have to be read end without them."""
        match reads:
            case Reads.NONE:
                for row in rows:
                    attempt.end(row.campaign_id, Unread())
            case Reads.LITTLE:
                for portion in await self._portions(attempt, rows):
                    await self._rebuild(attempt, portion, whole=False)
            case Reads.MUCH:
                await self._rebuild(attempt, rows, whole=True)

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
                self.users_read += sum(map(len, users.values()))
                calls = list(attempt.loads_of_users(users))
                await self._load(attempt, calls)
                met = dict.fromkeys([latest, *users] if latest is not None else users)
                latest = list(users)[-1]
                del met[latest]
                complete.update(met)
                await self._ready(attempt, met, users_loaded=True)
                if not any(campaign_id in attempt.rows for campaign_id in days):
                    return  # nobody is left to go on for
        await self._ready(attempt, days, users_loaded=True)

    async def _load(self, attempt: _Attempt, calls: Sequence[LoadUsers]) -> None:
        """Load chunks. Those that Redis had no memory for did not run: again, when others have given some back."""
        replies = await self.ledger.load(calls)
        while attempt.full_pauses < FULL_PAUSES_MAX:
            refused = [place for place, reply in enumerate(replies) if isinstance(reply, NotRun) and reply.full]
            if not refused:
                break
            attempt.full_pauses += 1
            await trio.sleep(FULL_PAUSE_SECONDS)
            again = await self.ledger.load([calls[place] for place in refused])
            for place, reply in zip(refused, again, strict=True):
                replies[place] = reply
        attempt.heed_all(calls, replies)


class _Attempt:
    """One way through the steps: who is under way, and who has to start over."""

    def __init__(self, cases: Mapping[CampaignId, Case]) -> None:
        self.cases = dict(cases)  # under way
        self.rows: dict[CampaignId, LedgerRow] = {}  # those of them whose generation was raised
        self.again: dict[CampaignId, Case] = {}
        self.full_pauses = 0  # of loads that Redis had no memory for

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
