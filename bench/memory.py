"""`python -m bench.memory`: what an event costs in memory, in the engine's process and in Redis.

Owns what is put there to be weighed. Everything is real: embedded stores in a folder of its own, the engine as
`headrace serve` runs it (less its listeners, whose buffers have bounds of their own). Nothing is left behind.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import msgspec
import psycopg
import redis
import trio
from rich.console import Console
from rich.table import Table

from api.codec import JSON, read_events
from config.settings import Settings
from engine.embedded import Stores, open_stores
from engine.engine import Engine
from engine.model import CampaignId, CampaignSpend, Micros, new_event_id
from engine.ports import (
    COUNTS_FOR_CAP,
    FREE,
    NO_CAP,
    NO_TIME,
    NONE_LOOKED_UP,
    Done,
    Reserve,
    Reserved,
    ReserveReply,
    Resolve,
    ResolveReply,
)
from engine.postgres import flush
from engine.redis.ledger import RedisLedger, open_ledger
from engine.runtime import open_engine
from engine.steps import Begin, Ready
from engine.submission import Submission

CAMPAIGNS: Final = 10
WARMING: Final = 1_000  # events first, so that connections, code and caches are not counted
HELD: Final = 50_000
LEDGER_SIZES: Final = (10_000, 100_000, 1_000_000, 1_100_000)  # the last one: just after a hash table has doubled
IDLE_CAMPAIGNS: Final = 2_000
CHUNK: Final = 1_000
CAMPAIGN: Final = CampaignId(1)
NOW_US: Final = time.time_ns() // 1_000  # for all calls: no bucket closes while they are weighed
BUCKET_US: Final = 480_000_000


# --- The engine's process -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes an event while its flush waits: of the process, and by Python's own count."""

    resident: float
    traced: float


def hold_events(stores: Stores, settings: Settings, batch: int, *, traced: bool) -> Held:
    """Fill an engine with events that Postgres does not commit, in requests of `batch`. In a process of its own."""
    return trio.run(_hold_events, stores, settings, batch, traced)


