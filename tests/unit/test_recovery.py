"""The remedy for many campaigns at once, over fakes: each ends by itself, and nobody waits for another."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine import recovery as remedy
from engine.errors import StoreUnavailable
from engine.model import DAY_US, CampaignId, Micros
from engine.ports import NO_TIME, Batch, Behind, Committed, Lost, NotRun, Reserve, Reserved
from engine.recovery import (
    FULL_PAUSE_SECONDS,
    FULL_PAUSES_MAX,
    KEYED_EVENTS,
    ROUNDS_MAX,
    Alone,
    Case,
    Failed,
    Followed,
    Halted,
    Large,
    Left,
    Outcome,
    Reads,
    Recovery,
    Unread,
)
from engine.steps import Begin
from tests.contract.flushes import Line, bunch, click, impression, ledger_of, new_campaign, raise_generation
from tests.contract.reservations import ask, ids_of, letters, ready, reserve
from tests.fakes.ledger import FakeLedger, Trouble
from tests.fakes.store import FakeStore
from tests.remedy import Asked

NOW_US = 20_000 * DAY_US + DAY_US // 2
TODAY = 20_000


class World:
    """Fake stores under a clock that stands still, and whoever asks for recoveries."""

    def __init__(self) -> None:
        self.store = FakeStore(self.now_us)
        self.ledger = FakeLedger()
        self.asked = Asked(Recovery(self.ledger, self.store, self))

    def now_us(self) -> int:
        """Noon."""
        return NOW_US

    async def campaigns(self, count: int) -> list[CampaignId]:
        """New ones, which Redis does not know."""
        return [await new_campaign(self.store) for _ in range(count)]

    async def used(self, count: int) -> list[CampaignId]:
        """New ones with a committed event each, which Redis has forgotten."""
        campaigns = await self.campaigns(count)
        await self.commit(*[bunch(each, [impression(NOW_US)]) for each in campaigns])
        return campaigns

    async def commit(self, *batches: Batch) -> None:
        """Have events in Postgres."""
        assert await self.store.flush(batches) == Committed()

    def open(self, campaign: CampaignId) -> int | None:
        """The generation under which Redis has it open."""
        book = self.ledger.books.get(campaign)
        return book.generation if book is not None and book.open else None

    def call(self, campaign: CampaignId, rows: Sequence[Line], **fields: Any) -> Reserve:
        """A reserve of these events, none of which was looked up."""
        ids, least_us = b"".join(row.event_id for row in rows), min(row.id_time_us for row in rows)
        return reserve(
            campaign_id=campaign, generation=self.open(campaign), day=TODAY, at_us=NOW_US, ids=ids, time_us=least_us,
            users=[row.user.decode() for row in rows], kinds=b"\2" * len(rows), **fields,
        )  # fmt: skip

    async def letters(self, campaign: CampaignId, rows: Sequence[Line], **fields: Any) -> bytes:
        """What Redis says of these events, which are new."""
        return await letters(self.ledger, self.call(campaign, rows, **fields))

    async def behind(self, campaign: CampaignId, row: Line) -> bool:
        """Whether Redis asks for a look-up of this event."""
        return isinstance(await ask(self.ledger, self.call(campaign, [row])), Behind)


@pytest.fixture
def world() -> World:
    """Empty stores."""
    return World()


class Read:
    """Which campaigns' users were read together, whether in one pass, and what `then` said as it began."""

    def __init__(self, store: FakeStore) -> None:
        self.calls: list[tuple[list[CampaignId], bool, object]] = []
        self.then: Callable[[], object] = lambda: None
        self._users_on = store.users_on
        store.users_on = self._note  # type: ignore[method-assign]

    def _note(self, days: Mapping[CampaignId, int], *, whole: bool) -> AsyncGenerator[Any, None]:
        self.calls.append(([*days], whole, self.then()))
        return self._users_on(days, whole=whole)


@pytest.fixture
def read(world: World) -> Read:
    """What is read of users."""
    return Read(world.store)


def troubled(
    ledger: FakeLedger, call: Callable[[Any], Awaitable[Any]], trouble: Trouble, answered: int
) -> Callable[[Any], Awaitable[Any]]:
    """The same call, in trouble the first time."""
    left = 1

    async def run(calls: Any) -> Any:
        nonlocal left
        if left:
            left = 0
            ledger.fail_next(trouble, answered=answered)
        return await call(calls)

    return run


