"""An event that is too old is looked up before it is refused: it may be the repeat of one that was accepted."""

from __future__ import annotations

import uuid
from typing import Any

import trio
from trio.testing import MockClock

from engine.arrival import REPEATED_US
from engine.model import SECOND_US, CampaignId, Event, Reason, instant_text
from engine.ports import Letter
from engine.verdicts import IN_FLIGHT
from tests.plans import NOON_US, entry, verdict_of
from tests.unit.test_campaign import answered, opened
from tests.unit.test_engine import World, shown, world
from tests.unit.test_window import Second

__all__ = ["world"]
PAST_US = 172_800 * SECOND_US
HOUR_SECONDS = REPEATED_US // SECOND_US


def aged(world: World, campaign: int, seconds: int, **fields: Any) -> Event:
    """An event that becomes too old in so many seconds."""
    told_us = world.now_us() - PAST_US + seconds * SECOND_US
    values = {"event_id": uuid.uuid4(), "occurred_at": instant_text(told_us), **fields}
    return shown(campaign, **values)


async def test_a_repeat_that_has_grown_too_old_is_a_duplicate(autojump_clock: MockClock, world: World) -> None:
    """For an hour beyond the limit; another event under its id is told so."""
    campaign = await world.campaign()
    accepted, other = aged(world, campaign, 6), aged(world, campaign, 6)
    assert await world.reasons(accepted) == ["accepted"]
    await trio.sleep(9)
    assert await world.reasons(accepted, other) == ["duplicate", "invalid"]
    reused = shown(campaign, "bob", event_id=accepted.event_id, occurred_at=accepted.occurred_at)
    assert await world.reasons(reused) == ["id_reused"]
    await trio.sleep(HOUR_SECONDS - 4)
    assert await world.reasons(accepted) == ["duplicate"]
    await trio.sleep(2)
    assert await world.reasons(accepted) == ["invalid"]
    assert world.spent(campaign) == 1_000


async def test_what_is_too_old_and_new_is_refused_whatever_the_campaign_is(
    autojump_clock: MockClock, world: World
) -> None:
    """With the age and the limit; only where nothing can be known is it told to come again."""
    campaign, inactive, spent, halted = [await world.campaign() for _ in range(4)]
    await world.engine.update_campaign(inactive, {"active": False})
    await world.engine.update_campaign(spent, {"total_budget": "0"})
    await world.store.halt(CampaignId(halted), "a difference")
    for each in (campaign, inactive, spent):
        (verdict,) = await world.send(aged(world, each, -9))
        assert verdict is not None
        assert (verdict.reason, verdict.detail) == (
            Reason.INVALID, "occurred_at: 172809 s old, at most 172800 s are allowed"
        )  # fmt: skip
    assert await world.reasons(aged(world, halted, -9), aged(world, 77, -9)) == ["unavailable", "unknown_campaign"]
    key_less = aged(world, campaign, -9, event_id=None)
    assert await world.reasons(key_less, shown(campaign)) == ["invalid", "accepted"]


async def test_the_repeat_of_an_event_whose_flush_is_under_way_is_told_to_come_again(
    autojump_clock: MockClock,
) -> None:
    """It may be accepted in a moment."""
    async with trio.open_nursery() as nursery:
        first = World(nursery)
        second = Second(first, nursery)
        campaign = CampaignId(await first.campaign())
        await second.send(shown(campaign))
        event = aged(first, campaign, 1)
        with first.store.commits_hang():
            nursery.start_soon(first.send, event)
            await trio.sleep(3)
            assert await second.reasons(event) == ["in_flight"]
        await trio.sleep(1)
        assert await second.reasons(event) == ["duplicate"]
        nursery.cancel_scope.cancel()


async def test_what_is_too_old_costs_its_neighbours_nothing(autojump_clock: MockClock, world: World) -> None:
    """Of the same request and campaign, in any order."""
    campaign = await world.campaign(total_budget="0.003")
    old = [aged(world, campaign, -1 - number) for number in range(4)]
    told = await world.reasons(old[0], shown(campaign), old[1], shown(campaign), old[2], old[3], shown(campaign))
    assert told == ["invalid", "accepted", "invalid", "accepted", "invalid", "invalid", "accepted"]
    assert world.spent(campaign) == 3_000


async def test_what_is_too_old_is_looked_up_even_where_it_is_young(autojump_clock: MockClock) -> None:
    """A limit that is shorter than what the dedup window knows accepts nothing beyond it."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, occurred_past_seconds=60)
        campaign = await world.campaign()
        event = shown(campaign, event_id=uuid.uuid4(), occurred_at=instant_text(world.now_us() - 61 * SECOND_US))
        assert await world.reasons(shown(campaign), event) == ["accepted", "invalid"]
        nursery.cancel_scope.cancel()


def test_calls_without_a_budget_and_calls_with_one_take_turns() -> None:
    """However much of one sort waits, the other goes with the call after it."""
    state = opened()
    told = []
    for number in range(4):
        old = entry(event_id=uuid.uuid4(), occurred_at=instant_text(NOON_US - PAST_US - SECOND_US))
        young = entry()
        assert state.admit([old, young], number, NOON_US).late == [old]
        state.in_flight.clear()
        state.looking_up(old)
        admitted = state.admit([old, young], number, NOON_US)
        assert admitted.request is not None
        assert [*admitted.request.entries, *admitted.back] in ([old, young], [young, old])
        told.append(admitted.request.call.total_budget_micros < 0)
        state.in_flight.clear()
    assert told == [True, False, True, False]


def test_who_lets_the_other_sort_go_first_is_not_looked_up_again() -> None:
    """No call carried it, so what was found of it counts still; not so for one that was never looked up."""
    state = opened()
    olds = [entry(event_id=uuid.uuid4(), occurred_at=instant_text(NOON_US - PAST_US - SECOND_US)) for _ in range(2)]
    timeless, young = entry(event_id=uuid.uuid4()), entry()
    for each in [*olds, timeless]:
        state.looking_up(each)
    assert state.admit([olds[0], timeless, young], 1, NOON_US).back == [timeless, young]
    admitted = state.admit([olds[1], timeless, young], 2, NOON_US)
    assert (admitted.late, admitted.back) == ([], [olds[1]])
    assert state.admit([olds[1]], 3, NOON_US).late == []
    aged_us = NOON_US + state.fresh_us + SECOND_US
    state.wait_us = aged_us
    state.in_flight.clear()
    assert state.admit([entry(event_id=uuid.uuid4()), young], 4, aged_us).late[-1] is young


def test_who_joins_is_refused_for_its_age_only_if_it_has_that_age() -> None:
    """The same id with another time may fare otherwise on its own."""
    state, same = opened(), uuid.uuid4()
    first, second = [entry(event_id=same, occurred_at=instant_text(NOON_US - PAST_US - SECOND_US)) for _ in range(2)]
    young = entry(event_id=same)
    state.looking_up(first)
    answered(state, [first, second, young], Letter.TOTAL)
    assert verdict_of(first) == verdict_of(second)
    assert verdict_of(first).reason is Reason.INVALID  # type: ignore[union-attr]
    assert verdict_of(young) == IN_FLIGHT
