"""The dedup window over fakes: what is looked up, for how long a look-up counts, and what a Redis that forgot knows.

No clock, no sleep and no loss of memory turns a retry into a new event, and fresh ids cost no look-up.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.campaign import ATTEMPTS_MAX
from engine.engine import Engine
from engine.leftovers import Advance
from engine.lookups import days_of
from engine.memory import BUCKET_MIN_US, OBSERVED_SECONDS
from engine.model import DAY_US, SECOND_US, CampaignId, Event, Reason, Status, StoredEvent, instant_text, new_event_id
from engine.patience import FULL_MAX
from engine.ports import Batch, Behind, Done, FlushReply, Reserve, ReserveReply, Resolve, ResolveReply, Wanted
from engine.processes import Engines
from engine.recovery import Recovery
from engine.registry import Registry
from tests.fakes.ledger import Book, FakeLedger, Trouble
from tests.fakes.store import FakeStore
from tests.plans import NOON_US, entry
from tests.remedy import recover_alone
from tests.unit.test_engine import World, shown

MINUTE_US, HOUR_US = 60 * SECOND_US, 3_600 * SECOND_US
CAPPED = {"freq_cap_impressions_per_day": 1}


class SleepyLedger(FakeLedger):
    """The memory of another ledger, behind an engine that sleeps before its next round trip, or after it."""

    def __init__(self, other: FakeLedger) -> None:
        super().__init__()
        self.books = other.books
        self.sleep_before_seconds = self.sleep_after_seconds = 0.0

    async def answer(self, calls: Sequence[Reserve | Resolve]) -> list[ReserveReply | ResolveReply]:
        """Sleep as told, once."""
        before, self.sleep_before_seconds = self.sleep_before_seconds, 0.0
        await trio.sleep(before)
        replies = await super().answer(calls)
        after, self.sleep_after_seconds = self.sleep_after_seconds, 0.0
        await trio.sleep(after)
        return replies


class SlowStore(FakeStore):
    """Its next flush takes a second, or its next look-up is answered late."""

    slow = False
    look_up_answer_seconds = 0.0  # of the next look-up

    async def look_up(self, wanted: Sequence[Wanted]) -> dict[tuple[CampaignId, bytes], StoredEvent]:
        """What was there when it was asked, answered when it is told to."""
        found = await super().look_up(wanted)
        seconds, self.look_up_answer_seconds = self.look_up_answer_seconds, 0.0
        await trio.sleep(seconds)
        return found

    async def flush(self, batches: Sequence[Batch], *, hasty: bool = False) -> FlushReply:
        """Later, if told so."""
        slow, self.slow = self.slow, False
        await trio.sleep(float(slow))
        return await super().flush(batches, hasty=hasty)


class Second(World):
    """Another engine on the same stores, which lives as long."""

    def __init__(self, first: World, nursery: trio.Nursery) -> None:
        self.settings, self.store, self.clock_step_us = first.settings, first.store, 0
        self.sleepy = SleepyLedger(first.ledger)
        self.ledger = self.sleepy
        engines = Engines(2)
        engines.alive = frozenset([1, 2])
        self.registry = Registry(self.settings, self.ledger, self.store, self, engines, nursery)
        self.engine = Engine(self.settings, self.registry, self.store, self)
        self.registry.start()
        nursery.start_soon(self.engine.tick)


class Asked:
    """Which ids are looked up on the days that they may have, one by one, and how often Redis says BEHIND."""

    def __init__(self, world: World) -> None:
        self.ids: list[bytes] = []
        self.behind = 0
        self.meanwhile: Callable[[], Any] | None = None  # awaited while a query is under way
        self._look_up, self._answer = world.store.look_up, world.ledger.answer
        world.store.look_up = self._note_look_up  # type: ignore[method-assign]
        world.ledger.answer = self._note_answer  # type: ignore[method-assign]

    async def _note_look_up(self, wanted: Sequence[Wanted]) -> dict[tuple[CampaignId, bytes], StoredEvent]:
        self.ids += [each.event_id for each in wanted if each.days is not None]
        found = await self._look_up(wanted)
        if self.meanwhile is not None:
            await self.meanwhile()
        return found

    async def _note_answer(self, calls: Sequence[Reserve | Resolve]) -> list[ReserveReply | ResolveReply]:
        replies = await self._answer(calls)
        self.behind += sum(isinstance(reply, Behind) for reply in replies)
        return replies


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncIterator[World]:
    """A fresh engine on fresh fakes."""
    async with trio.open_nursery() as nursery:
        yield World(nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture
def asked(world: World) -> Asked:
    """What the engine asks of its stores."""
    return Asked(world)


def book(world: World, campaign: int) -> Book:
    """What Redis holds of a campaign."""
    return world.ledger.books[CampaignId(campaign)]


async def close_bucket(world: World, campaign: int) -> None:
    """Have Redis close the bucket, whatever its age: what was in the older one is forgotten."""
    held = book(world, campaign)
    number, sums = held.window.number, held.sums
    assert sums is not None
    at_us = max(world.now_us(), held.began_us)  # (it may have begun by a clock that is ahead of this one)
    call = Advance(CampaignId(campaign), held.generation, sums.day, at_us, 0)
    assert await world.ledger.give_back([call]) == [Done()]
    assert held.window.number == number + 1


async def forget(world: World, campaign: int) -> None:
    """Have Redis forget all ids that it knows, once it has been told that they are committed."""
    await trio.sleep(1)
    await close_bucket(world, campaign)
    await close_bucket(world, campaign)


def at(world: World, campaign: int, offset_us: int = 0, **fields: Any) -> Event:
    """An event with a UUIDv4 that says that it occurs so much later than now."""
    occurred_at = instant_text(world.now_us() + offset_us)
    return shown(campaign, event_id=uuid.uuid4(), occurred_at=occurred_at, **fields)


def by_id(world: World, campaign: int, offset_us: int = 0) -> Event:
    """An event whose UUIDv7 was made so much later than now."""
    return shown(campaign, event_id=uuid.UUID(bytes=new_event_id(world.now_us() + offset_us, uuid.uuid4().bytes[:10])))


def timeless(campaign: int, user: str = "ada") -> Event:
    """An event that tells no time."""
    return shown(campaign, user, event_id=uuid.uuid4())


def id_of(event: Event) -> bytes:
    """Its 16 bytes."""
    assert event.event_id is not None
    return event.event_id.bytes


def rows_of(world: World, campaign: int, event: Event) -> int:
    """How often an event is counted."""
    return sum(row.event.event_id == id_of(event) for row in world.store.rows_of(CampaignId(campaign)))


KINDS: dict[str, Callable[[World, int], Event]] = {
    "UUIDv7": by_id,
    "UUIDv4": lambda _, campaign: timeless(campaign),
    "occurred_at": at,
    "late by 47 hours": lambda world, campaign: at(world, campaign, -47 * HOUR_US),
    "UUIDv7, late by 47 hours": lambda world, campaign: by_id(world, campaign, -47 * HOUR_US),
    "ahead by 4 minutes": lambda world, campaign: at(world, campaign, 4 * MINUTE_US),
    "UUIDv7, ahead by 4 minutes": lambda world, campaign: by_id(world, campaign, 4 * MINUTE_US),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


# --- what is looked up ---


async def test_only_what_is_not_above_the_watermark_is_looked_up(
    autojump_clock: MockClock, world: World, asked: Asked
) -> None:
    """At it, below it, and what tells no time; none of it is known, so all of it is accepted."""
    campaign = await world.campaign()
    mark = at(world, campaign)
    assert await world.reasons(mark) == ["accepted"]
    marked_us = world.now_us()
    await forget(world, campaign)
    since_us = marked_us - world.now_us()
    assert book(world, campaign).watermark_us == marked_us
    above = [at(world, campaign, since_us + 1), by_id(world, campaign, since_us + 1_000)]
    assert await world.reasons(*above) == ["accepted"] * 2
    assert asked.ids == []
    others = [
        at(world, campaign, since_us), by_id(world, campaign, since_us), by_id(world, campaign, -HOUR_US),
        timeless(campaign),
    ]  # fmt: skip
    assert await world.reasons(*others) == ["accepted"] * 4
    assert sorted(asked.ids) == sorted(map(id_of, others))


async def test_as_long_as_nothing_was_forgotten_only_what_tells_no_time_is_looked_up(
    autojump_clock: MockClock, world: World, asked: Asked
) -> None:
    """Of a campaign without commits before this state of Redis, however late its events are."""
    campaign = await world.campaign()
    for kind in KINDS.values():
        assert await world.reasons(kind(world, campaign)) == ["accepted"]
    assert len(asked.ids) == 1


async def test_redis_says_once_what_has_to_be_looked_up(autojump_clock: MockClock, world: World, asked: Asked) -> None:
    """A reply tells where the dedup window is: from then on the engine asks Postgres before it asks Redis."""
    campaign = await world.campaign()
    for _ in range(5):
        assert await world.reasons(timeless(campaign)) == ["accepted"]
    assert (len(asked.ids), asked.behind) == (5, 1)
    await world.send(at(world, campaign))
    await forget(world, campaign)
    await world.send(at(world, campaign))
    for _ in range(5):
        assert await world.reasons(timeless(campaign), at(world, campaign, -HOUR_US)) == ["accepted"] * 2
    assert (len(asked.ids), asked.behind) == (15, 1)


async def test_one_that_is_looked_up_does_not_hold_up_its_neighbours(
    autojump_clock: MockClock, world: World, asked: Asked
) -> None:
    """Fresh ones of the same request go on while Postgres is asked."""
    campaign = await world.campaign()
    await world.send(timeless(campaign))
    release = trio.Event()
    asked.meanwhile = release.wait
    spent = world.spent(campaign)
    world.engine.submit([timeless(campaign), at(world, campaign), at(world, campaign)], lambda _: None)
    await trio.sleep(1)
    assert world.spent(campaign) == spent + 2_000
    release.set()
    await trio.sleep(1)
    assert world.spent(campaign) == spent + 3_000


async def test_an_id_made_by_the_server_is_not_looked_up(autojump_clock: MockClock, world: World, asked: Asked) -> None:
    """Nobody can have sent it before, even where its event is older than the watermark."""
    campaign = await world.campaign()
    await world.send(at(world, campaign))
    await forget(world, campaign)
    old = instant_text(world.now_us() - HOUR_US)
    assert await world.reasons(shown(campaign), shown(campaign, occurred_at=old)) == ["accepted"] * 2
    assert asked.ids == []


@pytest.mark.parametrize("trouble", [Trouble.UNKNOWN_BEFORE, Trouble.UNKNOWN_AFTER, Trouble.UNKNOWN_LATE])
async def test_an_id_made_by_the_server_is_like_any_other_after_a_call_that_may_have_run(
    autojump_clock: MockClock, world: World, asked: Asked, trouble: Trouble
) -> None:
    """Redis gave no answer: what it reserved may be anywhere."""
    campaign = await world.campaign()
    await world.send(at(world, campaign))
    await forget(world, campaign)
    world.ledger.fail_next(trouble)
    assert await world.reasons(shown(campaign, occurred_at=instant_text(world.now_us() - HOUR_US))) == ["accepted"]
    assert len(asked.ids) == 1
    assert world.spent(campaign) == 2_000


@pytest.mark.parametrize(("received_us", "now_us"), [(0, 0), (0, 10 * SECOND_US), (11 * HOUR_US, 13 * HOUR_US)])
def test_an_id_without_a_time_is_looked_up_from_two_days_before_its_receipt_to_the_day_after_now(
    received_us: int, now_us: int
) -> None:
    """Duplicates are known for 48 hours, and another try may have been received by a clock that is ahead."""
    one = entry(event_id=uuid.uuid4(), now_us=NOON_US + received_us)
    received, now = (NOON_US + received_us) // DAY_US, (NOON_US + now_us) // DAY_US
    assert [*days_of(one, NOON_US + now_us, 60 * SECOND_US)] == [*range(received - 2, now + 2)]


def test_an_event_that_tells_a_time_is_looked_up_on_its_day() -> None:
    """A repeat repeats the time, so it can be nowhere else."""
    one = entry(event_id=uuid.uuid4(), occurred_at=instant_text(NOON_US - 2 * DAY_US))
    assert [*days_of(one, NOON_US, 60 * SECOND_US)] == [NOON_US // DAY_US - 2]


async def test_a_repeat_is_found_though_a_clock_that_is_ahead_has_received_it_on_the_next_day(
    autojump_clock: MockClock,
) -> None:
    """It is shortly before midnight by our clock, and after it by the other."""
    async with trio.open_nursery() as nursery:
        ahead = World(nursery)
        behind = Second(ahead, nursery)
        campaign = await known_to_both(ahead, behind, before_midnight_seconds=20)
        ahead.clock_step_us += 25 * SECOND_US
        event = timeless(campaign)
        assert await ahead.reasons(event) == ["accepted"]
        await forget(ahead, campaign)
        assert await behind.reasons(event) == ["duplicate"]
        nursery.cancel_scope.cancel()


async def test_a_retry_within_48_hours_is_found_though_a_clock_that_is_behind_has_received_the_first_try(
    autojump_clock: MockClock,
) -> None:
    """The first try came before midnight by the other clock, and after it by ours."""
    async with trio.open_nursery() as nursery:
        behind = World(nursery)
        ahead = Second(behind, nursery)
        campaign = await known_to_both(behind, ahead, before_midnight_seconds=10)
        ahead.clock_step_us += 55 * SECOND_US
        event = timeless(campaign)
        assert await behind.reasons(event) == ["accepted"]
        await forget(behind, campaign)
        for each in (behind, ahead):
            each.clock_step_us += 48 * HOUR_US - 2 * SECOND_US
        assert await ahead.reasons(event) == ["duplicate"]
        nursery.cancel_scope.cancel()


def test_the_days_of_an_id_without_a_time_are_four_but_for_the_seconds_by_which_clocks_differ() -> None:
    """Each day costs a probe more."""
    midnight_us = NOON_US // DAY_US * DAY_US
    for seconds, days in [(1, 5), (59, 5), (60, 4), (86_399, 4)]:
        now_us = midnight_us + seconds * SECOND_US
        one = entry(event_id=uuid.uuid4(), now_us=now_us)
        assert len(days_of(one, now_us, MINUTE_US)) == days


# --- for how long a look-up counts ---


async def known_to_both(first: World, second: World, *, before_midnight_seconds: int) -> CampaignId:
    """A campaign that both engines hold, shortly before the day of both ends."""
    first.clock_step_us = second.clock_step_us = DAY_US - first.now_us() % DAY_US - before_midnight_seconds * SECOND_US
    campaign = CampaignId(await first.campaign())
    await first.send(shown(campaign))
    await second.send(shown(campaign))
    return campaign


async def test_what_was_looked_up_is_looked_up_again_after_an_advance(
    autojump_clock: MockClock, world: World, asked: Asked
) -> None:
    """What was committed since may be forgotten. BEHIND, however often, is no attempt: in the end it is accepted."""
    campaign = await world.campaign()
    await world.send(timeless(campaign))
    asked.ids.clear()
    asked.behind = 0

    async def once_more() -> None:
        await trio.sleep(0.1)
        if len(asked.ids) <= 2 * ATTEMPTS_MAX:
            await close_bucket(world, campaign)

    asked.meanwhile = once_more
    event = timeless(campaign)
    assert await world.reasons(event) == ["accepted"]
    assert asked.ids == [id_of(event)] * (2 * ATTEMPTS_MAX + 1)
    assert asked.behind == 2 * ATTEMPTS_MAX


async def test_look_ups_that_are_always_too_old_end_with_the_request(
    autojump_clock: MockClock, world: World, asked: Asked
) -> None:
    """An advance during each: nothing is reserved, and nobody goes on asking for what nobody waits for."""
    campaign = await world.campaign()
    await world.send(timeless(campaign))

    async def advances() -> None:
        await trio.sleep(0.1)
        await close_bucket(world, campaign)

    asked.meanwhile = advances
    event = timeless(campaign)
    assert await world.reasons(event) == ["unavailable"]
    await trio.sleep(1)
    count = len(asked.ids)
    await trio.sleep(30)
    assert len(asked.ids) == count
    asked.meanwhile = None
    assert await world.reasons(event) == ["accepted"]


async def test_what_was_pending_in_the_older_bucket_is_not_missed_by_a_look_up(autojump_clock: MockClock) -> None:
    """Committed after the query, resolved, and forgotten by the very next advance, on the other side of midnight."""
    async with trio.open_nursery() as nursery:
        first = World(nursery)
        second = Second(first, nursery)
        campaign = await known_to_both(first, second, before_midnight_seconds=3)
        twice = timeless(campaign)
        with first.store.commits_hang():
            nursery.start_soon(first.send, twice)
            await trio.sleep(1)
            await close_bucket(first, campaign)
            await second.send(shown(campaign))  # so that it knows that bucket
            await trio.sleep(3)  # it is the next day: the unique key tells no more
            first.store.__class__ = SlowStore
            first.store.look_up_answer_seconds = 3  # type: ignore[attr-defined]
            nursery.start_soon(second.send, twice)
            await trio.sleep(1)
        await trio.sleep(1)
        await first.send(shown(campaign))  # so Redis has heard of the commit
        await close_bucket(first, campaign)
        await trio.sleep(5)
        assert rows_of(first, campaign, twice) == 1
        assert await second.reasons(twice) == ["duplicate"]
        nursery.cancel_scope.cancel()


async def test_no_id_that_may_still_commit_is_forgotten(autojump_clock: MockClock) -> None:
    """A COMMIT takes longer than both buckets last: its retry is in flight, and a duplicate afterwards."""
    async with trio.open_nursery() as nursery:
        first = World(nursery, dedup_bucket_seconds=2, flush_timeout_seconds=60.0)
        second = Second(first, nursery)
        campaign = await known_to_both(first, second, before_midnight_seconds=5)
        event = at(first, campaign)
        with first.store.commits_hang():
            nursery.start_soon(first.send, event)
            for _ in range(9):
                await trio.sleep(1)
                nursery.start_soon(second.send, at(second, campaign))
            assert await second.reasons(event) == ["in_flight"]
        await trio.sleep(5)
        assert rows_of(first, campaign, event) == 1
        assert await second.reasons(event) == ["duplicate"]
        nursery.cancel_scope.cancel()


async def test_who_sleeps_between_deciding_and_sending_counts_no_event_twice(autojump_clock: MockClock) -> None:
    """Looked up on one side of midnight, committed on the other, forgotten by Redis: it is looked up again."""
    async with trio.open_nursery() as nursery:
        first = World(nursery, dedup_bucket_seconds=60)
        first.store.__class__ = SlowStore
        second = Second(first, nursery)
        campaign = await known_to_both(first, second, before_midnight_seconds=30)
        await trio.sleep(29.9)
        first.store.slow = True  # type: ignore[attr-defined]
        twice = timeless(campaign)
        nursery.start_soon(first.send, twice)
        await trio.sleep(0.15)
        second.sleepy.sleep_before_seconds = 9 * 60
        nursery.start_soon(second.send, twice)
        for _ in range(20):
            await trio.sleep(30)
            await first.send(at(first, campaign))
        assert rows_of(first, campaign, twice) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seconds", [0, 3], ids=["answered before the raise", "answered after it"])
async def test_a_look_up_does_not_outlive_the_generation_under_which_it_began(
    autojump_clock: MockClock, seconds: int
) -> None:
    """A recovery waits for a flush that a look-up did not see, and its rebuild loads no id."""
    async with trio.open_nursery() as nursery:
        first = World(nursery)
        second = Second(first, nursery)
        campaign = await known_to_both(first, second, before_midnight_seconds=30)
        twice = timeless(campaign)
        with first.store.commits_hang():
            nursery.start_soon(first.send, twice)
            await trio.sleep(1)
            first.clock_step_us = second.clock_step_us = first.clock_step_us + 20 * MINUTE_US
            first.store.__class__ = SlowStore
            first.store.look_up_answer_seconds = seconds  # type: ignore[attr-defined]
            second.sleepy.sleep_before_seconds = 0.2
            nursery.start_soon(second.send, twice)
            await trio.sleep(0.1)
            first.ledger.books.clear()
            nursery.start_soon(second.send, at(second, campaign))
            await trio.sleep(1)
        await trio.sleep(5)
        assert rows_of(first, campaign, twice) == 1
        assert await second.reasons(twice) == ["duplicate"]
        nursery.cancel_scope.cancel()


async def test_no_deadline_is_too_long_for_a_bucket(autojump_clock: MockClock) -> None:
    """The longest request and the shortest bucket: looked up before a slow commit, reserved minutes after it."""
    async with trio.open_nursery() as nursery:
        first = World(nursery, request_deadline_seconds=300, dedup_bucket_seconds=1)
        second = Second(first, nursery)
        campaign = await known_to_both(first, second, before_midnight_seconds=2)
        await trio.sleep(1)
        twice = timeless(campaign)
        with first.store.commits_hang():
            nursery.start_soon(first.send, twice)
            await trio.sleep(100)
            first.store.__class__ = SlowStore
            first.store.look_up_answer_seconds = 100  # type: ignore[attr-defined]
            nursery.start_soon(second.send, twice)
            await trio.sleep(5)
        for _ in range(200):
            await first.send(shown(campaign))
            await trio.sleep(1)
        assert book(first, campaign).window.number > 80
        assert rows_of(first, campaign, twice) == 1
        nursery.cancel_scope.cancel()


async def test_a_reply_that_is_met_after_a_long_sleep_counts(autojump_clock: MockClock) -> None:
    """What Redis has reserved is held until it is committed or undone, however late: nobody is counted twice."""
    async with trio.open_nursery() as nursery:
        first = World(nursery, dedup_bucket_seconds=2)
        second = Second(first, nursery)
        campaign = await first.campaign(total_budget="0.200")
        await second.send(shown(campaign))
        second.sleepy.sleep_after_seconds = 60
        event = at(first, campaign)
        assert await second.reasons(event) == ["unavailable"]
        for _ in range(55):
            await first.send(shown(campaign))
            await trio.sleep(1)
        assert rows_of(first, campaign, event) == 1
        assert await first.reasons(event) == ["duplicate"]
        assert first.spent(campaign) == 57_000
        nursery.cancel_scope.cancel()


# --- what is forgotten ---


@each_kind
async def test_a_retry_of_what_was_forgotten_is_a_duplicate(
    autojump_clock: MockClock, world: World, kind: Callable[[World, int], Event]
) -> None:
    """Whatever it tells of its time, today and two days later; budget and cap are used up, and no matter."""
    campaign = await world.campaign(**CAPPED, total_budget="0.002")
    event = kind(world, campaign)
    assert await world.reasons(event, at(world, campaign, user="bob")) == ["accepted"] * 2
    for _ in range(2):
        await forget(world, campaign)
        assert await world.reasons(event, shown(campaign, "eve")) == ["duplicate", "total_budget"]
        world.clock_step_us += 2 * DAY_US - 2 * MINUTE_US - 47 * HOUR_US * ("late" in kind_name(kind))
    assert world.spent(campaign) == 2_000


def kind_name(kind: Callable[[World, int], Event]) -> str:
    """What the table calls it."""
    return next(name for name, each in KINDS.items() if each is kind)


async def test_while_events_come_redis_holds_the_ids_of_two_buckets(autojump_clock: MockClock) -> None:
    """What is older is forgotten, and is looked up; no fresh id is, and nothing is recovered."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, dedup_bucket_seconds=10)
        asked = Asked(world)
        campaign = await world.campaign()
        events = []
        for _ in range(100):
            events.append(at(world, campaign))
            assert await world.reasons(events[-1]) == ["accepted"]
            assert len(book(world, campaign).window) <= 27
            await trio.sleep(1)
        assert asked.ids == []
        assert book(world, campaign).window.number in (7, 8, 9)
        assert await world.reasons(*events) == ["duplicate"] * 100
        assert world.store.ledger[CampaignId(campaign)].gen == 1
        nursery.cancel_scope.cancel()