async def test_many_take_the_exchanges_of_one(world: World) -> None:
    """Two with Redis for those that were never used, whatever their number."""
    campaigns = await world.campaigns(500)
    assert await world.asked.recover(campaigns) == dict.fromkeys(campaigns, Followed(1))
    assert world.ledger.round_trips == 2
    assert all(world.asked.raised[each] == [1] and world.open(each) == 1 for each in campaigns)


async def test_none_are_recovered_without_an_exchange(world: World) -> None:
    """All that waited have been stopped meanwhile, say."""
    assert await world.asked.recover([]) == {}
    assert world.ledger.round_trips == 0


async def test_who_asks_is_told_of_a_generation_before_redis_is_touched(world: World) -> None:
    """From then on, older batches are in or out for good: their entries are looked up."""
    (campaign,) = await world.campaigns(1)
    seen: list[object] = []
    case = Case(campaign, 1, None, lambda g: seen.append((g, campaign in world.ledger.books)), seen.append)
    await world.asked.recovery.recover([case])
    assert seen == [(1, False), Followed(1)]


@pytest.mark.parametrize("reads", [Reads.LITTLE, Reads.MUCH])
async def test_users_come_back_to_their_own_campaign(world: World, reads: Reads) -> None:
    """Of many campaigns in one read, however they are read: caps hold, and nobody is counted elsewhere."""
    campaigns = await world.campaigns(20)
    rows = {each: [impression(NOW_US - at, user=b"%d" % (each % 5)) for at in range(3)] for each in campaigns}
    await world.commit(*[bunch(each, rows[each], day=TODAY) for each in campaigns])
    assert await world.asked.recover(campaigns, reads) == dict.fromkeys(campaigns, Followed(1))
    for each in campaigns:
        fresh = [impression(NOW_US + 1, user=b"%d" % (each % 5)), impression(NOW_US + 1, user=b"stranger")]
        assert await world.letters(each, fresh, cap=3) == b"CA"


async def test_no_id_comes_back_but_the_watermark_of_all(world: World) -> None:
    """Each campaign's own: what is committed is at or below it, and so is looked up; what is above it is new."""
    campaigns = await world.campaigns(5)
    for each in campaigns:
        await world.commit(bunch(each, [impression(NOW_US - each - at) for at in (9, 0, 5)], day=TODAY))
    await world.asked.recover(campaigns)
    for each in campaigns:
        book = world.ledger.books[each]
        assert (book.watermark_us, book.began_us, len(book.window), len(book.ahead)) == (NOW_US - each, NOW_US, 0, 0)
        assert await world.behind(each, impression(NOW_US - each))
        assert await world.letters(each, [impression(NOW_US - each + 1)]) == b"A"


async def test_free_events_raise_the_watermark_though_nothing_was_spent(world: World) -> None:
    """A retry of one that is committed is looked up."""
    (campaign,) = await world.campaigns(1)
    row = click(NOW_US)
    await world.commit(bunch(campaign, [row], day=TODAY))
    await world.asked.recover([campaign])
    assert await world.behind(campaign, row)


async def test_what_committed_without_a_time_raises_no_watermark(world: World) -> None:
    """It is looked up whatever that is."""
    (campaign,) = await world.campaigns(1)
    row = impression(NOW_US, id_time_us=NO_TIME)
    await world.commit(bunch(campaign, [row], day=TODAY))
    await world.asked.recover([campaign])
    assert world.ledger.books[campaign].watermark_us == 0
    assert await world.behind(campaign, row)


async def test_nothing_is_read_for_who_has_never_committed(world: World, read: Read) -> None:
    """They are open before the others are read."""
    new, used = await world.campaigns(3), await world.used(2)
    read.then = lambda: [world.open(each) for each in new]
    await world.asked.recover([*used, *new])
    assert read.calls == [(used, False, [1, 1, 1])]


@pytest.mark.parametrize("counts_users_from", [None, TODAY + 1], ids=["no cap", "another day"])
async def test_no_users_are_read_where_no_cap_asks_for_them(
    world: World, read: Read, counts_users_from: int | None
) -> None:
    """There is no cap, or those of the ledger's day count no more."""
    used = await world.used(3)
    assert await world.asked.recover(used, counts_users_from=counts_users_from) == dict.fromkeys(used, Followed(1))
    assert read.calls == []
    assert world.ledger.round_trips == 2


