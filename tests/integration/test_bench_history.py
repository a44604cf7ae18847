"""A history in a real database: its books are sound, and it is what an engine would have left."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from bench.history import History, Ids, lay_history, make_past_partitions, span_of
from config.settings import Settings
from engine.auditor import audit
from engine.model import CampaignId
from engine.postgres.store import PostgresStore, open_store
from engine.processes import TAG_BITS
from tests.contract.flushes import new_campaign

pytestmark = pytest.mark.stores

ROWS = 4_000
DAYS = 6  # more than an engine makes partitions for


@pytest.fixture
async def campaigns(database_url: str) -> list[CampaignId]:
    """Three with a cap; the last one is left out of the history."""
    async with open_store(database_url, Settings()) as store:
        return [await new_campaign(store, freq_cap_impressions_per_day=6) for _ in range(3)]


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """To look at what there is."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def history(ids: Ids = "v7") -> History:
    """Over some days, and more of the last minutes; a steep head."""
    now = datetime.now(UTC)
    return History([span_of(f"{ROWS // 2}/{DAYS}d", now), span_of(f"{ROWS // 2}/10min", now)], 1.0, ids, 3)


@pytest.mark.parametrize("ids", ["v7", "v4"])
async def test_the_audit_of_a_history_is_clean(
    campaigns: list[CampaignId], connection: psycopg.Connection[Any], database_url: str, redis_url: str, ids: Ids
) -> None:
    """To the last micro, on a partition of each day, below the cap, also when a second one is laid upon it."""
    for times in (1, 2):
        laid = lay_history(database_url, history(ids), campaigns[:2])
        assert laid.rows == ROWS
        result = await audit(database_url, redis_url, Settings())
        assert result.findings == []
        assert result.events == times * ROWS
    counts = dict(connection.execute("SELECT campaign_id, count(*) FROM events GROUP BY 1").fetchall())
    assert counts[campaigns[0]] > counts[campaigns[1]]
    assert campaigns[2] not in counts
    assert connection.execute("SELECT count(*) FROM events_default").fetchone() == (0,)
    (days,) = connection.execute("SELECT count(DISTINCT tableoid) FROM events").fetchone() or (0,)
    assert days == DAYS


async def test_rows_are_what_an_engine_would_have_left(
    campaigns: list[CampaignId], connection: psycopg.Connection[Any], database_url: str
) -> None:
    """Ids of version 7 and of their time; tags of an engine that never lived, each of one campaign."""
    lay_history(database_url, history(), campaigns)
    number = await _next_engine(database_url)
    tags: dict[int, set[int]] = {}
    for campaign, event_id, received_at, day, tag in connection.execute(
        "SELECT campaign_id, event_id, received_at, day, batch FROM events"
    ):
        assert isinstance(event_id, uuid.UUID)
        assert event_id.version == 7
        assert event_id.int >> 80 == int(received_at.timestamp() * 1_000)
        assert day == received_at.date()
        assert tag >> TAG_BITS == number - 1
        tags.setdefault(tag, set()).add(campaign)
    assert all(len(each) == 1 for each in tags.values())
    assert connection.execute("SELECT count(*) FROM engines WHERE id = %s", [number - 1]).fetchone() == (0,)


@pytest.mark.parametrize("ids", ["v7", "v4"])
async def test_the_ledger_knows_the_latest_id_time(
    campaigns: list[CampaignId], connection: psycopg.Connection[Any], database_url: str, ids: Ids
) -> None:
    """Where it has a place for that: of version 7 only, since the other tells none."""
    connection.execute("ALTER TABLE ledger ADD COLUMN IF NOT EXISTS latest bigint NOT NULL DEFAULT 0")
    connection.execute("UPDATE ledger SET latest = 1")
    lay_history(database_url, history(ids), campaigns)
    rows = connection.execute(
        "SELECT latest, (SELECT max((extract(epoch FROM uuid_extract_timestamp(event_id)) * 1000000)::bigint)"
        " FROM events AS e WHERE e.campaign_id = l.campaign_id) FROM ledger AS l"
    ).fetchall()
    assert len(rows) == len(campaigns)
    for latest, highest in rows:
        assert latest == (highest if ids == "v7" else 1)


async def test_a_history_is_refused_where_it_could_not_be_true(campaigns: list[CampaignId], database_url: str) -> None:
    """Users above the cap; another zone's days; campaigns that an engine has used."""
    often = History(history().spans, events_a_user=7)
    with pytest.raises(ValueError, match="a cap is 6"):
        lay_history(database_url, often, campaigns)
    async with open_store(database_url, Settings()) as store:
        elsewhere = await new_campaign(store, timezone="Asia/Kolkata")
        with pytest.raises(ValueError, match="time zone"):
            lay_history(database_url, history(), [elsewhere])
        await _use(store, campaigns[0])
    with pytest.raises(ValueError, match="used these campaigns"):
        lay_history(database_url, history(), campaigns)


async def test_partitions_of_the_past_are_empty_and_there_once(
    campaigns: list[CampaignId], connection: psycopg.Connection[Any], database_url: str
) -> None:
    """Also where some are there already, with rows in them."""
    lay_history(database_url, history(), campaigns)
    for _ in range(2):
        make_past_partitions(database_url, 10)
    names = {name for (name,) in connection.execute("SELECT relid::text FROM pg_partition_tree('events')")}
    today = datetime.now(UTC).date()
    assert {f"events_{today - timedelta(days=back):%Y%m%d}" for back in range(11)} <= names
    assert connection.execute("SELECT count(*) FROM events").fetchone() == (ROWS,)


async def _next_engine(database_url: str) -> int:
    async with open_store(database_url, Settings()) as store:
        return await store.register_engine()


async def _use(store: PostgresStore, campaign: CampaignId) -> None:
    await store.raise_generations([campaign], wait=True)
