"""What only the real Postgres can show: bytes, locks, sessions that end, and the schema."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import trio
import trio.testing

from config.settings import Settings
from engine.errors import ConfigurationUnsafe, StoreUnavailable
from engine.locks import Locked
from engine.model import DAY_US, CampaignId, EventType, Micros, new_event_id
from engine.ports import Committed, LedgerRow, NotRun, Refused, Unknown, Wanted
from engine.postgres.copy import guard_call, sum_rows
from engine.postgres.migrate import read_migrations
from engine.postgres.store import PostgresStore, open_store
from tests.contract.flushes import COST, bunch, click, impression, ledger_of, new_campaign, now, raise_generation
from tests.contract.proxy import COMMITTED, open_proxy

pytestmark = pytest.mark.stores


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    """An empty store."""
    async with open_store(database_url, Settings()) as store:
        yield store


def ask(url: str, query: str, *args: object) -> list[tuple[Any, ...]]:
    """Rows of a query, by a connection of the test's own."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query, args)
        return cursor.fetchall() if cursor.description else []


async def until(url: str, query: str) -> Any:
    """Wait until a query has a row, and return its first value: another process has no event to wait for."""
    with trio.fail_after(20):
        while not (rows := ask(url, query)):  # noqa: ASYNC110
            await trio.sleep(0.005)
    return rows[0][0]


def end_sessions(url: str, application: str) -> None:
    """End the sessions of one of our connections, and wait until they have ended."""
    ask(
        url,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE application_name = %s AND datname = current_database()",
        application,
    )


FLUSH_WAITS = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'headrace flush'"
    " AND datname = current_database() AND wait_event_type = 'Lock'"
)


@asynccontextmanager
async def locked_ledger(url: str) -> AsyncIterator[Callable[[], None]]:
    """Hold every ledger row; call what this yields to let go early."""
    with psycopg.connect(url) as holder:
        holder.execute("SELECT FROM ledger FOR UPDATE")
        yield holder.commit


def assert_books_balance(url: str) -> None:
    """Ledger, rollup and events tell the same money and counts."""
    events = ask(
        url,
        "SELECT campaign_id, sum(cost_micros)::bigint, count(*) FROM events GROUP BY 1 ORDER BY 1",
    )
    assert events == ask(
        url,
        "SELECT campaign_id, sum(spend)::bigint, sum(impressions + clicks + conversions)::bigint"
        " FROM rollup GROUP BY 1 ORDER BY 1",
    )
    spent = ask(url, "SELECT campaign_id, spent FROM ledger WHERE spent > 0 ORDER BY 1")
    assert [(campaign, money) for campaign, money, _ in events if money] == spent


async def test_packed_rows_come_back_equal(store: PostgresStore, database_url: str) -> None:
    """Whatever a row may hold, Postgres keeps exactly that: random ids, texts, instants, days and money."""
    chance = random.Random(7)
    campaign = await new_campaign(store, total_budget_micros=Micros(2**53 - 1), daily_budget_micros=Micros(2**53 - 1))
    alphabet = "aß0 _'\"\\\t\n{},é漢\U0001f600\x01\x7f"

    def text() -> bytes:
        return "".join(chance.choices(alphabet, k=chance.randint(1, 40))).encode()

    rows = [
        impression(
            now(),
            event_id=chance.randbytes(16),
            user=text(),
            ad=chance.choice([None, b"", text()]),
            event_type=chance.choice(list(EventType)),
            cost_micros=chance.choice([0, 1, 2**40, chance.randrange(2**30)]),
            occurred_us=chance.randrange(0, 4 * 10**15),
            received_us=chance.randrange(0, 4 * 10**15),
            day=chance.randrange(0, 40_000),
        )
        for _ in range(500)
    ]
    batch = bunch(campaign, rows, tag=2**62 + 5, day=39_999)
    assert await store.flush([batch]) == Committed()
    kept = ask(
        database_url,
        "SELECT event_id, user_id, ad_id, event_type, cost_micros,"
        " (extract(epoch FROM occurred_at) * 1000000)::bigint, (extract(epoch FROM received_at) * 1000000)::bigint,"
        " day - date '1970-01-01', spend_day - date '1970-01-01', batch, campaign_id FROM events",
    )
    assert sorted(kept) == sorted(
        (
            uuid.UUID(bytes=row.event_id), row.user.decode(), None if row.ad is None else row.ad.decode(),
            row.event_type, row.cost_micros, row.occurred_us, row.received_us, row.day, 39_999, batch.tag, campaign,
        )
        for row in rows
    )  # fmt: skip
    assert_books_balance(database_url)