async def test_who_has_no_cap_is_open_before_others_are_read(world: World, read: Read) -> None:
    """However much those have."""
    capped, free = await world.used(2)
    read.then = lambda: [world.open(free)]
    told: dict[CampaignId, Outcome] = {}
    await world.asked.recovery.recover(
        [
            Case(each, 1, day, lambda _: None, partial(told.__setitem__, each))
            for each, day in ((capped, TODAY), (free, None))
        ]
    )
    assert read.calls == [([capped], False, [1])]
    assert told == {capped: Followed(1), free: Followed(1)}


@pytest.mark.parametrize("counts_users_from", [None, TODAY + 1], ids=["a new cap", "a clock that is behind"])
async def test_a_cap_that_asks_for_users_that_were_not_read_is_told_that_redis_is_lost(
    world: World, counts_users_from: int | None
) -> None:
    """The rebuild after it reads them: nobody is taken for a stranger."""
    (campaign,) = await world.campaigns(1)
    await world.commit(bunch(campaign, [impression(NOW_US, user=b"ada")], day=TODAY))
    await world.asked.recover([campaign], counts_users_from=counts_users_from)
    again = [impression(NOW_US + 1, user=b"ada")]
    assert await ask(world.ledger, world.call(campaign, again, cap=1)) == Lost()
    await world.asked.recover([campaign], counts_users_from=TODAY)
    assert await world.letters(campaign, again, cap=1) == b"C"


async def test_who_is_not_in_postgres_or_halted_does_not_hold_back_the_others(world: World) -> None:
    """The one has failed, the other is told why; Redis is not touched for either."""
    halted, good = await world.campaigns(2)
    nobody = CampaignId(404)
    await world.store.halt(halted, "its books differ")
    ended = await world.asked.recover([halted, nobody, good])
    assert (ended[halted], ended[good]) == (Halted(2, "its books differ"), Followed(1))
    assert isinstance(ended[nobody], Failed)
    assert world.ledger.books.keys() == {good}
    assert world.asked.raised == {halted: [2], good: [1]}


async def test_who_is_overtaken_leaves_it_to_the_other(world: World) -> None:
    """Its newer generation is the one in force."""
    overtaken, good = await world.campaigns(2)
    await world.ledger.begin([Begin(overtaken, 7)])
    assert await world.asked.recover([overtaken, good]) == {overtaken: Followed(7), good: Followed(1)}
    assert (world.open(overtaken), world.open(good)) == (None, 1)


@pytest.mark.parametrize(("step", "answered"), [("begin", 2), ("load", 2), ("ready", 3)])
@pytest.mark.parametrize("trouble", [Trouble.UNKNOWN_BEFORE, Trouble.UNKNOWN_AFTER, Trouble.UNKNOWN_LATE])
async def test_only_who_got_no_answer_starts_over(world: World, step: str, answered: int, trouble: Trouble) -> None:
    """Under a generation of its own; the others are open under their first. The last of a piece is opened alone."""
    campaigns = await world.used(6)
    setattr(world.ledger, step, troubled(world.ledger, getattr(world.ledger, step), trouble, answered=2))
    ended = await world.asked.recover(campaigns)
    world.ledger.deliver_late()
    generations = [ended[each].generation for each in campaigns]  # type: ignore[union-attr]
    assert sorted(generations) == [1] * answered + [2] * (6 - answered)
    assert [world.open(each) for each in campaigns] == generations
    assert all(world.asked.raised[each] == list(range(1, world.open(each) + 1)) for each in campaigns)  # type: ignore[operator]


async def test_a_chunk_that_was_refused_fails_its_campaign_only(world: World) -> None:
    """Redis was out of memory in the middle: nobody opens with less than all of its users."""
    campaigns = await world.used(6)
    loading = troubled(world.ledger, world.ledger.load, Trouble.NOT_RUN, 4)
    world.ledger.load = loading  # type: ignore[method-assign, assignment]
    ended = await world.asked.recover(campaigns)
    failed = [each for each in campaigns if isinstance(ended[each], Failed)]
    assert len(failed) == 2
    assert [world.open(each) for each in campaigns] == [None if each in failed else 1 for each in campaigns]


