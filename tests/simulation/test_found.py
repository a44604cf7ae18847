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
from tests.simulation.world import DAY_SECONDS, POSTGRES, Weather

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
    world.leapt_us += 3 * world.settings.dedup_turn_seconds * SECOND_US
    process.thaw()
    await sleep(5)


async def two_clocks_disagree(simulation: Simulation) -> None:
    """The engine that moves the window on is ahead, and the one that hears the retry behind: it looks it up."""
    world, settings = simulation.world, simulation.world.settings
    off_us = (int(settings.clock_refuse_seconds) - 3) * SECOND_US
    campaign_id, ahead = await serve(simulation, off_us, -off_us, total_budget="0.001")
    turn_us = settings.dedup_turn_seconds * SECOND_US
    world.leapt_us += turn_us - SECOND_US - ahead.machine_us() % turn_us  # a second before its turn ends
    first = shown(campaign_id, 1, ahead.machine_us() + settings.occurred_ahead_seconds * SECOND_US - 1)
    await simulation.clients.answer_of(ahead, first)
    world.leapt_us += turn_us + 2 * SECOND_US
    await simulation.clients.answer_of(ahead, shown(campaign_id, 2))
    await simulation.clients.answer_of(simulation.processes[1], first)


async def a_look_up_outlives_a_recovery(simulation: Simulation) -> None:
    """A flush hangs for longer than the window; its retry is looked up, and then a recovery lets the flush through."""
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
        world.leapt_us += 3 * world.settings.dedup_turn_seconds * SECOND_US
        send(simulation, other, shown(campaign_id, 3) + shown(campaign_id, 4, world.now_us()))
        await sleep(0.5 + 0.1 * world.source.random())
    await sleep(5)
    process.thaw()
    await sleep(5)


async def a_commit_outlasts_the_window(simulation: Simulation) -> None:
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
        world.leapt_us += 3 * world.settings.dedup_turn_seconds * SECOND_US
        send(simulation, other, shown(campaign_id, 3))
        await sleep(0.0005 * world.source.random())  # its look-up is on the way
        other.freeze()
        await sleep(0.5)
    await sleep(1)  # Redis has heard of the commit
    other.thaw()
    await sleep(5)


FOUND = [
    a_clock_is_set_back,
    a_reply_is_thrown_away,
    a_void_finds_another_redis,
    a_look_up_grows_old,
    two_clocks_disagree,
    a_look_up_outlives_a_recovery,
    a_commit_outlasts_the_window,
]


@pytest.mark.parametrize("script", FOUND, ids=lambda script: script.__name__)
def test_what_was_found_once_is_not_found_again(script: Callable[[Simulation], Awaitable[None]]) -> None:
    """Every promise holds, whatever of the script's timing the seed decides."""
    for seed in range(SEEDS):
        assert play(seed, 0, script).violations == []
