"""The audit over real stores: what was tampered with is found, and a running engine is no false alarm."""

from __future__ import annotations

import itertools
import struct
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import psycopg
import pytest
import redis
import trio

from api.audit import run
from config.settings import Settings
from engine.auditor import audit
from engine.errors import StoreUnavailable
from engine.model import DAY_US, CampaignId
from engine.ports import BILLABLE, COUNTS_FOR_CAP, NO_TIME, Committed, Done, Reserved, Resolve
from engine.postgres.database import LOCK_WAIT_SECONDS
from engine.postgres.store import PostgresStore, open_store
from engine.redis.ledger import RedisLedger, open_ledger
from engine.steps import Emptied
from tests.contract.flushes import COST, Line, bunch, click, impression, ledger_of, new_campaign, raise_generation
from tests.contract.reservations import ask_all, begin, ready, reserve

pytestmark = pytest.mark.stores


@dataclass
class World:
    """Both stores, and an engine's use of them."""

    db_url: str
    redis_url: str
    store: PostgresStore
    ledger: RedisLedger
    tags: itertools.count[int] = field(default_factory=lambda: itertools.count(1 << 40))

    async def campaign(self, **fields: object) -> CampaignId:
        """A campaign that Redis holds, with nothing spent."""
        campaign = await new_campaign(self.store, **fields)
        row = await raise_generation(self.store, campaign)
        assert isinstance(await begin(self.ledger, campaign, row.generation), Emptied)
        assert isinstance(await ready(self.ledger, campaign, row.generation, row.spend, 1), Done)
        return campaign

    async def reserve(self, campaign: CampaignId, rows: list[Line]) -> int:
        """Reserve these events; the tag."""
        tag = next(self.tags)
        id_times = [row.id_time_us for row in rows]
        call = reserve(
            campaign_id=campaign,
            tag=tag,
            day=rows[0].day,
            at_us=now(),
            unlooked_us=min(time_us for time_us in id_times if time_us != NO_TIME),  # (the others: as if looked up)
            most_us=max(id_times),
            cap=1_000_000,
            kinds=bytes(BILLABLE | COUNTS_FOR_CAP if row.cost_micros else 0 for row in rows),
            ids=b"".join(row.event_id for row in rows),
            users=[row.user.decode() for row in rows],
        )
        (reply,) = await ask_all(self.ledger, [call])
        assert isinstance(reply, Reserved)
        assert reply.letters == b"A" * len(rows)
        return tag

    async def commit(self, campaign: CampaignId, rows: list[Line], tag: int) -> None:
        """Commit a reservation in Postgres; Redis doesn't hear of it."""
        assert isinstance(await self.store.flush([bunch(campaign, rows, generation=1, tag=tag)]), Committed)

    async def settle(self, campaign: CampaignId, tag: int) -> None:
        """Tell Redis of a commit."""
        assert isinstance((await ask_all(self.ledger, [Resolve(campaign, 1, tag, commit=True)]))[0], Done)

    async def deliver(self, campaign: CampaignId, rows: list[Line]) -> None:
        """All of it."""
        tag = await self.reserve(campaign, rows)
        await self.commit(campaign, rows, tag)
        await self.settle(campaign, tag)

    def tamper(self, statement: str) -> None:
        """Change a row behind the engine's back."""
        with psycopg.connect(self.db_url, autocommit=True) as connection:
            assert connection.execute(statement).rowcount > 0

    async def findings(self) -> list[str]:
        """The checks that fail; notes in brackets. Nobody is halted, so that one can look again."""
        result = await audit(self.db_url, self.redis_url, Settings(), halt=False)
        return [f"({finding.check})" if finding.note else finding.check for finding in result.findings]


@pytest.fixture
async def world(database_url: str, redis_url: str) -> AsyncIterator[World]:
    """Empty stores, prepared by an engine's start."""
    async with open_store(database_url, Settings()) as store, open_ledger(redis_url, Settings()) as ledger:
        yield World(database_url, redis_url, store, ledger)


def now() -> int:
    """Wall time."""
    return time.time_ns() // 1_000


def lines(number: int = 3) -> list[Line]:
    """Impressions, each of a user of its own, and a click."""
    return [*(impression(now(), user=b"user %d" % each) for each in range(number)), click(now())]