async def test_what_somebody_else_has_closed_is_left_to_them(world: World) -> None:
    """Nothing is raised, so what they have loaded stays. What is open, or closed by nobody, is recovered."""
    closed, opened, lost, newer = campaigns = await world.campaigns(4)
    for each in campaigns:
        await raise_generation(world.store, each)
    await world.ledger.begin([Begin(each, 1) for each in (closed, opened)] + [Begin(newer, 7)])
    await ready(world.ledger, opened, 1, (await ledger_of(world.store, opened)).spend, 1)
    told: dict[CampaignId, Outcome] = {}
    raised: list[CampaignId] = []
    cases = [
        Case(each, 1, None, lambda _, each=each: raised.append(each), partial(told.__setitem__, each), 1)  # type: ignore[misc]
        for each in campaigns
    ]
    await world.asked.recovery.recover(cases, Reads.NONE)
    assert told == {closed: Left(1), opened: Followed(2), lost: Followed(2), newer: Followed(7)}
    assert sorted(raised) == [opened, lost, newer]
    assert world.ledger.books[closed].generation == 1


class Full:
    """Redis has no memory for a load; others give some back after so many seconds. How often loads were sent."""

    def __init__(self, ledger: FakeLedger, seconds: float) -> None:
        self.calls: list[int] = []
        self._ledger = ledger
        self._load = ledger.load
        self._until = trio.current_time() + seconds
        ledger.load = self._note  # type: ignore[method-assign]

    async def _note(self, calls: Any) -> Any:
        self.calls.append(len(calls))
        self._ledger.full = trio.current_time() < self._until
        return await self._load(calls)


async def test_what_redis_has_no_memory_for_is_loaded_again(
    autojump_clock: MockClock, world: World, read: Read
) -> None:
    """When others have forgotten ids: nobody's users are read twice, and caps hold."""
    campaigns = await world.campaigns(3)
    rows = {each: [impression(NOW_US, user=b"%d" % at) for at in range(1_500)] for each in campaigns}
    await world.commit(*[bunch(each, rows[each], day=TODAY) for each in campaigns])
    full = Full(world.ledger, 4)
    assert await world.asked.recover(campaigns, Reads.MUCH) == dict.fromkeys(campaigns, Followed(1))
    assert (len(read.calls), full.calls) == (1, [6] * 5)
    for each in campaigns:
        assert await world.letters(each, [impression(NOW_US + 1, user=b"1499")], cap=1) == b"C"


async def test_only_what_did_not_run_is_loaded_again(autojump_clock: MockClock, world: World) -> None:
    """A chunk of many, say."""
    campaigns = await world.used(6)
    sent: list[int] = []
    load = world.ledger.load

    async def short(calls: Any) -> Any:
        sent.append(len(calls))
        replies = await load(calls)
        return [*replies[:-1], NotRun("OOM", full=True)] if len(calls) > 1 else replies

    world.ledger.load = short  # type: ignore[method-assign]
    assert await world.asked.recover(campaigns) == dict.fromkeys(campaigns, Followed(1))
    assert sent == [6, 1]


async def test_a_redis_that_stays_full_fails_a_rebuild_in_the_end(autojump_clock: MockClock, world: World) -> None:
    """It is waited for once, however many pieces there are; and who has failed is not open."""
    campaigns = await world.campaigns(3)
    rows = [impression(NOW_US, user=b"%d" % at) for at in range(10_000)]
    await world.commit(*[bunch(each, rows, day=TODAY) for each in campaigns])
    full, began = Full(world.ledger, 1_000), trio.current_time()
    ended = await world.asked.recover(campaigns, Reads.MUCH)
    assert all(isinstance(outcome, Failed) for outcome in ended.values())
    assert trio.current_time() - began == FULL_PAUSES_MAX * FULL_PAUSE_SECONDS
    assert [world.open(each) for each in campaigns] == [None] * 3
    assert full.calls == [10] * (1 + FULL_PAUSES_MAX) + [10, 10]


