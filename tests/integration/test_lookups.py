"""What a look-up proves, on the real stores: two engines in one process, under a clock that the test moves."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import redis
import trio

from config.settings import Settings
from engine.engine import Engine
from engine.memory import SPREAD
from engine.model import DAY_US, SECOND_US, Event, instant_text
from engine.ports import Batch, FlushReply, Reserve, ReserveReply, Resolve, ResolveReply
from engine.postgres.store import PostgresStore, open_store
from engine.processes import Engines
from engine.redis.ledger import RedisLedger, open_ledger
from engine.registry import Registry
from tests.hanging import commits_hang
from tests.unit.test_engine import FIELDS

pytestmark = pytest.mark.stores


class MovedClock:
    """Both engines' time: ten seconds to midnight (UTC), and whatever the test adds."""

    def __init__(self) -> None:
        started_us = time.time_ns() // 1_000
        self.moved_us = -(started_us % DAY_US) - 10 * SECOND_US  # (there are partitions for the day before)

    def now_us(self) -> int:
        """Not what the machine says."""
        return time.time_ns() // 1_000 + self.moved_us


class HeldLedger:
    """An engine that stops between deciding a round and sending it, for as long as it is held."""

    def __init__(self, ledger: RedisLedger) -> None:
        self._ledger = ledger
        self.sent = trio.Event()
        self.sent.set()
        self.decided = trio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def round(
        self,
        parts: Iterable[Sequence[Reserve | Resolve]],
        heard: Callable[[Sequence[ReserveReply | ResolveReply]], None],
    ) -> None:
        """When it is let go."""
        self.decided.set()
        await self.sent.wait()
        await self._ledger.round(parts, heard)


class HeldStore:
    """Answers of its flushes reach the engine when they are let go, as if the engine were frozen until then."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self.heard = trio.Event()
        self.heard.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def flush(self, batches: Sequence[Batch], *, hasty: bool = False) -> FlushReply:
        """Carried out at once."""
        reply = await self._store.flush(batches, hasty=hasty)
        await self.heard.wait()
        return reply


class Two:
    """Two engines on the same stores."""

    def __init__(self, db_url: str) -> None:
        self.db_url = db_url
        self.clock = MovedClock()
        self.engines: list[Engine] = []
        self.ledgers: list[HeldLedger] = []
        self.stores: list[HeldStore] = []

    @asynccontextmanager
    async def engine(self, redis_url: str) -> AsyncIterator[None]:
        """One more, while the block runs."""
        settings = Settings()
        async with open_store(self.db_url, settings) as opened, open_ledger(redis_url, settings) as reached:
            store: Any = HeldStore(opened)
            ledger: Any = HeldLedger(reached)
            async with trio.open_nursery() as nursery:
                engines = Engines(await store.register_engine())
                registry = Registry(settings, ledger, store, self.clock, engines, nursery)
                self.ledgers.append(ledger)
                self.stores.append(store)
                self.engines.append(Engine(settings, registry, store, self.clock))
                registry.start()
                nursery.start_soon(self.engines[-1].tick)
                async with store.listening(registry.plan_changed, registry.generation_raised, registry.read_all_again):
                    yield
                nursery.cancel_scope.cancel()

    async def campaign(self, **fields: object) -> int:
        """A campaign that both have used."""
        view = await self.engines[0].create_campaign({**FIELDS, **fields})
        for engine in range(2):
            assert await self.told(engine, event(view.campaign.id)) == ["accepted"]
        return view.campaign.id

    async def told(self, engine: int, *events: Event) -> list[str]:
        """What an engine answers."""
        submission = await self.engines[engine].record(events)
        verdicts = [submission.verdicts.get(index) for index in range(len(events))]
        return ["accepted" if each is None else str(each.reason or each.status) for each in verdicts]

    async def forget(self, campaign: int) -> None:
        """Close two buckets of the dedup window."""
        for _ in range(2):
            self.clock.moved_us += round(Settings().dedup_bucket_seconds * (1 + SPREAD)) * SECOND_US
            young = event(campaign, occurred_at=instant_text(self.clock.now_us()))
            assert await self.told(0, young) == ["accepted"]

    async def waiting(self, sessions: int) -> None:
        """Return when so many sessions hang, or wait for one that does."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
            " AND (wait_event_type = 'Lock' OR wait_event = 'PgSleep')"
        )
        with psycopg.connect(self.db_url, autocommit=True) as connection, trio.fail_after(5):
            while connection.execute(query).fetchone() != (sessions,):  # noqa: ASYNC110
                await trio.sleep(0.01)

    def rows(self, wanted: Event) -> int:
        """How often an event is committed."""
        with psycopg.connect(self.db_url) as connection:
            found = connection.execute("SELECT count(*) FROM events WHERE event_id = %s", [wanted.event_id]).fetchone()
        assert found is not None
        return int(found[0])


