"""The work of the micro benchmarks, and the process that does it when it is told to.

Owns what is measured. Knows no order of rounds and no other checkout: it measures the engine that it can import. A
micro is prepared once in a process (outside what is measured) and then gives a sample whenever asked for: microseconds
of CPU an event. Never of time: what else the machine does takes time from us, but far less CPU.

The engine's names are imported by each micro by itself, so that a checkout which lacks one lacks only that micro. CPU
of the stores is the kernel's count, too: Redis's `commandstats` are of time.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

Sample = Callable[[], float]  # microseconds an event
Ask = Callable[[], Any]  # a sample, or an awaitable of one

EVENTS: Final = 1_000  # a batch of the usual size
FLUSH_EVENTS: Final = 2_000
CAMPAIGNS: Final = 20
SINGLES: Final = 1_000
TRIPS: Final = 3  # to Redis in one sample
COST_MICROS: Final = 1_000
AMPLE_MICROS: Final = 10**14
BUCKET_US: Final = 480_000_000  # age at which a bucket of the dedup window closes


@dataclass(slots=True)
class Bench:
    """What all micros of one process share."""

    db_url: str
    redis_url: str
    rng: random.Random
    tags: Iterator[int] = field(default_factory=lambda: itertools.count(1))


def cpu_us(work: Callable[[], object], events: int) -> float:
    """Of this process, while it works."""
    before = time.process_time_ns()
    work()
    return (time.process_time_ns() - before) / 1e3 / events


# --- Events -------------------------------------------------------------------------------------------------


def new_id(bench: Bench) -> str:
    """A UUIDv7 of now, as text."""
    head, tail = f"{time.time_ns() // 1_000_000:012x}", f"{bench.rng.getrandbits(62):016x}"
    return f"{head[:8]}-{head[8:]}-7{bench.rng.getrandbits(12):03x}-{8 + int(tail[0], 16) % 4:x}{tail[1:4]}-{tail[4:]}"


def bodies(bench: Bench, count: int) -> list[bytes]:
    """Events as a sender writes them."""
    return [
        json.dumps(
            {"event_id": new_id(bench), "campaign_id": 1 + at % 100, "user_id": f"u-{new_id(bench)[:23]}-{at}",
             "event_type": "click" if at % 10 == 0 else "impression", "ad_id": f"ad-{at % 20}"},
            separators=(",", ":"),
        ).encode()
        for at in range(count)
    ]  # fmt: skip


def entries_of(bench: Bench, campaign_id: int, count: int) -> list[Any]:
    """Impressions that have arrived, each of a user of its own."""
    from engine.arrival import ArrivalLimits, arrive
    from engine.model import Event
    from engine.submission import Submission

    limits, now_us = ArrivalLimits(128, 10**12, 10**9), time.time_ns() // 1_000
    submission = Submission(now_us, 0.0, lambda _: None, lambda _: None)
    submission.open += count
    entries = []
    for at in range(count):
        event = Event(campaign_id, f"u-{bench.rng.getrandbits(64):016x}-{at}", "impression", f"ad-{at % 20}")
        entry: Any = arrive(event, submission, at, None, limits)
        entry.cost_micros = COST_MICROS
        submission.entries.append(entry)
        entries.append(entry)
    return entries


@dataclass(slots=True)
class Rows:
    """The accepted events of one campaign (`ports.Batch`)."""

    campaign_id: int
    rows: list[Any]
    tag: int
    spend_day: int
    generation: int = 0
    amount_micros: int = 0


def batches_of(bench: Bench, campaign_ids: list[int], events: int) -> list[Any]:
    """As one flush carries them."""
    each, day = events // len(campaign_ids), time.time_ns() // 86_400_000_000_000
    return [
        Rows(number, entries_of(bench, number, each), next(bench.tags), day, amount_micros=COST_MICROS * each)
        for number in campaign_ids
    ]


# --- In memory ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def _decode(bench: Bench, batch: bool, content_type: str, separator: bytes) -> AsyncIterator[Ask]:
    from api.codec import read_events
    from config.settings import Settings

    limits = Settings()
    if not batch:
        requests = bodies(bench, SINGLES)
    elif separator == b"\n":
        requests = [b"\n".join(bodies(bench, EVENTS)) for _ in range(4)]
    else:
        requests = [b"[" + b",".join(bodies(bench, EVENTS)) + b"]" for _ in range(4)]
    events = SINGLES if not batch else 4 * EVENTS

    def work() -> None:
        for body in requests:
            read_events(body, content_type=content_type, content_encoding="", batch=batch, limits=limits)

    yield lambda: cpu_us(work, events)


@asynccontextmanager
async def _arrive(bench: Bench) -> AsyncIterator[Ask]:
    from api.codec import read_events
    from config.settings import Settings
    from engine.arrival import ArrivalLimits, arrive
    from engine.submission import Submission

    body, settings = b"[" + b",".join(bodies(bench, EVENTS)) + b"]", Settings()
    events: Any = read_events(body, content_type="", content_encoding="", batch=True, limits=settings)
    limits = ArrivalLimits.of(settings)

    def sample() -> float:
        submission = Submission(time.time_ns() // 1_000, 0.0, lambda _: None, lambda _: None)
        return cpu_us(lambda: [arrive(event, submission, n, None, limits) for n, event in enumerate(events)], EVENTS)

    yield sample


@asynccontextmanager
async def _admit(bench: Bench) -> AsyncIterator[Ask]:
    """Both decisions and the verdicts: admit, apply, settle."""
    from engine.campaign import CampaignState
    from engine.lifecycle import Signal
    from engine.memory import Policy
    from engine.ports import Reserved

    now_us, plan, policy = time.time_ns() // 1_000, _campaign(), Policy(BUCKET_US, new_users=True)
    state = CampaignState(plan.id, wait_seconds=3_600.0)
    state.adopt_plan(plan, now_us)
    state.signal(Signal.PLAN)

    def work(entries: list[Any]) -> None:
        now_us = time.time_ns() // 1_000
        request = state.admit(entries, next(bench.tags), policy, now_us).request
        assert request is not None
        reservation = state.apply(request, Reserved(b"A" * len(entries), 0, 0, 0, 0), now_us).reservation
        assert reservation is not None
        state.settle_committed(reservation)

    def sample() -> float:
        entries = entries_of(bench, 1, EVENTS)
        return cpu_us(lambda: work(entries), EVENTS)

    yield sample


def _campaign() -> Any:
    from engine.model import Campaign, CampaignId, Micros, Pacing, PricingModel

    ample = Micros(AMPLE_MICROS)
    return Campaign(
        id=CampaignId(1), name="micro", pricing_model=PricingModel.CPM, unit_price_micros=Micros(1_000 * COST_MICROS),
        total_budget_micros=ample, daily_budget_micros=ample, freq_cap_impressions_per_day=10, active=True,
        pacing=Pacing.ASAP, timezone="UTC", version=1, created_us=0,
    )  # fmt: skip


@asynccontextmanager
async def _pack(bench: Bench) -> AsyncIterator[Ask]:
    """All that a flush computes: sums, the guard's call, and rows."""
    from engine.postgres.copy import guard_call, pack_rows, sum_rows

    batches = batches_of(bench, [*range(1, CAMPAIGNS + 1)], FLUSH_EVENTS)

    def work() -> None:
        guard_call(sum_rows(batches))
        pack_rows(batches)

    yield lambda: cpu_us(work, FLUSH_EVENTS)