async def test_each_pending_reservation_is_settled_as_postgres_says(world: World) -> None:
    """What has committed stays, what has not is given back, in each campaign by itself."""
    campaigns = await world.campaigns(4)
    await world.asked.recover(campaigns)
    of_now = partial(reserve, day=TODAY, time_us=NOW_US)
    calls = {each: [of_now(campaign_id=each) for _ in range(each % 3)] for each in campaigns}
    for each in campaigns:
        for at, call in enumerate(calls[each]):
            assert isinstance(await ask(world.ledger, call), Reserved)
            if at == 0:
                row = impression(NOW_US)
                row.event_id = ids_of(call)[0]
                await world.commit(bunch(each, [row], generation=1, tag=call.tag, day=TODAY))
    assert await world.asked.recover(campaigns) == dict.fromkeys(campaigns, Followed(2))
    for each in campaigns:
        assert not world.ledger.books[each].pending
        for at, call in enumerate(calls[each]):
            again = of_now(campaign_id=each, generation=2, ids=call.ids)
            assert await letters(world.ledger, again) == (b"A" if at else b"D")


async def test_who_does_not_match_is_rebuilt_while_the_others_are_open(world: World) -> None:
    """MISMATCH: its second way is a rebuild."""
    wrong, good = await world.campaigns(2)
    await world.asked.recover([wrong, good])
    await world.commit(bunch(wrong, [impression(NOW_US)], generation=1, day=TODAY))  # which Redis never saw
    assert await world.asked.recover([wrong, good]) == {wrong: Followed(3), good: Followed(2)}


async def test_who_never_matches_has_failed(world: World) -> None:
    """After some rounds, which the others do not share."""
    wrong, good = await world.campaigns(2)
    begin = world.ledger.begin

    async def never(calls: Sequence[Begin]) -> Any:
        replies = await begin(calls)
        for call in calls:
            if call.campaign_id == wrong:
                await ready(world.ledger, wrong, call.generation, (await ledger_of(world.store, wrong)).spend, 1)
        return replies

    world.ledger.begin = never  # type: ignore[method-assign]
    ended = await world.asked.recover([wrong, good])
    assert isinstance(ended[wrong], Failed)
    assert (ended[good], len(world.asked.raised[wrong])) == (Followed(1), ROUNDS_MAX)


async def test_a_row_that_a_flush_holds_is_waited_for_alone(world: World) -> None:
    """Many leave it as it is; by itself it waits, and then has what the flush has committed."""
    held, good = await world.campaigns(2)
    release = trio.Event()
    world.store.hold = release.wait
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.store.flush, [bunch(held, [impression(NOW_US)], day=TODAY)])
        await trio.sleep(1)
        with trio.fail_after(1):
            assert await world.asked.recover([held, good]) == {held: Alone(), good: Followed(1)}
        assert (held in world.ledger.books, held in world.asked.raised) == (False, False)
        nursery.start_soon(lambda: world.asked.recover([held], wait=True))
        await trio.sleep(1)
        assert world.asked.ended == {}
        release.set()
    assert world.asked.ended == {held: Followed(1)}
    sums = world.ledger.books[held].sums
    assert sums is not None
    assert sums.total == 1_000


async def test_a_row_that_a_flush_holds_for_a_moment_is_asked_for_again(
    autojump_clock: MockClock, world: World
) -> None:
    """It is recovered with the others, which wait for some ten milliseconds more."""
    held, good = await world.campaigns(2)

    async def a_moment() -> None:
        await trio.sleep(0.03)

    world.store.hold = a_moment
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.store.flush, [bunch(held, [impression(NOW_US)], day=TODAY)])
        await trio.sleep(0.01)
        with trio.fail_after(0.1):
            assert await world.asked.recover([held, good]) == {held: Followed(1), good: Followed(1)}
    assert world.asked.raised == {held: [1], good: [1]}


async def test_who_has_users_to_read_is_left_for_others_of_the_kind(world: World, read: Read) -> None:
    """Where none are to be read: whoever needs none is open, nobody waits even for their number."""
    new, used = await world.campaigns(2), await world.used(2)
    world.store.events_since = None  # type: ignore[method-assign, assignment]
    ended = await world.asked.recover([*used, *new], Reads.NONE)
    assert ended == {**dict.fromkeys(used, Unread()), **dict.fromkeys(new, Followed(1))}
    assert read.calls == []
    assert [world.open(each) for each in used] == [None, None]


