"""What can hold rows and keys in Postgres: an engine that stops in the midst of a flush or a change, or somebody else.

All with the settings that everybody has: an engine is dead after 8 s, and nobody else may wait for that.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import httpx
import psycopg
import trio

from bench.proxy import Direction, Flow
from tests.faults.load import ANSWER_SECONDS, Body, Load, client_of, uuid7
from tests.faults.waiting import WAIT_SECONDS, until, until_told, within
from tests.faults.world import OTHERS_SECONDS, Fault, World

BATCH_EVENTS = 4_000  # Postgres writes rows, and their keys, by the thousand
MARKED = 3_500  # the event with which a flush stops
MARK = "the-rows-stop-here"
DEAD_SECONDS = 25.0  # an engine is dead, its sessions are ended, and its campaign is recovered, on two busy cores
# In a change of a campaign's budgets, when both of its rows are locked.
CHANGED = b"pg_notify('headrace_plan'"


async def frozen_in_copy(world: World) -> None:
    """An engine freezes in the midst of the COPY of thousands of rows; the same events are sent to the other one."""
    bodies = await _stopped_in_copy(world, Flow.STALL)
    world.first.send_signal(signal.SIGSTOP)
    await until(lambda: world.first.frozen, "the first engine is frozen")
    await _taken_over(world, bodies)
    world.first.send_signal(signal.SIGCONT)
    world.first.postgres.there.flow = Flow.PASS
    world.clear()
    await world.pause(0.2, 0.5)


async def hole_and_kill(world: World) -> None:
    """The network swallows what a flush sends in the midst of its COPY, and the engine dies: nobody tells Postgres."""
    bodies = await _stopped_in_copy(world, Flow.VANISH)
    await world.first.kill()
    await _taken_over(world, bodies)
    world.first.postgres.mend()
    world.clear()
    await world.pause(0.2, 0.5)


async def _stopped_in_copy(world: World, flow: Flow) -> list[Body]:
    """Send the first engine so many events of one campaign that Postgres has some of their rows, and no end.

    Whether it has written them already (it does so by the thousand) depends on how the engine has cut its flushes.
    """
    load = world.load_on(world.first, world.campaigns[0])
    # (None that is looked up first, so that most of them are in one flush.)
    bodies = [
        {
            "campaign_id": world.campaigns[0], "user_id": "frozen", "event_type": "click",
            "event_id": str(uuid7(time.time(), world.source)),
        }
        for _ in range(BATCH_EVENTS)
    ]  # fmt: skip
    bodies[MARKED]["user_id"] = MARK
    there = world.first.postgres.there
    stopped = _on_its_way(there, MARK.encode(), lambda: setattr(there, "flow", flow))
    world.spawn(partial(_send, load, bodies))
    with within(WAIT_SECONDS, "a flush stops in the midst of its rows"):
        await stopped.wait()
    return bodies


async def _taken_over(world: World, bodies: list[Body]) -> None:
    """The same events go to the other engine, again and again, until it has had its way.

    A Redis that still knows them answers that they are under way. One that has lost this campaign takes them anew: then
    the other engine's flush meets their keys in Postgres.
    """
    if world.source.random() < 0.5:
        await trio.to_thread.run_sync(world.redis.do, "DEL", f"{{{world.campaigns[0]}}}:s")
    load = world.load_on(world.second, world.campaigns[0])
    with within(DEAD_SECONDS, "what a dead engine held is free"):
        waiting = {body["event_id"]: body for body in bodies}
        async with client_of(ANSWER_SECONDS) as client:
            while waiting:
                for event_id in await load.attempt(client, list(waiting.values()), keep=True):
                    del waiting[event_id]
                load.unsettled.clear()
                await trio.sleep(0.2)


async def _send(load: Load, bodies: list[Body]) -> None:
    async with client_of(ANSWER_SECONDS) as client:
        await load.attempt(client, bodies, keep=True)


def _on_its_way(direction: Direction, text: bytes, act: Callable[[], None]) -> trio.Event:
    """Act when this text comes by, before it goes on."""
    seen = trio.Event()

    def see() -> None:
        act()
        seen.set()

    direction.watch(text, see)
    return seen


async def ledger_row_locked(world: World) -> None:
    """Somebody holds the ledger row of one campaign for seconds."""
    await world.pause(0.0, 0.3)
    hold_seconds = world.source.uniform(3.0, 6.0)

    def lock() -> psycopg.Connection:
        connection = psycopg.connect(world.postgres.url)
        connection.execute("SELECT FROM ledger WHERE campaign_id = %s FOR UPDATE", [world.campaigns[0]])
        return connection

    connection = await trio.to_thread.run_sync(lock)
    try:
        query = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE %s AND wait_event_type = 'Lock'"
        waits = partial(world.postgres.do, query, "headrace % flush")
        await until_told(lambda: trio.to_thread.run_sync(waits), "a flush waits for the row")
        await trio.sleep(hold_seconds)
    finally:
        connection.close()
    world.clear()
    await world.pause(0.1, 0.3)


async def frozen_in_change(world: World) -> None:
    """An engine freezes in the midst of a PATCH, with the campaign's rows in its hands."""
    await world.first.kill()  # a connection says the text of a statement once
    world.first.launch()
    assert await world.first.addresses()
    frozen = _on_its_way(world.first.postgres.there, CHANGED, lambda: world.first.send_signal(signal.SIGSTOP))
    world.spawn(partial(_change, world))
    with within(WAIT_SECONDS, "an engine freezes in the midst of a PATCH"):
        await frozen.wait()
    await world.pause(4.0, 6.0)
    world.first.send_signal(signal.SIGCONT)
    world.clear()
    await world.pause(0.2, 0.5)


async def _change(world: World) -> None:
    """One more unit of budget, of plenty: whatever becomes of it."""
    with suppress(httpx.HTTPError):
        await world.first.call("PATCH", f"/campaigns/{world.campaigns[0]}", json={"total_budget": "1001"})


HELD = partial(Fault, settings={}, others_seconds_max=OTHERS_SECONDS, recovery_seconds_max=DEAD_SECONDS)
FAULTS = [
    HELD("engine: frozen in COPY", frozen_in_copy),
    HELD("network: hole with a dead engine", hole_and_kill),
    HELD("postgres: ledger row locked", ledger_row_locked),
    HELD("engine: frozen in a change of a campaign", frozen_in_change),
]