async def test_ids_that_are_ahead_of_their_receipt_do_not_raise_the_watermark(
    autojump_clock: MockClock, world: World, asked: Asked
) -> None:
    """They have buckets of their own: when others are forgotten, fresh ids need no look-up, and these are known."""
    campaign = await world.campaign()
    ahead = [at(world, campaign, 4 * MINUTE_US), by_id(world, campaign, 3 * MINUTE_US)]
    assert await world.reasons(*ahead, at(world, campaign)) == ["accepted"] * 3
    await forget(world, campaign)
    await forget(world, campaign)
    held = book(world, campaign)
    assert (held.watermark_us, len(held.window), len(held.ahead)) == (world.now_us() - 2 * SECOND_US, 0, 2)
    assert await world.reasons(at(world, campaign), by_id(world, campaign)) == ["accepted"] * 2
    assert asked.ids == []
    assert await world.reasons(*ahead) == ["duplicate"] * 2


async def test_ids_that_are_ahead_are_forgotten_when_the_watermark_has_passed_them(
    autojump_clock: MockClock, world: World
) -> None:
    """They are looked up then, like all that are as old."""
    campaign = await world.campaign()
    ahead = at(world, campaign, 4 * MINUTE_US)
    assert await world.reasons(ahead) == ["accepted"]
    for seconds, held in ((100, 1), (137, 1), (3, 0)):
        await trio.sleep(seconds)
        assert await world.reasons(at(world, campaign)) == ["accepted"]
        await forget(world, campaign)
        await close_bucket(world, campaign)
        assert len(book(world, campaign).ahead) == held
    assert await world.reasons(ahead) == ["duplicate"]


