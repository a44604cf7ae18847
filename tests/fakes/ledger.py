"""A Redis of plain Python: the ledger's five keys a campaign, its functions, and faults on demand.

Passes the same contract tests as the real ledger. Faults: `fail_next` lets one round trip go wrong, `away` makes every
one `NotRun`, `forget` empties the memory, `restart` makes it another image with the old data, `full` is a Redis that is
out of memory. `books` is plain data: a deep copy of it, put back, is a Redis that comes back old.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Any, TypeVar

import trio

from engine.leftovers import Drop, GiveBackReply, Held, MoveOn, Survey, Used
from engine.model import CampaignId, EventId
from engine.ports import (
    BILLABLE,
    COUNTS_FOR_CAP,
    NO_CAP,
    BeginReply,
    Closed,
    DayBehind,
    Done,
    Letter,
    LoadReply,
    Lost,
    NotRun,
    PlanBehind,
    ReadyReply,
    Reserve,
    Reserved,
    ReserveReply,
    Resolve,
    ResolveReply,
    Stale,
    Unknown,
)
from engine.steps import Begin, Emptied, Kept, LoadIds, LoadUsers, Mismatch, Pending, Ready

CHUNK = 1_000
SURVEYED = 3  # campaigns of one survey: few, so that there are more of them
T = TypeVar("T")
LOADED = -1  # tag of an id that a rebuild loaded


class Trouble(Enum):
    """What befalls one round trip."""

    NOT_RUN = auto()  # certainly nothing happened
    UNKNOWN_BEFORE = auto()  # no answer, and it never runs
    UNKNOWN_AFTER = auto()  # no answer, though it did run
    UNKNOWN_LATE = auto()  # no answer, and it runs when `deliver_late` is called


@dataclass(slots=True)
class Record:
    """A pending reservation: all that an undo needs."""

    day: int
    turn: int
    amount: int
    ids: list[bytes]
    users: Counter[str]


@dataclass(slots=True)
class Sums:
    """What `ready` sets."""

    version: int
    day: int
    total: int
    today: int
    turn: int
    uncounted_day: int | None = None  # the latest day on which events were accepted without a cap


@dataclass(slots=True)
class Book:
    """One campaign's five keys."""

    generation: int
    image: int
    open: bool = False
    sums: Sums | None = None
    pending: dict[int, Record] = field(default_factory=dict)
    users: Counter[str] = field(default_factory=Counter)
    buckets: list[dict[bytes, int]] = field(default_factory=lambda: [{}, {}])


