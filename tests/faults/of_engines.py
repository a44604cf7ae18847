"""What can happen to an engine process."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import httpx
import trio

from engine.failpoints import POINTS
from tests.faults.load import ANSWER_SECONDS, Body, client_of
from tests.faults.proxy import Flow
from tests.faults.world import Fault, World

REACH_SECONDS = 90.0  # a failpoint that was not passed by then is a fault of the harness
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
    await world.pause(1.6, 2.6)
    world.first.send_signal(signal.SIGCONT)
    world.clear()
    await world.pause(0.2, 0.5)


async def two_recover(world: World) -> None:
    """Both engines recover the same campaigns; one freezes in the middle and goes on when the other is done."""
    step = world.source.choice(["ledger.begin.after", "store.raise_generation.after", "ledger.ready.before"])
    await world.first.kill()
    world.first.launch(HEADRACE_FAILPOINT=f"{step}=freeze")
    assert await world.first.addresses()
    await world.answered()
    with trio.fail_after(REACH_SECONDS):
        while not _is_frozen(world):
            await trio.to_thread.run_sync(world.redis.do, "FLUSHALL")
            await trio.sleep(0.2)
    await world.pause(0.2, 1.6)
    world.first.send_signal(signal.SIGCONT)
    world.clear()
    await world.pause(0.2, 0.4)


def _is_frozen(world: World) -> bool:
    stat = Path(f"/proc/{world.first.pid}/stat").read_text()
    return stat.rsplit(")", 1)[1].split()[0] == "T"


async def terminate(world: World) -> None:
    """SIGTERM under load: it drains and exits 0."""
    await world.pause(0.0, 0.5)
    world.first.send_signal(signal.SIGTERM)
    assert await world.first.ended() == 0, "a clean stop exits 0"
    world.clear()
    await world.pause(0.1, 0.3)


async def little_memory(world: World) -> None:
    """No memory left, while large batches arrive; an engine that dies of it is started again."""
    pid = world.first.pid
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + world.source.choice([0, 1, 4]) * (1 << 20)
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    async with client_of(ANSWER_SECONDS) as client, trio.open_nursery() as nursery:
        for _ in range(4):
            bodies = [world.load.event() for _ in range(2_000)]
            nursery.start_soon(world.load.attempt, client, bodies, 4.0)
    if world.first.alive:
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def few_descriptors(world: World) -> None:
    """No descriptor left, while every connection must be opened again."""
    pid = world.first.pid
    used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    unlimited = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + world.source.randint(0, 3), unlimited[1]))
    world.first.redis.cut()
    world.first.postgres.cut()
    async with client_of(ANSWER_SECONDS) as client, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(world.load.attempt, client, [world.load.event()], 2.0)
    if world.first.alive:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, unlimited)


# --- failpoints ---


async def _by_load(_: World) -> None:
    pass


async def _by_empty_redis(world: World) -> None:
    await trio.to_thread.run_sync(world.redis.do, "FLUSHALL")


async def _by_swallowed_commit(world: World) -> None:
    back = world.first.postgres.back

    def swallow() -> None:
        back.flow = Flow.VANISH

    back.watch(COMMITTED, swallow)
    await world.pause(0.5, 0.8)
    world.first.postgres.mend()


async def _by_sigterm(world: World) -> None:
    world.first.send_signal(signal.SIGTERM)


async def _by_midnight(world: World) -> None:
    pass  # arranged before its start


def _by_request(method: str, path: str, body: Body | None = None) -> Callable[[World], Awaitable[None]]:
    async def ask(world: World) -> None:
        with suppress(httpx.HTTPError):  # it was killed while it answered
            await world.first.call(method, path.format(campaign=world.campaigns[0]), json=body)

    return ask


_NEW = {"name": "new", "pricing_model": "cpc", "unit_price": "1", "total_budget": "1", "daily_budget": "1"}
# What makes an engine pass a point; everything else passes by itself under load.
STIMULI: dict[str, Callable[[World], Awaitable[None]]] = {
    "ledger.begin": _by_empty_redis,
    "ledger.load_ids": _by_empty_redis,
    "ledger.load_users": _by_empty_redis,
    "ledger.ready": _by_empty_redis,
    "ledger.settle": _by_swallowed_commit,
    "ledger.ping": _by_request("GET", "/readyz"),
    "store.campaign": _by_request("GET", "/campaigns/{campaign}"),
    "store.create_campaign": _by_request("POST", "/campaigns/", _NEW),
    "store.ids_received": _by_empty_redis,
    "store.make_partitions": _by_midnight,
    "store.page_campaigns": _by_request("GET", "/campaigns/"),
    "store.ping": _by_request("GET", "/readyz"),
    "store.raise_generation": _by_empty_redis,
    "store.report": _by_request("GET", "/report/campaign/{campaign}"),
    "store.retire_engine": _by_sigterm,
    "store.update_campaign": _by_request("PATCH", "/campaigns/{campaign}", {"name": "renamed"}),
    "store.users_on": _by_empty_redis,
}


def at(point: str) -> Callable[[World], Awaitable[None]]:
    """Kill -9 at a failpoint, wherever the engine is in its life."""
    call = point.rpartition(".")[0]

    async def killed(world: World) -> None:
        first = world.first
        await first.kill()
        if call == "store.make_partitions":
            first.move_clock(own_seconds=seconds_to_midnight(0) - 2)
        passing = world.source.randint(1, FREQUENT.get(call, 1))
        first.launch(HEADRACE_FAILPOINT=f"{point}=kill@{passing}")
        with trio.fail_after(REACH_SECONDS):
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
        await world.pause(0.1, 0.3)

    return killed


def seconds_to_midnight(zone_seconds: int) -> float:
    """Until the next midnight, so many seconds east of Greenwich, by the machine's clock."""
    return 86_400 - (time.time() + zone_seconds) % 86_400


FAULTS = [
    Fault("engine: kill -9", kill),
    Fault("engine: kill -9 with reservations, default settings", kill_holding, settings={}),
    Fault("engine: kill -9 of all", kill_all),
    Fault("engine: zombie", zombie),
    Fault("engine: two recover the same campaigns", two_recover),
    Fault("engine: SIGTERM under load", terminate),
    Fault("engine: out of memory", little_memory),
    Fault("engine: out of descriptors", few_descriptors),
    *[Fault(f"kill -9 at {point}", at(point), launches=True) for point in POINTS],
]
