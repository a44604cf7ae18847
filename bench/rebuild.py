"""`python -m bench.rebuild`: how long a campaign of a million events is away when Redis has lost everything.

Owns the campaign, the loss, and what must hold afterwards. Everything is real: embedded stores in a folder of its own,
rows through the store's flush, an engine as `headrace serve` runs it. Nothing is left behind.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import redis
import trio
from rich.console import Console
from rich.table import Table

from config.settings import Settings
from engine.auditor import audit
from engine.embedded import Stores, open_stores
from engine.engine import Engine
from engine.model import (
    DAY_US,
    SECOND_US,
    CampaignId,
    Event,
    EventType,
    Micros,
    NewCampaign,
    PricingModel,
    Status,
    new_event_id,
)
from engine.ports import Committed, Row
from engine.postgres.store import PostgresStore, open_store
from engine.redis.ledger import RedisLedger
from engine.runtime import open_engine

EVENTS: Final = 1_000_000
USERS: Final = 300_000
COST_MICROS: Final = 1_000
FLUSH_EVENTS: Final = 10_000
RECEIVED_SECONDS: Final = 400  # over so long the events were received
BESIDE_SECONDS: Final = 0.01  # between two events of the campaign beside


@dataclass(slots=True)
class Line:
    """One accepted event (`ports.Row`)."""

    event_id: bytes
    user: bytes
    ad: bytes | None
    event_type: EventType
    cost_micros: int
    occurred_us: int
    received_us: int
    day: int
    id_time_us: int


@dataclass(slots=True)
class Bunch:
    """Rows under one tag (`ports.Batch`)."""

    campaign_id: CampaignId
    generation: int
    tag: int
    spend_day: int
    amount_micros: int
    rows: Sequence[Row]


@dataclass(slots=True)
class Beside:
    """Lone events of another campaign, one after the other, and how long each took."""

    engine: Engine
    campaign_id: CampaignId
    seconds: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """Send for ever."""
        for number in itertools.count():
            started = time.monotonic()
            self.answers[await send(self.engine, self.campaign_id, f"beside-{number}")] += 1
            self.seconds.append(time.monotonic() - started)
            await trio.sleep(BESIDE_SECONDS)


@dataclass(slots=True)
class Rebuild:
    """One measurement on running stores."""

    stores: Stores
    settings: Settings
    events: int
    users: int
    console: Console
    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    faults: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """All of it. What does not hold is in `faults`."""
        async with open_store(self.stores.db_url, self.settings) as store:
            campaign_id, first_id = await self._fill(store)
            beside_id = await _create(store, cap=None, budget_micros=10**12)
        async with open_engine(self.settings, db_url=self.stores.db_url, redis_url=self.stores.redis_url) as engine:
            await self._until_accepted(engine, campaign_id, "new-1")  # its first use brings it into Redis
            beside = Beside(engine, beside_id)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(beside.run)
                await trio.sleep(1)
                self._show_beside("before", beside)
                with timed_parts(self.parts):
                    seconds = await self._lose_and_recover(engine, campaign_id)
                self._show_beside("meanwhile", beside)
                nursery.cancel_scope.cancel()
            self._show(seconds)
            await self._check(engine, campaign_id, first_id)
        result = await audit(self.stores.db_url, self.stores.redis_url, self.settings)
        self.console.print(f"audit: {result.events:,} events, {len(result.findings)} findings")
        self.faults += [str(finding) for finding in result.findings]

    async def _fill(self, store: PostgresStore) -> tuple[CampaignId, bytes]:
        """A campaign with its events, and the id of the first one."""
        # Room for one more event of a user who is below the cap, and for those that the measurement itself sends.
        campaign_id = await _create(store, self._cap, (self.events + 3) * COST_MICROS)
        now_us = time.time_ns() // 1_000
        started = time.monotonic()
        first_id = b""
        tag = (await store.register_engine()) << 40
        for start in range(0, self.events, FLUSH_EVENTS):
            rows = [self._line(at, now_us) for at in range(start, min(start + FLUSH_EVENTS, self.events))]
            first_id = first_id or rows[0].event_id
            bunch = Bunch(campaign_id, 0, tag + start, now_us // DAY_US, len(rows) * COST_MICROS, rows)
            reply = await store.flush([bunch])
            if not isinstance(reply, Committed):
                raise SystemExit(f"the rows were not taken: {reply}")
        seconds = time.monotonic() - started
        self.console.print(
            f"{self.events:,} events of {self.users:,} users, cap {self._cap}: flushed in {seconds:.0f} s"
        )
        return campaign_id, first_id

    @property
    def _cap(self) -> int:
        """So that the first users have had all that they may."""
        return -(-self.events // self.users)

    def _line(self, at: int, now_us: int) -> Line:
        received_us = now_us - RECEIVED_SECONDS * SECOND_US * (self.events - at) // self.events
        event_id = new_event_id(received_us, os.urandom(10))
        user = b"user-%032d" % (at % self.users)
        times_us, day = (received_us, received_us), received_us // DAY_US
        return Line(event_id, user, None, EventType.IMPRESSION, COST_MICROS, *times_us, day, received_us)

    async def _lose_and_recover(self, engine: Engine, campaign_id: CampaignId) -> float:
        """Empty Redis; seconds until the next new event is accepted."""
        with redis.Redis.from_url(self.stores.redis_url) as client:
            client.flushall(asynchronous=True)
        return await self._until_accepted(engine, campaign_id, "new-2")

    async def _until_accepted(self, engine: Engine, campaign_id: CampaignId, user: str) -> float:
        """Send again whatever the answer; seconds until it was accepted."""
        started = time.monotonic()
        while (answer := await send(engine, campaign_id, user)) != "accepted":
            self.console.print(f"meanwhile, after {time.monotonic() - started:.1f} s: {answer}")
        return time.monotonic() - started

    async def _check(self, engine: Engine, campaign_id: CampaignId, first_id: bytes) -> None:
        """What Redis had known, it knows again."""
        full, room = "user-" + "0" * 32, f"user-{self.users - 1:032d}"
        await self._expect(engine, campaign_id, full, "duplicate", "an old id", first_id)
        await self._expect(engine, campaign_id, full, "frequency_capped", "a user who has had all")
        if self.events % self.users:
            await self._expect(engine, campaign_id, room, "accepted", "a user who has one left")
            await self._expect(engine, campaign_id, room, "frequency_capped", "the same user again")
        else:
            await self._expect(engine, campaign_id, "new-3", "accepted", "the last one in the budget")
        await self._expect(engine, campaign_id, "new-4", "total_budget", "one more than the budget has room for")

    async def _expect(
        self, engine: Engine, campaign_id: CampaignId, user: str, wanted: str, what: str, event_id: bytes | None = None
    ) -> None:
        answer = await send(engine, campaign_id, user, event_id)
        self.console.print(f"{what}: {answer}")
        if answer != wanted:
            self.faults.append(f"{what} was answered {answer}, not {wanted}")

    def _show(self, seconds: float) -> None:
        table = Table("part", "seconds")
        for part, spent in self.parts.items():
            table.add_row(part, f"{spent:.2f}")
        table.add_row("until the next event was accepted", f"{seconds:.2f}", style="bold")
        self.console.print(table)

    def _show_beside(self, when: str, beside: Beside) -> None:
        ms = sorted(each * 1_000 for each in beside.seconds)
        if not ms:
            self.console.print(f"another campaign's lone events, {when}: it was over before the first of them")
            return
        self.console.print(
            f"another campaign's lone events, {when}: median {statistics.median(ms):.1f} ms, "
            f"99 of 100 below {ms[len(ms) * 99 // 100]:.1f} ms, longest {ms[-1]:.1f} ms; {dict(beside.answers)}"
        )
        beside.seconds.clear()
        beside.answers.clear()


async def send(engine: Engine, campaign_id: CampaignId, user: str, event_id: bytes | None = None) -> str:
    """Record one impression, as a listener would; what became of it."""
    sent_id = None if event_id is None else UUID(bytes=event_id)
    submission = await engine.record([Event(campaign_id, user, "impression", event_id=sent_id)])
    verdict = submission.verdicts.get(0)
    if verdict is None:
        return Status.ACCEPTED
    retry = "" if verdict.retry_after_seconds is None else f", retry after {verdict.retry_after_seconds} s"
    return f"{verdict.reason or verdict.status}{retry if verdict.status is Status.RETRY else ''}"


async def _create(store: PostgresStore, cap: int | None, budget_micros: int) -> CampaignId:
    plan, _ = await store.create_campaign(
        NewCampaign(
            name="rebuild",
            pricing_model=PricingModel.CPM,
            unit_price_micros=Micros(COST_MICROS * 1_000),
            total_budget_micros=Micros(budget_micros),
            daily_budget_micros=Micros(budget_micros),
            freq_cap_impressions_per_day=cap,
        )
    )
    return plan.id


@contextmanager
def timed_parts(parts: dict[str, float]) -> Iterator[None]:
    """Add up, meanwhile, the seconds that a recovery waits for each call of the stores."""
    calls = [
        (PostgresStore, "raise_generations", "raise the generation"),
        (PostgresStore, "users_on", "read users"),
        (RedisLedger, "load", "load users"),
        (RedisLedger, "ready", "open"),
    ]
    parts.update((part, 0.0) for _, _, part in calls)
    real = [(owner, name, getattr(owner, name)) for owner, name, _ in calls]
    for owner, name, part in calls:
        wrap = _timed_stream if owner is PostgresStore and name != "raise_generations" else _timed_call
        setattr(owner, name, wrap(getattr(owner, name), parts, part))
    try:
        yield
    finally:
        for owner, name, method in real:
            setattr(owner, name, method)


def _timed_call(method: Any, parts: dict[str, float], part: str) -> Any:
    @functools.wraps(method)
    async def timed(*args: Any, **named: Any) -> Any:
        started = time.monotonic()
        try:
            return await method(*args, **named)
        finally:
            parts[part] += time.monotonic() - started

    return timed


def _timed_stream(method: Any, parts: dict[str, float], part: str) -> Any:
    @functools.wraps(method)
    async def timed(*args: Any, **named: Any) -> AsyncGenerator[Any, None]:
        stream = method(*args, **named)
        try:
            while True:
                started = time.monotonic()
                try:
                    chunk = await anext(stream)
                except StopAsyncIteration:
                    return
                finally:
                    parts[part] += time.monotonic() - started
                yield chunk
        finally:
            await stream.aclose()

    return timed


def main() -> int:
    """The command. 1 when something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.rebuild", description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument(
        "--deadline", type=float, default=Settings().request_deadline_seconds, help="of a request, in s"
    )
    options = parser.parse_args()
    console = Console(highlight=False)
    folder = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    folder.chmod(0o711)  # the user whom root runs the stores as must get through
    settings = Settings(data=str(folder), request_deadline_seconds=options.deadline)
    try:
        with open_stores(settings) as stores:
            rebuild = Rebuild(stores, settings, options.events, options.users, console)
            trio.run(rebuild.run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for fault in rebuild.faults:
        console.print(f"FAULT: {fault}", style="red")
    return 1 if rebuild.faults else 0


if __name__ == "__main__":
    sys.exit(main())
