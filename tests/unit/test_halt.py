"""A halted campaign over fakes: it takes nothing, nobody waits for ever, and it comes back when its row says so."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence

import pytest
import trio
from prometheus_client import REGISTRY
from trio.testing import MockClock

from engine.halts import HALTED, RETRY_SECONDS
from engine.model import CampaignId, Event
from engine.processes import Engines
from engine.registry import Registry
from engine.submission import Submission
from engine.verdicts import UNAVAILABLE
from tests.contract.flushes import raise_generation
from tests.fakes.ledger import Trouble as RedisTrouble
from tests.fakes.store import Trouble as PostgresTrouble
from tests.unit.test_engine import World, shown

WHY = "its books differ"


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncIterator[World]:
    """A fresh engine on fresh fakes, which hears the news of Postgres."""
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        registry = world.registry
        async with world.store.listening(registry.plan_changed, registry.generation_raised, registry.read_all_again):
            yield world
        nursery.cancel_scope.cancel()


async def rebuilt(world: World, campaign: int) -> None:
    """What `headrace recover` leaves in Postgres."""
    world.store.ledger[CampaignId(campaign)].halted = None
    world.store.ledger[CampaignId(campaign)].gen += 1
    await raise_generation(world.store, CampaignId(campaign))


def differences() -> float:
    """What is counted so far."""
    return REGISTRY.get_sample_value("headrace_differences_total") or 0.0


async def contradict(world: World, campaign: int) -> Event:
    """Make Postgres lose a committed event that Redis knows; the event."""
    event = shown(campaign, event_id=uuid.uuid4())
    assert await world.reasons(event) == ["accepted"]
    await trio.sleep(1)  # Redis hears of the commit
    key = next(key for key in world.store.events if key[0] == campaign)
    del world.store.events[key]
    return event


@pytest.mark.parametrize("live", [True, False])
async def test_a_halted_campaign_takes_nothing_and_others_go_on(
    autojump_clock: MockClock, world: World, live: bool
) -> None:
    """Whether its actor hears of the halt or a new one reads it; nothing of it is written."""
    halted, other = await world.campaign(), await world.campaign()
    if live:
        await world.send(shown(halted))
    await world.store.halt(CampaignId(halted), WHY)
    assert await world.send(shown(halted), shown(other), shown(halted)) == [HALTED, None, HALTED]
    assert world.spent(halted) == 1_000 * live
    assert len(world.registry.halts) == 1


async def test_a_halted_campaign_asks_no_store(autojump_clock: MockClock, world: World) -> None:
    """Once its row is known, mail is refused before there is an actor."""
    campaign = await world.campaign()
    await world.store.halt(CampaignId(campaign), WHY)
    assert await world.send(shown(campaign)) == [HALTED]
    world.store.away = world.ledger.away = True
    trips = world.ledger.round_trips
    assert await world.send(shown(campaign), shown(campaign)) == [HALTED] * 2
    assert (len(world.registry), world.ledger.round_trips) == (0, trips)


async def test_a_rebuilt_campaign_is_served_at_once(autojump_clock: MockClock, world: World) -> None:
    """The raised generation is the news; Redis is rebuilt, and duplicates are known."""
    campaign = await world.campaign()
    event = shown(campaign, event_id=uuid.uuid4())
    await world.send(event)
    await world.store.halt(CampaignId(campaign), WHY)
    assert await world.send(event) == [HALTED]
    await rebuilt(world, campaign)
    assert await world.reasons(event, shown(campaign)) == ["duplicate", "accepted"]
    assert world.spent(campaign) == 2_000
    assert len(world.registry.halts) == 0


@pytest.mark.parametrize("lost", ["connection", "news"])
async def test_lost_news_hold_no_campaign_back_for_ever(autojump_clock: MockClock, world: World, lost: str) -> None:
    """A listening connection that broke, and one that did not notice: the row is read again."""
    campaign = await world.campaign()
    await world.store.halt(CampaignId(campaign), WHY)
    assert await world.send(shown(campaign)) == [HALTED]
    world.store._listeners.clear()
    await rebuilt(world, campaign)
    world.store._listeners.append((world.registry.plan_changed, world.registry.generation_raised))
    assert await world.send(shown(campaign)) == [HALTED]
    if lost == "connection":
        world.registry.read_all_again()
    else:
        await trio.sleep(RETRY_SECONDS)
    assert await world.reasons(shown(campaign)) == ["accepted"]


async def test_an_engine_that_hears_nothing_is_fenced(autojump_clock: MockClock, world: World) -> None:
    """Postgres refuses its flush; it reads the row, and stops."""
    campaign = await world.campaign()
    await world.send(shown(campaign))
    listeners, world.store._listeners = world.store._listeners, []
    await world.store.halt(CampaignId(campaign), WHY)
    assert await world.send(shown(campaign)) == [HALTED]
    assert world.spent(campaign) == 1_000
    world.store._listeners = listeners


async def test_a_recovery_stops_before_redis(autojump_clock: MockClock, world: World) -> None:
    """It raises once, reads why, and tries no more; Redis stays behind, so that nothing can commit."""
    campaign = CampaignId(await world.campaign())
    await world.send(shown(campaign))
    world.ledger.away = True
    assert await world.send(shown(campaign)) == [UNAVAILABLE]  # and the recovery goes on
    behind = world.ledger.books[campaign].generation
    await world.store.halt(campaign, WHY)
    world.ledger.away = False
    await trio.sleep(60)
    generation = world.store.ledger[campaign].gen
    assert await world.send(shown(campaign)) == [HALTED]
    await trio.sleep(600)
    assert (world.store.ledger[campaign].gen, world.ledger.books[campaign].generation) == (generation, behind)
    assert world.registry.quiet


@pytest.mark.parametrize("trouble", [PostgresTrouble.UNKNOWN_BEFORE, PostgresTrouble.UNKNOWN_AFTER])
async def test_who_waits_for_an_unknown_outcome_is_told_to_come_again(
    autojump_clock: MockClock, world: World, trouble: PostgresTrouble
) -> None:
    """Never `accepted` for what is not a row; once the books are rebuilt, a retry says what it is."""
    campaign = await world.campaign()
    await world.send(shown(campaign))
    world.store.trouble.append(trouble)
    raise_generations = world.store.raise_generations

    async def halted_meanwhile(campaign_ids: Sequence[CampaignId], *, wait: bool) -> object:
        world.store.ledger[CampaignId(campaign)].halted = WHY
        return await raise_generations(campaign_ids, wait=wait)

    world.store.raise_generations = halted_meanwhile  # type: ignore[method-assign, assignment]
    event = shown(campaign, "bob", event_id=uuid.uuid4())
    assert await world.send(event, event) in ([HALTED] * 2, [None, HALTED])
    world.store.raise_generations = raise_generations  # type: ignore[method-assign]
    await rebuilt(world, campaign)
    committed = trouble is PostgresTrouble.UNKNOWN_AFTER
    assert await world.reasons(event) == ["duplicate" if committed else "accepted"]
    assert world.spent(campaign) == 2_000


@pytest.mark.parametrize("waits", ["in Redis", "in Postgres", "in the mailbox"])
async def test_everything_under_way_is_answered(autojump_clock: MockClock, world: World, waits: str) -> None:
    """In time, and once, wherever it is when the halt is met."""
    campaign = CampaignId(await world.campaign())
    await world.send(shown(campaign))
    if waits == "in Redis":
        world.ledger.fail_next(RedisTrouble.UNKNOWN_LATE)
    answers: list[Submission] = []
    if waits == "in Postgres":
        release = trio.Event()
        world.store.hold = release.wait
        world.engine.submit([shown(campaign)], answers.append)
        await trio.sleep(0.1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.store.halt, campaign, WHY)  # waits for the row
            await trio.sleep(0.1)
            release.set()
    else:
        world.engine.submit([shown(campaign)], answers.append)
        await world.store.halt(campaign, WHY)
    await trio.sleep(1)
    assert len(answers) == 1
    assert set(answers[0].verdicts.values()) <= {HALTED}
    assert len(world.store.rows_of(campaign)) == 1 + (waits == "in Postgres")
    await world.engine.drain()


async def test_a_contradiction_halts_the_campaign(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis says committed, Postgres does not have it: logged, counted once, 503, and Postgres knows."""
    campaign, other = await world.campaign(), await world.campaign()
    event = await contradict(world, campaign)
    before = differences()
    assert await world.send(event, shown(other)) == [HALTED, None]
    assert differences() == before + 1
    assert str(event.event_id) in caplog.text
    await trio.sleep(1)
    halted = world.store.ledger[CampaignId(campaign)].halted
    assert halted is not None
    assert str(event.event_id) in halted
    assert await world.send(shown(campaign, "bob")) == [HALTED]