# --- what a rebuild knows ---


@each_kind
async def test_after_a_loss_of_redis_a_retry_is_a_duplicate(
    autojump_clock: MockClock, world: World, kind: Callable[[World, int], Event]
) -> None:
    """The rebuild loads no id: all that is committed is at or below the watermark, and so is looked up."""
    campaign = await world.campaign(**CAPPED, total_budget="0.002")
    event = kind(world, campaign)
    assert await world.reasons(event, at(world, campaign, user="bob")) == ["accepted"] * 2
    world.ledger.forget()
    told = await world.reasons(event, shown(campaign), shown(campaign, "eve"))
    assert told == ["duplicate", "frequency_capped", "total_budget"]
    assert len(book(world, campaign).window) + len(book(world, campaign).ahead) == 0


async def test_after_a_loss_of_redis_fresh_ids_are_not_looked_up(
    autojump_clock: MockClock, world: World, asked: Asked
) -> None:
    """The watermark is the highest id time of what is committed, and no more."""
    campaign = await world.campaign()
    before = [at(world, campaign, -HOUR_US), at(world, campaign), timeless(campaign)]
    assert await world.reasons(*before) == ["accepted"] * 3
    latest_us = world.now_us()
    world.ledger.forget()
    asked.ids.clear()
    await trio.sleep(1)
    assert await world.reasons(at(world, campaign), by_id(world, campaign), shown(campaign)) == ["accepted"] * 3
    assert asked.ids == []
    assert book(world, campaign).watermark_us == latest_us