class FakeLedger:
    """`Ledger` in memory."""

    def __init__(self) -> None:
        self.books: dict[CampaignId, Book] = {}
        self.image = 1
        self.away = False
        self.unsafe_because: str | None = None
        self.behind_us = 0  # its clock's distance from the machine's
        self.full = False
        self.round_trips = 0
        self._trouble: deque[tuple[Trouble, int]] = deque()
        self._late: list[Callable[[], object]] = []

    # --- faults ---

    def fail_next(self, trouble: Trouble, *, answered: int = 0) -> None:
        """Let the next round trip that has no trouble yet go wrong, after so many of its calls were answered."""
        self._trouble.append((trouble, answered))

    def deliver_late(self) -> None:
        """Run what was sent long ago."""
        late, self._late = self._late, []
        for run in late:
            run()

    def restart(self) -> None:
        """Become another memory image, with the same data."""
        self.image += 1

    def forget(self) -> None:
        """Lose the memory."""
        self.books.clear()
        self.restart()

    # --- the port ---

    async def round(
        self,
        parts: Iterable[Sequence[Reserve | Resolve]],
        heard: Callable[[Sequence[ReserveReply | ResolveReply]], None],
    ) -> None:
        """All calls in order, each part a trip of its own."""
        for part in parts:
            heard(await self.answer(part))

    async def answer(self, calls: Sequence[Reserve | Resolve]) -> list[ReserveReply | ResolveReply]:
        """One part of a round (of its own, so that a test can hold it up)."""
        return await self._trip([self._run_of(call) for call in calls])

    async def begin(self, calls: Sequence[Begin]) -> list[BeginReply]:
        """Close campaigns under new generations."""
        return await self._trip([partial(self._begin, call.campaign_id, call.generation) for call in calls])

    async def settle(self, calls: Sequence[Resolve]) -> list[LoadReply]:
        """Settle reservations of closed campaigns."""
        return await self._trip([partial(self._resolve, call, needs_open=False) for call in calls])

    async def load(self, calls: Sequence[LoadUsers | LoadIds]) -> list[LoadReply]:
        """Chunks of a rebuild."""
        return await self._trip([partial(self._load, call) for call in calls])

    async def ready(self, calls: Sequence[Ready]) -> list[ReadyReply]:
        """Open campaigns again."""
        return await self._trip([partial(self._ready, call) for call in calls])

    async def pending_tags(self, campaign_ids: Sequence[CampaignId]) -> dict[CampaignId, list[int]] | NotRun:
        """Tags of all reservations that wait for their commit."""
        reply = await self._trip_of_one(
            lambda: {each: list(self.books[each].pending) if each in self.books else [] for each in campaign_ids}
        )
        return NotRun(reply.detail) if isinstance(reply, Unknown) else reply

    async def survey(self, cursor: int) -> Survey | NotRun:
        """What is held of some campaigns: three at a time, in order of campaign."""
        found = await self._trip_of_one(lambda: self._survey(cursor))
        return NotRun(found.detail) if isinstance(found, Unknown) else found

    async def give_back(self, calls: Sequence[MoveOn | Drop]) -> list[GiveBackReply]:
        """Free what idle campaigns hold."""
        return await self._trip([partial(self._give_back, call) for call in calls])

    async def probe(self, campaign_id: CampaignId) -> NotRun | Unknown | None:
        """What a reserve would hear. Trouble that a test wished for is that of another call."""
        await trio.lowlevel.checkpoint()
        if self.away:
            return NotRun("the fake is away")
        return NotRun("OOM", full=True) if self.full else None

    async def clock_offset_us(self) -> int | None:
        """How far our clock is ahead."""
        await trio.lowlevel.checkpoint()
        return None if self.away else self.behind_us

    async def unsafe(self) -> str | None:
        """What the test says of it."""
        return self.unsafe_because

    # --- round trips ---

    async def _trip_of_one(self, run: Callable[[], T]) -> T | NotRun | Unknown:
        reply: T | NotRun | Unknown = (await self._trip([run]))[0]
        return reply

    async def _trip(self, runs: Sequence[Callable[[], Any]]) -> list[Any]:
        await trio.lowlevel.checkpoint()
        self.round_trips += 1
        if self.away:
            return [NotRun("the fake is away") for _ in runs]
        trouble, answered = self._trouble.popleft() if self._trouble else (None, len(runs))
        replies = [run() for run in runs[:answered]]
        for run in runs[answered:]:
            if trouble is Trouble.UNKNOWN_AFTER:
                run()
            elif trouble is Trouble.UNKNOWN_LATE:
                self._late.append(run)
            replies.append((NotRun if trouble is Trouble.NOT_RUN else Unknown)("as the test wished"))
        return replies

    # --- the functions ---

    def _run_of(self, call: Reserve | Resolve) -> Callable[[], Any]:
        if isinstance(call, Reserve):
            return lambda: self._reserve(call)
        return lambda: self._resolve(call, needs_open=True)

    def _enter(self, campaign_id: CampaignId, generation: int, needs_open: bool) -> Book | Lost | Stale | Closed:
        book = self.books.get(campaign_id)
        if book is None or book.image != self.image:
            return Lost()
        if book.generation != generation:
            return Stale(book.generation)
        return book if book.open is needs_open else Closed()

    def _reserve(self, call: Reserve) -> ReserveReply:
        book = self._enter(call.campaign_id, call.generation, needs_open=True)
        if self.full:
            if isinstance(book, Book) and book.sums is not None:  # (the function `turn`, which the adapter then sends)
                if _outruns_pending(book, book.sums, call.turn, ()):
                    book.image = 0
                else:
                    _move_on(book, book.sums, call.day, call.turn)
            return NotRun("OOM", full=True)
        if not isinstance(book, Book):
            return book
        sums = book.sums
        assert sums is not None
        events = len(call.kinds)
        if not 1 <= events <= CHUNK or len(call.ids) != 16 * events or len(call.committed) > CHUNK:
            return NotRun("SHAPE")
        if call.cap != NO_CAP and len(call.users) != events:
            return NotRun("SHAPE")
        if call.plan_version < sums.version:
            return PlanBehind(sums.version)
        if call.day < sums.day or sums.turn > call.turn_latest:
            return DayBehind(sums.day)
        if call.cap != NO_CAP and sums.uncounted_day == call.day == sums.day:
            book.image = 0
            return Lost()
        if _outruns_pending(book, sums, call.turn, call.committed):
            book.image = 0
            return Lost()
        sums.version = call.plan_version
        for tag in call.committed:
            book.pending.pop(tag, None)
        _move_on(book, sums, call.day, call.turn)
        return _decide(book, sums, call)

    def _resolve(self, call: Resolve, *, needs_open: bool) -> ResolveReply:
        book = self._enter(call.campaign_id, call.generation, needs_open)
        if not isinstance(book, Book):
            return book
        record = book.pending.pop(call.tag, None)
        if record is not None and not call.commit:
            _undo(book, record)
        return Done()

    def _begin(self, campaign_id: CampaignId, generation: int) -> BeginReply:
        book = self.books.get(campaign_id)
        if book is not None and generation <= book.generation:
            return Stale(book.generation)
        if book is not None and book.generation == generation - 1 and book.image == self.image and book.open:
            book.generation, book.open = generation, False
            return Kept([Pending(tag, EventId(record.ids[0])) for tag, record in book.pending.items()])
        self.books[campaign_id] = Book(generation, self.image)
        return Emptied()

    def _survey(self, cursor: int) -> Survey:
        found = sorted(campaign_id for campaign_id in self.books if campaign_id > cursor)
        onward = found[SURVEYED - 1] if len(found) > SURVEYED else 0
        return Survey(onward, [self._held(campaign_id, self.books[campaign_id]) for campaign_id in found[:SURVEYED]])

    def _held(self, campaign_id: CampaignId, book: Book) -> Held:
        day, turn = (0, 0) if book.sums is None else (book.sums.day, book.sums.turn)
        ids = sum(map(len, book.buckets))
        ours = book.image == self.image
        return Held(campaign_id, book.generation, ours, book.open, day, turn, len(book.pending), len(book.users), ids)

    def _give_back(self, call: MoveOn | Drop) -> GiveBackReply:
        held = call.held
        if isinstance(call, MoveOn):
            book = self._enter(held.campaign_id, held.generation, needs_open=True)
            if not isinstance(book, Book):
                return book
            assert book.sums is not None
            if _outruns_pending(book, book.sums, call.turn, ()):
                book.image = 0
                return Lost()
            _move_on(book, book.sums, call.day, call.turn)
            return Done()
        found = self.books.get(held.campaign_id)
        if found is None:
            return Lost()
        now = self._held(held.campaign_id, found)
        if now.generation != held.generation:
            return Stale(now.generation)
        if now.open != held.open:
            return Closed()
        if now.turn != held.turn or (now.ours and now.open and now.pending):
            return Used()
        del self.books[held.campaign_id]
        return Done()

    def _load(self, call: LoadUsers | LoadIds) -> LoadReply:
        if self.full:
            return NotRun("OOM", full=True)
        book = self._enter(call.campaign_id, call.generation, needs_open=False)
        if not isinstance(book, Book):
            return book
        if len(call.users if isinstance(call, LoadUsers) else call.ids) > CHUNK:
            return NotRun("SHAPE")
        if isinstance(call, LoadUsers):
            book.users = Counter({**book.users, **dict(call.users)})  # (set, where Counter.update would add)
        else:
            book.buckets[call.turn % 2].update(dict.fromkeys(call.ids, LOADED))
        return Done()

    def _ready(self, call: Ready) -> ReadyReply:
        book = self._enter(call.campaign_id, call.generation, needs_open=False)
        if not isinstance(book, Book):
            return book
        spend = call.spend
        sums = book.sums
        if book.pending:
            return Mismatch()
        if sums is None:
            book.sums = Sums(call.plan_version, spend.day, spend.spent_micros, spend.today_micros, call.turn)
        else:
            today = 0 if sums.day > spend.day else spend.today_micros
            if sums.day < spend.day or sums.total != spend.spent_micros or sums.today != today:
                return Mismatch()
            if sums.turn > call.turn + 1:
                return Mismatch()
        book.open = True
        return Done()


