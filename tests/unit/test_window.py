"""The dedup window over fakes: a sleeper or a wrong clock turns no retry into a refusal or a new event."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock

from config.settings import Settings, SettingsError
from engine.engine import Engine
from engine.model import DAY_US, SECOND_US, CampaignId, Event, StoredEvent, instant_text
from engine.ports import Batch, FlushReply, Reserve, ReserveReply, Resolve, ResolveReply, Wanted
from engine.recovery import Recovery
from engine.registry import Engines, Registry
from tests.fakes.ledger import FakeLedger
from tests.fakes.store import FakeStore
from tests.remedy import recover_alone
from tests.unit.test_engine import World, shown

TURN_US = 480 * SECOND_US


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
    look_up_answer_seconds = 0  # of the next look-up

    async def look_up(self, wanted: Sequence[Wanted]) -> dict[tuple[CampaignId, bytes], StoredEvent]:
        """What was there when it was asked, answered when it is told to."""
        found = await super().look_up(wanted)
        seconds, self.look_up_answer_seconds = self.look_up_answer_seconds, 0
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


async def known_to_both(first: World, second: World, *, before_midnight_seconds: int) -> CampaignId:
    """A campaign that both engines hold, shortly before the day of both ends."""
    first.clock_step_us = second.clock_step_us = DAY_US - first.now_us() % DAY_US - before_midnight_seconds * SECOND_US
    campaign = CampaignId(await first.campaign())
    await first.send(shown(campaign))
    await second.send(shown(campaign))
    return campaign


def _id(event: Event) -> bytes:
    assert event.event_id is not None
    return event.event_id.bytes


class Skewed:
    """The clock of a machine that is wrong."""

    def __init__(self, world: World, seconds: int) -> None:
        self.world = world
        self.us = seconds * SECOND_US

    def now_us(self) -> int:
        """Wrong."""
        return self.world.now_us() + self.us


async def test_who_sleeps_between_deciding_and_sending_counts_no_event_twice(autojump_clock: MockClock) -> None:
    """Looked up on one side of midnight, committed on the other, forgotten by Redis: it is looked up again."""
    async with trio.open_nursery() as nursery:
        first = World(nursery)
        first.store.__class__ = SlowStore
        second = Second(first, nursery)
        campaign = await known_to_both(first, second, before_midnight_seconds=30)
        await trio.sleep(29.9)
        first.store.slow = True  # type: ignore[attr-defined]
        twice = uuid.uuid4()
        nursery.start_soon(first.send, shown(campaign, event_id=twice))
        await trio.sleep(0.15)
        second.sleepy.sleep_before_seconds = 9 * 60
        nursery.start_soon(second.send, shown(campaign, event_id=twice))
        for _ in range(20):
            await trio.sleep(30)
            await first.send(shown(campaign, occurred_at=instant_text(first.now_us())))
        rows = [row for row in first.store.rows_of(CampaignId(campaign)) if row.event.event_id == twice.bytes]
        nursery.cancel_scope.cancel()
    assert len(rows) == 1


@pytest.mark.parametrize("seconds", [0, 3], ids=["answered before the raise", "answered after it"])
async def test_a_look_up_does_not_outlive_the_generation_under_which_it_began(
    autojump_clock: MockClock, seconds: int
) -> None:
    """A recovery waits for a flush that a look-up did not see, and its rebuild leaves out what is that old."""
    async with trio.open_nursery() as nursery:
        first = World(nursery)
        second = Second(first, nursery)
        campaign = await known_to_both(first, second, before_midnight_seconds=30)
        twice = shown(campaign, event_id=uuid.uuid4())
        with first.store.commits_hang():
            nursery.start_soon(first.send, twice)
            await trio.sleep(1)
            first.clock_step_us = second.clock_step_us = first.clock_step_us + 20 * 60 * SECOND_US
            young = shown(campaign, event_id=uuid.uuid4(), occurred_at=instant_text(first.now_us()))
            first.store.__class__ = SlowStore
            first.store.look_up_answer_seconds = seconds  # type: ignore[attr-defined]
            nursery.start_soon(second.send, twice, young)
            await trio.sleep(1)  # one is looked up; the other meets a window that would outrun what is pending
        await trio.sleep(5)
        rows = [row for row in first.store.rows_of(campaign) if row.event.event_id == _id(twice)]
        assert await second.reasons(twice) == ["duplicate"]
        nursery.cancel_scope.cancel()
    assert len(rows) == 1


async def test_a_commit_that_outlasts_the_window_ends_look_ups_that_missed_it(autojump_clock: MockClock) -> None:
    """Looked up before it, reserved after Redis was told of it and moved its window on: no recovery came between."""
    async with trio.open_nursery() as nursery:
        first = World(nursery)
        second = Second(first, nursery)
        campaign = await known_to_both(first, second, before_midnight_seconds=30)
        twice = shown(campaign, event_id=uuid.uuid4())
        with first.store.commits_hang():
            nursery.start_soon(first.send, twice)
            await trio.sleep(1)
            first.clock_step_us = second.clock_step_us = first.clock_step_us + 20 * 60 * SECOND_US
            second.sleepy.sleep_before_seconds = 2
            nursery.start_soon(second.send, twice)
            await trio.sleep(1)  # it is looked up, and its reserve on the way
        await trio.sleep(5)
        rows = [row for row in first.store.rows_of(campaign) if row.event.event_id == _id(twice)]
        nursery.cancel_scope.cancel()
    assert len(rows) == 1


def longest_deadline() -> int:
    """The longest that settings allow for a request, in whole seconds."""
    for seconds in range(300, 0, -1):
        with suppress(SettingsError):
            return int(Settings(request_deadline_seconds=seconds).request_deadline_seconds)
    raise AssertionError("no deadline is allowed")


async def test_no_deadline_that_is_allowed_is_too_long_for_the_window(autojump_clock: MockClock) -> None:
    """Looked up right before a slow commit, reserved as long after it as a request may wait: counted once."""
    wait_seconds = longest_deadline()
    async with trio.open_nursery() as nursery:
        first = World(nursery, request_deadline_seconds=wait_seconds)
        second = Second(first, nursery)
        campaign = await known_to_both(first, second, before_midnight_seconds=2)
        await trio.sleep(1)  # a turn ends in a second, and the day with it
        twice = shown(campaign, event_id=uuid.uuid4())
        with first.store.commits_hang():
            nursery.start_soon(first.send, twice)
            await trio.sleep(wait_seconds - 10)
            first.store.__class__ = SlowStore
            first.store.look_up_answer_seconds = wait_seconds - 10  # type: ignore[attr-defined]
            nursery.start_soon(second.send, twice)
            await trio.sleep(5)
        for _ in range(wait_seconds):
            await first.send(shown(campaign))
            await trio.sleep(1)
        rows = [row for row in first.store.rows_of(campaign) if row.event.event_id == _id(twice)]
        nursery.cancel_scope.cancel()
    assert len(rows) == 1


async def test_a_reply_that_is_met_after_a_long_sleep_is_undone(autojump_clock: MockClock) -> None:
    """What it rested on is as old; nothing stays reserved, and a retry is accepted."""
    async with trio.open_nursery() as nursery:
        first = World(nursery)
        second = Second(first, nursery)
        campaign = await first.campaign(total_budget="0.002")
        await second.send(shown(campaign))
        second.sleepy.sleep_after_seconds = 60
        event = shown(campaign, event_id=uuid.uuid4(), occurred_at=instant_text(first.now_us()))
        assert await second.reasons(event) == ["unavailable"]
        await trio.sleep(61)
        assert first.spent(campaign) == 1_000
        assert await first.reasons(event) == ["accepted"]
        nursery.cancel_scope.cancel()


async def test_a_turn_that_no_clock_has_reached_is_put_right(autojump_clock: MockClock) -> None:
    """Redis's turn only moves forward: a recovery by a clock that is a day ahead must not close the campaign."""
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        campaign = CampaignId(await world.campaign())
        await world.send(shown(campaign))
        world.store.ledger[campaign].gen += 1  # so that `begin` empties it
        await recover_alone(Recovery(world.ledger, world.store, Skewed(world, 86_400), TURN_US), campaign)
        await world.send(shown(campaign))
        await trio.sleep(1)
        assert await world.reasons(shown(campaign)) == ["accepted"]
        nursery.cancel_scope.cancel()