async def test_after_a_loss_of_redis_a_sender_that_was_ahead_costs_look_ups_until_its_time_has_passed(
    autojump_clock: MockClock, world: World, asked: Asked
) -> None:
    """Slower, never wrong."""
    campaign = await world.campaign()
    ahead = at(world, campaign, 4 * MINUTE_US)
    assert await world.reasons(ahead) == ["accepted"]
    world.ledger.forget()
    for fresh_looked_up in (True, False):
        asked.ids.clear()
        event = by_id(world, campaign)
        assert await world.reasons(event) == ["accepted"]
        assert (asked.ids == [id_of(event)]) is fresh_looked_up
        assert await world.reasons(ahead) == ["duplicate"]
        await trio.sleep(241)


async def test_a_flush_that_a_rebuild_waits_for_is_below_its_watermark(autojump_clock: MockClock, world: World) -> None:
    """Its events were reserved in the Redis that is lost; the raise of the generation returns what they have raised."""
    campaign = await world.campaign(total_budget="0.003")
    await world.send(shown(campaign))
    await trio.sleep(1)
    event = at(world, campaign)
    with world.store.commits_hang():
        world.engine.submit([event], lambda _: None)
        await trio.sleep(0.1)
        world.ledger.forget()
        world.engine.submit([at(world, campaign, -HOUR_US)], lambda _: None)
        await trio.sleep(0.1)
    await trio.sleep(1)
    assert await world.reasons(event) == ["duplicate"]
    assert world.spent(campaign) == 3_000


