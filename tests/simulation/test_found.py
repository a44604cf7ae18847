"""What the simulation has found, told again: a script for each fault on the simulation's own world.

A seed that finds a fault is another one as soon as anything changes what a seed draws, and nobody notices. A script
leaves to its seed no more than a few milliseconds here or there. Each is the only test of a mutant of its own
(tests/mutants/found.py), so one that no longer finds its fault fails `make mutants`.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec
import pytest
import trio
from trio import sleep

from engine.leftovers import Advance
from engine.model import DAY_US, SECOND_US, CampaignId, Event, Micros, instant_text
from tests.simulation.clients import Sent
from tests.simulation.cluster import Process
from tests.simulation.run import play
from tests.simulation.simulation import Simulation
from tests.simulation.world import DAY_SECONDS, POSTGRES, Weather

SEEDS = 5
# Over midnight, and less than a request may wait.
TO_TOMORROW_US = 7 * SECOND_US


async def serve(simulation: Simulation, *offsets_us: int, total_budget: str = "1000") -> tuple[CampaignId, Process]:
    """Engines whose clocks are off by so much; a campaign (an impression costs 1,000 micros), and the first engine."""
    for slot, offset_us in enumerate(offsets_us):
        simulation.start_process(slot).offset_us = offset_us
    await sleep(0.1)
    campaign_id = await simulation.create_campaign(
        {"pricing_model": "cpm", "unit_price": "1.00", "total_budget": total_budget, "daily_budget": "1000"}
    )
    return campaign_id, simulation.processes[0]


def shown(campaign_id: CampaignId, number: int, told_us: int | None = None) -> list[Event]:
    """An impression, whose id tells no time."""
    event_id = uuid.UUID(int=number, version=4)
    told = None if told_us is None else instant_text(told_us)
    return [Event(campaign_id=campaign_id, user_id="a", event_type="impression", event_id=event_id, occurred_at=told)]


def send(simulation: Simulation, process: Process, events: list[Event]) -> None:
    """Send, and wait for nothing."""
    simulation.clients.send(process, Sent(events, None, 0))


async def a_clock_is_set_back(simulation: Simulation) -> None:
    """A COMMIT hangs, and the machine's clock is set back meanwhile: the request waits no longer for that."""
    campaign_id, process = await serve(simulation, 0)
    await simulation.clients.answer_of(process, shown(campaign_id, 1))
    with simulation.world.store.commits_hang():
        send(simulation, process, shown(campaign_id, 2))
        process.offset_us = (3 - int(simulation.world.settings.clock_refuse_seconds)) * SECOND_US
        await sleep(15)


async def a_reply_is_thrown_away(simulation: Simulation) -> None:
    """A flush is refused, and its actor reads the plan again, while a reserve is under way: that one counts."""
    world = simulation.world
    campaign_id, process = await serve(simulation, 0)
    await simulation.clients.answer_of(process, shown(campaign_id, 1))
    world.weather = Weather(pace_seconds=0.2)
    row = world.store.ledger[campaign_id].lock
    async with row:
        send(simulation, process, shown(campaign_id, 2))
        while not row.statistics().tasks_waiting:  # noqa: ASYNC110
            await sleep(0.01)
        plan = world.store.campaigns[campaign_id]
        lower = msgspec.structs.replace(plan, version=plan.version + 1, total_budget_micros=Micros(1))
        world.store.campaigns[campaign_id] = lower
        world.checker.planned(lower)
        send(simulation, process, shown(campaign_id, 3))
        await sleep(0.1 * world.source.random())
    await sleep(2)


async def a_void_finds_another_redis(simulation: Simulation) -> None:
    """A reservation can't be flushed, and its void meets the other half of a split; then the first half is back."""
    world = simulation.world
    campaign_id, process = await serve(simulation, 0)
    await simulation.clients.answer_of(process, shown(campaign_id, 1, world.now_us()))
    await sleep(1)
    world.keep_copy()
    process.wire.cut.add(POSTGRES)
    send(simulation, process, shown(campaign_id, 2, world.now_us()))
    with trio.fail_after(1):
        while not world.redis.books[campaign_id].pending:  # noqa: ASYNC110
            await sleep(0.0001)
    await sleep(0.002)  # its engine has heard of it
    world.fail_over(split=True)
    await sleep(3)
    world.heal_split(back=True)
    process.wire.cut.clear()
    await sleep(5)


