"""The remedy for many campaigns at once, over fakes: each ends by itself, and nobody waits for another."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio

from engine import recovery as remedy
from engine.errors import StoreUnavailable
from engine.model import DAY_US, CampaignId, Micros
from engine.ports import Batch, Committed, Reserved
from engine.recovery import PORTION_EVENTS, ROUNDS_MAX, Alone, Failed, Followed, Halted, Recovery
from engine.steps import Begin
from tests.contract.flushes import Line, bunch, click, impression, new_campaign, raise_generation
from tests.contract.reservations import ask, ids_of, letters, ready, reserve
from tests.fakes.ledger import FakeLedger, Trouble
from tests.fakes.store import FakeStore
from tests.remedy import Asked

TURN_US = 480_000_000
NOW_US = 20_000 * DAY_US + DAY_US // 2
TURN = NOW_US // TURN_US
TODAY = 20_000


class World:
    """Fake stores under a clock that stands still, and whoever asks for recoveries."""

    def __init__(self) -> None:
        self.store = FakeStore(self.now_us)
        self.ledger = FakeLedger()
        self.asked = Asked(Recovery(self.ledger, self.store, self, TURN_US))

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

    async def letters(self, campaign: CampaignId, rows: Sequence[Line], **fields: Any) -> bytes:
        """What Redis says of these events."""
        ids = b"".join(row.event_id for row in rows)
        call = reserve(
            campaign_id=campaign, generation=self.open(campaign), day=TODAY, turn=TURN, ids=ids,
            users=[row.user.decode() for row in rows], kinds=b"\2" * len(rows), **fields,
        )  # fmt: skip
        return await letters(self.ledger, call)


@pytest.fixture
def world() -> World:
    """Empty stores."""
    return World()


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
    case = remedy.Case(campaign, 1, lambda g: seen.append((g, campaign in world.ledger.books)), seen.append)
    await world.asked.recovery.recover([case])
    assert seen == [(1, False), Followed(1)]


async def test_users_and_ids_come_back_to_their_own_campaign(world: World) -> None:
    """Of many campaigns in one read: caps and duplicates hold, and nobody is counted elsewhere."""
    campaigns = await world.campaigns(20)
    rows = {each: [impression(NOW_US - at, user=b"%d" % (each % 5)) for at in range(3)] for each in campaigns}
    await world.commit(*[bunch(each, rows[each], day=TODAY) for each in campaigns])
    assert await world.asked.recover(campaigns) == dict.fromkeys(campaigns, Followed(1))
    for each in campaigns:
        assert await world.letters(each, rows[each], cap=4) == b"DDD"
        fresh = [impression(NOW_US, user=b"%d" % (each % 5)), impression(NOW_US, user=b"stranger")]
        assert await world.letters(each, fresh, cap=3) == b"CA"
        assert await world.letters(each, rows[campaigns[each % 20]][:1]) == b"A"


async def test_free_events_are_read_though_nothing_was_spent(world: World) -> None:
    """A retry of one that is committed stays a duplicate."""
    (campaign,) = await world.campaigns(1)
    row = click(NOW_US)
    await world.commit(bunch(campaign, [row], day=TODAY))
    await world.asked.recover([campaign])
    assert await world.letters(campaign, [row]) == b"D"


async def test_nothing_is_read_for_who_has_never_committed(world: World) -> None:
    """They are open before the others are read."""
    new, used = await world.campaigns(3), await world.used(2)
    read: list[CampaignId] = []
    received = world.store.ids_received

    def note(campaigns: Sequence[CampaignId], since_us: int) -> AsyncGenerator[Any, None]:
        read.extend(campaigns)
        assert all(world.open(each) == 1 for each in new)
        return received(campaigns, since_us)

    world.store.ids_received = note  # type: ignore[method-assign, assignment]
    await world.asked.recover([*used, *new])
    assert sorted(read) == used


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


@pytest.mark.parametrize("step", ["begin", "load", "ready"])
@pytest.mark.parametrize("trouble", [Trouble.UNKNOWN_BEFORE, Trouble.UNKNOWN_AFTER, Trouble.UNKNOWN_LATE])
async def test_only_who_got_no_answer_starts_over(world: World, step: str, trouble: Trouble) -> None:
    """Under a generation of its own; the others are open under their first."""
    campaigns = await world.used(6)
    setattr(world.ledger, step, troubled(world.ledger, getattr(world.ledger, step), trouble, answered=2))
    ended = await world.asked.recover(campaigns)
    world.ledger.deliver_late()
    generations = [ended[each].generation for each in campaigns]  # type: ignore[union-attr]
    assert sorted(generations) == [1, 1, 2, 2, 2, 2]
    assert [world.open(each) for each in campaigns] == generations
    assert all(world.asked.raised[each] == list(range(1, world.open(each) + 1)) for each in campaigns)  # type: ignore[operator]


async def test_a_chunk_that_was_refused_fails_its_campaign_only(world: World) -> None:
    """Redis was out of memory in the middle: nobody opens with less than all of its ids."""
    campaigns = await world.used(6)
    loading = troubled(world.ledger, world.ledger.load, Trouble.NOT_RUN, 4)
    world.ledger.load = loading  # type: ignore[method-assign, assignment]
    ended = await world.asked.recover(campaigns)
    failed = [each for each in campaigns if isinstance(ended[each], Failed)]
    assert len(failed) == 2
    assert [world.open(each) for each in campaigns] == [None if each in failed else 1 for each in campaigns]


async def test_each_pending_reservation_is_settled_as_postgres_says(world: World) -> None:
    """What has committed stays, what has not is given back, in each campaign by itself."""
    campaigns = await world.campaigns(4)
    await world.asked.recover(campaigns)
    calls = {each: [reserve(campaign_id=each, day=TODAY, turn=TURN) for _ in range(each % 3)] for each in campaigns}
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
            again = reserve(campaign_id=each, generation=2, day=TODAY, turn=TURN, ids=call.ids)
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
                await ready(
                    world.ledger, wrong, call.generation, (await world.store.plans([wrong]))[wrong][1].spend, 0, 1
                )
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
        nursery.start_soon(lambda: world.asked.recover([held], alone=True))
        await trio.sleep(1)
        assert world.asked.ended == {}
        release.set()
    assert world.asked.ended == {held: Followed(1)}
    sums = world.ledger.books[held].sums
    assert sums is not None
    assert sums.total == 1_000


async def test_who_has_much_to_read_is_read_alone(world: World) -> None:
    """The others do not wait for it; by itself it is read whatever it has."""
    large, small = await world.used(2)

    async def events_since(days: Any) -> dict[CampaignId, int]:
        return {each: PORTION_EVENTS + (each == large) for each in days}

    world.store.events_since = events_since  # type: ignore[method-assign]
    assert await world.asked.recover([large, small]) == {large: Alone(), small: Followed(1)}
    assert await world.asked.recover([large], alone=True) == {large: Followed(2)}
    assert world.open(large) == 2


async def test_the_small_ones_go_on_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebuilds are read portion by portion, and who is read goes on."""
    monkeypatch.setattr(remedy, "PORTION_EVENTS", 6)
    campaigns = await world.campaigns(6)
    sizes = [5, 1, 4, 2, 3, 6]
    for each, size in zip(campaigns, sizes, strict=True):
        await world.commit(bunch(each, [impression(NOW_US) for _ in range(size)], day=TODAY))
    portions: list[list[int]] = []
    users_on = world.store.users_on

    def note(days: dict[CampaignId, int]) -> AsyncGenerator[Any, None]:
        portions.append([sizes[campaigns.index(each)] for each in days])
        return users_on(days)

    world.store.users_on = note  # type: ignore[method-assign, assignment]
    await world.asked.recover(campaigns)
    assert portions == [[1, 2, 3], [4], [5], [6]]
    assert [sizes[campaigns.index(CampaignId(each))] for each in world.asked.ended] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("read", ["users_on", "ids_received"])
async def test_who_could_not_be_read_has_failed(world: World, read: str) -> None:
    """Postgres went away in the middle: who needed nothing of it is open, nobody else."""
    (new,), used = await world.campaigns(1), await world.used(3)

    async def away(*_: object) -> AsyncGenerator[Any, None]:
        raise StoreUnavailable("gone", certain=True)
        yield

    setattr(world.store, read, away)
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
