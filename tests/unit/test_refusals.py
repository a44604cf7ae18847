"""Steady refusals over fakes: they are told, they end without traffic, and a verdict is none of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.model import CampaignId, Event
from engine.ports import Lost, NotRun, Reserve
from engine.steps import Begin
from tests.fakes.store import Trouble as PostgresTrouble
from tests.unit.test_engine import World, shown

LONG_ENOUGH_SECONDS = 10.0  # for a probe, and the quiet that an outage ends with


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncGenerator[World, None]:
    """An engine on fresh fakes."""
    async with trio.open_nursery() as nursery:
        yield World(nursery)
        nursery.cancel_scope.cancel()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged for operators."""
    return [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_a_redis_that_refuses_is_told(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Two lines for a hundred refusals; not ready meanwhile, and ready again though nobody sends."""
    campaign = await world.campaign()
    assert await world.reasons(shown(campaign)) == ["accepted"]
    world.ledger.full = True
    for _ in range(100):
        assert await world.reasons(shown(campaign)) == ["unavailable"]
    assert world.registry.outages.problems() == ["Redis: OOM"]
    assert await world.engine.problems() == ["Redis: OOM"]
    world.ledger.full = False
    await trio.sleep(LONG_ENOUGH_SECONDS)
    assert world.registry.outages.problems() == []
    assert [line.split(":")[0] for line in told(caplog)] == ["Redis", "Redis"]


async def test_a_postgres_that_refuses_flushes_is_told(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is full, say: plans can be read, look-ups are answered, and no event is accepted."""
    campaign = await world.campaign()
    world.store.trouble.extend([PostgresTrouble.NOT_RUN] * 5)
    for _ in range(5):
        assert await world.reasons(shown(campaign)) == ["unavailable"]
    assert world.registry.outages.problems() == ["Postgres: as the test wished"]
    await trio.sleep(LONG_ENOUGH_SECONDS)
    assert await world.engine.problems() == []
    assert await world.reasons(shown(campaign)) == ["accepted"]
    assert [line.split(":")[0] for line in told(caplog)] == ["Postgres", "Postgres"]


@pytest.mark.parametrize("store", ["ledger", "store"])
async def test_a_store_that_is_away_is_told_once_whoever_needs_it(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture, store: str
) -> None:
    """Plans, reserves, flushes, look-ups, recoveries and sweeps of many campaigns: one outage, two lines."""
    campaigns = [await world.campaign() for _ in range(20)]
    assert await world.reasons(*map(shown, campaigns[:10])) == ["accepted"] * 10
    world.ledger.forget()
    getattr(world, store).away = True
    for _ in range(20):
        await world.send(*map(shown, campaigns))
        await trio.sleep(1)
    assert len(world.registry.outages.problems()) == 1
    getattr(world, store).away = False
    await trio.sleep(LONG_ENOUGH_SECONDS)
    assert await world.engine.problems() == []
    assert await world.reasons(*map(shown, campaigns)) == ["accepted"] * 20
    assert len(told(caplog)) == 2, told(caplog)


async def test_one_campaign_that_is_refused_is_probed_itself(autojump_clock: MockClock, world: World) -> None:
    """Its keys are another node's, or no longer this user's: others are decided, and the outage stands all the same."""
    fine, refused = await world.campaign(), await world.campaign()
    decide, probe, moved = world.ledger._reserve, world.ledger.probe, NotRun("MOVED 7 127.0.0.1:7001")

    def reserve(call: Reserve) -> Any:
        return moved if call.campaign_id == refused else decide(call)

    async def ask(campaign_id: CampaignId) -> Any:
        return moved if campaign_id == refused else await probe(campaign_id)

    world.ledger._reserve, world.ledger.probe = reserve, ask  # type: ignore[method-assign]
    assert await world.reasons(shown(fine), shown(refused)) == ["accepted", "unavailable"]
    for _ in range(20):
        await trio.sleep(1)
        assert await world.reasons(shown(fine)) == ["accepted"]
    assert world.registry.outages.problems() == ["Redis: MOVED 7 127.0.0.1:7001"]
    world.ledger._reserve, world.ledger.probe = decide, probe  # type: ignore[method-assign]
    await trio.sleep(LONG_ENOUGH_SECONDS)
    assert await world.engine.problems() == []


async def test_a_flush_of_one_campaign_that_postgres_can_not_take_leaves_the_engine_ready(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The others' flushes are taken: it is logged, with the campaign's number."""
    campaign = await world.campaign()
    world.store.trouble.append(PostgresTrouble.CULPRIT_UNNAMED)
    assert await world.reasons(shown(campaign)) == ["unavailable"]
    assert await world.engine.problems() == []
    await trio.sleep(LONG_ENOUGH_SECONDS)
    assert len(told(caplog)) == 2
    assert f"campaign {campaign}" in told(caplog)[0]


async def test_verdicts_are_no_outage(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Budgets, caps, duplicates, unknown campaigns, and a Redis that has forgotten and is rebuilt."""
    campaign = await world.campaign(total_budget="0.001", freq_cap_impressions_per_day=1)
    event = shown(campaign)
    await world.send(event, event, shown(campaign), Event(campaign_id=404, user_id="u", event_type="click"))
    world.ledger.forget()
    await world.send(event, shown(campaign))
    assert await world.engine.problems() == []
    assert told(caplog) == []


async def test_many_who_ask_at_once_are_one_question(autojump_clock: MockClock, world: World) -> None:
    """Whoever asks a thousand times takes nothing from events; and one who leaves takes no answer away."""
    asked = 0
    probe = world.store.probe

    async def slow() -> str | None:
        nonlocal asked
        asked += 1
        await trio.sleep(0.5)
        return await probe()

    world.store.probe = slow  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        for _ in range(1_000):
            nursery.start_soon(world.engine.problems)
    assert asked == 1
    await trio.sleep(1)
    with trio.move_on_after(0.1):
        await world.engine.problems()
    assert await world.engine.problems() == []
    assert asked == 3


async def test_who_is_served_late_by_a_probe_does_not_ask_anew(autojump_clock: MockClock, world: World) -> None:
    """Where many have waited their turns take long: if the last ones asked anew, all behind them would wait again."""
    asked = 0
    probe = world.store.probe

    async def slow() -> str | None:
        nonlocal asked
        asked += 1
        await trio.sleep(0.5)
        return await probe()

    async def ask() -> None:
        await world.engine.problems()
        autojump_clock.jump(1)  # what is answered first takes so long

    world.store.probe = slow  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert asked == 1


async def test_a_store_that_does_not_answer_a_probe_is_not_ready(autojump_clock: MockClock, world: World) -> None:
    """It is told within two seconds, whatever the store's own timeouts are."""
    world.store.probe = trio.sleep_forever  # type: ignore[method-assign]
    assert await world.engine.problems() == ["Postgres: no answer within 2 s"]


async def test_a_recovery_that_fails_for_a_reason_of_its_own_is_told_ever_more_seldom(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis and Postgres answer, and yet this campaign does not come back."""
    campaign = await world.campaign()
    begin = world.ledger.begin

    async def never(calls: Sequence[Begin]) -> Any:
        return [Lost() for _ in calls]

    world.ledger.begin = never  # type: ignore[method-assign]
    await world.send(shown(campaign))
    await trio.sleep(60)
    failed = [line for line in told(caplog) if "not recovered yet" in line]
    assert 3 <= len(failed) <= 6
    world.ledger.begin = begin  # type: ignore[method-assign]
    await trio.sleep(LONG_ENOUGH_SECONDS)
    assert "recovered, after" in told(caplog)[-1]
    assert await world.reasons(shown(campaign)) == ["accepted"]
