"""The world of a fault: two engines, one Postgres, one Redis, campaigns, senders, and a journal of it all.

Owns what happens before and after a fault: a seed starts with everything well, and ends with every event settled, the
checker's findings, and what was slow or surprising besides. Knows no single fault.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import trio

from engine.embedded.home import open_home
from tests.faults.checker import Findings, check
from tests.faults.engines import QUICK, EngineProcess, open_engine_process
from tests.faults.journal import Journal
from tests.faults.load import ANSWER_SECONDS, Load, client_of
from tests.faults.parent import own_folder
from tests.faults.past import lay_past
from tests.faults.probe import Probe, micros
from tests.faults.servers import PostgresServer, RedisServer
from tests.faults.waiting import WAIT_SECONDS, until, until_told, within

RECOVERY_SECONDS = 15.0  # after the end of a fault, until the last event that waited has its verdict
LOST_REDIS_SECONDS = 10.0  # the same, when Redis has lost what it knew
# A campaign that a fault does not concern waits for 2 s at most (docs/guarantees.md); on two cores that several worlds
# share, twice that passes. The figure itself is printed.
OTHERS_SECONDS = 4.0
BYSTANDER_PAUSE_SECONDS = 0.1
OPENED_SECONDS = 30.0  # a hundred campaigns meet their first event within seconds
COST_MICROS = 1_000  # an impression at a cpm of 1.00
HOLDING_SECONDS = 0.3  # longer than a living engine takes from reserving to settling, shorter than it takes to be dead
PLENTY = "1000"
# Rooms that a seed's load uses up: for 150 impressions in all, for 120 a day, for 3 a user and day.
CAMPAIGNS: tuple[Mapping[str, object], ...] = (
    {"name": "wide"},
    {"name": "tight", "total_budget": "0.150"},
    {"name": "daily", "daily_budget": "0.120", "timezone": "Asia/Kolkata"},
    {"name": "capped", "freq_cap_impressions_per_day": 3},
)


@dataclass(frozen=True)
class Fault:
    """A name, what it does to a world under load, and what it needs."""

    name: str
    run: Callable[[World], Awaitable[None]]
    settings: Mapping[str, str] | None = None  # of the engines, instead of the quick ones
    launches: bool = False  # starts the first engine itself, and leaves it dead
    recovery_seconds_max: float = RECOVERY_SECONDS
    # Set where both stores are up and the second engine runs: a campaign that only that one serves may wait so long.
    # For all other faults, how long it waited is only told.
    others_seconds_max: float | None = None
    may_end: bool = False  # an engine may die of it
    excuse: str = ""  # matches exceptions in an engine's log that it may cause


class World:
    """Get one with `open_world`; `seed` runs one fault once."""

    def __init__(
        self, folder: Path, postgres: PostgresServer, new_redis: Callable[[], RedisServer], redis: RedisServer,
        engines: list[EngineProcess], history_rows: int = 0,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.postgres = postgres
        self.new_redis = new_redis  # one more, not started, gone with this world
        self.redis = redis  # the one that leads
        self.engines = engines
        self.source = random.Random(0)
        self.journal: Journal
        self.load: Load
        self.campaigns: list[int] = []
        self.plans: dict[int, dict[str, Any]] = {}
        self.history_rows = history_rows  # that each seed begins with
        self.contradicted: list[int] = []  # campaigns whose books a fault has spoilt, and has to put right
        self._loads: list[Load] = []
        self._loading = False
        self._nursery: trio.Nursery | None = None  # of the seed
        self.launches = False  # the fault starts the first engine itself

    # --- what a fault may ask for ---

    @property
    def first(self) -> EngineProcess:
        """The engine that most faults happen to."""
        return self.engines[0]

    @property
    def second(self) -> EngineProcess:
        """The other one."""
        return self.engines[1]

    async def pause(self, low: float, high: float) -> None:
        """Let the load go on for some time."""
        await trio.sleep(self.source.uniform(low, high))

    async def answered(self, more: int = 3) -> None:
        """Wait until so many more requests were answered: the load flows."""
        target = self.load.answers + more
        await until(lambda: self.load.answers >= target, f"{more} requests are answered")

    def spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something beside the fault; the seed waits for its end."""
        assert self._nursery is not None
        self._nursery.start_soon(work)

    def clear(self) -> None:
        """The fault is over: from here, recovery is measured."""
        self.journal.write("clear")

    def listeners(self) -> list[str]:
        """Where senders may send: any engine."""
        return [url for engine in self.engines for url in engine.listeners]

    def stores(self) -> dict[str, str]:
        """Settings of a command that talks to both stores past every proxy."""
        return {"DB_URL": self.postgres.url, "REDIS_URL": f"redis://127.0.0.1:{self.redis.port}"}

    def load_on(self, engine: EngineProcess, *campaigns: int) -> Load:
        """More senders, to one engine only; to all campaigns, or to these. What they send is settled at the end."""
        load = Load(
            self.journal, random.Random(self.source.random()), lambda: engine.listeners, campaigns or self.campaigns
        )
        self._loads.append(load)
        return load

    async def until_first_fails(self, what: str, size: int) -> None:
        """Send batches of new events to the first engine until one is not answered, or the engine is dead."""
        load = self.load_on(self.first)
        sent = 0

        async def send() -> None:
            await load.attempt(client, [load.event() for _ in range(size)], 4.0)

        async with client_of(ANSWER_SECONDS) as client:
            with within(WAIT_SECONDS, what):
                while self.first.alive and load.answers == sent:
                    sent += 4
                    async with trio.open_nursery() as nursery:
                        for _ in range(4):
                            nursery.start_soon(send)

    async def generations(self) -> int:
        """The sum over this seed's campaigns: it rises with every recovery."""
        rows = await trio.to_thread.run_sync(
            self.postgres.do, "SELECT sum(gen)::bigint FROM ledger WHERE campaign_id = ANY(%s)", self.campaigns
        )
        return int(rows[0][0])

    async def recovered(self, above: int) -> None:
        """Wait until somebody has raised a generation: what was reserved before is void."""

        async def raised() -> bool:
            return await self.generations() > above

        await until_told(raised, "the generation of a campaign is raised")

    async def held(self) -> set[bytes]:
        """Tags of reservations of this seed's campaigns that nobody settles: their engine is dead or frozen."""
        before = await self._pending()
        await trio.sleep(HOLDING_SECONDS)
        return before & await self._pending()

    async def settled(self, tags: set[bytes]) -> None:
        """Wait until others have voided or committed them."""

        async def none_left() -> bool:
            return not tags & await self._pending()

        await until_told(none_left, "others have settled what the first engine had reserved")

    async def _pending(self) -> set[bytes]:
        def read() -> set[bytes]:
            with self.redis.client() as client:
                return {tag for campaign in self.campaigns for tag in client.hkeys(f"{{{campaign}}}:p")}

        return await trio.to_thread.run_sync(read)

    async def create(self, **fields: object) -> int:
        """Make a campaign (cpm 1.00, plenty of budget) and journal it."""
        values = {
            "name": "wide", "pricing_model": "cpm", "unit_price": "1.00", "total_budget": PLENTY,
            "daily_budget": PLENTY, "pacing": "asap", "timezone": "UTC", "active": True, **fields,
        }  # fmt: skip
        asked = time.monotonic()
        answer = await self.second.call("POST", "/campaigns/", json=values)
        assert answer.status_code == 201, answer.text
        campaign = int(answer.json()["id"])
        self.plans[campaign] = values
        await self._journal_plan(campaign, asked)
        return campaign

    async def change(self, campaign: int, **fields: object) -> None:
        """Change a campaign, until that is acknowledged, and journal it."""
        engine = self.source.choice([engine for engine in self.engines if engine.api])
        asked = time.monotonic()
        while True:
            try:
                answer = await engine.call("PATCH", f"/campaigns/{campaign}", json=fields)
            except httpx.HTTPError:
                continue
            if answer.status_code == 200:
                break
            assert answer.status_code == 503, answer.text
        self.plans[campaign] |= fields
        await self._journal_plan(campaign, asked)

    async def ledger(self, campaign: int) -> tuple[int, date, int]:
        """What a campaign has spent, its latest spend day, and what it has spent on that."""
        query = "SELECT spent, day, today FROM ledger WHERE campaign_id = %s"
        ((spent, day, today),) = await trio.to_thread.run_sync(self.postgres.do, query, campaign)
        return spent, day, today

    async def shown(self, campaign: int, day: date) -> Mapping[str, int]:
        """Impressions of each user on a spend day."""
        query = (
            "SELECT user_id, count(*) FROM events"
            " WHERE campaign_id = %s AND event_type = 0 AND spend_day = %s GROUP BY 1"
        )
        return dict(await trio.to_thread.run_sync(self.postgres.do, query, campaign, day))

    async def _journal_plan(self, campaign: int, asked: float) -> None:
        plan = self.plans[campaign]
        spent, day, today = await self.ledger(campaign)
        self.journal.write(
            "plan", campaign=campaign, asked=asked, total_micros=micros(plan["total_budget"]),
            daily_micros=micros(plan["daily_budget"]), cap=plan.get("freq_cap_impressions_per_day"),
            model=plan["pricing_model"], price_micros=micros(plan["unit_price"]), zone=plan["timezone"],
            active=plan["active"], spent=spent, day=str(day), today_micros=today,
        )  # fmt: skip

    async def clocks_followed(self) -> None:
        """Wait until the engines that run follow a clock that was moved just now.

        A heartbeat follows the clock that it read at its begin: the first after the move may have read before it, the
        second has not, and the third tells that the second is done.
        """
        query = "SELECT id, heartbeat_at FROM engines WHERE heartbeat_at > %s"
        moved = (await trio.to_thread.run_sync(self.postgres.do, "SELECT clock_timestamp()"))[0][0]
        seen: dict[int, set[object]] = {}

        async def thrice() -> bool:
            for engine, beat in await trio.to_thread.run_sync(self.postgres.do, query, moved):
                seen.setdefault(engine, set()).add(beat)
            return sum(len(beats) >= 3 for beats in seen.values()) >= sum(engine.alive for engine in self.engines)

        await until_told(thrice, "the engines compare their clocks")

    # --- one seed ---

    async def seed(self, fault: Fault, seed: int) -> Findings:
        """Everything well; load; the fault; everything well again; every event settled; the checker's findings."""
        self.source = random.Random(f"{fault.name} {seed}")
        self.launches = fault.launches
        path = self.folder / f"{seed}.jsonl"
        path.unlink(missing_ok=True)
        self.journal = Journal(path)
        for engine in self.engines:
            engine.tell_clock = self.journal.clock
            engine.move_clock()
            await engine.drop_specials()
        await self.mend()
        await self.clocks_followed()  # the seed before may have left them hours away
        self.campaigns = [await self.create(**fields) for fields in CAMPAIGNS]
        self.load = Load(self.journal, random.Random(self.source.random()), self.listeners, self.campaigns)
        self._loads = [self.load]
        if self.history_rows:
            await self._lay_past()
        steady = list(self._loads)
        self._loading = True
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for load in steady:
                nursery.start_soon(load.run)
            await self.answered(10)
            await self._remembered(steady[1:])
            others = await self._start_bystander(nursery)
            self.journal.write("fault", others=others)
            await fault.run(self)
            await self.mend()
            self.clear()
            await self.answered(10)
            for load in steady:
                load.stop()
            self._loading = False
        return await self._judged(fault, path)

    async def _judged(self, fault: Fault, path: Path) -> Findings:
        """Every event settled, every campaign asked once more; what the checker finds."""
        stuck = [event_id for load in self._loads for event_id in await load.settle()]
        flowed = bool(self.load.acknowledged)
        unmet: dict[int, str] = {}
        async with trio.open_nursery() as nursery:
            for campaign in self.campaigns:
                nursery.start_soon(self._probe, campaign, unmet)
        self.journal.close()
        findings = await trio.to_thread.run_sync(check, path, self.postgres.url)
        if stuck:
            findings.count("lost", "never settled, though all is well", stuck[:3], len(stuck))
        for campaign, wrong in unmet.items():
            findings.count("unmet", wrong, campaign)
        if not flowed:
            findings.count("unmet", "nothing was acknowledged under load", path.name)
        for complaint in [*_too_slow(fault, findings), *await self.surprises(fault)]:
            findings.note("besides", complaint)
        return findings

    async def _probe(self, campaign: int, unmet: dict[int, str]) -> None:
        if wrong := await Probe(self.load, campaign, self.plans[campaign], self).run():
            unmet[campaign] = wrong

    async def surprises(self, fault: Fault) -> list[str]:
        """What engines did since the last call that this fault does not explain."""
        return [
            surprise
            for engine in self.engines
            for surprise in await engine.take_surprises(may_end=fault.may_end, excuse=fault.excuse)
        ]

    async def _lay_past(self) -> None:
        """Millions of rows of the last minutes, and senders to all campaigns that have them."""
        first = await self.create(name="past")
        past = await trio.to_thread.run_sync(lay_past, self.postgres.url, self.history_rows, first)
        for record in past.records():
            self.journal.write("past", **record)
        for campaign in past.campaigns:
            self.plans[campaign] = self.plans[first]
            await self._journal_plan(campaign, time.monotonic())
        source = random.Random(self.source.random())
        self._loads.append(Load(self.journal, source, self.listeners, list(past.campaigns)))

    async def _remembered(self, loads: Sequence[Load]) -> None:
        """Wait until each campaign with a history takes events, but not for ever: its opening is no fault's matter."""
        for load in loads:
            with trio.move_on_after(OPENED_SECONDS):
                while len({body["campaign_id"] for body in load.acknowledged}) < len(load.campaigns):
                    await trio.sleep(BYSTANDER_PAUSE_SECONDS)

    async def _start_bystander(self, nursery: trio.Nursery) -> list[int]:
        """An innocent campaign, which only the second engine serves, and a sender of its own."""
        campaign = await self.create(name="bystander")
        load = self.load_on(self.second, campaign)

        async def send() -> None:
            async with client_of(ANSWER_SECONDS) as client:
                while self._loading:
                    body = load.unsettled.popleft() if load.unsettled else load.event()
                    await load.attempt(client, [body], keep=True)
                    await trio.sleep(BYSTANDER_PAUSE_SECONDS)

        nursery.start_soon(send)
        return [campaign]

    async def mend(self) -> None:
        """Whatever was broken works again: stores, proxies, engines. Clocks stay where they are until the next seed."""
        self.postgres.disk.empty()
        self.redis.disk.empty()
        for engine in self.engines:
            engine.redis.mend()
            engine.postgres.mend()
            engine.redis.target = self.redis.port
        await self.redis.start()
        await self.postgres.start()
        for engine in self.engines:
            if not (self.launches and engine is self.first):
                await engine.start()


