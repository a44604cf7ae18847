"""A Redis that ended campaigns have filled, and a real engine on it."""

from __future__ import annotations

import time

import pytest
import redis
import trio

from config.settings import Settings
from engine import Event
from engine.engine import Engine
from engine.leftovers import SweptLedger
from engine.model import DAY_US, CampaignId, CampaignSpend, Micros
from engine.ports import Done
from engine.redis.ledger import open_ledger
from engine.runtime import open_engine
from engine.steps import Begin, Emptied, LoadUsers, Ready
from tests.contract.reservations import fill

pytestmark = pytest.mark.stores

CHUNK = 1_000
CHUNKS = 4  # of ids and of users, a campaign: about 0.7 MB
ENDED = 8
BOUND_SECONDS = 60.0  # it takes a few; the bound only ends the test of a broken engine
FIELDS = {
    "name": "spring", "pricing_model": "cpm", "unit_price": "1.00", "total_budget": "1000", "daily_budget": "1000"
}  # fmt: skip


async def end_campaign(ledger: SweptLedger, campaign: CampaignId, *, days_ago: int, bucket_seconds: int) -> None:
    """Let Redis hold a campaign that was last used ten buckets, or so many days, ago."""
    now = time.time() - days_ago * 86_400
    day, used_us = int(now * 1_000_000) // DAY_US, int((now - 10 * bucket_seconds) * 1_000_000)
    assert await ledger.begin([Begin(campaign, 0)]) == [Emptied()]
    for chunk in range(CHUNKS):
        users = [(f"user {chunk} {number}", 1) for number in range(CHUNK)]
        assert await ledger.load([LoadUsers(campaign, 0, users)]) == [Done()]
    nothing = CampaignSpend(Micros(0), day, Micros(0))
    assert await ledger.ready([Ready(campaign, 0, nothing, 1, 0, used_us, users_loaded=True)]) == [Done()]
    assert await fill(ledger, campaign, 0, day, used_us, CHUNKS)


async def accepted(engine: Engine, campaign: int) -> bool:
    """Whether an event is accepted now."""
    return not (await engine.record([Event(campaign_id=campaign, user_id="ada", event_type="impression")])).verdicts


@pytest.mark.parametrize("days_ago", [0, 1, 3])
async def test_a_redis_that_ended_campaigns_have_filled_takes_a_new_campaign(
    database_url: str, redis_url: str, days_ago: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether they ended today or days ago: Redis's first refusal is told, and has their memory given back."""
    settings = Settings()
    with redis.Redis.from_url(redis_url) as client:
        async with (
            open_engine(settings, db_url=database_url, redis_url=redis_url) as engine,
            open_ledger(redis_url, settings) as ledger,
        ):
            campaigns = [(await engine.create_campaign(FIELDS)).campaign.id for _ in range(ENDED + 1)]
            *ended, new = campaigns
            empty = int(client.info("memory")["used_memory"])
            for campaign in ended:
                await end_campaign(ledger, campaign, days_ago=days_ago, bucket_seconds=settings.dedup_bucket_seconds)
            full = int(client.info("memory")["used_memory"])
            client.config_set("maxmemory", (empty + full) // 2)
            try:
                # (That may be so soon that even the event that met the refusal is accepted.)
                with trio.fail_after(BOUND_SECONDS):
                    while not await accepted(engine, new):  # noqa: ASYNC110  # Redis's memory is no event
                        await trio.sleep(0.1)
                    assert "used memory > 'maxmemory'" in caplog.text
                    while await engine.problems():  # noqa: ASYNC110
                        await trio.sleep(0.1)
                for campaign in ended:  # what was dropped is rebuilt at its next use
                    assert await accepted(engine, campaign)
            finally:
                client.config_set("maxmemory", 0)