class Users:
    """Campaigns whose users were read."""

    def __init__(self, store: FakeStore) -> None:
        self.read: list[int] = []
        self._users_on = store.users_on
        store.users_on = self._note  # type: ignore[method-assign, assignment]

    def _note(self, days: dict[CampaignId, int], *, whole: bool) -> Any:
        self.read += days
        return self._users_on(days, whole=whole)


@pytest.fixture
def users(world: World) -> Users:
    """Whose users are read."""
    return Users(world.store)


async def test_a_campaign_without_a_cap_is_rebuilt_without_its_users(
    autojump_clock: MockClock, world: World, users: Users
) -> None:
    """Only those of the other are read."""
    free, capped = await world.campaign(), await world.campaign(**CAPPED)
    await world.send(shown(free), shown(capped))
    world.ledger.forget()
    assert await world.reasons(shown(free), shown(capped), shown(capped, "bob")) == [
        "accepted", "frequency_capped", "accepted"
    ]  # fmt: skip
    assert users.read == [capped]


async def test_a_cap_that_comes_after_a_rebuild_without_users_counts_what_was_shown_before(
    autojump_clock: MockClock, world: World, users: Users
) -> None:
    """On the same day, by that rebuild's state, before the loss and after it: the campaign is rebuilt once more."""
    campaign = await world.campaign()
    await world.send(shown(campaign, "ada"))
    world.ledger.forget()
    assert await world.reasons(shown(campaign, "bob")) == ["accepted"]
    assert users.read == []
    await world.engine.update_campaign(campaign, CAPPED)
    told = await world.reasons(shown(campaign, "ada"), shown(campaign, "bob"), shown(campaign, "eve"))
    assert told == ["frequency_capped", "frequency_capped", "accepted"]
    assert users.read == [campaign]