# --- Redis --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _lua(bench: Bench, measured: str) -> AsyncIterator[Ask]:
    """One function of the two that an event costs: reserve, or commit. CPU of Redis's main thread."""
    from importlib.resources import files

    import redis

    from engine.model import CampaignId, CampaignSpend, Micros
    from engine.ports import Resolve
    from engine.redis.calls import begin_command, ready_command, round_command
    from engine.steps import Ready

    with redis.Redis.from_url(bench.redis_url, protocol=2) as client:
        client.flushall()
        client.function_load(files("engine.redis").joinpath("functions.lua").read_text(), replace=True)
        day = time.time_ns() // 86_400_000_000_000
        campaign_ids = [CampaignId(number) for number in range(1, CAMPAIGNS + 1)]
        for campaign_id in campaign_ids:
            client.execute_command(*begin_command(campaign_id, 0))
            spend = CampaignSpend(Micros(0), day, Micros(0))
            ready = Ready(campaign_id, 0, spend, 1, 0, time.time_ns() // 1_000, users_loaded=True)
            client.execute_command(*ready_command(ready))
        connection: Any = client.connection_pool.get_connection()  # redis-py leaves its methods untyped

        def cpu() -> float:
            told: Any = client.info("cpu")
            return float(told["used_cpu_user_main_thread"]) + float(told["used_cpu_sys_main_thread"])

        def send(packed: list[bytes], wanted: bytes) -> None:
            connection.send_packed_command(packed)
            replies = [connection.read_response() for _ in campaign_ids]
            assert all(wanted in part for reply in replies for part in reply[:1]), replies[0]

        def sample() -> float:
            reserves, commits = [], []
            for _ in range(TRIPS):
                calls = [_reserve(bench, number, day) for number in campaign_ids]
                reserves.append(connection.pack_commands([round_command(call) for call in calls]))
                resolves = [Resolve(call.campaign_id, 0, call.tag, commit=True) for call in calls]
                commits.append(connection.pack_commands([round_command(call) for call in resolves]))
            at = [cpu()]
            for trips in (reserves, commits):
                for packed in trips:
                    send(packed, b"OK")
                at.append(cpu())
            used = at[1] - at[0] if measured == "reserve" else at[2] - at[1]
            return 1e6 * used / (TRIPS * EVENTS)

        yield sample


def _reserve(bench: Bench, campaign_id: Any, day: int) -> Any:
    from engine.ports import BILLABLE, COUNTS_FOR_CAP, NO_TIME, NONE_LOOKED_UP, Reserve

    count, now_us = EVENTS // CAMPAIGNS, time.time_ns() // 1_000
    return Reserve(
        campaign_id=campaign_id, generation=0, tag=next(bench.tags), plan_version=1, day=day, at_us=now_us,
        bucket_us=BUCKET_US, unlooked_us=now_us, looked_bucket=NONE_LOOKED_UP, most_us=now_us, most_ahead_us=NO_TIME,
        total_budget_micros=AMPLE_MICROS, daily_budget_micros=AMPLE_MICROS, allowance_micros=AMPLE_MICROS, cap=10,
        cost_micros=COST_MICROS, new_users=True,
        kinds=bytes([BILLABLE | COUNTS_FOR_CAP]) * count, ids=bench.rng.randbytes(16 * count),
        users=[f"user-{bench.rng.getrandbits(48):012x}" for _ in range(count)],
    )  # fmt: skip


# --- Postgres -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def _flush(bench: Bench, measured: str) -> AsyncIterator[Ask]:
    """A whole flush: CPU of this process (packing included), or of the Postgres backend that serves it."""
    import psycopg

    from config.settings import Settings
    from engine.model import Micros, NewCampaign, PricingModel
    from engine.postgres.flush import open_flush_pool
    from engine.postgres.store import open_store

    settings, ample = Settings(flush_connections=1), Micros(AMPLE_MICROS)
    plan = NewCampaign(
        name="micro", pricing_model=PricingModel.CPM, unit_price_micros=Micros(1_000 * COST_MICROS),
        total_budget_micros=ample, daily_budget_micros=ample,
    )  # fmt: skip
    async with open_store(bench.db_url, settings) as store:
        campaign_ids: list[int] = [(await store.create_campaign(plan))[0].id for _ in range(CAMPAIGNS)]
    async with open_flush_pool(bench.db_url, settings) as pool:

        async def flush(batches: list[Any]) -> None:
            reply = await pool.flush(batches)
            assert type(reply).__name__ == "Committed", reply

        with psycopg.connect(bench.db_url, autocommit=True) as connection:

            def backends() -> set[int]:
                asked = (
                    "SELECT pid FROM pg_stat_activity"
                    " WHERE datname = current_database() AND backend_type = 'client backend'"
                )
                return {pid for (pid,) in connection.execute(asked)}

            others = backends()
            await flush(batches_of(bench, campaign_ids, FLUSH_EVENTS))  # which opens its connection
            (backend,) = backends() - others

        async def sample() -> float:
            batches = batches_of(bench, campaign_ids, FLUSH_EVENTS)
            ours, theirs = time.process_time_ns(), _cpu_ns(backend)
            await flush(batches)
            used = time.process_time_ns() - ours if measured == "client" else _cpu_ns(backend) - theirs
            return used / 1e3 / FLUSH_EVENTS

        yield sample


def _cpu_ns(pid: int) -> int:
    """As the scheduler counts it: /proc/pid/stat counts in hundredths of a second."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


# --- The process --------------------------------------------------------------------------------------------

MICROS: Final[dict[str, Callable[[Bench], AbstractAsyncContextManager[Ask]]]] = {
    "decode, single": lambda bench: _decode(bench, False, "application/json", b""),
    "decode, batch of 1,000": lambda bench: _decode(bench, True, "application/json", b","),
    "decode, 1,000 lines": lambda bench: _decode(bench, True, "application/x-ndjson", b"\n"),
    "arrive": _arrive,
    "admit and apply": _admit,
    "pack rows": _pack,
    "Lua: reserve, CPU of Redis": lambda bench: _lua(bench, "reserve"),
    "Lua: commit, CPU of Redis": lambda bench: _lua(bench, "commit"),
    "flush, CPU of the engine": lambda bench: _flush(bench, "client"),
    "flush, CPU of Postgres": lambda bench: _flush(bench, "postgres"),
}
IN_MEMORY: Final = tuple(name for name in MICROS if "CPU of" not in name)


async def _serve(names: list[str], bench: Bench) -> None:
    """Prepare, say what can't be, then a sample for each line that asks for one."""
    async with AsyncExitStack() as stack:
        asks: dict[str, Ask] = {}
        missing: dict[str, str] = {}
        for name in names:
            try:
                asks[name] = await stack.enter_async_context(MICROS[name](bench))
            except Exception as error:  # noqa: BLE001  (another checkout may fail in any way)
                missing[name] = f"{type(error).__name__}: {error}"
        print(json.dumps(missing), flush=True)
        gc.collect()
        gc.freeze()
        gc.disable()  # a collection would come in some samples and not in others
        for line in sys.stdin:
            told = asks[line.rstrip("\n")]()
            print(told if isinstance(told, float) else await told, flush=True)
            gc.collect()
            await trio.lowlevel.checkpoint()


def main(checkout: str, names: str, db_url: str, redis_url: str, seed: str) -> None:
    """Serve, with the engine of that checkout or not at all."""
    import engine

    found = Path(engine.__file__ or "").resolve().parents[1]
    if found != Path(checkout).resolve():
        sys.exit(f"{checkout} has no engine: it would be that of {found}")
    bench = Bench(db_url, redis_url, random.Random(seed))
    os.environ.pop("HEADRACE_DATA", None)
    trio.run(_serve, json.loads(names), bench)
