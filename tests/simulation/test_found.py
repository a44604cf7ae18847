"""What the simulation has found, told again: a script for each fault on the simulation's own world.

A seed that finds a fault is another one as soon as anything changes what a seed draws, and nobody notices. A script
leaves to its seed no more than a few milliseconds here or there. Each is the only test of a mutant of its own
(tests/mutants/found.py), so one that no longer finds its fault fails `make mutants`.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable

import msgspec
import pytest
import trio
from trio import sleep

from engine.model import DAY_US, SECOND_US, CampaignId, Event, Micros, instant_text
from tests.simulation.clients import Sent
from tests.simulation.cluster import Process
from tests.simulation.run import play
from tests.simulation.simulation import Simulation
from tests.simulation.world import DAY_SECONDS, POSTGRES, REDIS, Weather

SEEDS = 5


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


async def forget(simulation: Simulation, process: Process, campaign_id: CampaignId, number: int) -> None:
    """Close two buckets, so that all that was known before is forgotten."""
    world = simulation.world
    for at in range(2):
        world.leapt_us += world.settings.dedup_bucket_seconds * SECOND_US
        await simulation.clients.answer_of(process, shown(campaign_id, number + at, world.now_us()))


async def a_look_up_grows_old(simulation: Simulation) -> None:
    """A machine sleeps with an event that it has looked up; others commit it on the next day, and Redis forgets it."""
    world = simulation.world
    campaign_id, process = await serve(simulation, 0, 0)
    await simulation.clients.answer_of(process, shown(campaign_id, 1))
    send(simulation, process, shown(campaign_id, 2))
    await sleep(0.0001)
    process.freeze()
    await sleep(0.1)
    world.leapt_us += DAY_SECONDS * SECOND_US
    await simulation.clients.answer_of(simulation.processes[1], shown(campaign_id, 2))
    await sleep(1)  # Redis has heard of the commit
    await forget(simulation, simulation.processes[1], campaign_id, 3)
    process.thaw()
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
    campaign_id, process = await serve(simulation, 0, 0)
    other = simulation.processes[1]
    await simulation.clients.answer_of(process, shown(campaign_id, 1))
    await simulation.clients.answer_of(other, shown(campaign_id, 2))
    world.leapt_us += DAY_US - SECOND_US - world.now_us() % DAY_US
    with world.store.commits_hang():
        send(simulation, process, shown(campaign_id, 3))
        await sleep(0.5)
        world.leapt_us += 3 * SECOND_US
        send(simulation, other, shown(campaign_id, 3))
        await sleep(0.0005 * world.source.random())  # its look-up is on the way
        other.freeze()
        await sleep(0.5)
    await sleep(1)  # Redis has heard of the commit
    await forget(simulation, process, campaign_id, 4)
    other.thaw()
    await sleep(5)


async def an_advance_is_one_too_many(simulation: Simulation) -> None:
    """The same, where the commit is of the bucket before the look-up's: the very next advance forgets it."""
    world = simulation.world
    campaign_id, process = await serve(simulation, 0, 0, 0)
    other, third = simulation.processes[1:]
    for number, each in enumerate((process, other, third), 1):
        await simulation.clients.answer_of(each, shown(campaign_id, number))
    world.leapt_us += DAY_US - SECOND_US - world.now_us() % DAY_US
    with world.store.commits_hang():
        send(simulation, process, shown(campaign_id, 4))
        await sleep(0.5)
        world.leapt_us += (3 + world.settings.dedup_bucket_seconds) * SECOND_US
        send(simulation, third, shown(campaign_id, 5, world.now_us()))  # closes its bucket
        await sleep(0.5)
        send(simulation, other, shown(campaign_id, 6, world.now_us()))  # tells its engine of that
        await sleep(0.1)
        send(simulation, other, shown(campaign_id, 4))
        await sleep(0.0005 * world.source.random())
        other.freeze()
        await sleep(0.5)
    await sleep(1)
    world.leapt_us += world.settings.dedup_bucket_seconds * SECOND_US
    await simulation.clients.answer_of(third, shown(campaign_id, 7, world.now_us()))
    other.thaw()
    await sleep(5)


async def a_repeat_was_committed_tomorrow(simulation: Simulation) -> None:
    """An event that tells no time waits over midnight; another try of it, received on the next day, is committed."""
    world = simulation.world
    campaign_id, process = await serve(simulation, 0, 0)
    other = simulation.processes[1]
    await simulation.clients.answer_of(process, shown(campaign_id, 1))
    await simulation.clients.answer_of(other, shown(campaign_id, 2))
    world.leapt_us += DAY_US - SECOND_US - world.now_us() % DAY_US
    process.wire.cut.add(REDIS)
    send(simulation, process, shown(campaign_id, 3))
    await sleep(0.1)
    process.freeze()
    world.leapt_us += 3 * SECOND_US
    await simulation.clients.answer_of(other, shown(campaign_id, 3))
    await sleep(1)
    await forget(simulation, other, campaign_id, 4)
    process.wire.cut.clear()
    process.thaw()
    await sleep(5)


FOUND = [
    a_clock_is_set_back,
    a_reply_is_thrown_away,
    a_void_finds_another_redis,
    a_look_up_grows_old,
    an_advance_is_one_too_many,
    a_look_up_outlives_a_recovery,
    a_look_up_outlives_its_bucket,
    a_repeat_was_committed_tomorrow,
]


@pytest.mark.parametrize("script", FOUND, ids=lambda script: script.__name__)
def test_what_was_found_once_is_not_found_again(script: Callable[[Simulation], Awaitable[None]]) -> None:
    """Every promise holds, whatever of the script's timing the seed decides."""
    for seed in range(SEEDS):
        assert play(seed, 0, script).violations == []
