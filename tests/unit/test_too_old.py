"""An event that is too old is looked up before it is refused: it may be the repeat of one that was accepted."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.arrival import REPEATED_US
from engine.model import DAY_US, SECOND_US, CampaignId, Event, Reason, instant_text, new_event_id
from engine.ports import Letter, Wanted
from engine.verdicts import IN_FLIGHT
from tests.plans import NOON_US, POLICY, entry, verdict_of
from tests.unit.test_campaign import answered, opened
from tests.unit.test_engine import World, shown, world
from tests.unit.test_window import Second

__all__ = ["world"]
PAST_US = 172_800 * SECOND_US
HOUR_SECONDS = REPEATED_US // SECOND_US


def by_occurred_at(us: int) -> dict[str, Any]:
    """What tells the time: the sender's word."""
    return {"event_id": uuid.uuid4(), "occurred_at": instant_text(us)}


def by_id(us: int) -> dict[str, Any]:
    """What tells the time: a UUIDv7, to the millisecond."""
    return {"event_id": uuid.UUID(bytes=new_event_id(us, uuid.uuid4().bytes[:10]))}


TELLING = {"occurred_at": by_occurred_at, "UUIDv7": by_id}
Telling = Callable[[int], dict[str, Any]]
each_telling = pytest.mark.parametrize("telling", TELLING.values(), ids=list(TELLING))


def aged(world: World, campaign: int, seconds: int, telling: Telling = by_occurred_at, **fields: Any) -> Event:
    """An event that becomes too old in so many seconds."""
    told_us = world.now_us() - PAST_US + seconds * SECOND_US
    return shown(campaign, **{**telling(told_us), **fields})


@each_telling
async def test_a_repeat_that_has_grown_too_old_is_a_duplicate(
    autojump_clock: MockClock, world: World, telling: Telling
) -> None:
    """For an hour beyond the limit; another event under its id is told so."""
    campaign = await world.campaign()
    accepted, other = aged(world, campaign, 6, telling), aged(world, campaign, 6, telling)
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


@each_telling
async def test_it_is_looked_up_on_its_own_day_even_where_redis_has_forgotten_it(
    autojump_clock: MockClock, world: World, telling: Telling
) -> None:
    """Of the days there are, no other is asked for one that tells its time."""
    campaign = await world.campaign()
    accepted, other = aged(world, campaign, 6, telling), aged(world, campaign, 6, telling)
    assert await world.reasons(accepted) == ["accepted"]
    day = (world.now_us() - PAST_US + 6 * SECOND_US) // DAY_US
    await trio.sleep(9)
    world.ledger.forget()
    look_up, asked = world.store.look_up, []

    async def note(wanted: Sequence[Wanted]) -> Any:
        asked.extend([[*(each.days or ())] for each in wanted])
        return await look_up(wanted)

    world.store.look_up = note  # type: ignore[method-assign]
    assert await world.reasons(accepted, other) == ["duplicate", "invalid"]
    assert asked == [[day], [day]]


@pytest.mark.parametrize(
    ("telling", "detail"),
    [
        (by_occurred_at, "occurred_at: 172809 s old, at most 172800 s are allowed"),
        (by_id, "event_id: a UUIDv7 whose time is 172809 s old, at most 172800 s are allowed"),
    ],
    ids=list(TELLING),
)
async def test_what_is_too_old_and_new_is_refused_whatever_the_campaign_is(
    autojump_clock: MockClock, world: World, telling: Telling, detail: str
) -> None:
    """With the age and the limit; only where nothing can be known is it told to come again."""
    campaign, inactive, spent, halted = [await world.campaign() for _ in range(4)]
    await world.engine.update_campaign(inactive, {"active": False})
    await world.engine.update_campaign(spent, {"total_budget": "0"})
    await world.store.halt(CampaignId(halted), "a difference")
    for each in (campaign, inactive, spent):
        (verdict,) = await world.send(aged(world, each, -9, telling))
        assert verdict is not None
        assert (verdict.reason, verdict.detail) == (Reason.INVALID, detail)
    elsewhere = aged(world, halted, -9, telling), aged(world, 77, -9, telling)
    assert await world.reasons(*elsewhere) == ["unavailable", "unknown_campaign"]


async def test_what_is_too_old_and_has_no_id_can_be_no_repeat(autojump_clock: MockClock, world: World) -> None:
    """It is refused at once, and does not hold up its neighbours."""
    campaign = await world.campaign()
    assert await world.reasons(aged(world, campaign, -9, event_id=None), shown(campaign)) == ["invalid", "accepted"]


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


async def test_what_is_too_old_is_refused_though_redis_knows_that_it_is_new(autojump_clock: MockClock) -> None:
    """A limit that lies above the watermark accepts nothing beyond it."""
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
        assert state.admit([old, young], number, POLICY, NOON_US).late == [old]
        state.in_flight.clear()
        state.looking_up([old])
        admitted = state.admit([old, young], number, POLICY, NOON_US)
        assert admitted.request is not None
        assert [*admitted.request.entries, *admitted.back] in ([old, young], [young, old])
        told.append(admitted.request.call.total_budget_micros < 0)
        state.in_flight.clear()
    assert told == [True, False, True, False]


def test_who_lets_the_other_sort_go_first_is_not_looked_up_again() -> None:
    """No call carried it: what was found of it counts still, and an id of the server's is as new as before."""
    state = opened()
    olds = [entry(event_id=uuid.uuid4(), occurred_at=instant_text(NOON_US - PAST_US - SECOND_US)) for _ in range(2)]
    timeless, made_here = entry(event_id=uuid.uuid4()), entry(occurred_at=instant_text(NOON_US - 3_600 * SECOND_US))
    for each in [*olds, timeless]:
        state.looking_up([each])
    assert state.admit([olds[0], timeless, made_here], 1, POLICY, NOON_US).back == [timeless, made_here]
    admitted = state.admit([olds[1], timeless, made_here], 2, POLICY, NOON_US)
    assert (admitted.late, admitted.back) == ([], [olds[1]])
    assert state.admit([olds[1]], 3, POLICY, NOON_US).late == []


def test_who_joins_is_refused_for_its_age_only_if_it_has_that_age() -> None:
    """The same id with another time may fare otherwise on its own."""
    state, same = opened(), uuid.uuid4()
    first, second = [entry(event_id=same, occurred_at=instant_text(NOON_US - PAST_US - SECOND_US)) for _ in range(2)]
    young = entry(event_id=same)
    state.looking_up([first])
    answered(state, [first, second, young], Letter.TOTAL)
    assert verdict_of(first) == verdict_of(second)
    assert verdict_of(first).reason is Reason.INVALID  # type: ignore[union-attr]
    assert verdict_of(young) == IN_FLIGHT
