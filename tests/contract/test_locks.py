"""What other sessions hold: nobody waits for it but its own campaign, and what dead engines hold is taken from them.

The fake and the real Postgres pass the same tests; the second half is what only the real one can show.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest
import trio
import trio.testing
from psycopg.pq import ExecStatus

from config.settings import Settings
from engine.errors import StoreBusy, StoreUnavailable
from engine.locks import Locked
from engine.model import CampaignId
from engine.ports import Committed, NotRun, Wanted
from engine.postgres.copy import COLUMNS, pack_rows
from engine.postgres.store import PostgresStore, open_store
from tests.contract.flushes import Store, bunch, impression, ledger_of, new_campaign, now, raise_generation
from tests.fakes.store import FakeStore

REAL = pytest.mark.stores


@pytest.fixture
async def judge(database_url: str) -> AsyncIterator[PostgresStore]:
    """The real store, empty."""
    async with open_store(database_url, Settings()) as store:
        yield store


@asynccontextmanager
async def held(store: Store, url: str | None, *campaigns: CampaignId) -> AsyncIterator[None]:
    """Another session holds the ledger rows of these."""
    if url is None:
        assert isinstance(store, FakeStore)
        locks = [store.ledger[campaign].lock for campaign in campaigns]

        async def hold(*, task_status: trio.TaskStatus[None]) -> None:
            async with AsyncExitStack() as stack:
                for lock in locks:
                    await stack.enter_async_context(lock)
                task_status.started()
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            await nursery.start(hold)
            yield
            nursery.cancel_scope.cancel()
    else:
        with psycopg.connect(url) as holder:
            holder.execute("SELECT FROM ledger WHERE campaign_id = ANY (%s) FOR UPDATE", [list(campaigns)])
            yield


def ask(url: str, query: str, *args: object) -> list[tuple[Any, ...]]:
    """Rows of a query, by a connection of the test's own."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query, args)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize("hasty", [False, True])
async def test_a_flush_names_every_campaign_whose_row_is_held(store: Store, store_url: str | None, hasty: bool) -> None:
    """Three rows of five are held: these are named, nothing of the flush is kept, and the other two go at once."""
    campaigns = [await new_campaign(store) for _ in range(5)]
    batches = [bunch(campaign, [impression(now())]) for campaign in campaigns]
    async with held(store, store_url, *campaigns[1:4]):
        reply = await store.flush(batches, hasty=hasty)
        assert isinstance(reply, Locked)
        assert reply.campaigns == set(campaigns[1:4])
        for campaign in campaigns:
            assert (await ledger_of(store, campaign)).untouched
        assert await store.flush([batches[0], batches[4]], hasty=hasty) == Committed()
    assert await store.flush(batches[1:4], hasty=hasty) == Committed()


async def test_a_change_of_a_campaign_whose_row_is_held_is_refused_and_nothing_is_done(
    store: Store, store_url: str | None
) -> None:
    """It does not wait for ever, and a repetition is no surprise."""
    campaign = await new_campaign(store)
    async with held(store, store_url, campaign):
        with pytest.raises(StoreBusy) as busy:
            await store.update_campaign(campaign, {"total_budget_micros": 7})
        assert busy.value.certain
    found = await store.campaign(campaign)
    assert found is not None
    assert (found[0].version, found[0].total_budget_micros) == (1, 1_000_000_000)
    assert await store.update_campaign(campaign, {"total_budget_micros": 7})


async def test_a_generation_is_not_raised_while_its_row_is_held(store: Store, store_url: str | None) -> None:
    """Whoever recovers the campaign hears that, and raises it later."""
    campaign = await new_campaign(store)
    async with held(store, store_url, campaign):
        with pytest.raises(StoreBusy):
            await store.raise_generations([campaign], wait=True)
    assert (await raise_generation(store, campaign)).generation == 1


async def test_what_is_read_waits_for_no_row(store: Store, store_url: str | None) -> None:
    """Plans, look-ups and reports of a campaign whose row is held, and of all others, are answered."""
    campaign, other = await new_campaign(store), await new_campaign(store)
    row = impression(now())
    assert await store.flush([bunch(campaign, [row])]) == Committed()
    async with held(store, store_url, campaign):
        with trio.fail_after(5):
            assert (await store.plans([campaign, other])).keys() == {campaign, other}
            assert await store.look_up([Wanted(campaign, row.event_id, None), Wanted(other, row.event_id, [row.day])])
            assert await store.report(campaign, None, None) is not None
            assert len(await store.page_campaigns(0, 10)) == 2


