"""A Redis of plain Python: the ledger's seven keys a campaign, its functions, and faults on demand.

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

from engine.leftovers import Advance, Drop, GiveBackReply, Held, Survey, Used
from engine.memory import BUCKET_MIN_US, MemoryUse
from engine.model import CampaignId, EventId
from engine.ports import (
    AHEAD,
    BILLABLE,
    COUNTS_FOR_CAP,
    NO_CAP,
    NONE_LOOKED_UP,
    BeginReply,
    Behind,
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
from engine.steps import Begin, Emptied, Kept, LoadUsers, Mismatch, Pending, Ready

CHUNK = 1_000
SURVEYED = 3  # campaigns of one survey: few, so that there are more of them
T = TypeVar("T")
SECOND_US = 1_000_000
CALL_US = 5 * SECOND_US  # no call is under way for longer
AHEAD_MAX = 1_000  # ids that are ahead, and are not forgotten though there are more of them than of others


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
    bucket: int
    ahead_bucket: int | None  # None: no id of it is ahead
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
    uncounted_day: int | None  # the latest day on which events were accepted whose users are not counted


@dataclass(slots=True)
class Pair:
    """Two buckets of ids, the current one and an older one, and the highest id time in each."""

    number: int = 0  # of the current one
    ids: list[dict[bytes, int]] = field(default_factory=lambda: [{}, {}])
    most_us: list[int] = field(default_factory=lambda: [0, 0])

    def put(self, ids: Sequence[bytes], tag: int, most_us: int) -> None:
        """Into the current one."""
        self.ids[self.number % 2].update(dict.fromkeys(ids, tag))
        self.most_us[self.number % 2] = max(self.most_us[self.number % 2], most_us)

    @property
    def most_in_older_us(self) -> int:
        """What a watermark must reach before the older one is forgotten."""
        return self.most_us[1 - self.number % 2]

    def turn(self) -> None:
        """Forget the older one; it is the current one from now on."""
        self.number += 1
        self.ids[self.number % 2].clear()
        self.most_us[self.number % 2] = 0

    def __len__(self) -> int:
        return sum(map(len, self.ids))


@dataclass(slots=True)
class Book:
    """One campaign's seven keys."""

    generation: int
    image: int
    open: bool = False
    sums: Sums | None = None
    pending: dict[int, Record] = field(default_factory=dict)
    users: Counter[str] = field(default_factory=Counter)
    watermark_us: int = 0
    began_us: int = 0
    used_us: int = 0  # when a call last accepted an event, to a second, or closed a bucket
    window: Pair = field(default_factory=Pair)
    ahead: Pair = field(default_factory=Pair)

    def tag_of(self, event_id: bytes) -> int | None:
        """The tag under which an id is known."""
        for bucket in self.window.ids + self.ahead.ids:
            if event_id in bucket:
                return bucket[event_id]
        return None