async def test_a_large_flush_crosses_in_pieces(store: PostgresStore, database_url: str) -> None:
    """Several times what a socket takes at once arrives whole, and adds up."""
    campaign = await new_campaign(store)
    rows = [impression(now(), user=b"u" * 128, ad=b"a" * 128) for _ in range(10_000)]
    assert await store.flush([bunch(campaign, rows)]) == Committed()
    assert ask(database_url, "SELECT count(*), sum(cost_micros) FROM events") == [(10_000, 10_000 * COST)]


async def test_many_writers_and_rising_generations_balance(database_url: str) -> None:
    """Six writers, shared campaigns in any order, generations rising: no deadlock, and the books balance."""
    chance = random.Random(11)
    async with open_store(database_url, Settings(flush_connections=6)) as store:
        campaigns = [await new_campaign(store, total_budget_micros=Micros(60 * COST)) for _ in range(8)]
        generations = dict.fromkeys(campaigns, 0)
        replies: list[object] = []

        async def write() -> None:
            for _ in range(15):
                chosen = chance.sample(campaigns, 4)
                rows = [(campaign, [impression(now()), click(now())]) for campaign in chosen]
                replies.append(
                    await store.flush([bunch(each, mine, generation=generations[each]) for each, mine in rows])
                )

        async def raise_some() -> None:
            for _ in range(10):
                rows = await store.raise_generations(chance.sample(campaigns, 4), wait=chance.random() < 0.5)
                for campaign, row in rows.items():
                    generations[campaign] = generations[campaign] if row is None else row.generation

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(write)
            nursery.start_soon(raise_some)
        assert Committed() in replies
        assert all(isinstance(reply, Committed | Refused) for reply in replies)
    assert_books_balance(database_url)


async def test_a_batch_that_does_not_add_up_never_runs(store: PostgresStore) -> None:
    """An amount that is not the sum of its rows, or two generations of one campaign, would falsify the ledger."""
    campaign = await new_campaign(store)
    batch = bunch(campaign, [impression(now())])
    for wrong in ([replace(batch, amount_micros=1)], [batch, replace(batch, generation=3)]):
        reply = await store.flush(wrong)
        assert isinstance(reply, NotRun)
        assert reply.data
    assert (await ledger_of(store, campaign)).spend.spent_micros == 0


async def test_raising_a_generation_waits_for_the_flush_that_holds_the_row(
    store: PostgresStore, database_url: str
) -> None:
    """What committed just before is in the row that it returns."""
    campaign = await new_campaign(store)
    raised: list[LedgerRow] = []

    async def wait_for_it() -> None:
        raised.append(await raise_generation(store, campaign))

    latest_us = now()
    with psycopg.connect(database_url) as flush:
        flush.execute(guard_call(sum_rows([bunch(campaign, [impression(latest_us)])])))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_it)
            await until(database_url, FLUSH_WAITS.replace("headrace flush", "headrace query"))
            assert not raised
            flush.commit()
    row = raised[0]
    assert (row.generation, row.spend.spent_micros, row.latest_us) == (1, COST, latest_us)


async def test_rows_that_a_flush_holds_are_left_as_they_are(store: PostgresStore, database_url: str) -> None:
    """Unless they are to be waited for: the others are raised at once."""
    first, held, last = [await new_campaign(store) for _ in range(3)]
    with psycopg.connect(database_url) as flush:
        flush.execute(guard_call(sum_rows([bunch(held, [impression(now())])])))
        with trio.fail_after(5):
            rows = await store.raise_generations([last, held, first], wait=False)
        flush.commit()
    assert {each: row and row.generation for each, row in rows.items()} == {first: 1, held: None, last: 1}
    row = await ledger_of(store, held)
    assert (row.generation, row.spend.spent_micros) == (0, COST)