async def test_what_a_flush_that_is_waited_for_has_committed_counts_for_the_cap(world: World) -> None:
    """Its users are read after the raise, which has waited for it; the ids of it are at the watermark."""
    (campaign,) = await world.used(1)
    late, release = impression(NOW_US + 5, user=b"late"), trio.Event()
    world.store.hold = release.wait
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.store.flush, [bunch(campaign, [late], day=TODAY)])
        await trio.sleep(1)
        nursery.start_soon(lambda: world.asked.recover([campaign], wait=True))
        await trio.sleep(1)
        release.set()
    assert await world.behind(campaign, late)
    assert await world.letters(campaign, [impression(NOW_US + 6, user=b"late")], cap=1) == b"C"


async def test_a_chunk_is_what_a_load_may_carry(world: World) -> None:
    """Users of a large campaign come in many."""
    (campaign,) = await world.campaigns(1)
    rows = [impression(NOW_US, user=b"%d" % user) for user in range(2_500)]
    await world.commit(bunch(campaign, rows, day=TODAY))
    await world.asked.recover([campaign])
    assert len(world.ledger.books[campaign].users) == world.asked.recovery.users_read == 2_500


async def test_what_is_too_much_to_read_by_the_key_is_read_in_one_pass(world: World, read: Read) -> None:
    """The others do not wait for it: the smallest that fit together are read, the rest is left for that pass."""
    sizes = dict(zip(await world.used(4), [KEYED_EVENTS - 3, 2, 1, 1], strict=True))

    async def events_since(days: Any) -> dict[CampaignId, int]:
        return {each: sizes[each] for each in days}

    world.store.events_since = events_since  # type: ignore[method-assign]
    large, *small = sizes
    assert await world.asked.recover([*sizes]) == {large: Large(), **dict.fromkeys(small, Followed(1))}
    assert world.open(large) is None
    assert [(sorted(each), whole) for each, whole, _ in read.calls] == [(sorted(small), False)]


async def test_all_that_have_much_to_read_share_one_pass(world: World, read: Read) -> None:
    """Whatever each has: nobody counts it first."""
    used = await world.used(3)
    world.store.events_since = None  # type: ignore[method-assign, assignment]
    assert await world.asked.recover(used, Reads.MUCH) == dict.fromkeys(used, Followed(1))
    assert [(sorted(each), whole) for each, whole, _ in read.calls] == [(used, True)]


async def test_the_small_ones_go_on_first(world: World, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebuilds are read portion by portion, and who is read goes on."""
    monkeypatch.setattr(remedy, "PORTION_EVENTS", 6)
    campaigns = await world.campaigns(6)
    sizes = [5, 1, 4, 2, 3, 6]
    for each, size in zip(campaigns, sizes, strict=True):
        await world.commit(bunch(each, [impression(NOW_US) for _ in range(size)], day=TODAY))
    await world.asked.recover(campaigns)
    portions = [[sizes[campaigns.index(campaign)] for campaign in each] for each, _, _ in read.calls]
    assert portions == [[1, 2, 3], [4], [5], [6]]
    assert [sizes[campaigns.index(CampaignId(each))] for each in world.asked.ended] == [1, 2, 3, 4, 5, 6]


async def test_who_could_not_be_read_has_failed(world: World) -> None:
    """Postgres went away in the middle: who needed nothing of it is open, nobody else."""
    (new,), used = await world.campaigns(1), await world.used(3)

    async def away(*_: object, **__: bool) -> AsyncGenerator[Any, None]:
        raise StoreUnavailable("gone", certain=True)
        yield

    world.store.users_on = away  # type: ignore[method-assign, assignment]
    ended = await world.asked.recover([new, *used])
    assert ended == {new: Followed(1), **dict.fromkeys(used, Failed("gone"))}
    assert [world.open(each) for each in used] == [None] * 3


async def test_without_postgres_all_have_failed_and_redis_is_as_it_was(world: World) -> None:
    """Nothing is told, nothing is touched."""
    campaigns = await world.campaigns(3)
    world.store.away = True
    ended = await world.asked.recover(campaigns)
    assert all(isinstance(outcome, Failed) for outcome in ended.values())
    assert (world.asked.raised, world.ledger.round_trips) == ({}, 0)


async def test_a_flush_of_an_older_generation_is_out_for_all(world: World) -> None:
    """The fence stands before anything is read."""
    campaigns = await world.used(3)
    await world.asked.recover(campaigns)
    for each in campaigns:
        assert await world.store.flush([bunch(each, [impression(NOW_US)])]) != Committed()
        row = await raise_generation(world.store, each)
        assert (row.generation, row.spend.spent_micros) == (2, Micros(1_000))