class FakeLedger:
    """`Ledger` in memory."""

    def __init__(self) -> None:
        self.books: dict[CampaignId, Book] = {}
        self.image = 1
        self.away = False
        self.unsafe_because: str | None = None
        self.behind_us = 0  # its clock's distance from the machine's
        self.full = False
        self.used_and_max_bytes = (0, 0)
        self.now_us: Callable[[], int] | None = None  # its clock, if it tells the time with its memory
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

    async def load(self, calls: Sequence[LoadUsers]) -> list[LoadReply]:
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

    async def give_back(self, calls: Sequence[Advance | Drop]) -> list[GiveBackReply]:
        """Free what idle campaigns hold."""
        return await self._trip([partial(self._give_back, call) for call in calls])

    async def probe(self, campaign_id: CampaignId) -> NotRun | Unknown | None:
        """What a reserve would hear. Trouble that a test wished for is that of another call."""
        await trio.lowlevel.checkpoint()
        if self.away:
            return NotRun("the fake is away")
        return NotRun("OOM", full=True) if self.full else None

    async def memory(self) -> MemoryUse | None:
        """What the test says of it."""
        await trio.lowlevel.checkpoint()
        now_us = None if self.now_us is None else self.now_us()
        return None if self.away else MemoryUse(*self.used_and_max_bytes, now_us)

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
            if isinstance(book, Book):  # (the function `advance`, which the adapter then sends)
                _move_day(book, call.day)
                _close(book, call.at_us, min(call.bucket_us, BUCKET_MIN_US))
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
        if call.day < sums.day:
            return DayBehind(sums.day)
        if call.unlooked_us <= book.watermark_us or call.looked_bucket not in (NONE_LOOKED_UP, book.window.number):
            return Behind(book.window.number, book.watermark_us)
        if call.cap != NO_CAP and sums.uncounted_day == call.day == sums.day:
            book.image = 0
            return Lost()
        sums.version = call.plan_version
        for tag in call.committed:
            book.pending.pop(tag, None)
        _move_day(book, call.day)
        letters = _decide(book, sums, call)
        _use(book, call, accepted=Letter.ACCEPTED.value in letters)
        return Reserved(letters, sums.total, sums.today, book.window.number, book.watermark_us)

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
            return Kept([Pending(tag, EventId(record.ids[0]), record.day) for tag, record in book.pending.items()])
        self.books[campaign_id] = Book(generation, self.image)
        return Emptied()

    def _survey(self, cursor: int) -> Survey:
        found = sorted(campaign_id for campaign_id in self.books if campaign_id > cursor)
        onward = found[SURVEYED - 1] if len(found) > SURVEYED else 0
        return Survey(onward, [self._held(campaign_id, self.books[campaign_id]) for campaign_id in found[:SURVEYED]])

    def _held(self, campaign_id: CampaignId, book: Book) -> Held:
        day = 0 if book.sums is None else book.sums.day
        ours, ids = book.image == self.image, len(book.window) + len(book.ahead)
        place = day, book.window.number, book.began_us, book.used_us
        return Held(campaign_id, book.generation, ours, book.open, *place, len(book.pending), len(book.users), ids)

    def _give_back(self, call: Advance | Drop) -> GiveBackReply:
        if isinstance(call, Advance):
            book = self._enter(call.campaign_id, call.generation, needs_open=True)
            if not isinstance(book, Book):
                return book
            _move_day(book, call.day)
            _close(book, call.at_us, call.bucket_us)
            return Done()
        held = call.held
        found = self.books.get(held.campaign_id)
        if found is None:
            return Lost()
        now = self._held(held.campaign_id, found)
        if now.generation != held.generation:
            return Stale(now.generation)
        if now.open != held.open:
            return Closed()
        if now.bucket != held.bucket or (now.ours and now.open and now.pending):
            return Used()
        del self.books[held.campaign_id]
        return Done()

    def _load(self, call: LoadUsers) -> LoadReply:
        if self.full:
            return NotRun("OOM", full=True)
        book = self._enter(call.campaign_id, call.generation, needs_open=False)
        if not isinstance(book, Book):
            return book
        if len(call.users) > CHUNK:
            return NotRun("SHAPE")
        book.users = Counter({**book.users, **dict(call.users)})  # (set, where Counter.update would add)
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
            uncounted_day = None if call.users_loaded else spend.day
            book.sums = Sums(call.plan_version, spend.day, spend.spent_micros, spend.today_micros, uncounted_day)
            book.watermark_us, book.began_us = call.latest_us, call.at_us
        else:
            today = 0 if sums.day > spend.day else spend.today_micros
            if sums.day < spend.day or sums.total != spend.spent_micros or sums.today != today:
                return Mismatch()
        book.open = True
        return Done()


def _move_day(book: Book, day: int) -> None:
    """A new day counts its users anew; days never go back."""
    assert book.sums is not None
    if day > book.sums.day:
        book.sums.day, book.sums.today = day, 0
        book.users.clear()