async def test_generations_are_raised_in_order_of_campaign(store: PostgresStore, database_url: str) -> None:
    """Who waits holds rows of lower numbers only, as a flush does: nobody waits in a circle."""
    first, held, last = [await new_campaign(store) for _ in range(3)]
    with psycopg.connect(database_url) as flush, psycopg.connect(database_url) as other:
        flush.execute(guard_call(sum_rows([bunch(held, [impression(now())])])))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: store.raise_generations([last, held, first], wait=True))
            await until(database_url, FLUSH_WAITS.replace("headrace flush", "headrace query"))
            other.execute("SELECT FROM ledger WHERE campaign_id = %s FOR UPDATE NOWAIT", [last])
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute("SELECT FROM ledger WHERE campaign_id = %s FOR UPDATE NOWAIT", [first])
            other.rollback()
            flush.commit()
    for campaign in (first, held, last):
        assert (await ledger_of(store, campaign)).generation == 1


async def test_an_unanswered_commit_is_unknown(database_url: str) -> None:
    """The connection breaks after COMMIT was sent: nobody knows, and in truth the row is there."""
    async with open_proxy(database_url) as proxy, open_store(proxy.url, Settings()) as store:
        campaign = await new_campaign(store)
        row, later = impression(now()), impression(now())
        proxy.swallow = COMMITTED
        assert isinstance(await store.flush([bunch(campaign, [row])]), Unknown)
        proxy.swallow = None
        assert (campaign, row.event_id) in await store.look_up([Wanted(campaign, row.event_id, None)])
        assert await store.flush([bunch(campaign, [later])]) == Committed()


async def test_a_commit_without_an_answer_in_time_is_unknown(database_url: str) -> None:
    """The connection falls silent: unknown after the timeout, and the next flush opens another."""
    settings = Settings(flush_timeout_seconds=0.5)
    async with open_proxy(database_url) as proxy, open_store(proxy.url, settings) as store:
        campaign = await new_campaign(store)
        assert await store.flush([bunch(campaign, [impression(now())])]) == Committed()
        proxy.hang_up, proxy.swallow = False, COMMITTED
        assert isinstance(await store.flush([bunch(campaign, [impression(now())])]), Unknown)
        proxy.swallow = None
        assert await store.flush([bunch(campaign, [impression(now())])]) == Committed()


@pytest.mark.parametrize(("call", "outcome"), [("pg_terminate_backend", Unknown), ("pg_cancel_backend", Locked)])
async def test_a_flush_that_an_administrator_ends(
    store: PostgresStore, database_url: str, call: str, outcome: type[object]
) -> None:
    """A killed session leaves its flush unknown, a cancelled statement certainly undone; the next flush works."""
    campaign = await new_campaign(store)
    row = impression(now())
    replies = []

    async def flush() -> None:
        replies.append(await store.flush([bunch(campaign, [row])]))

    async with locked_ledger(database_url), trio.open_nursery() as nursery:
        nursery.start_soon(flush)
        pid = await until(database_url, FLUSH_WAITS)
        ask(database_url, f"SELECT {call}(%s)", pid)
    assert isinstance(replies[0], outcome)
    assert await store.look_up([Wanted(campaign, row.event_id, None)]) == {}
    assert await store.flush([bunch(campaign, [row])]) == Committed()


async def test_a_flush_that_waits_too_long_is_given_up_by_postgres(database_url: str) -> None:
    """A ledger row that stays locked: Postgres's own limit comes first, so the outcome is certain."""
    async with open_store(database_url, Settings(flush_timeout_seconds=1.0)) as store:
        campaign = await new_campaign(store)
        async with locked_ledger(database_url):
            reply = await store.flush([bunch(campaign, [impression(now())])])
        assert isinstance(reply, Locked)
        assert reply.campaigns == {campaign}


async def test_an_idle_connection_that_died_costs_nothing(store: PostgresStore, database_url: str) -> None:
    """Postgres ended our idle sessions: the next flush notices before it sends, and commits."""
    campaign = await new_campaign(store)
    assert await store.flush([bunch(campaign, [impression(now())])]) == Committed()
    end_sessions(database_url, "headrace flush")
    assert await store.flush([bunch(campaign, [impression(now())])]) == Committed()