def _outruns_pending(book: Book, sums: Sums, turn: int, committed: Sequence[int]) -> bool:
    """Whether the window would drop ids of a reservation that is not settled yet."""
    pending = [record for tag, record in book.pending.items() if tag not in committed]
    return turn > sums.turn and any(record.turn < turn - 1 for record in pending)


def _move_on(book: Book, sums: Sums, day: int, turn: int) -> None:
    """A new day counts its users anew; a new turn reuses the older bucket; days and turns never go back."""
    if day > sums.day:
        sums.day, sums.today = day, 0
        book.users.clear()
    while sums.turn < turn:
        sums.turn = max(sums.turn + 1, turn - 1)
        book.buckets[sums.turn % 2].clear()


def _decide(book: Book, sums: Sums, call: Reserve) -> Reserved:
    """The letters, in order; with any A, the record."""
    record = Record(call.day, sums.turn, 0, [], Counter())
    letters = bytearray()
    seen: set[bytes] = set()
    for at, kind in enumerate(call.kinds):
        event_id = call.ids[16 * at : 16 * at + 16]
        user = call.users[at] if kind & COUNTS_FOR_CAP and call.cap != NO_CAP else None
        cost = call.cost_micros
        known = book.buckets[0].get(event_id, book.buckets[1].get(event_id))
        if event_id in seen or known in book.pending:
            letter = Letter.PENDING
        elif known is not None:
            letter = Letter.DUPLICATE
        elif user is not None and book.users[user] >= call.cap:
            letter = Letter.CAPPED
        elif kind & BILLABLE and sums.total + cost > call.total_budget_micros:
            letter = Letter.TOTAL
        elif kind & BILLABLE and sums.today + cost > call.daily_budget_micros:
            letter = Letter.DAILY
        elif kind & BILLABLE and sums.today + cost > call.allowance_micros:
            letter = Letter.PACED
        else:
            letter = Letter.ACCEPTED
            record.ids.append(event_id)
            if kind & BILLABLE:
                sums.total, sums.today, record.amount = sums.total + cost, sums.today + cost, record.amount + cost
            if user is not None:
                book.users[user] += 1
                record.users[user] += 1
        seen.add(event_id)
        letters += letter.value
    if record.ids:
        book.pending[call.tag] = record
        book.buckets[record.turn % 2].update(dict.fromkeys(record.ids, call.tag))
        if call.cap == NO_CAP:
            sums.uncounted_day = call.day
    return Reserved(bytes(letters), sums.total, sums.today)


def _undo(book: Book, record: Record) -> None:
    sums = book.sums
    assert sums is not None
    sums.total -= record.amount
    if record.day == sums.day:
        sums.today -= record.amount
        book.users -= record.users  # (Counter's `-=` drops who falls to zero)
    if record.turn >= sums.turn - 1:
        for event_id in record.ids:
            del book.buckets[record.turn % 2][event_id]
