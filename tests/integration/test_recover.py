"""`headrace recover` over real stores: the books are what the events say, whatever they said before."""

from __future__ import annotations

import struct
from typing import Any

import psycopg
import pytest
import redis
import trio

from api.recover import run
from config.settings import Settings
from engine.auditor import audit
from engine.errors import ConfigurationUnsafe
from engine.model import DAY_US, CampaignId, new_event_id
from engine.recoverer import recover
from engine.steps import Emptied
from tests.contract.flushes import COST, impression, ledger_of
from tests.contract.reservations import begin
from tests.integration.test_audit import World, lines, now, world

__all__ = ["world"]
pytestmark = pytest.mark.stores


async def check_clean(world: World) -> None:
    """No difference, nobody halted, and Redis holds everything."""
    result = await audit(world.db_url, world.redis_url, Settings())
    assert (result.findings, result.halted, result.rebuilt_later) == ([], {}, 0)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET spent = spent + 1",
        "UPDATE ledger SET today = 0, day = day + 1",
        "UPDATE ledger SET total_budget = 1, daily_budget = 1",
        "UPDATE rollup SET impressions = impressions + 1",
        "UPDATE rollup SET hour = hour - interval '1 minute'",
        "DELETE FROM rollup",
        "DELETE FROM events WHERE user_id = 'user 1'",
        "DELETE FROM events",
    ],
)
async def test_books_are_rebuilt_from_the_events(world: World, statement: str) -> None:
    """Ledger, budgets, rollup and Redis: a halted campaign is in service again, and the audit finds nothing."""
    campaign = await world.campaign()
    await world.deliver(campaign, [impression(now() - DAY_US)])
    await world.deliver(campaign, lines())
    world.tamper(statement)
    assert (await audit(world.db_url, world.redis_url, Settings())).halted.keys() == {campaign}
    (recovered,) = await recover(world.db_url, world.redis_url, [campaign], Settings())
    assert recovered.trouble == ""
    await check_clean(world)
    assert (await ledger_of(world.store, campaign)).generation == recovered.generation


@pytest.mark.parametrize("told", [True, False], ids=["by its occurred_at", "by its id"])
async def test_rebuilt_books_begin_above_every_id_time(world: World, told: bool) -> None:
    """Whatever the row said of it: Redis gets the highest id time for its watermark, and no higher one."""
    campaign = await world.campaign()
    received_us, ahead_us = now(), now() // 1_000 * 1_000 + 300_000_000
    ahead = impression(ahead_us, received_us=received_us, occurred_us=ahead_us if told else received_us)
    await world.deliver(campaign, [impression(received_us), ahead, impression(received_us)])
    world.tamper("UPDATE ledger SET latest = 0, spent = spent + 1")
    await recover(world.db_url, world.redis_url, [campaign], Settings())
    row = await ledger_of(world.store, campaign)
    with redis.Redis.from_url(world.redis_url) as client:
        packed: Any = client.hget(f"{{{campaign}}}:s", "window")
        watermark_us = struct.unpack(">5d", packed)[2]
    assert watermark_us == row.latest_us == ahead_us


async def test_an_id_of_any_bits_does_not_raise_rebuilt_books(world: World) -> None:
    """It came with an `occurred_at`, which is its id time: nobody is looked up because of what its bits tell."""
    campaign = await world.campaign()
    received_us = now()
    await world.deliver(campaign, [impression(received_us, event_id=new_event_id(received_us + DAY_US, bytes(10)))])
    world.tamper("UPDATE ledger SET latest = 0, spent = spent + 1")
    await recover(world.db_url, world.redis_url, [campaign], Settings())
    assert (await ledger_of(world.store, campaign)).latest_us == received_us


async def test_a_campaign_with_many_users_is_brought_back_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else waits for it, so what is too much to read by the key is read in one pass."""
    monkeypatch.setattr("engine.recovery.KEYED_EVENTS", 0)
    campaign = await world.campaign(freq_cap_impressions_per_day=2)
    await world.deliver(campaign, lines(3))
    (recovered,) = await recover(world.db_url, world.redis_url, [campaign], Settings())
    assert recovered.trouble == ""
    with redis.Redis.from_url(world.redis_url) as client:
        assert client.hlen(f"{{{campaign}}}:u") == 3
    await check_clean(world)


async def test_a_machine_whose_clock_is_wrong_rebuilds_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dedup window goes by it: young ids would be forgotten, or the campaign closed. The error says what to do."""
    campaign = await world.campaign()
    monkeypatch.setattr("engine.recoverer.machine_us", lambda: now() + DAY_US)
    with pytest.raises(ConfigurationUnsafe, match="this machine's clock is 86400 s off"):
        await recover(world.db_url, world.redis_url, [campaign], Settings())