def _use(book: Book, call: Reserve, *, accepted: bool) -> None:
    """Note that it was used, and close its bucket if it is time; one that a clock began which is ahead begins now."""
    if accepted and call.at_us - book.used_us >= SECOND_US:
        book.used_us = call.at_us
    if book.began_us - call.at_us > CALL_US:
        book.began_us = call.at_us
    if _close(book, call.at_us, call.bucket_us):
        book.used_us = call.at_us


def _close(book: Book, at_us: int, bucket_us: int) -> bool:
    """Close the bucket if it is that old, which is told, unless the older one holds ids that may still commit."""
    if at_us - book.began_us < bucket_us:
        return False
    if any(record.bucket < book.window.number for record in book.pending.values()):
        book.began_us = at_us - bucket_us + SECOND_US
        return True
    book.watermark_us = max(book.watermark_us, book.window.most_in_older_us)
    book.window.turn()
    ahead, before_us, book.began_us = book.ahead, max(book.watermark_us, book.began_us), at_us
    if len(ahead) == 0 and not any(ahead.most_us):
        return True
    if ahead.most_in_older_us <= before_us or len(ahead) > max(AHEAD_MAX, len(book.window)):
        book.watermark_us = max(book.watermark_us, ahead.most_in_older_us)
        ahead.turn()
    if not any(ahead.most_us):
        book.ahead = Pair()
    return True


def _decide(book: Book, sums: Sums, call: Reserve) -> bytes:
    """The letters, in order; with any A, the record."""
    record = Record(call.day, book.window.number, None, 0, [], Counter())
    ahead: list[bytes] = []
    letters = bytearray()
    seen: set[bytes] = set()
    for at, kind in enumerate(call.kinds):
        event_id = call.ids[16 * at : 16 * at + 16]
        user = call.users[at] if kind & COUNTS_FOR_CAP and call.cap != NO_CAP else None
        letter = _letter(book, sums, call, kind, event_id, user)
        if event_id in seen:
            letter = Letter.PENDING
        if letter is Letter.ACCEPTED:
            record.ids.append(event_id)
            if kind & AHEAD:
                ahead.append(event_id)
            if kind & BILLABLE:
                sums.total, sums.today = sums.total + call.cost_micros, sums.today + call.cost_micros
                record.amount += call.cost_micros
            if user is not None:
                book.users[user] += 1
                record.users[user] += 1
        seen.add(event_id)
        letters += letter.value
    if record.ids:
        book.pending[call.tag] = record
        if ahead:
            record.ahead_bucket = book.ahead.number
            book.ahead.put(ahead, call.tag, call.most_ahead_us)
        if others := [event_id for event_id in record.ids if event_id not in ahead]:
            book.window.put(others, call.tag, call.most_us)
        if call.cap == NO_CAP:
            sums.uncounted_day = call.day
    return bytes(letters)


def _letter(book: Book, sums: Sums, call: Reserve, kind: int, event_id: bytes, user: str | None) -> Letter:
    known, cost = book.tag_of(event_id), call.cost_micros
    if known is not None:
        return Letter.PENDING if known in book.pending else Letter.DUPLICATE
    if user is not None and book.users[user] >= call.cap:
        return Letter.CAPPED
    if kind & BILLABLE and sums.total + cost > call.total_budget_micros:
        return Letter.TOTAL
    if kind & BILLABLE and sums.today + cost > call.daily_budget_micros:
        return Letter.DAILY
    if kind & BILLABLE and sums.today + cost > call.allowance_micros:
        return Letter.PACED
    if user is not None and not call.new_users and not book.users[user]:
        return Letter.NO_ROOM
    return Letter.ACCEPTED


def _undo(book: Book, record: Record) -> None:
    sums = book.sums
    assert sums is not None
    sums.total -= record.amount
    if record.day == sums.day:
        sums.today -= record.amount
        book.users -= record.users  # (Counter's `-=` drops who falls to zero)
    for pair, number in ((book.window, record.bucket), (book.ahead, record.ahead_bucket)):
        if number is not None:
            for event_id in record.ids:
                pair.ids[number % 2].pop(event_id, None)