async def close_bucket(simulation: Simulation, campaign_id: CampaignId) -> bool:
    """Have Redis forget the older bucket, in no time: when that happens is policy. False: it is put off."""
    book = simulation.world.redis.books[campaign_id]
    number, sums = book.window.number, book.sums
    assert sums is not None
    at_us = max(simulation.world.now_us(), book.began_us)
    await simulation.world.redis.give_back([Advance(campaign_id, book.generation, sums.day, at_us, 0)])
    return book.window.number == number + 1


async def forget(simulation: Simulation, campaign_id: CampaignId) -> None:
    """All that Redis knows of this campaign's ids, once it has heard what is committed."""
    await sleep(1)
    for _ in range(2):
        assert await close_bucket(simulation, campaign_id)


async def known_before_midnight(simulation: Simulation, *offsets_us: int) -> CampaignId:
    """A campaign that as many engines know, six seconds before the day ends that identity days go by.

    Its buckets close when the script says, and no sooner; and all engines were heard since time has leapt.
    """
    world = simulation.world
    world.settings = replace(world.settings, dedup_bucket_seconds=DAY_SECONDS)
    world.memory_is_short = False
    campaign_id, _ = await serve(simulation, *offsets_us)
    for number, process in enumerate(simulation.processes, 1):
        await simulation.clients.answer_of(process, shown(campaign_id, number))
    world.leapt_us += DAY_US - 8 * SECOND_US - world.now_us() % DAY_US
    await sleep(world.settings.heartbeat_seconds + 0.1)
    return campaign_id


async def look_up_and_freeze(simulation: Simulation, process: Process, events: list[Event]) -> None:
    """Send what is looked up first; its engine freezes with the answer on its way."""
    send(simulation, process, events)
    await sleep(0.0002 * simulation.world.source.random())
    process.freeze()
    await sleep(0.5)


async def a_look_up_grows_old(simulation: Simulation) -> None:
    """What is looked up freezes over midnight; others commit it on the next day, and Redis forgets it."""
    world = simulation.world
    campaign_id = await known_before_midnight(simulation, 0, 0)
    process, other = simulation.processes
    await look_up_and_freeze(simulation, process, shown(campaign_id, 3))
    world.leapt_us += TO_TOMORROW_US
    await simulation.clients.answer_of(other, shown(campaign_id, 3))
    await forget(simulation, campaign_id)
    process.thaw()
    await sleep(5)


async def a_repeat_was_committed_tomorrow(simulation: Simulation) -> None:
    """An event that tells no time is committed where it is the next day already, and repeated where it is not yet."""
    campaign_id = await known_before_midnight(simulation, 0, 10 * SECOND_US)
    process, other = simulation.processes
    await simulation.clients.answer_of(other, shown(campaign_id, 3))
    await forget(simulation, campaign_id)
    await simulation.clients.answer_of(process, shown(campaign_id, 3))


async def a_commit_outlasts_both_buckets(simulation: Simulation) -> None:
    """A flush hangs while buckets close; its retry, on the next day, is in flight, and no new event."""
    world = simulation.world
    campaign_id = await known_before_midnight(simulation, 0, 0)
    process, other = simulation.processes
    await sleep(0.5)  # Redis has heard of what was committed before
    with world.store.commits_hang():
        send(simulation, process, shown(campaign_id, 3))
        await sleep(0.3)
        for _ in range(3):
            await close_bucket(simulation, campaign_id)
        world.leapt_us += TO_TOMORROW_US
        send(simulation, other, shown(campaign_id, 3))
        await sleep(0.1 + 0.1 * world.source.random())
    await sleep(5)


async def a_look_up_outlives_a_recovery(simulation: Simulation) -> None:
    """A flush hangs; its retry is looked up, and then a recovery lets the flush through: Redis begins anew."""
    world = simulation.world
    campaign_id, process = await serve(simulation, 0, 0)
    other = simulation.processes[1]
    await simulation.clients.answer_of(process, shown(campaign_id, 1))
    await simulation.clients.answer_of(other, shown(campaign_id, 2))
    world.leapt_us += DAY_US - SECOND_US - world.now_us() % DAY_US  # identity days are UTC's
    with world.store.commits_hang():
        send(simulation, process, shown(campaign_id, 3))
        await sleep(0.5)
        process.freeze()
        world.leapt_us += 3 * SECOND_US
        world.restart_redis(emptied=True)
        send(simulation, other, shown(campaign_id, 3) + shown(campaign_id, 4, world.now_us()))
        await sleep(0.5 + 0.1 * world.source.random())
    await sleep(5)
    process.thaw()
    await sleep(5)