async def test_sessions_of_a_dead_engine_are_ended(store: Store) -> None:
    """Those of one that has said goodbye, or was silent for too long; who asks lives, whatever the roster says."""
    dead = await store.register_engine()
    campaign = await new_campaign(store)
    assert await store.flush([bunch(campaign, [impression(now())])]) == Committed()
    alive = await store.register_engine()
    assert await store.end_dead_sessions(alive) == {}
    await store.retire_engine(dead)
    assert (await store.end_dead_sessions(dead)) == {}
    ended = await store.end_dead_sessions(alive)
    assert ended.keys() == {dead}
    assert await store.end_dead_sessions(alive) == {}
    assert await store.flush([bunch(campaign, [impression(now())])]) == Committed()


# --- what only the real Postgres can show ---


@REAL
@pytest.mark.parametrize("hasty", [False, True])
async def test_a_flush_names_the_campaign_whose_id_another_session_is_writing(
    judge: PostgresStore, database_url: str, hasty: bool
) -> None:
    """It waits for the unique key of its fifth row, which is the second campaign's."""
    one, two, three = [await new_campaign(judge) for _ in range(3)]
    row = impression(now())
    batches = [
        bunch(one, [impression(now()) for _ in range(3)]),
        bunch(two, [impression(now()), row, impression(now())]),
        bunch(three, [impression(now())]),
    ]
    with copying(database_url, [bunch(two, [row])]):
        reply = await judge.flush(batches, hasty=hasty)
        assert isinstance(reply, Locked)
        assert reply.campaigns == {two}
        assert await judge.flush([batches[0], batches[2]], hasty=hasty) == Committed()
    assert await judge.flush([batches[1]], hasty=hasty) == Committed()


@REAL
async def test_a_flush_gives_up_before_its_statement_would(database_url: str) -> None:
    """Postgres says that the lock was not to be had, long before it would say that the statement took too long."""
    async with open_store(database_url, Settings()) as judge:
        campaign = await new_campaign(judge)
        async with held(judge, database_url, campaign):
            reply = await judge.flush([bunch(campaign, [impression(now())])])
        assert isinstance(reply, Locked)
        assert reply.detail.startswith("55P03"), reply


@REAL
@pytest.mark.parametrize("table", ["events", "ledger", "rollup"])
async def test_a_locked_table_names_nobody(judge: PostgresStore, database_url: str, table: str) -> None:
    """Nobody is innocent of it: such a flush is halved."""
    campaigns = [await new_campaign(judge) for _ in range(2)]
    with psycopg.connect(database_url) as administrator:
        administrator.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        reply = await judge.flush([bunch(campaign, [impression(now())]) for campaign in campaigns])
    assert isinstance(reply, NotRun)
    assert reply.data


@REAL
@pytest.mark.parametrize("row", ["ledger", "key"])
async def test_a_raise_ends_the_sessions_of_the_dead_before_it_waits(
    judge: PostgresStore, database_url: str, row: str
) -> None:
    """A dead engine's flush stopped in the midst of its COPY, or with the row in its hands; no timeout ends it."""
    dead = await judge.register_engine()
    campaign = await new_campaign(judge)
    event = impression(now())
    batches = [bunch(campaign, [event])]
    await judge.register_engine()
    await judge.retire_engine(dead)
    with copying(database_url, batches, application_name=f"headrace {dead} flush", hold_ledger=row == "ledger"):
        assert (await raise_generation(judge, campaign)).generation == 1
        assert await judge.flush([bunch(campaign, [event], generation=1)]) == Committed()


@REAL
@pytest.mark.parametrize("name", ["headrace {alive} flush", "headrace flush", "headrace migrate", "psql", "headrace 7"])
async def test_nobody_else_is_ended(judge: PostgresStore, database_url: str, name: str) -> None:
    """Neither a living engine's sessions, nor those of no engine."""
    alive = await judge.register_engine()
    asking = await judge.register_engine()
    with psycopg.connect(database_url, application_name=name.format(alive=alive)) as other:
        assert await judge.end_dead_sessions(asking) == {}
        assert other.execute("SELECT 1").fetchone() == (1,)


