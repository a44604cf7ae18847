"""What can happen to an engine process."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import trio

from bench.proxy import Flow
from engine.failpoints import POINTS
from tests.e2e.program import headrace
from tests.faults.load import Body, uuid7
from tests.faults.waiting import until, until_told, within
from tests.faults.world import OTHERS_SECONDS, Fault, World

START_SECONDS = 6.0  # an engine has started by then, on two cores that others use, too
REACH_SECONDS = 90.0  # a failpoint that was not passed by then is a fault of the harness
THOUSANDS_SECONDS = 40.0  # thousands of events wait for their verdict, and are sent again a hundred a request
NO_MEMORY = "MemoryError|annot allocate memory|start new thread|out of memory"  # as Python, libc and libpq say it
COMMITTED = b"COMMIT\0"  # the command tag, as it stands in Postgres's answer
# Passed so often that a seed may pick the n-th time.
FREQUENT = {"ledger.round": 20, "store.flush": 20, "store.look_up": 6, "store.heartbeat": 4}


async def kill(world: World) -> None:
    """Kill -9 at a random moment; the other engine goes on."""
    await world.pause(0.0, 0.5)
    await world.first.kill()
    world.clear()
    await world.pause(0.2, 0.6)


async def kill_holding(world: World) -> None:
    """Kill -9 of an engine that holds reservations, with the settings that everybody has."""
    await world.first.kill()
    world.first.launch(HEADRACE_FAILPOINT=f"store.flush.before=kill@{world.source.randint(1, 10)}")
    assert await world.first.addresses()
    assert await world.first.ended() == -signal.SIGKILL
    world.clear()
    await trio.sleep(world.source.uniform(9, 12))  # with no help from a new engine's start


async def kill_all(world: World) -> None:
    """Kill -9 of all engines at a random moment."""
    await world.pause(0.0, 0.5)
    for engine in world.engines:
        engine.send_signal(signal.SIGKILL)
    for engine in world.engines:
        await engine.kill()


async def zombie(world: World) -> None:
    """One engine is frozen until the other has taken it for dead, then goes on."""
    await world.pause(0.0, 0.5)
    world.first.send_signal(signal.SIGSTOP)
    await until(lambda: world.first.frozen, "the first engine is frozen")
    await world.pause(1.6, 2.6)
    world.first.send_signal(signal.SIGCONT)
    world.clear()
    await world.pause(0.2, 0.5)


def zombie_at(point: str) -> Callable[[World], Awaitable[None]]:
    """One engine freezes with a reservation in its hands, others void it, and it goes on from there."""

    async def freeze(world: World) -> set[bytes]:
        await world.first.kill()
        world.first.launch(HEADRACE_FAILPOINT=f"{point}=freeze@{world.source.randint(2, 12)}")
        assert await world.first.addresses()
        await until(lambda: world.first.frozen, f"the first engine freezes at {point}")
        return await world.held()

    async def zombie_holding(world: World) -> None:
        with within(REACH_SECONDS, f"the first engine freezes at {point} with a reservation in its hands"):
            while not (held := await freeze(world)):
                pass
        await world.settled(held)
        await world.pause(0.0, 0.5)
        world.first.send_signal(signal.SIGCONT)
        world.clear()
        await world.pause(0.2, 0.5)

    return zombie_holding


async def two_recover(world: World) -> None:
    """Both engines recover the same campaigns; one freezes in the middle and goes on when the other is done."""
    await _freeze_in_recovery(
        world, world.source.choice(["ledger.begin.after", "store.raise_generations.after", "ledger.ready.before"])
    )
    await world.pause(0.2, 1.6)
    world.first.send_signal(signal.SIGCONT)
    world.clear()
    await world.pause(0.2, 0.4)


async def recover_late(world: World) -> None:
    """One engine freezes before its recovery's first step, and Redis is emptied again when it goes on: it rebuilds."""
    await _freeze_in_recovery(world, "store.raise_generations.before")
    await world.pause(0.6, 1.6)
    await trio.to_thread.run_sync(world.redis.do, "FLUSHALL")
    world.first.send_signal(signal.SIGCONT)
    world.clear()
    await world.pause(0.6, 1.0)