async def test_a_contradiction_is_not_forgotten_while_postgres_is_away(autojump_clock: MockClock, world: World) -> None:
    """The campaign is closed meanwhile, and halted as soon as Postgres is back."""
    campaign = await world.campaign()
    event = await contradict(world, campaign)
    halt, attempts = world.store.halt, 0

    async def counted(campaign_id: CampaignId, reason: str) -> None:
        nonlocal attempts
        attempts += 1
        world.store.away = attempts < 100
        await halt(campaign_id, reason)

    world.store.halt = counted  # type: ignore[method-assign]
    assert await world.send(event) == [HALTED]
    await trio.sleep(60)
    world.registry.read_all_again()
    assert 10 < attempts < 100, "bounded pauses, and no end"
    assert await world.send(shown(campaign)) == [HALTED]
    await trio.sleep(600)
    assert attempts == 100
    assert world.store.ledger[CampaignId(campaign)].halted is not None


async def test_another_engine_stops_when_one_finds_a_contradiction(autojump_clock: MockClock, world: World) -> None:
    """The raised generation is the news for all."""
    async with trio.open_nursery() as nursery:
        registry = Registry(world.settings, world.ledger, world.store, world, Engines(2), nursery)
        registry.start()
        async with world.store.listening(registry.plan_changed, registry.generation_raised, registry.read_all_again):
            campaign = await world.campaign()
            event = await contradict(world, campaign)
            world.engine._registry = registry
            assert await world.reasons(shown(campaign)) == ["accepted"]
            world.engine._registry = world.registry
            assert await world.send(event) == [HALTED]
            await trio.sleep(1)
            assert (len(registry), len(registry.halts)) == (0, 1)
            world.engine._registry = registry
            assert await world.send(shown(campaign)) == [HALTED]
        nursery.cancel_scope.cancel()
