"""What the path asks of a database with a year behind it: partitions of the days that it names, and no other."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import psycopg
import pytest

from config.settings import Settings
from engine.model import DAY_US, CampaignId
from engine.ports import Committed, Wanted
from engine.postgres.copy import HOUR_US
from engine.postgres.database import Database
from engine.postgres.partitions import DAYS_BACK, partition_name
from engine.postgres.store import PostgresStore, open_store
from tests.contract.flushes import bunch, impression, new_campaign, now

pytestmark = pytest.mark.stores

DAYS = 365
# Whatever a statement's plan has in it is locked until its transaction ends, even if it is never executed.
LOCKED = """
    SELECT DISTINCT relname FROM pg_locks JOIN pg_stat_activity USING (pid) JOIN pg_class AS c ON c.oid = relation
     WHERE datname = current_database() AND pid <> pg_backend_pid() AND relkind = 'r' AND relname ~ '^events_'
"""
SCANS = """
    SELECT relname || ' by key', idx_scan FROM pg_stat_xact_user_tables WHERE relname ~ '^events_' AND idx_scan > 0
     UNION ALL
    SELECT relname || ' whole', seq_scan FROM pg_stat_xact_user_tables WHERE relname ~ '^events_' AND seq_scan > 0
"""


class Asked:
    """What each statement of a store locks and scans."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._url = url
        self.locked: list[set[str]] = []
        self.scans: list[Counter[str]] = []
        monkeypatch.setattr(Database, "fetch", self._fetch())

    def _fetch(self) -> Any:
        async def fetch(database: Database, query: str, *args: object) -> Any:
            async def within(connection: Any) -> Any:
                before = Counter(dict(await connection.fetch(SCANS)))
                rows = await connection.fetch(query, *args)
                self.locked.append(self.now())
                self.scans.append(Counter(dict(await connection.fetch(SCANS))) - before)
                return rows

            return await database.transaction(within)

        return fetch

    def now(self) -> set[str]:
        """Partitions that transactions of others hold at this moment."""
        with psycopg.connect(self._url) as connection:
            return {name for (name,) in connection.execute(LOCKED)}


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    """A store with a partition for each day of the year before, all of them empty."""
    async with open_store(database_url, Settings()) as store:
        with psycopg.connect(database_url) as connection:
            today = now() // DAY_US
            for day in range(today - DAYS, today - DAYS_BACK):
                bounds = f"FROM (date '1970-01-01' + {day}) TO (date '1970-01-01' + {day + 1})"
                connection.execute(f"CREATE TABLE {partition_name(day)} PARTITION OF events FOR VALUES {bounds}")
        yield store


@pytest.fixture
def asked(store: PostgresStore, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What that store asks from now on."""
    return Asked(database_url, monkeypatch)


def partitions(*days: int) -> set[str]:
    """Their names."""
    return set(map(partition_name, days))


async def test_a_look_up_probes_the_unique_key_of_each_named_day_once(store: PostgresStore, asked: Asked) -> None:
    """Nothing else is planned or locked, at the first call and at later ones, whatever groups of days there are."""
    campaign, today = CampaignId(1), now() // DAY_US
    days = range(today - 2, today + 2)
    wanted = [Wanted(campaign, uuid.uuid4().bytes, days) for _ in range(50)]
    late = [Wanted(campaign, uuid.uuid4().bytes, [today - 1]) for _ in range(7)]
    for _ in range(2):
        assert await store.look_up([*wanted, *late]) == {}
    assert asked.locked == [partitions(*days)] * 2
    assert asked.scans == [{f"{partition_name(day)} by key": 57 if day == today - 1 else 50 for day in days}] * 2


async def test_a_look_up_goes_by_the_key_while_the_partition_is_tiny(
    store: PostgresStore, database_url: str, asked: Asked
) -> None:
    """Read whole it would be cheaper, but by the same plan it would still be read whole when it has a million rows."""
    campaign, today = await new_campaign(store), now() // DAY_US
    row = impression(now())
    assert await store.flush([bunch(campaign, [row])]) == Committed()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ANALYZE events")
    assert (campaign, row.event_id) in await store.look_up([Wanted(campaign, row.event_id, [today])])
    assert asked.scans[-1] == {f"{partition_name(today)} by key": 1}


async def test_a_look_up_of_a_day_without_a_partition_asks_the_default_one(store: PostgresStore, asked: Asked) -> None:
    """Its events lie there."""
    campaign, day = await new_campaign(store), now() // DAY_US - DAYS - 10
    row = impression(now(), day=day)
    assert await store.flush([bunch(campaign, [row], day=now() // DAY_US)]) == Committed()
    assert (campaign, row.event_id) in await store.look_up([Wanted(campaign, row.event_id, [day])])
    assert asked.locked[-1] == {"events_default"}


@pytest.mark.parametrize("whole", [False, True])
async def test_users_of_a_spend_day_are_in_the_partitions_of_ten_days(
    store: PostgresStore, asked: Asked, whole: bool
) -> None:
    """Those are all that the longest past that a setting allows, and the zones of the earth, make possible."""
    campaigns, today = [await new_campaign(store) for _ in range(3)], now() // DAY_US
    await store.flush([bunch(each, [impression(now(), user=b"ada")], day=today) for each in campaigns])
    users: dict[CampaignId, Sequence[tuple[str, int]]] = {}
    async with aclosing(store.users_on(dict.fromkeys(campaigns, today), whole=whole)) as pieces:
        async for piece in pieces:
            users.update(piece)
            assert asked.now() == partitions(*range(today - 8, today + 2))
    assert users == {each: [("ada", 1)] for each in campaigns}


async def test_how_many_events_there_are_is_told_by_the_rollup(store: PostgresStore, asked: Asked) -> None:
    """No event is read to tell the large campaigns from the small."""
    assert await store.events_since({CampaignId(1): now() // DAY_US}) == {1: 0}
    assert asked.locked == [set()]


async def test_a_report_of_whole_hours_reads_no_event(store: PostgresStore, asked: Asked) -> None:
    """An open bound is whole, too."""
    campaign, start = await new_campaign(store), now() // DAY_US * DAY_US
    for bounds in ((None, None), (start, None), (None, start), (start, start + 5 * HOUR_US)):
        assert await store.report(campaign, *bounds) is not None
    assert asked.locked == [set()] * 4


async def test_ragged_edges_of_a_report_read_the_days_that_they_can_have(store: PostgresStore, asked: Asked) -> None:
    """The identity day of an event without `occurred_at` is that of its id: from 48 h before its receipt on."""
    campaign, today = await new_campaign(store), now() // DAY_US
    before, after = (today - 100) * DAY_US + HOUR_US // 2, (today - 40) * DAY_US + 12 * HOUR_US + 1
    assert await store.report(campaign, before, after) is not None
    assert await store.report(campaign, before, None) is not None
    of_before, of_after = partitions(*range(today - 102, today - 99)), partitions(*range(today - 42, today - 39))
    assert asked.locked == [of_before | of_after, of_before]