async def _hold_events(stores: Stores, settings: Settings, batch: int, traced: bool) -> Held:
    flush.LOCK_SECONDS = settings.flush_timeout_seconds  # type: ignore[attr-defined]  # as long as we hold the row
    answered: list[Submission] = []
    async with open_engine(settings, db_url=stores.db_url, redis_url=stores.redis_url) as engine:
        campaigns = [await _campaign(engine, number) for number in range(CAMPAIGNS)]
        for campaign in campaigns:
            _send(engine, settings, [campaign] * (WARMING // CAMPAIGNS), answered)
        await _answers(answered, CAMPAIGNS)
        answered.clear()
        with psycopg.connect(stores.db_url) as judge:  # (left open, its transaction holds the rows)
            judge.execute("SELECT FROM ledger FOR UPDATE")
            gc.collect()
            if traced:
                tracemalloc.start()
            before = _resident()
            for start in range(0, HELD, batch):
                _send(engine, settings, [campaigns[at % CAMPAIGNS] for at in range(start, start + batch)], answered)
                await trio.lowlevel.checkpoint()
            await trio.sleep(5)  # by now everything is reserved, and two flushes are at Postgres
            assert not answered, "nothing may be answered while the ledger is held"
            gc.collect()
            held = Held((_resident() - before) / HELD, tracemalloc.get_traced_memory()[0] / HELD)
            tracemalloc.stop()
            judge.rollback()
        await _answers(answered, HELD // batch)
    refused = [verdict for submission in answered for verdict in submission.verdicts.values()]
    assert not refused, f"{len(refused)} events were not accepted, the first: {refused[0]}"
    return held


async def _campaign(engine: Engine, number: int) -> CampaignId:
    fields = {"pricing_model": "cpm", "unit_price": 1, "total_budget": 10**6, "daily_budget": 10**6}
    view = await engine.create_campaign({"name": f"memory {number}", "freq_cap_impressions_per_day": 10, **fields})
    return view.campaign.id


async def _answers(answered: Sequence[Submission], wanted: int) -> None:
    while len(answered) < wanted:  # noqa: ASYNC110  (nothing is measured meanwhile)
        await trio.sleep(0.1)


def _send(engine: Engine, settings: Settings, campaigns: Sequence[int], answered: list[Submission]) -> None:
    """One request, from its bytes on: an event each of these campaigns."""
    events = [
        {
            "campaign_id": campaign,
            "user_id": str(uuid.uuid4()),
            "event_type": "impression",
            "ad_id": f"ad-{at % 1_000:08d}",
            "event_id": str(uuid.UUID(bytes=_new_id())),
        }
        for at, campaign in enumerate(campaigns)
    ]
    single = len(events) == 1
    body = msgspec.json.encode(events[0] if single else events)
    engine.submit(
        read_events(body, content_type=JSON, content_encoding="", batch=not single, limits=settings), answered.append
    )


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


# --- Redis --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Scales:
    """What Redis holds more, since it was emptied, in bytes."""

    client: redis.Redis
    ledger: RedisLedger

    async def empty(self) -> int:
        """Nothing but one campaign, open; what is used."""
        self.client.flushall()
        await self.open(CAMPAIGN)
        return self.used()

    async def open(self, campaign_id: CampaignId) -> None:
        """A campaign without anything."""
        await self.ledger.begin([Begin(campaign_id, 1)])
        nothing = CampaignSpend(Micros(0), 1, Micros(0))
        ready = Ready(campaign_id, 1, nothing, 1, 0, NOW_US, users_loaded=True)
        assert await self.ledger.ready([ready]) == [Done()]

    def used(self) -> int:
        """Bytes of all that Redis holds, less what comes and goes: Lua's garbage and the buffers of clients."""
        info = self.client.info("memory")
        return int(info["used_memory"] - info["used_memory_vm_functions"] - info["mem_clients_normal"])

    async def reserve(self, tag: int, events: int, campaign_id: CampaignId = CAMPAIGN, *, capped: bool = False) -> None:
        """Reserve that many events under this tag, each of a user of its own."""
        ids = b"".join(_new_id() for _ in range(events))
        kinds = bytes([COUNTS_FOR_CAP if capped else FREE]) * events
        users = [str(uuid.uuid4()) for _ in range(events)] if capped else [""] * events
        cap = 1 if capped else NO_CAP
        call = Reserve(
            campaign_id=campaign_id, generation=1, tag=tag, plan_version=1, day=1, at_us=NOW_US, bucket_us=BUCKET_US,
            unlooked_us=NOW_US, looked_bucket=NONE_LOOKED_UP, most_us=NOW_US, most_ahead_us=NO_TIME,
            total_budget_micros=0, daily_budget_micros=0, allowance_micros=0, cap=cap, cost_micros=0, new_users=True,
            kinds=kinds, ids=ids, users=users,
        )  # fmt: skip
        reply = await self._answer(call)
        assert isinstance(reply, Reserved), reply
        assert reply.letters == b"A" * events

    async def commit(self, tag: int, campaign_id: CampaignId = CAMPAIGN) -> None:
        """Settle a reservation."""
        assert await self._answer(Resolve(campaign_id, 1, tag, commit=True)) == Done()

    async def _answer(self, call: Reserve | Resolve) -> ReserveReply | ResolveReply:
        replies: list[ReserveReply | ResolveReply] = []
        await self.ledger.round([[call]], replies.extend)
        return replies[0]

    async def ids(self, size: int) -> float:
        """Bytes of an id in the dedup window, of an event without a cap."""
        return await self._events(size, capped=False)

    async def users(self, size: int, an_id: float) -> float:
        """Bytes of a user with impressions today, whose name is a UUID in text."""
        return await self._events(size, capped=True) - an_id

    async def _events(self, size: int, *, capped: bool) -> float:
        before = await self.empty()
        for tag in range(size // CHUNK):
            await self.reserve(tag, CHUNK, capped=capped)
            await self.commit(tag)
        return (self.used() - before) / size

    async def pending(self, events: int) -> float:
        """Bytes of a pending reservation of that many events with a cap, ids and users apart."""
        reservations = 1_000
        await self.empty()
        for tag in range(reservations):
            await self.reserve(tag, events, capped=True)
        before = self.used()
        for tag in range(reservations):
            await self.commit(tag)
        return (before - self.used()) / reservations

    async def campaigns(self, *, events: int) -> float:
        """Bytes of a campaign with that many committed events of today, each of its own user."""
        before = await self.empty()
        for number in range(2, IDLE_CAMPAIGNS + 2):
            await self.open(CampaignId(number))
            if events:
                await self.reserve(1, events, CampaignId(number), capped=True)
                await self.commit(1, CampaignId(number))
        return (self.used() - before) / IDLE_CAMPAIGNS


async def weigh_redis(stores: Stores, settings: Settings, console: Console) -> None:
    """Print both tables of Redis."""
    with redis.Redis.from_url(stores.redis_url) as client:
        async with open_ledger(stores.redis_url, settings) as ledger:
            scales = Scales(client, ledger)
            info = client.info()
            console.print(f"Redis {info['redis_version']}, allocator {info['mem_allocator']}")
            table = _table("bytes in Redis, of", *(f"{size:,}" for size in LEDGER_SIZES))
            an_id = [await scales.ids(size) for size in LEDGER_SIZES]
            users = [await scales.users(size, each) for size, each in zip(LEDGER_SIZES, an_id, strict=True)]
            _row(table, "an id", an_id)
            _row(table, "a user (36 bytes of name)", users)
            console.print(table)
            table = _table("bytes in Redis, with events", "0", "1", "10", "1,000")
            _row(table, "a campaign", [await scales.campaigns(events=events) for events in (0, 1, 10)])
            _row(table, "a pending reservation", [0, *[await scales.pending(events) for events in (1, 10, 1_000)]])
            console.print(table)
            client.flushall()


# --- The command --------------------------------------------------------------------------------------------


def _new_id() -> bytes:
    return new_event_id(time.time_ns() // 1_000, os.urandom(10))


def _table(first: str, *columns: str) -> Table:
    table = Table(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _row(table: Table, name: str, figures: Sequence[float]) -> None:
    table.add_row(name, *(f"{figure:,.0f}" for figure in figures))


def weigh_engine(stores: Stores, settings: Settings, console: Console) -> None:
    """Print the table of the engine's process: each figure from a fresh one."""
    table = _table(f"bytes an event, {HELD:,} held", "resident", "traced by Python")
    for batch in (1, 1_000):
        figures = []
        for traced in (False, True):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                figures.append(process.submit(hold_events, stores, settings, batch, traced=traced).result())
        name = "requests of one" if batch == 1 else f"requests of {batch:,}"
        _row(table, name, [figures[0].resident, figures[1].traced])
    console.print(table)


def main() -> None:
    """The command."""
    console = Console(highlight=False)
    folder = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    folder.chmod(0o711)  # the user whom root runs the stores as must get through
    settings = Settings(data=str(folder), flush_timeout_seconds=120.0, request_deadline_seconds=120.0)
    try:
        with open_stores(settings) as stores:
            weigh_engine(stores, settings, console)
            trio.run(weigh_redis, stores, settings, console)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