@pytest.fixture
async def two(database_url: str, redis_url: str) -> AsyncIterator[Two]:
    """Two engines that run."""
    two = Two(database_url)
    async with two.engine(redis_url), two.engine(redis_url):
        yield two


def event(campaign: int, **fields: Any) -> Event:
    """An impression, whose id tells no time."""
    return Event(campaign_id=campaign, user_id="ada", event_type="impression", **{"event_id": uuid.uuid4(), **fields})


async def test_an_event_that_is_looked_up_before_a_recovery_is_not_counted_twice(two: Two, redis_url: str) -> None:
    """One engine freezes over midnight; the other looks its event up, and then recovers."""
    campaign = await two.campaign()
    twice, answers = event(campaign), []

    async def ask(engine: int, *events: Event) -> None:
        answers.append(await two.told(engine, *events))

    async with trio.open_nursery() as nursery:
        with commits_hang(two.db_url):
            nursery.start_soon(ask, 0, twice)
            await two.waiting(1)
            two.stores[0].heard = trio.Event()
            two.clock.moved_us += 20 * 60 * SECOND_US
            with redis.Redis.from_url(redis_url) as client:
                client.flushall()
            nursery.start_soon(ask, 1, twice, event(campaign, occurred_at=instant_text(two.clock.now_us())))
            await two.waiting(2)  # one is looked up; the other has heard LOST, and its recovery waits for the row
        while not answers:  # noqa: ASYNC110
            await trio.sleep(0.01)
        two.stores[0].heard.set()
    assert two.rows(twice) == 1
    assert sorted(answers) == [["accepted"], ["duplicate", "accepted"]]


async def test_a_repeat_that_has_grown_too_old_is_a_duplicate(two: Two) -> None:
    """Accepted six seconds before it is too old, and sent again nine seconds later."""
    campaign = await two.campaign()
    limit_us = two.clock.now_us() - Settings().occurred_past_seconds * SECOND_US
    accepted, refused = [event(campaign, occurred_at=instant_text(limit_us + 6 * SECOND_US)) for _ in range(2)]
    assert await two.told(0, accepted) == ["accepted"]
    two.clock.moved_us += 9 * SECOND_US
    for engine in range(2):
        told = await two.told(engine, refused, accepted, event(campaign, event_id=accepted.event_id))
        assert told == ["invalid", "duplicate", "duplicate"]
    with commits_hang(two.db_url):
        under_way = event(campaign, occurred_at=instant_text(limit_us + 10 * SECOND_US))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.told, 0, under_way)
            await two.waiting(1)
            two.clock.moved_us += 9 * SECOND_US
            assert await two.told(1, refused, under_way) == ["invalid", "in_flight"]
            nursery.cancel_scope.cancel()


async def test_an_event_that_is_looked_up_before_a_late_commit_is_not_counted_twice(two: Two) -> None:
    """The same without a recovery: Redis is told of the commit, and forgets it, before the reserve arrives."""
    campaign = await two.campaign()
    twice, second = event(campaign), two.ledgers[1]
    await trio.sleep(0.2)  # Redis has heard of all commits
    async with trio.open_nursery() as nursery:
        with commits_hang(two.db_url):
            nursery.start_soon(two.told, 0, twice)
            await two.waiting(1)
            two.clock.moved_us += 20 * 60 * SECOND_US
            second.sent, second.decided = trio.Event(), trio.Event()
            nursery.start_soon(two.told, 1, twice)
            await second.decided.wait()  # it is looked up
        await trio.sleep(1)  # committed, and Redis has heard of it
        await two.forget(campaign)
        second.sent.set()
    assert two.rows(twice) == 1