async def test_a_campaign_whose_ledger_day_is_over_is_rebuilt_without_its_users(
    autojump_clock: MockClock, world: World, users: Users
) -> None:
    """Nobody has had an impression today, so the cap begins anew; in its own zone."""
    campaign = await world.campaign(**CAPPED, timezone="Pacific/Kiritimati")  # where it is 02:00
    await world.send(shown(campaign))
    for hours, reasons, read in ((21, ["frequency_capped"], [campaign]), (23, ["accepted"], [])):
        users.read.clear()
        world.clock_step_us = hours * HOUR_US
        world.ledger.forget()
        assert await world.reasons(shown(campaign)) == reasons
        assert users.read == read
    assert await world.reasons(shown(campaign)) == ["frequency_capped"]


# --- clocks ---


class Skewed:
    """The clock of a machine that is wrong."""

    def __init__(self, world: World, seconds: int) -> None:
        self.world = world
        self.us = seconds * SECOND_US

    def now_us(self) -> int:
        """Wrong."""
        return self.world.now_us() + self.us


@pytest.mark.parametrize("rebuilt", [False, True], ids=["forgotten", "rebuilt"])
@pytest.mark.parametrize("ahead_seconds", [-30, 30])
async def test_clocks_that_disagree_do_not_make_a_retry_new(
    autojump_clock: MockClock, ahead_seconds: int, rebuilt: bool
) -> None:
    """They are as far apart as they may be, and so is the sender's: no clock has a part in what a duplicate is."""
    async with trio.open_nursery() as nursery:
        first = World(nursery)
        first.clock_step_us = ahead_seconds * SECOND_US
        second = Second(first, nursery)
        second.clock_step_us = -ahead_seconds * SECOND_US
        campaign = CampaignId(await first.campaign(total_budget="0.003"))
        await second.send(shown(campaign))
        event = at(first, campaign, 239 * SECOND_US)
        assert await first.reasons(event) == ["accepted"]
        await trio.sleep(1)
        for _ in range(2):
            if rebuilt:
                first.store.ledger[campaign].gen += 1  # so that `begin` empties it
                await recover_alone(Recovery(first.ledger, first.store, second), campaign)
            else:
                await forget(first, campaign)
            assert await second.reasons(event) == await first.reasons(event) == ["duplicate"]
            await trio.sleep(241)
        assert await first.reasons(at(first, campaign), at(first, campaign)) == ["accepted", "total_budget"]
        nursery.cancel_scope.cancel()