async def test_ids_from_a_clock_ahead_stay_as_long_as_it_expects(autojump_clock: MockClock) -> None:
    """A rebuild by a clock that is behind loads them under the turn in which their engine received them.

    All clocks are as far off as they may be, and the sender's is, too: the event is just young enough not to be looked
    up when the window has just moved on.
    """
    async with trio.open_nursery() as nursery:
        ahead = World(nursery)
        ahead.clock_step_us = 30 * SECOND_US
        behind = Second(ahead, nursery)
        behind.clock_step_us = -30 * SECOND_US
        campaign = CampaignId(await ahead.campaign(total_budget="0.001"))
        await trio.sleep((TURN_US - ahead.now_us() % TURN_US) / SECOND_US + 5)
        event = shown(campaign, event_id=uuid.uuid4(), occurred_at=instant_text(ahead.now_us() + 299 * SECOND_US))
        assert await ahead.reasons(event) == ["accepted"]
        ahead.store.ledger[campaign].gen += 1
        await recover_alone(Recovery(ahead.ledger, ahead.store, behind, TURN_US), campaign)
        await trio.sleep(476)
        assert await ahead.reasons(shown(campaign)) == ["total_budget"]
        assert await behind.reasons(event) == ["duplicate"]
        nursery.cancel_scope.cancel()


async def test_an_event_that_a_wrong_clock_received_does_not_close_its_campaign(autojump_clock: MockClock) -> None:
    """A rebuild finds it hours ahead: Redis does not follow, or whoever has the time would be refused until then."""
    async with trio.open_nursery() as nursery:
        wrong = World(nursery)
        wrong.clock_step_us = 5 * 3_600 * SECOND_US
        right = Second(wrong, nursery)
        campaign = await wrong.campaign()
        assert await wrong.reasons(shown(campaign)) == ["accepted"]
        await right.send(shown(campaign))
        await trio.sleep(1)
        assert await right.reasons(shown(campaign)) == ["accepted"]
        nursery.cancel_scope.cancel()