async def test_a_cancelled_flush_closes_its_connection(store: PostgresStore, database_url: str) -> None:
    """Cancelled in the middle: nothing of it is left behind, and the next flush works."""
    campaign = await new_campaign(store)
    row = impression(now())
    async with locked_ledger(database_url), trio.open_nursery() as nursery:
        nursery.start_soon(store.flush, [bunch(campaign, [row])])
        await until(database_url, FLUSH_WAITS)
        nursery.cancel_scope.cancel()
    assert await store.flush([bunch(campaign, [impression(now())])]) == Committed()


async def test_without_postgres_everything_says_so(store: PostgresStore, tmp_path: Any) -> None:
    """No server: opening is refused, and a flush certainly did not run."""
    nowhere = f"postgresql://nobody@/nothing?host={tmp_path}"
    with pytest.raises(StoreUnavailable) as refused:
        async with open_store(nowhere, Settings()):
            pass
    assert refused.value.certain
    for connection in store._flushes._idle:
        connection._db_url = nowhere
    assert isinstance(await store.flush([bunch(await new_campaign(store), [impression(now())])]), NotRun)


async def test_any_task_may_ask(database_url: str) -> None:
    """Calls come from nurseries that are older than the store, are cancelled, and go on."""
    async with (
        trio.open_nursery() as older,
        open_store(database_url, Settings(query_connections=8, recoveries_max=4)) as store,
    ):
        campaign = await new_campaign(store)
        answers: list[object] = []
        all_answered = trio.Event()

        async def ask_for(seconds: float) -> None:
            with trio.move_on_after(seconds):
                await store.database.fetch("SELECT pg_sleep(10)")
            answers.append(await store.campaign(campaign))
            if len(answers) == 8:
                all_answered.set()

        with trio.fail_after(30):
            for _ in range(8):
                older.start_soon(ask_for, 0.05)
            await all_answered.wait()
        assert all(answers)


async def test_lost_news_are_told_and_listening_goes_on(store: PostgresStore, database_url: str) -> None:
    """The listening session ends: who listens forgets, hears it again when listening is back, and gets news."""
    campaign = await new_campaign(store)
    lost = 0
    listens_again, news = trio.Event(), trio.Event()

    def forget() -> None:
        nonlocal lost
        lost += 1
        if lost == 2:
            listens_again.set()

    async with store.listening(lambda campaign_id, version: news.set(), lambda campaign_id, generation: None, forget):
        assert lost == 0
        end_sessions(database_url, "headrace listen")
        with trio.fail_after(20):
            await listens_again.wait()
            await store.update_campaign(campaign, {"active": False})
            await news.wait()


async def test_migrations_run_once_however_many_start(database_url: str) -> None:
    """Three engines start on an empty database at once; a fourth finds nothing to do."""
    async with trio.open_nursery() as nursery:

        async def start() -> None:
            async with open_store(database_url, Settings()) as store:
                assert await store.probe() is None

        for _ in range(3):
            nursery.start_soon(start)
    await start()
    steps = read_migrations()
    assert ask(database_url, "SELECT version, name FROM schema_migrations ORDER BY 1") == [step[:2] for step in steps]