async def test_a_rebuild_by_a_clock_that_is_a_day_ahead_closes_nothing(autojump_clock: MockClock, world: World) -> None:
    """Only when its first bucket closes is a matter of clocks."""
    campaign = CampaignId(await world.campaign())
    await world.send(shown(campaign))
    world.store.ledger[campaign].gen += 1
    await recover_alone(Recovery(world.ledger, world.store, Skewed(world, 86_400)), campaign)
    assert await world.reasons(shown(campaign), at(world, campaign), timeless(campaign)) == ["accepted"] * 3


async def test_an_event_that_a_wrong_clock_received_does_not_close_its_campaign(autojump_clock: MockClock) -> None:
    """It raises the watermark by as much, so others are looked up until then, and accepted."""
    async with trio.open_nursery() as nursery:
        wrong = World(nursery)
        wrong.clock_step_us = 5 * HOUR_US
        right = Second(wrong, nursery)
        campaign = await wrong.campaign()
        assert await wrong.reasons(by_id(wrong, campaign)) == ["accepted"]
        wrong.ledger.books.clear()
        event = by_id(right, campaign)
        assert [await right.reasons(event) for _ in range(2)] == [["accepted"], ["duplicate"]]
        nursery.cancel_scope.cancel()


# --- memory ---


class SmallLedger(FakeLedger):
    """A Redis that is full as long as it holds so many ids."""

    ids_max = 0

    @property
    def full(self) -> bool:
        """Whether there is room."""
        return sum(len(held.window) + len(held.ahead) for held in self.books.values()) >= self.ids_max

    @full.setter
    def full(self, _: bool) -> None:
        raise AssertionError("it is full by itself")


async def test_what_a_full_redis_refused_is_tried_again_once_ids_are_forgotten(
    autojump_clock: MockClock, world: World
) -> None:
    """Without the next event of that campaign, the bucket would never close."""
    campaign = await world.campaign()
    before = [at(world, campaign) for _ in range(5)]
    assert await world.reasons(*before) == ["accepted"] * 5
    await trio.sleep(1)
    await close_bucket(world, campaign)
    await trio.sleep(5)
    world.ledger.__class__ = SmallLedger
    world.ledger.ids_max = 5  # type: ignore[attr-defined]
    assert await world.reasons(at(world, campaign), timeless(campaign)) == ["accepted"] * 2
    assert await world.reasons(*before) == ["duplicate"] * 5