async def _freeze_in_recovery(world: World, step: str) -> None:
    await world.first.kill()
    world.first.launch(HEADRACE_FAILPOINT=f"{step}=freeze")
    assert await world.first.addresses()
    await world.answered()
    with within(REACH_SECONDS, f"the first engine freezes at {step}"):
        while not world.first.frozen:
            await trio.to_thread.run_sync(world.redis.do, "FLUSHALL")
            await trio.sleep(0.2)


async def terminate(world: World) -> None:
    """SIGTERM under load: it drains and exits 0."""
    await world.pause(0.0, 0.5)
    world.first.send_signal(signal.SIGTERM)
    assert await world.first.ended() == 0, "a clean stop exits 0"
    world.clear()
    await world.pause(0.1, 0.3)


async def little_memory(world: World) -> None:
    """No memory left, while large batches arrive; an engine that dies of it is started again."""
    # A new process: one that has met such batches before keeps their memory, and needs no more.
    await world.first.kill()
    world.first.launch()
    assert await world.first.addresses()
    pid = world.first.pid
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + world.source.choice([0, 1]) * (1 << 20)
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    await world.until_first_fails("an engine without memory leaves a request without a verdict", 2_000)
    if world.first.alive:
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def few_descriptors(world: World) -> None:
    """No descriptor left, while every connection must be opened again."""
    pid = world.first.pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # Below the lowest that will be free: what its cut connections leave is of no use then.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (world.source.randint(0, 6), unlimited[1]))
    world.first.redis.cut()
    world.first.postgres.cut()
    await world.until_first_fails("an engine without descriptors leaves a request without a verdict", 1)
    if world.first.alive:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, unlimited)


# --- failpoints ---


async def _by_load(_: World) -> None:
    pass


async def _by_empty_redis(world: World) -> None:
    await trio.to_thread.run_sync(world.redis.do, "FLUSHALL")


async def _by_full_redis(world: World) -> None:
    """Engines sweep when Redis is full, and find what another memory image has left of a campaign."""
    await trio.to_thread.run_sync(world.redis.do, "HSET", "{999999999}:s", "gen", 0, "run", "another", "open", 1)
    await trio.to_thread.run_sync(world.redis.do, "CONFIG", "SET", "maxmemory", "1mb")
    await world.pause(0.3, 0.5)
    await trio.to_thread.run_sync(world.redis.do, "CONFIG", "SET", "maxmemory", world.redis.memory)


async def _by_swallowed_commit(world: World) -> None:
    back = world.first.postgres.back

    def swallow() -> None:
        back.flow = Flow.VANISH

    back.watch(COMMITTED, swallow)
    await world.pause(0.5, 0.8)
    world.first.postgres.mend()


async def _by_sigterm(world: World) -> None:
    world.first.send_signal(signal.SIGTERM)
    await world.first.ended()  # a second one would end it at once


async def _by_midnight(world: World) -> None:
    pass  # arranged before its start


def _by_request(method: str, path: str, body: Body | None = None) -> Callable[[World], Awaitable[None]]:
    async def ask(world: World) -> None:
        with suppress(httpx.HTTPError):  # it was killed while it answered
            await world.first.call(method, path.format(campaign=world.campaigns[0]), json=body)

    return ask


async def _by_contradiction(world: World) -> None:
    """Redis knows a commit that Postgres has not: a campaign that no other check looks at, as nobody else can do it."""
    made = await world.second.call("POST", "/campaigns/", json=_NEW)
    assert made.status_code == 201, made.text
    campaign = int(made.json()["id"])
    world.contradicted.append(campaign)
    event = {
        "campaign_id": campaign, "user_id": "u", "event_type": "click",
        "event_id": str(uuid7(time.time(), world.source)),
    }  # fmt: skip

    async def recorded() -> bool:
        return (await world.second.call("POST", "/events/", json=event)).status_code == 200

    await until_told(recorded, "the event that is to vanish is recorded")
    await trio.to_thread.run_sync(world.postgres.do, "DELETE FROM events WHERE campaign_id = %s", campaign)
    with suppress(httpx.HTTPError), trio.move_on_after(REACH_SECONDS / 4):  # it is killed while it answers
        while world.first.alive:
            await world.first.call("POST", "/events/", json=event)
            await trio.sleep(0.1)