def _too_slow(fault: Fault, findings: Findings) -> Iterator[str]:
    """What the fault's limits say of the times that the checker has read in the journal."""
    if findings.recovery_seconds > fault.recovery_seconds_max:
        yield f"recovered after {findings.recovery_seconds:.1f} s, allowed are {fault.recovery_seconds_max:.0f}"
    if fault.others_seconds_max is not None and findings.others_seconds > fault.others_seconds_max:
        yield f"others waited for {findings.others_seconds:.1f} s, allowed are {fault.others_seconds_max:.0f}"


@asynccontextmanager
async def open_world(settings: Mapping[str, str] | None = None, history_rows: int = 0) -> AsyncIterator[World]:
    """Fresh servers and two engines, in a folder of their own. With a history there is room for one, and one seed."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(own_folder())
        home = open_home(folder)
        postgres = PostgresServer(home, folder / "postgres", history_rows)
        stack.callback(postgres.disk.remove)
        stack.push_async_callback(_stop, postgres)
        number = count()

        def new_redis() -> RedisServer:
            server = RedisServer(home, folder / f"redis-{next(number)}", history_rows)
            stack.callback(server.disk.remove)
            stack.push_async_callback(_stop, server)
            return server

        redis = new_redis()
        await postgres.start()
        await redis.start()
        engines = [
            await stack.enter_async_context(
                open_engine_process(name, folder, redis, postgres, QUICK if settings is None else settings)
            )
            for name in ("first", "second")
        ]
        for engine in engines:
            await engine.start()
        yield World(folder, postgres, new_redis, redis, engines, history_rows)


async def _stop(server: PostgresServer | RedisServer) -> None:
    with trio.CancelScope(shield=True):
        await server.stop()