async def test_an_id_made_by_the_server_is_new_still_after_a_full_redis(
    autojump_clock: MockClock, world: World, asked: Asked
) -> None:
    """The call that was refused certainly did nothing: nobody can have sent that id since."""
    campaign = await world.campaign()
    await world.send(*[at(world, campaign) for _ in range(5)])
    await trio.sleep(1)
    await close_bucket(world, campaign)
    await trio.sleep(5)
    world.ledger.__class__ = SmallLedger
    world.ledger.ids_max = 5  # type: ignore[attr-defined]
    assert await world.reasons(shown(campaign, occurred_at=instant_text(world.now_us() - HOUR_US))) == ["accepted"]
    assert asked.ids == []


async def test_what_was_looked_up_is_looked_up_again_after_a_full_redis_has_forgotten(
    autojump_clock: MockClock, world: World, asked: Asked
) -> None:
    """The bucket of its look-up has closed meanwhile."""
    campaign = await world.campaign()
    await world.send(*[at(world, campaign) for _ in range(5)], timeless(campaign))
    await trio.sleep(1)
    await close_bucket(world, campaign)
    await world.send(at(world, campaign))  # so the engine knows that bucket
    await trio.sleep(5)
    asked.ids.clear()
    world.ledger.__class__ = SmallLedger
    world.ledger.ids_max = 7  # type: ignore[attr-defined]
    event = timeless(campaign)
    assert await world.reasons(event) == ["accepted"]
    assert asked.ids == [id_of(event)] * 2


async def test_what_a_full_redis_refuses_again_and_again_is_unavailable(
    autojump_clock: MockClock, world: World
) -> None:
    """Tried a few times; nothing is held by it, and with room it is accepted."""
    campaign = await world.campaign(total_budget="0.002")
    await world.send(shown(campaign))
    await trio.sleep(1)
    world.ledger.full = True
    trips = world.ledger.round_trips
    event = at(world, campaign)
    assert await world.reasons(event) == ["unavailable"]
    assert trips + 1 + FULL_MAX <= world.ledger.round_trips
    world.ledger.full = False
    assert await world.reasons(event) == ["accepted"]
    assert world.spent(campaign) == 2_000


PLENTY, SHORT, FULL_OF_USERS = (1, 100), (70, 100), (90, 100)  # what Redis uses, and what it may use


async def memory_is(world: World, used_and_max_bytes: tuple[int, int]) -> None:
    """Redis uses so much of its memory, and the engine has found that."""
    world.ledger.used_and_max_bytes = used_and_max_bytes
    await trio.sleep(2 * OBSERVED_SECONDS)


async def test_where_users_fill_redis_new_ones_of_capped_campaigns_are_told_to_come_again(
    autojump_clock: MockClock, world: World
) -> None:
    """In minutes; users that are counted go on up to their cap, as do events that no cap counts."""
    capped, free = await world.campaign(freq_cap_impressions_per_day=2), await world.campaign()
    known = at(world, capped, user="ada")
    assert await world.reasons(known, shown(free, "ada")) == ["accepted"] * 2
    await memory_is(world, FULL_OF_USERS)
    (verdict,) = await world.send(shown(capped, "bob"))
    assert verdict is not None
    assert (verdict.status, verdict.reason, verdict.retry_after_seconds) == (Status.RETRY, Reason.OVERLOADED, 300)
    ada = [shown(capped, "ada") for _ in range(2)]
    assert await world.reasons(known, *ada) == ["duplicate", "accepted", "frequency_capped"]
    click = Event(campaign_id=capped, user_id="bob", event_type="click")
    assert await world.reasons(click, shown(free, "bob")) == ["accepted"] * 2
    await memory_is(world, PLENTY)
    await trio.sleep(60)
    assert await world.reasons(shown(capped, "bob")) == ["accepted"]


async def test_a_retry_of_a_user_without_room_is_a_duplicate_if_it_is_committed(
    autojump_clock: MockClock, world: World
) -> None:
    """On another day, say: what is known is asked first."""
    campaign = await world.campaign(**CAPPED)
    event = at(world, campaign)
    assert await world.reasons(event) == ["accepted"]
    world.clock_step_us = DAY_US  # nobody is counted any more
    await memory_is(world, FULL_OF_USERS)
    assert await world.reasons(event, shown(campaign)) == ["duplicate", "overloaded"]
    await forget(world, campaign)
    assert await world.reasons(event, shown(campaign)) == ["duplicate", "overloaded"]


async def test_buckets_close_sooner_while_memory_is_short(autojump_clock: MockClock, world: World) -> None:
    """With the next event of each campaign, at the least age that there is."""
    campaign = await world.campaign()
    for used_and_max_bytes, number in ((PLENTY, 0), (PLENTY, 0), (SHORT, 1), (SHORT, 2)):
        await memory_is(world, used_and_max_bytes)
        assert await world.reasons(at(world, campaign)) == ["accepted"]
        assert book(world, campaign).window.number == number
        await trio.sleep(BUCKET_MIN_US / SECOND_US)