def older_database(url: str, version: int) -> None:
    """A database as a version before this one has left it: a campaign that has committed, and one that has not."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE schema_migrations"
            " (version int PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        for step in read_migrations()[:version]:
            connection.execute(step.sql.encode())
            connection.execute("INSERT INTO schema_migrations (version, name) VALUES (%s, %s)", step[:2])
        connection.execute(
            "WITH campaign AS (INSERT INTO campaigns (name, pricing_model, unit_price_micros, total_budget_micros,"
            " daily_budget_micros, active, pacing, timezone)"
            " SELECT 'spring', 'cpm', 1, 9, 9, true, 'asap', 'UTC' FROM generate_series(1, 2) RETURNING id)"
            " INSERT INTO ledger (campaign_id, spent, total_budget, day, today, daily_budget)"
            " SELECT id, 0, 9, CASE WHEN id = 1 THEN current_date ELSE '1970-01-01' END, 0, 9 FROM campaign"
        )


MINUTE_US = 60_000_000


@pytest.mark.parametrize(
    ("id_minutes", "occurred_minutes", "received_minutes", "latest_minutes"),
    [
        pytest.param(-1, -1, -1, 0, id="an id that is not ahead"),
        pytest.param(-10, 20, -10, 20, id="an occurred_at that was 30 minutes ahead"),
        pytest.param(50, -5, -5, 50, id="a UUIDv7 that was 55 minutes ahead"),
        pytest.param(10**9, 20, -10, 20, id="an id of any bits, and an occurred_at"),
        pytest.param(90, -10, -10, 0, id="the same, where that is the time of its receipt"),
        pytest.param(50, -300, -5, 0, id="an id that was ahead, and an occurred_at that is late"),
    ],
)
async def test_what_was_committed_before_the_watermark_is_below_it(
    database_url: str, id_minutes: int, occurred_minutes: int, received_minutes: int, latest_minutes: int
) -> None:
    """By no more than must be: what comes after the migration is above it, and needs no look-up."""
    older_database(database_url, 4)
    began_us = now() // 1_000 * 1_000
    event_id = uuid.UUID(bytes=new_event_id(began_us + id_minutes * MINUTE_US, bytes(10)))
    ask(
        database_url,
        "INSERT INTO events (campaign_id, cost_micros, occurred_at, received_at, batch, event_id, day, spend_day,"
        " event_type, user_id) SELECT 1, 1, occurred, received, 1, %s, date '1970-01-01' + %s,"
        " current_date, 0, 'ada' FROM (SELECT to_timestamp(%s::numeric / 1000000) AS occurred,"
        " to_timestamp(%s::numeric / 1000000) AS received) AS at",
        event_id,
        (began_us + max(occurred_minutes, latest_minutes) * MINUTE_US) // DAY_US,
        began_us + occurred_minutes * MINUTE_US,
        began_us + received_minutes * MINUTE_US,
    )
    async with open_store(database_url, Settings()):
        pass
    (used,), (new,) = ask(database_url, "SELECT latest FROM ledger ORDER BY campaign_id")
    assert 0 <= used - (began_us + latest_minutes * MINUTE_US) <= (0 if latest_minutes else now() - began_us)
    assert new == 0


async def test_a_migration_that_may_take_long_says_so_first(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there may be events: a database that is new says nothing."""
    caplog.set_level("INFO", "engine.postgres.migrate")
    older_database(database_url, 4)
    async with open_store(database_url, Settings()):
        pass
    said = [record.getMessage() for record in caplog.records if record.name == "engine.postgres.migrate"]
    long = {line.partition(":")[0] for line in said if "may take minutes" in line}
    assert long == {"migration 5 (watermark)", "migration 6 (spend_day)"}
    for step in long:
        assert [line for line in said if line.startswith(step)][1].startswith(f"{step}: done in ")