async def test_what_engines_wrote_is_sound(world: World) -> None:
    """Two campaigns, events of two hours and two days, and one campaign without any."""
    first, second, _ = [await world.campaign() for _ in range(3)]
    await world.deliver(first, [impression(now() - DAY_US)])
    await world.deliver(first, lines())
    await world.deliver(second, [impression(now(), occurred_us=now() - DAY_US // 8), *lines()])
    result = await audit(world.db_url, world.redis_url, Settings())
    assert (result.campaigns, result.events, result.rebuilt_later, result.findings) == (3, 10, 0, [])


async def test_an_id_above_the_watermark_that_redis_does_not_know_is_found(world: World) -> None:
    """Its repeat would be taken for a new event. Ids that tell no time, and those below, are looked up in any case."""
    campaign, sound = [await world.campaign() for _ in range(2)]
    rows, late = lines(), impression(now(), occurred_us=now() - DAY_US, id_time_us=now() - DAY_US)
    untimed = impression(now(), event_id=uuid.uuid4().bytes, id_time_us=NO_TIME)
    for each in (campaign, sound):
        await world.deliver(each, [*rows, late, untimed])
    client = redis.Redis.from_url(world.redis_url)
    for gone in (rows[0], late, untimed):
        assert client.hdel(f"{{{campaign}}}:i0", gone.event_id)
    client.hset(f"{{{campaign}}}:s", "window", struct.pack(">5d", 0, now(), now() - DAY_US // 2, 0, 0))
    result = await audit(world.db_url, world.redis_url, Settings(), halt=False)
    assert [(each.campaign_id, each.check, each.found) for each in result.differences] == [
        (campaign, "dedup window", "1 that Redis does not know")
    ]


async def test_reservations_in_flight_are_sound(world: World) -> None:
    """One is reserved only, one is committed and Redis doesn't know yet."""
    campaign = await world.campaign()
    await world.deliver(campaign, lines())
    await world.reserve(campaign, lines())
    rows = lines()
    await world.commit(campaign, rows, await world.reserve(campaign, rows))
    assert await world.findings() == []


async def test_a_running_engine_is_no_false_alarm(world: World) -> None:
    """Audits while flushes commit without a pause."""
    campaigns = [await world.campaign() for _ in range(3)]

    async def deliver(campaign: CampaignId) -> None:
        while True:
            await world.deliver(campaign, lines(20))

    async with trio.open_nursery() as nursery:
        for campaign in campaigns:
            nursery.start_soon(deliver, campaign)
        for _ in range(5):
            result = await audit(world.db_url, world.redis_url, Settings())
            assert (result.findings, result.halted) == ([], {})
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("statement", "checks"),
    [
        ("UPDATE ledger SET spent = spent + 1", {"ledger spent", "Redis total"}),
        ("UPDATE ledger SET today = today + 1", {"ledger today", "Redis today"}),
        ("UPDATE ledger SET day = day + 1", {"ledger day", "ledger today"}),
        ("UPDATE ledger SET total_budget = total_budget + 1", {"ledger total budget"}),
        ("UPDATE rollup SET impressions = impressions + 1", {"rollup"}),
        ("DELETE FROM rollup", {"rollup"}),
        ("DELETE FROM events WHERE event_type = 1", {"rollup"}),
        ("DELETE FROM events WHERE user_id = 'user 1'", {"rollup", "ledger spent", "ledger today"}),
        ("UPDATE events SET campaign_id = 999 WHERE event_type = 1", {"rollup", "campaign row"}),
        (
            """INSERT INTO events SELECT campaign_id, 0, occurred_at, received_at + interval '47 hours', batch,
                                         event_id, day - 1, spend_day, 2, user_id, ad_id
                                    FROM events WHERE event_type = 1""",
            {"rollup", "event ids"},
        ),
        (  # as late as this, an event that tells no time is a new one
            """INSERT INTO events SELECT campaign_id, 0, occurred_at, received_at + interval '48 hours', batch,
                                         event_id, day + 2, spend_day, 2, user_id, ad_id
                                    FROM events WHERE event_type = 1""",
            {"rollup"},
        ),
    ],
)
async def test_tampering_in_postgres_is_found(world: World, statement: str, checks: set[str]) -> None:
    """Each row that is not as the events say, or event that was not accepted."""
    await world.deliver(await world.campaign(), lines())
    world.tamper(statement)
    assert {"rollup" if check.startswith("rollup") else check for check in await world.findings()} == checks


@pytest.mark.parametrize(
    ("column", "check"),
    [("total_budget_micros", "total budget"), ("daily_budget_micros", "daily budget")],
)
async def test_a_budget_that_was_passed_is_found(world: World, column: str, check: str) -> None:
    """A difference while the plan never changed, else a note: the budget may have been lowered."""
    campaign = await world.campaign()
    await world.deliver(campaign, lines())
    world.tamper(f"UPDATE campaigns SET {column} = {3 * COST - 1}")
    world.tamper(f"UPDATE ledger SET {column.removesuffix('_micros')} = {3 * COST - 1}")
    assert await world.findings() == [check]
    await world.store.update_campaign(campaign, {"name": "autumn"})
    assert await world.findings() == [f"({check})"]


async def test_a_cap_that_was_passed_is_found(world: World) -> None:
    """Per user and spend day: the cap's own number of impressions is allowed, and again the next day."""
    campaign = await world.campaign(freq_cap_impressions_per_day=2)
    await world.deliver(campaign, [impression(now() - DAY_US) for _ in range(2)])
    await world.deliver(campaign, [impression(now()) for _ in range(2)])
    assert await world.findings() == []
    await world.deliver(campaign, [impression(now())])
    assert await world.findings() == ["frequency cap"]


@pytest.mark.parametrize(("name", "check"), [("total", "Redis total"), ("today", "Redis today")])
async def test_tampering_in_redis_is_found(world: World, name: str, check: str) -> None:
    """Sums that are not the ledger's and the reservations'."""
    campaign = await world.campaign()
    await world.deliver(campaign, lines())
    with redis.Redis.from_url(world.redis_url) as client:
        client.hset(f"{{{campaign}}}:s", name, 1)
    assert await world.findings() == [check]


@pytest.mark.parametrize("forget", ["all", "run", "open", "gen"])
async def test_a_redis_that_forgot_is_no_difference(world: World, forget: str) -> None:
    """No state, that of another image, a closed one, and one of an older generation are rebuilt at the next use."""
    campaign = await world.campaign()
    await world.deliver(campaign, lines())
    with redis.Redis.from_url(world.redis_url) as client:
        if forget == "all":
            client.flushall()
        else:
            client.hset(f"{{{campaign}}}:s", mapping={forget: 0, "total": 1})
    result = await audit(world.db_url, world.redis_url, Settings())
    assert (result.findings, result.rebuilt_later) == ([], 1)


async def test_a_database_without_tables(database_url: str, redis_url: str) -> None:
    """The audit makes none: it says so."""
    with pytest.raises(StoreUnavailable, match="no tables of Headrace yet"):
        await audit(database_url, redis_url, Settings())


async def test_the_command_says_it_by_its_exit_status(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """0 and one line; 1 and a table; 2 when a store can't be reached."""

    async def status(redis_url: str) -> int:
        settings = Settings(db_url=world.db_url, redis_url=redis_url)
        return await trio.to_thread.run_sync(run, settings)

    await world.deliver(await world.campaign(), lines())
    assert await status(world.redis_url) == 0
    assert capsys.readouterr().out == "audited 1 campaign, 4 events: no difference\n"
    world.tamper("UPDATE ledger SET total_budget = total_budget + 1")
    assert await status(world.redis_url) == 1
    said = capsys.readouterr().out
    assert "ledger total budget" in said
    assert "campaign 1 is halted; to rebuild its books: headrace recover 1 (" in said
    assert said.endswith("audited 1 campaign, 4 events: 1 difference\n")
    assert await status("unix:///nowhere/redis.sock") == 2
    assert "Redis" in capsys.readouterr().err


async def test_a_row_that_is_held_for_a_while_costs_an_audit_nothing(world: World) -> None:
    """An hour of passes is not thrown away, and every campaign whose books differ is halted."""
    held, other = await world.campaign(), await world.campaign()
    world.tamper("UPDATE ledger SET spent = spent + 1")
    with psycopg.connect(world.db_url) as holder:
        holder.execute("SELECT FROM ledger WHERE campaign_id = %s FOR UPDATE", [held])

        async def let_go() -> None:
            await trio.sleep(3 * LOCK_WAIT_SECONDS)
            holder.rollback()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_go)
            assert (await audit(world.db_url, world.redis_url, Settings())).halted.keys() == {held, other}


@pytest.mark.parametrize("where", ["Postgres", "Redis"])
async def test_books_that_differ_halt_their_campaign_only(world: World, where: str) -> None:
    """With the first difference as the reason; looking only changes nothing; a second audit halts nobody again."""
    wrong, sound = await world.campaign(), await world.campaign()
    for campaign in (wrong, sound):
        await world.deliver(campaign, lines())
    if where == "Postgres":
        world.tamper(f"UPDATE ledger SET spent = spent + 1 WHERE campaign_id = {wrong}")
    else:
        with redis.Redis.from_url(world.redis_url) as client:
            client.hincrby(f"{{{wrong}}}:s", "total", 1)
    looked = await audit(world.db_url, world.redis_url, Settings(), halt=False)
    assert looked.differences
    assert looked.halted == {}
    assert (await ledger_of(world.store, wrong)).generation == 1
    audited = await audit(world.db_url, world.redis_url, Settings())
    row = await ledger_of(world.store, wrong)
    assert audited.halted == {wrong: row.halted}
    assert row.halted is not None
    assert "headrace audit: " + ("ledger spent" if where == "Postgres" else "Redis total") in row.halted
    assert row.generation == 2
    assert (await audit(world.db_url, world.redis_url, Settings())).halted == audited.halted
    assert await ledger_of(world.store, wrong) == row
    assert (await ledger_of(world.store, sound)).halted is None


async def test_what_no_rebuild_can_mend_halts_nobody(world: World) -> None:
    """A budget and a cap that were passed, and an id that is there twice: differences, and the campaign is served."""
    campaign = await world.campaign(freq_cap_impressions_per_day=1)
    await world.deliver(campaign, [impression(now()), impression(now())])
    world.tamper(f"UPDATE campaigns SET total_budget_micros = {COST}")
    world.tamper(f"UPDATE ledger SET total_budget = {COST}")
    result = await audit(world.db_url, world.redis_url, Settings())
    assert {finding.check for finding in result.differences} == {"total budget", "frequency cap"}
    assert result.halted == {}


async def test_tables_of_an_older_program(world: World) -> None:
    """The audit brings no schema up to date: it says who does."""
    with psycopg.connect(world.db_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE ledger DROP COLUMN halted")
    with pytest.raises(StoreUnavailable, match="older tables of Headrace"):
        await audit(world.db_url, world.redis_url, Settings())