async def _recover(world: World, *, halted: bool) -> None:
    """Put what a contradiction has left in order, as an operator would: the audit at the end finds no difference."""
    for campaign in world.contradicted:
        told = (await world.second.call("GET", f"/campaigns/{campaign}")).json()
        assert bool(told["halted"]) == halted, told
        recover = await trio.to_thread.run_sync(partial(headrace, "recover", str(campaign), env=world.stores()))
        assert recover.returncode == 0, recover.stdout + recover.stderr
    world.contradicted.clear()


_NEW = {"name": "new", "pricing_model": "cpc", "unit_price": "1", "total_budget": "1", "daily_budget": "1"}
# What makes an engine pass a point; everything else passes by itself under load.
STIMULI: dict[str, Callable[[World], Awaitable[None]]] = {
    "ledger.begin": _by_empty_redis,
    "ledger.give_back": _by_full_redis,
    "ledger.load": _by_empty_redis,
    "ledger.ready": _by_empty_redis,
    "ledger.settle": _by_swallowed_commit,
    "ledger.survey": _by_full_redis,
    "ledger.probe": _by_request("GET", "/readyz"),
    "store.campaign": _by_request("GET", "/campaigns/{campaign}"),
    "store.create_campaign": _by_request("POST", "/campaigns/", _NEW),
    "store.events_since": _by_empty_redis,
    "store.halt": _by_contradiction,
    "store.make_partitions": _by_midnight,
    "store.page_campaigns": _by_request("GET", "/campaigns/"),
    "store.probe": _by_request("GET", "/readyz"),
    "store.raise_generations": _by_empty_redis,
    "store.report": _by_request("GET", "/report/campaign/{campaign}"),
    "store.retire_engine": _by_sigterm,
    "store.update_campaign": _by_request("PATCH", "/campaigns/{campaign}", {"name": "renamed"}),
    "store.users_on": _by_empty_redis,
}


# Points that are passed only when both engines, or the day, are in trouble.
DISTURBING = {call for call, stimulus in STIMULI.items() if stimulus in (_by_empty_redis, _by_full_redis, _by_midnight)}


def at(point: str) -> Callable[[World], Awaitable[None]]:
    """Kill -9 at a failpoint, wherever the engine is in its life."""
    call = point.rpartition(".")[0]

    async def killed(world: World) -> None:
        first = world.first
        await first.kill()
        if call == "store.make_partitions":
            first.move_clock(own_seconds=seconds_to_midnight(0) - START_SECONDS)
        passing = world.source.randint(1, FREQUENT.get(call, 1))
        first.launch(HEADRACE_FAILPOINT=f"{point}=kill@{passing}")
        with within(REACH_SECONDS, f"the first engine is killed at {point}"):
            if await first.addresses():
                while first.alive:
                    await STIMULI.get(call, _by_load)(world)
                    with trio.move_on_after(0.5):
                        await first.ended()
            status = await first.ended()
        assert status == -signal.SIGKILL, f"{point}: ended with {status} instead of being killed there"
        first.move_clock()
        first.postgres.mend()
        world.clear()
        await _recover(world, halted=point == "store.halt.after")
        await world.pause(0.1, 0.3)

    return killed


def seconds_to_midnight(zone_seconds: int) -> float:
    """Until the next midnight, so many seconds east of Greenwich, by the machine's clock."""
    return 86_400 - (time.time() + zone_seconds) % 86_400


ONE = partial(Fault, others_seconds_max=OTHERS_SECONDS)  # what happens to the first engine alone
FAULTS = [
    ONE("engine: kill -9", kill),
    ONE("engine: kill -9 with reservations, default settings", kill_holding, settings={}),
    Fault("engine: kill -9 of all", kill_all),
    ONE("engine: zombie", zombie),
    ONE("engine: zombie with a reservation", zombie_at("ledger.round.after")),
    ONE("engine: zombie with a flush", zombie_at("store.flush.before")),
    Fault("engine: two recover the same campaigns", two_recover),
    Fault("engine: frozen before a recovery, Redis emptied again", recover_late),
    ONE("engine: SIGTERM under load", terminate),
    ONE("engine: out of memory", little_memory, may_end=True, excuse=NO_MEMORY, recovery_seconds_max=THOUSANDS_SECONDS),
    ONE("engine: out of descriptors", few_descriptors, excuse="Too many open files"),
    *[
        Fault(
            f"kill -9 at {point}", at(point), launches=True,
            others_seconds_max=None if point.rpartition(".")[0] in DISTURBING else OTHERS_SECONDS,
        )
        for point in POINTS
    ],
]  # fmt: skip