async def test_a_database_that_is_new_has_no_migration_that_takes_long(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log says nothing of them."""
    caplog.set_level("INFO", "engine.postgres.migrate")
    async with open_store(database_url, Settings()):
        pass
    assert not [record for record in caplog.records if record.name == "engine.postgres.migrate"]


async def test_an_engine_of_the_version_before_commits_nothing(database_url: str) -> None:
    """It calls a judge that is no more; by that one it would commit without raising `latest`."""
    older_database(database_url, 4)
    batch = "SELECT headrace_guard('{1}', '{0}', '{20000}', '{0}', '{}', '{}', '{}', '{}', '{}', '{}')"
    async with open_store(database_url, Settings()):
        with pytest.raises(psycopg.errors.UndefinedFunction):
            ask(database_url, batch)


async def test_a_newer_database_is_refused(database_url: str) -> None:
    """An older program must not judge by a schema it does not know."""
    async with open_store(database_url, Settings()):
        pass
    ask(database_url, "INSERT INTO schema_migrations (version, name) VALUES (9999, 'later')")
    with pytest.raises(ConfigurationUnsafe, match="schema version 9999"):
        async with open_store(database_url, Settings()):
            pass


@pytest.mark.parametrize(("setting", "refused"), [("synchronous_commit = off", True), ("search_path = public", False)])
async def test_a_database_set_to_lose_commits_is_refused(database_url: str, setting: str, refused: bool) -> None:
    """The check sees what the database would use for us."""
    ask(database_url, f'ALTER DATABASE "{database_url.split("/")[3].split("?")[0]}" SET {setting}')
    if refused:
        with pytest.raises(ConfigurationUnsafe, match="synchronous_commit"):
            async with open_store(database_url, Settings()):
                pass
    else:
        async with open_store(database_url, Settings()) as store:
            assert await store.probe() is None


async def test_another_default_isolation_does_no_harm(database_url: str) -> None:
    """The guard is written for READ COMMITTED, and gets it."""
    ask(
        database_url,
        f'ALTER DATABASE "{database_url.split("/")[3].split("?")[0]}" SET default_transaction_isolation = serializable',
    )
    async with open_store(database_url, Settings()) as store:
        campaign = await new_campaign(store)
        replies = []

        async def flush() -> None:
            replies.append(await store.flush([bunch(campaign, [impression(now())])]))

        with psycopg.connect(database_url) as other:
            other.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            other.execute(guard_call(sum_rows([bunch(campaign, [impression(now())])])))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flush)
                await until(database_url, FLUSH_WAITS)
                other.commit()
        assert replies == [Committed()]


@pytest.mark.parametrize("right", ["INSERT", "SELECT"])
async def test_a_right_that_was_taken_away_is_a_store_that_is_unavailable(database_url: str, right: str) -> None:
    """Nobody made a mistake that trying again won't mend: an administrator gives it back, and the engine goes on."""
    if not ask(database_url, "SELECT 1 FROM pg_roles WHERE rolname = 'tenant'"):
        ask(database_url, "CREATE ROLE tenant")
    ask(database_url, "ALTER SCHEMA public OWNER TO tenant")
    async with open_store(f"{database_url}&options={quote('-c role=tenant')}", Settings()) as store:
        campaign = await new_campaign(store)
        assert await store.probe() is None
        ask(database_url, f"REVOKE {right} ON events FROM tenant")
        assert "permission denied for table events" in str(await store.probe())
        if right == "SELECT":
            with pytest.raises(StoreUnavailable, match="42501"):
                await store.look_up([Wanted(campaign, bytes(16), None)])
        else:
            reply = await store.flush([bunch(campaign, [impression(now())])])
            assert isinstance(reply, NotRun)
            assert not reply.data
        ask(database_url, f"GRANT {right} ON events TO tenant")
        assert await store.probe() is None


async def test_every_commit_waits_for_the_disk(database_url: str) -> None:
    """Though the database's default is changed after the check at start: flushes, campaigns and generations."""
    async with open_store(database_url, Settings()) as store:
        database = database_url.split("/")[3].split("?")[0]
        ask(database_url, f'ALTER DATABASE "{database}" SET synchronous_commit = off')
        ask(database_url, "CREATE TABLE seen (setting text)")
        ask(
            database_url,
            "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$",
        )
        ask(
            database_url,
            "CREATE TRIGGER see AFTER INSERT OR UPDATE ON ledger FOR EACH STATEMENT EXECUTE FUNCTION see()",
        )
        end_sessions(database_url, "headrace query")
        with suppress(StoreUnavailable):  # it may meet the session that has ended
            await store.plans([CampaignId(0)])
        campaign = await new_campaign(store)
        assert await store.flush([bunch(campaign, [impression(now())])]) == Committed()
        await raise_generation(store, campaign)
    assert ask(database_url, "SELECT setting FROM seen") == [("on",)] * 3


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_that_is_off_is_told(database_url: str, hours: int) -> None:
    """Positive when ours is ahead of Postgres's: an hour, give or take what a call may take."""
    hour_us = 3_600 * 1_000_000
    async with open_store(database_url, Settings(), now_us=lambda: now() + hours * hour_us) as store:
        told = (await store.heartbeat(await store.register_engine())).clock_offset_us
    assert abs(told - hours * hour_us) < hour_us // 2


async def test_days_without_a_partition_are_kept_by_the_default_one(database_url: str) -> None:
    """An old and a far day are lost by nobody, and don't keep later partitions from being made."""
    async with open_store(database_url, Settings(partitions_ahead_days=1)) as store:
        campaign = await new_campaign(store)
        today = now() // DAY_US
        days = [today - 40, today - 3, today, today + 1, today + 4]
        rows = [impression(now(), day=day) for day in days]
        assert await store.flush([bunch(campaign, rows, day=today)]) == Committed()
        kept = "SELECT tableoid::regclass::text = 'events_default' FROM events ORDER BY day"
        assert ask(database_url, kept) == [(True,), (False,), (False,), (False,), (True,)]
    async with open_store(database_url, Settings(partitions_ahead_days=6)) as store:
        await store.make_partitions()
        rows = [impression(now(), day=day) for day in (today + 4, today + 5)]
        assert await store.flush([bunch(campaign, rows, day=today)]) == Committed()
        assert ask(database_url, f"{kept} OFFSET 4") == [(True,), (True,), (False,)]
        assert len(await store.look_up([Wanted(campaign, row.event_id, [row.day]) for row in rows])) == 2


async def test_a_long_query_delays_partitions_and_no_flush(database_url: str) -> None:
    """A report that holds the default partition: flushes go on, and the next call makes the days."""
    async with open_store(database_url, Settings(partitions_ahead_days=1)) as store:
        campaign = await new_campaign(store)
        store._settings = Settings(partitions_ahead_days=3)
        with psycopg.connect(database_url) as report:
            report.execute("SELECT count(*) FROM events")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.make_partitions)
                await until(database_url, FLUSH_WAITS.replace("headrace flush", "headrace query"))
                assert await store.flush([bunch(campaign, [impression(now())])]) == Committed()
        await store.make_partitions()
    leaves = "SELECT count(*) FROM pg_partition_tree('events') WHERE isleaf"
    assert ask(database_url, leaves) == [(3 + 1 + 3 + 1,)]