async def test_a_wrong_redis_is_rebuilt_not_kept(world: World) -> None:
    """Also when nobody had halted the campaign; what it held in reserve is fenced."""
    campaign = await world.campaign()
    await world.deliver(campaign, lines())
    rows = lines()
    await world.reserve(campaign, rows)
    with redis.Redis.from_url(world.redis_url) as client:
        client.hincrby(f"{{{campaign}}}:s", "total", -COST)
    (recovered,) = await recover(world.db_url, world.redis_url, [campaign], Settings())
    assert recovered.rebuilt is not None
    assert (recovered.rebuilt.hours, recovered.rebuilt.before.spent_micros) == (0, 3 * COST)
    await check_clean(world)
    assert await world.ledger.pending_tags([campaign]) == {campaign: []}


async def test_a_redis_that_is_ahead_of_its_postgres_is_caught_up_with(world: World) -> None:
    """A database that was restored knows older generations: the rebuild rises above all of them."""
    campaign = await world.campaign()
    await world.deliver(campaign, lines())
    assert isinstance(await begin(world.ledger, campaign, 70), Emptied)
    (recovered,) = await recover(world.db_url, world.redis_url, [campaign], Settings())
    assert recovered.generation > 70
    await check_clean(world)


async def waiting(world: World, kind: str, tasks: int = 1) -> None:
    """Until so many wait for a lock of this kind."""
    query = f"SELECT count(*) AS tasks FROM pg_locks WHERE NOT granted AND locktype = '{kind}'"
    with trio.fail_after(60):
        while (await world.store.database.fetch(query))[0]["tasks"] < tasks:  # noqa: ASYNC110 - a lock sets no event
            await trio.sleep(0.01)


async def test_a_budget_that_is_changed_meanwhile_is_the_judges_too(world: World) -> None:
    """A change that was under way when the sums were read is not overwritten with the budget of before."""
    campaign = await world.campaign()
    await world.store.halt(campaign, "as the test wished")
    with psycopg.connect(world.db_url) as change:
        change.execute(f"UPDATE campaigns SET total_budget_micros = 7, version = 2 WHERE id = {campaign}")
        change.execute(f"UPDATE ledger SET total_budget = 7 WHERE campaign_id = {campaign}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recover, world.db_url, world.redis_url, [campaign], Settings())
            await waiting(world, "transactionid")
            change.commit()
    await check_clean(world)


async def test_recoveries_at_once_follow_each_other(world: World) -> None:
    """None writes sums that are older than another's, after which events may have come in again."""
    campaign = await world.campaign()
    await world.deliver(campaign, lines())
    world.tamper("UPDATE ledger SET spent = spent + 1, halted = 'as the test wished'")
    with psycopg.connect(world.db_url) as held:
        held.execute("SELECT FROM ledger FOR NO KEY UPDATE")
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(recover, world.db_url, world.redis_url, [campaign], Settings())
            await waiting(world, "advisory", 2)
            held.commit()
    await check_clean(world)


async def test_a_recovery_that_was_broken_off_leaves_the_campaign_halted(world: World) -> None:
    """Never in service with books that are half rebuilt; done again, it ends well."""
    campaign = await world.campaign()
    await world.deliver(campaign, lines())
    world.tamper("UPDATE ledger SET spent = spent + 1")
    world.tamper("UPDATE rollup SET clicks = clicks + 1")
    await world.store.halt(campaign, "broken off")
    with trio.move_on_after(0):
        await recover(world.db_url, world.redis_url, [campaign], Settings())
    assert (await ledger_of(world.store, campaign)).halted == "broken off"
    await recover(world.db_url, world.redis_url, [campaign], Settings())
    await check_clean(world)


async def test_the_command_says_what_was_and_what_is(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """0 and a table; 1 for a stranger; 2 when a store can't be reached; a note about spend above the budget."""

    async def status(redis_url: str, *campaigns: int) -> int:
        settings = Settings(db_url=world.db_url, redis_url=redis_url)
        return await trio.to_thread.run_sync(run, settings, campaigns)

    campaign = await world.campaign()
    await world.deliver(campaign, lines())
    world.tamper("UPDATE ledger SET spent = 0, today = 0")
    world.tamper(f"UPDATE campaigns SET total_budget_micros = {COST}")
    assert await status(world.redis_url, campaign) == 0
    said = capsys.readouterr().out
    assert "0.003000" in said
    assert "nothing billable is accepted" in said
    assert said.endswith("recovered 1 of 1 campaign\n")
    assert (await ledger_of(world.store, CampaignId(1))).spend.spent_micros == 3 * COST
    assert await status(world.redis_url, 404, campaign) == 1
    said = capsys.readouterr().out
    assert "campaign 404: there is no such campaign" in said
    assert said.endswith("recovered 1 of 2 campaigns\n")
    assert await status("unix:///nowhere/redis.sock", campaign) == 2
    assert "Redis" in capsys.readouterr().err