@REAL
async def test_every_session_of_an_engine_carries_its_number(judge: PostgresStore, database_url: str) -> None:
    """From its registration on: those that were open before are opened again."""
    number = await judge.register_engine()
    campaign = await new_campaign(judge)
    assert await judge.flush([bunch(campaign, [impression(now())])]) == Committed()
    async with judge.listening(lambda *_: None, lambda *_: None, lambda: None):
        names = ask(
            database_url,
            "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'headrace%%' ORDER BY 1",
        )
    assert names == [(f"headrace {number} {work}",) for work in ("flush", "listen", "query")]


@REAL
async def test_a_transaction_that_its_engine_left_open_is_ended(judge: PostgresStore, database_url: str) -> None:
    """An engine that freezes in the midst of a PATCH does not hold the campaign's row for long."""
    campaign = await new_campaign(judge)
    row_is_free = trio.Event()

    async def change() -> None:
        with pytest.raises(StoreUnavailable):
            await judge.database.run(freeze)

    async def freeze(connection: Any) -> None:
        await connection.execute("BEGIN; UPDATE ledger SET total_budget = 7")
        while not row_is_free.is_set():  # noqa: ASYNC110 - the event is trio's
            await asyncio.sleep(0.05)
        await connection.execute("COMMIT")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        with trio.fail_after(20):
            while not isinstance(await judge.flush([bunch(campaign, [impression(now())])]), Locked):  # noqa: ASYNC110
                await trio.sleep(0.01)
            while await judge.flush([bunch(campaign, [impression(now())])]) != Committed():  # noqa: ASYNC110
                await trio.sleep(0.01)
        row_is_free.set()
    assert ask(database_url, "SELECT total_budget FROM ledger") == [(1_000_000_000,)]


@contextmanager
def copying(
    url: str, batches: Sequence[Any], *, application_name: str = "frozen", hold_ledger: bool = False
) -> Iterator[None]:
    """A session that has stopped in the midst of a COPY, after these rows; perhaps with their ledger rows in hand."""
    with ExitStack() as stack:
        session = stack.enter_context(
            psycopg.connect(url, autocommit=True, application_name=application_name, prepare_threshold=None)
        )
        connection = session.pgconn
        session.execute("BEGIN")
        if hold_ledger:
            numbers = [batch.campaign_id for batch in batches]
            session.execute("SELECT FROM ledger WHERE campaign_id = ANY (%s) FOR UPDATE", [numbers])
        copy = f"COPY events ({COLUMNS}) FROM STDIN (FORMAT binary)".encode()
        assert connection.exec_(copy).status == ExecStatus.COPY_IN
        connection.put_copy_data(pack_rows(batches))
        connection.put_copy_end()
        assert connection.get_result()
        assert connection.get_result() is None
        assert connection.exec_(copy).status == ExecStatus.COPY_IN  # and the next one has no end
        connection.put_copy_data(pack_rows(batches)[:40])
        connection.flush()
        yield
        session.close()


async def test_a_heartbeat_waits_for_no_query(judge: PostgresStore) -> None:
    """An engine whose connections are all in use, by rebuilds say, is alive, and others leave it its sessions."""
    number = await judge.register_engine()
    ended: list[object] = []

    async def read_long() -> None:
        ended.append(await judge.database.fetch("SELECT pg_sleep(3)"))

    async with trio.open_nursery() as nursery:
        for _ in range(Settings().query_connections):
            nursery.start_soon(read_long)
        await trio.testing.wait_all_tasks_blocked()
        assert number in (await judge.heartbeat(number)).alive
        assert not ended
        nursery.cancel_scope.cancel()


async def test_no_number_of_calls_from_outside_keeps_a_look_up_waiting(judge: PostgresStore, database_url: str) -> None:
    """Events have connections that no caller takes: most of many who wait for a lock are still to come."""
    campaign = await new_campaign(judge)
    calls, ended = 8 * Settings().query_connections, 0

    async def call() -> None:
        nonlocal ended
        with pytest.raises(StoreBusy):
            await judge.campaign(campaign)
        ended += 1

    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE campaigns")
        async with trio.open_nursery() as nursery:
            for _ in range(calls):
                nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            assert await judge.look_up([Wanted(campaign, bytes(16), [0])]) == {}
            assert ended < calls / 2
            holder.rollback()
            nursery.cancel_scope.cancel()