async def test_analysts_see_names_and_money(store: PostgresStore, database_url: str) -> None:
    """The views tell the same in plain words, to the micro."""
    campaign = await new_campaign(store, name="spring")
    await store.flush([bunch(campaign, [impression(now(), cost_micros=1_235), click(now())])])
    told = ask(database_url, "SELECT campaign, event_type, cost::text FROM event_log ORDER BY cost DESC")
    assert told == [("spring", "impression", "0.001235"), ("spring", "click", "0.000000")]
    assert ask(database_url, "SELECT spent_total::text FROM campaign_spend") == [("0.001235",)]
    assert ask(database_url, "SELECT impressions, clicks, spend::text FROM hourly_delivery") == [(1, 1, "0.001235")]


async def test_a_flush_without_a_descriptor_left_did_not_run(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not connect: certain, and no fault of the engine."""
    campaign = await new_campaign(store)

    def connect(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("engine.postgres.flush.psycopg.connect", connect)
    reply = await store.flush([bunch(campaign, [impression(now())])])
    assert isinstance(reply, NotRun)
    assert "Too many open files" in reply.detail


async def test_a_server_that_became_unsafe_is_told_before_anything_is_written(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby takes no heartbeat; its engine must hear that it is one, and not merely that it was refused."""
    number = await store.register_engine()

    async def check_server(_: object) -> None:
        raise ConfigurationUnsafe("this Postgres is a standby")

    monkeypatch.setattr("engine.postgres.store.check_server", check_server)
    monkeypatch.setattr("engine.postgres.engines.heartbeat", None)
    with pytest.raises(ConfigurationUnsafe, match="standby"):
        await store.heartbeat(number)


async def test_a_connection_that_fails_when_nobody_waits_for_it_ends_no_engine(
    store: PostgresStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that slept finds the futures of calls that were given up; trio-asyncio would end everything for one."""
    lost = asyncio.Future[None](loop=store._loop)
    lost.set_exception(ConnectionError("unexpected connection_lost() call"))
    del lost
    gc.collect()
    await trio.testing.wait_all_tasks_blocked()
    assert await store.probe() is None
    assert "nobody waits for" in caplog.text