async def a_look_up_outlives_its_bucket(simulation: Simulation) -> None:
    """The same without a recovery: the retry's engine freezes between its look-up and its reserve."""
    world = simulation.world
    campaign_id = await known_before_midnight(simulation, 0, 0)
    process, other = simulation.processes
    with world.store.commits_hang():
        send(simulation, process, shown(campaign_id, 3))
        await sleep(0.5)
        world.leapt_us += TO_TOMORROW_US
        await look_up_and_freeze(simulation, other, shown(campaign_id, 3))
    await forget(simulation, campaign_id)
    other.thaw()
    await sleep(5)


async def an_advance_is_one_too_many(simulation: Simulation) -> None:
    """The same, where the commit is of the bucket before the look-up's: the very next advance forgets it."""
    world = simulation.world
    campaign_id = await known_before_midnight(simulation, 0, 0)
    process, other = simulation.processes
    with world.store.commits_hang():
        send(simulation, process, shown(campaign_id, 3))
        await sleep(0.5)
        world.leapt_us += TO_TOMORROW_US
        assert await close_bucket(simulation, campaign_id)
        send(simulation, other, shown(campaign_id, 4, world.now_us()))  # tells its engine of that
        await sleep(0.1)
        await look_up_and_freeze(simulation, other, shown(campaign_id, 3))
    await sleep(1)  # Redis has heard of the commit
    assert await close_bucket(simulation, campaign_id)
    other.thaw()
    await sleep(5)


async def the_last_ids_are_ahead(simulation: Simulation) -> None:
    """A sender's clock is ahead, and its campaign ends: days later Redis holds nothing of it."""
    campaign_id, process = await serve(simulation, 0)
    simulation.world.memory_is_short = False
    ahead_us = (simulation.world.settings.occurred_ahead_seconds - 1) * SECOND_US
    await simulation.clients.answer_of(process, shown(campaign_id, 1, simulation.world.now_us() + ahead_us))


async def clocks_disagree(simulation: Simulation) -> None:
    """As far as they may, while memory is short: buckets close neither by turns of both clocks, nor by one alone."""
    world = simulation.world
    worst_us = (int(world.settings.clock_refuse_seconds) - 3) * SECOND_US
    world.settings = replace(world.settings, dedup_bucket_seconds=480)
    campaign_id, _ = await serve(simulation, worst_us, -worst_us)
    world.used_bytes = lambda: 0 if world.calm else 750  # type: ignore[method-assign]
    await sleep(2)
    numbers = itertools.count(1)
    for senders in (simulation.processes, simulation.processes[1:]):
        for place in range(100):
            for process in senders:
                told_us = world.now_us() - 2 * worst_us  # ahead of no clock
                await simulation.clients.answer_of(process, shown(campaign_id, next(numbers), told_us))
            await sleep(0.2)
            if place == 10:
                first = world.redis.books[campaign_id].window.number
        closed = world.redis.books[campaign_id].window.number - first
        if not 18 / 4 < closed <= 18 / 2 + 1:
            world.checker.violated(f"{closed} buckets of 2 to 2.5 s have closed in 18 s")


async def new_users_are_refused(simulation: Simulation) -> None:
    """Users of an idle campaign hold the memory: they make room before their day is over."""
    world = simulation.world
    world.settings = replace(world.settings, dedup_bucket_seconds=1)
    campaign_id, process = await serve(simulation, 0)
    assert process.engine is not None
    await process.engine.update_campaign(campaign_id, {"freq_cap_impressions_per_day": 1})
    await simulation.clients.answer_of(process, shown(campaign_id, 1, world.now_us()))
    world.used_bytes = lambda: 0 if world.calm else 900  # type: ignore[method-assign]
    await sleep(400)
    book = world.redis.books.get(campaign_id)
    if book is not None and book.users:  # (in some seeds the day is over by then)
        world.checker.violated(f"users are refused, and Redis holds {book.users}")


FOUND = [
    a_clock_is_set_back,
    a_reply_is_thrown_away,
    a_void_finds_another_redis,
    a_look_up_grows_old,
    a_look_up_outlives_a_recovery,
    a_look_up_outlives_its_bucket,
    an_advance_is_one_too_many,
    a_repeat_was_committed_tomorrow,
    a_commit_outlasts_both_buckets,
    the_last_ids_are_ahead,
    new_users_are_refused,
    clocks_disagree,
]


@pytest.mark.parametrize("script", FOUND, ids=lambda script: script.__name__)
def test_what_was_found_once_is_not_found_again(script: Callable[[Simulation], Awaitable[None]]) -> None:
    """Every promise holds, whatever of the script's timing the seed decides."""
    for seed in range(SEEDS):
        assert play(seed, 0, script).violations == []
