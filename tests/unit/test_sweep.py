"""The sweep over fakes: what engines give back of campaigns that nobody uses any more."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence

import pytest
import trio
from trio.testing import MockClock

from engine.leftovers import ABANDONED_SECONDS
from engine.model import CampaignId, HeartbeatReply
from engine.ports import NotRun, Reserve
from engine.steps import Begin
from tests.contract.reservations import reserve
from tests.fakes.ledger import Book, Trouble
from tests.unit.test_engine import World, shown
from tests.unit.test_window import at

BUCKET_SECONDS = 600  # of a campaign that keeps them longest
PASS_SECONDS = 90.0  # the longest pause before a pass
PASSES_SECONDS = 1_200.0  # in which both buckets of a campaign that nobody uses have become due, and a pass came by
CAPPED = {"freq_cap_impressions_per_day": 5}


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncGenerator[World, None]:
    """An engine on fresh fakes, with buckets of 480 s."""
    async with trio.open_nursery() as nursery:
        yield World(nursery)
        nursery.cancel_scope.cancel()


async def later(world: World, seconds: float) -> None:
    """So much later by everybody's clock, and a few passes of the sweep after that."""
    world.clock_step_us += int(seconds * 1_000_000)
    await trio.sleep(PASSES_SECONDS)


def book(world: World, campaign: int) -> Book | None:
    """What Redis holds of a campaign."""
    return world.ledger.books.get(CampaignId(campaign))


def held(world: World, campaign: int) -> tuple[int, int]:
    """How many users and ids Redis holds of a campaign."""
    found = book(world, campaign)
    assert found is not None
    return len(found.users), len(found.window) + len(found.ahead)


def left_by(engine: int, world: World, campaign: int, found: Book) -> Reserve:
    """The call of an engine that never hears its reply."""
    assert found.sums is not None
    return reserve(
        campaign_id=CampaignId(campaign), generation=found.generation, tag=engine << 40 | 999, day=found.sums.day,
        at_us=world.now_us(), time_us=world.now_us(),
    )  # fmt: skip


async def test_an_ended_campaign_gives_back_its_ids_and_then_its_users(autojump_clock: MockClock, world: World) -> None:
    """Ids with the second bucket that closes, users when the day is over, the rest two days later."""
    campaign = await world.campaign(**CAPPED)
    assert await world.reasons(shown(campaign), shown(campaign)) == ["accepted"] * 2
    await trio.sleep(BUCKET_SECONDS + PASS_SECONDS + 5)
    found = book(world, campaign)
    assert found is not None
    assert (found.window.number, held(world, campaign)) == (1, (1, 2))
    await trio.sleep(BUCKET_SECONDS + PASS_SECONDS + 5)
    assert (found.window.number, held(world, campaign)) == (2, (1, 0))
    await later(world, 86_400)
    assert held(world, campaign) == (0, 0)
    await later(world, 2 * 86_400)
    assert book(world, campaign) is None
    assert await world.reasons(shown(campaign)) == ["accepted"]
    assert world.spent(campaign) == 3_000


async def test_the_day_is_that_of_the_campaigns_own_zone(autojump_clock: MockClock, world: World) -> None:
    """It is noon in UTC: in Kiritimati, 14 h ahead, the day is over, and in New York it is not, nine hours later."""
    new_york = await world.campaign(**CAPPED, timezone="America/New_York")
    kiritimati = await world.campaign(**CAPPED, timezone="Pacific/Kiritimati")
    assert await world.reasons(shown(new_york), shown(kiritimati)) == ["accepted"] * 2
    world.clock_step_us = 23 * 3_600 * 1_000_000  # 11:00 in UTC, 06:00 and 01:00 there, on the next day
    await trio.sleep(PASSES_SECONDS)
    assert held(world, new_york) == (0, 0)
    world.clock_step_us = 0
    other = await world.campaign(**CAPPED, timezone="Pacific/Kiritimati")
    assert await world.reasons(shown(other)) == ["accepted"]
    world.clock_step_us = 8 * 3_600 * 1_000_000
    await trio.sleep(PASSES_SECONDS)
    assert held(world, other) == (1, 0)
    world.clock_step_us = 23 * 3_600 * 1_000_000
    await trio.sleep(PASSES_SECONDS)
    assert held(world, other) == (0, 0)


async def test_an_engine_whose_clock_is_wrong_sweeps_nothing(autojump_clock: MockClock, world: World) -> None:
    """It would move days on that are not over, and no day ever moves back."""
    campaign = await world.campaign(**CAPPED)
    assert await world.reasons(shown(campaign)) == ["accepted"]
    world.engine.clocks.wrong = "as the test wished"
    await later(world, 86_400)
    assert held(world, campaign) == (1, 1)
    world.engine.clocks.wrong = None
    await trio.sleep(PASSES_SECONDS)
    assert held(world, campaign) == (0, 0)


async def test_a_campaign_in_use_is_left_alone(autojump_clock: MockClock, world: World) -> None:
    """It is never lost, and never recovered."""
    campaign = await world.campaign()
    for _ in range(20):
        assert await world.reasons(shown(campaign)) == ["accepted"]
        await trio.sleep(BUCKET_SECONDS / 4)
    assert world.store.ledger[CampaignId(campaign)].gen == 1


async def test_a_campaign_that_is_swept_between_two_events_goes_on(autojump_clock: MockClock, world: World) -> None:
    """One an hour: its ids are forgotten, it is neither lost nor recovered, and a retry is a duplicate."""
    campaign = await world.campaign()
    events = [shown(campaign, event_id=uuid.uuid4()) for _ in range(3)]
    for event in events:
        assert await world.reasons(event) == ["accepted"]
        await later(world, 3_600)
        assert held(world, campaign) == (0, 0)
    assert await world.reasons(*events) == ["duplicate"] * 3
    assert world.store.ledger[CampaignId(campaign)].gen == 1


async def test_a_full_redis_is_swept_at_once(autojump_clock: MockClock, world: World) -> None:
    """Whoever is refused for want of memory is helped in seconds: what is idle goes, users of today included."""
    ended, new = await world.campaign(**CAPPED), await world.campaign()
    assert await world.reasons(shown(ended)) == ["accepted"]
    await later(world, 2 * BUCKET_SECONDS)
    assert held(world, ended) == (1, 0)
    world.clock_step_us += 2 * BUCKET_SECONDS * 1_000_000
    world.ledger.full = True
    assert await world.reasons(shown(new)) == ["unavailable"]
    await trio.sleep(1)
    assert book(world, ended) is None
    world.ledger.full = False
    await trio.sleep(3)
    assert await world.reasons(shown(new)) == ["accepted"]


async def test_a_full_redis_drops_what_is_idle_though_sweeps_have_closed_its_buckets(
    autojump_clock: MockClock, world: World
) -> None:
    """Whoever closes buckets of a campaign uses it only if it is a call: here sweeps do for five minutes."""
    ended, new = await world.campaign(**CAPPED), await world.campaign()
    assert await world.reasons(at(world, ended, 290_000_000)) == ["accepted"]
    world.ledger.used_and_max_bytes = (70, 100)  # buckets of seconds
    await trio.sleep(BUCKET_SECONDS)
    assert held(world, ended) == (1, 0)
    world.ledger.full = True
    assert await world.reasons(shown(new)) == ["unavailable"]
    await trio.sleep(5)
    assert book(world, ended) is None


async def test_while_new_users_are_refused_those_of_idle_campaigns_make_room(
    autojump_clock: MockClock, world: World
) -> None:
    """Nobody is refused for want of memory that nobody uses; campaigns in use keep their users."""
    ended, used = await world.campaign(**CAPPED), await world.campaign(**CAPPED)
    assert await world.reasons(shown(ended), shown(used)) == ["accepted"] * 2
    world.ledger.used_and_max_bytes = (90, 100)
    for _ in range(4):
        await trio.sleep(BUCKET_SECONDS / 2)
        await world.reasons(shown(used))
    assert book(world, ended) is None
    assert held(world, used)[0] == 1
    assert world.store.ledger[CampaignId(used)].gen == 1
    assert await world.reasons(shown(ended), shown(ended, "bob")) == ["accepted", "overloaded"]  # it was rebuilt


async def test_a_campaign_that_is_used_every_few_minutes_is_not_idle(autojump_clock: MockClock) -> None:
    """However short the dedup window is set: its users would be read again at each use."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, dedup_bucket_seconds=1)
        campaign = await world.campaign(**CAPPED)
        assert await world.reasons(shown(campaign)) == ["accepted"]
        world.ledger.used_and_max_bytes = (90, 100)
        for _ in range(4):
            await trio.sleep(290)
            assert await world.reasons(shown(campaign)) == ["accepted"]
        assert world.store.ledger[CampaignId(campaign)].gen == 1
        await trio.sleep(400)
        assert book(world, campaign) is None
        nursery.cancel_scope.cancel()


async def test_postgres_is_asked_only_for_campaigns_that_may_have_something_to_give(
    autojump_clock: MockClock, world: World
) -> None:
    """In a Redis that is short of memory a pass comes every few seconds: not for users of today, nor for sums."""
    # It is noon in UTC: where the day begins first it is the next one, so once Postgres must tell the zone.
    users = [await world.campaign(**CAPPED) for _ in range(3)]
    ids, sums = await world.campaign(), await world.campaign()
    assert await world.reasons(*map(shown, [*users, sums])) == ["accepted"] * 4
    world.ledger.used_and_max_bytes = (70, 100)
    await trio.sleep(60)
    asked: list[CampaignId] = []
    plans = world.store.plans

    async def note(campaign_ids: Sequence[CampaignId]) -> object:
        asked.extend(campaign_ids)
        return await plans(campaign_ids)

    world.store.plans = note  # type: ignore[method-assign, assignment]
    await trio.sleep(60)
    assert asked == []
    assert await world.reasons(at(world, ids)) == ["accepted"]
    await trio.sleep(60)
    assert set(asked) == {ids}
    assert held(world, ids) == (0, 0)


async def test_ids_that_were_ahead_go_when_their_time_has_passed(autojump_clock: MockClock, world: World) -> None:
    """Also when they are the last of their campaign; and with them all of it, as of any that has ended."""
    campaign = await world.campaign()
    assert await world.reasons(at(world, campaign, 290_000_000)) == ["accepted"]
    world.ledger.used_and_max_bytes = (70, 100)
    await trio.sleep(280)
    assert held(world, campaign) == (0, 1)
    await trio.sleep(30)
    assert held(world, campaign) == (0, 0)
    await later(world, 2 * 86_400)
    assert book(world, campaign) is None


async def test_what_dead_engines_left_in_an_idle_campaign_is_recovered_first(
    autojump_clock: MockClock, world: World
) -> None:
    """Its reservation is voided by the ordinary recovery; then its ids go like any others."""
    campaign = await world.campaign()
    assert await world.reasons(shown(campaign)) == ["accepted"]
    await trio.sleep(200)  # its actor is passivated
    world.registry._engines.heard(HeartbeatReply(0, frozenset({1}), 9))
    idle = book(world, campaign)
    assert idle is not None
    await world.ledger.answer([left_by(7, world, campaign, idle)])
    assert idle.pending
    await later(world, 6 * BUCKET_SECONDS)
    assert held(world, campaign) == (0, 0)
    after = book(world, campaign)
    assert after is not None
    assert not after.pending
    assert after.sums is not None
    assert after.sums.total == world.spent(campaign) == 1_000


async def test_reservations_of_living_engines_are_left_alone(autojump_clock: MockClock, world: World) -> None:
    """An engine that is slow, or frozen for a moment, settles its own."""
    campaign = await world.campaign()
    assert await world.reasons(shown(campaign)) == ["accepted"]
    idle = book(world, campaign)
    assert idle is not None
    await world.ledger.answer([left_by(1, world, campaign, idle)])
    await later(world, 6 * BUCKET_SECONDS)
    assert idle.pending
    assert world.store.ledger[CampaignId(campaign)].gen == 1


async def test_a_rebuild_that_stopped_is_dropped_and_one_that_goes_on_is_not(
    autojump_clock: MockClock, world: World
) -> None:
    """Closed for an hour, with nothing loaded meanwhile."""
    stopped, going = CampaignId(51), CampaignId(52)
    await world.ledger.begin([Begin(stopped, 4), Begin(going, 4)])
    for user in range(int(2 * ABANDONED_SECONDS / 60)):
        world.ledger.books[going].users[str(user)] += 1
        await trio.sleep(60)
    assert going in world.ledger.books
    assert stopped not in world.ledger.books


async def test_a_halted_campaign_is_left_as_it_is(autojump_clock: MockClock, world: World) -> None:
    """Whoever looks for what is wrong with its books needs all there is."""
    campaign = await world.campaign(**CAPPED)
    assert await world.reasons(shown(campaign)) == ["accepted"]
    await trio.sleep(200)
    world.store.ledger[CampaignId(campaign)].halted = "as the test wished"
    await later(world, 4 * 86_400)
    assert held(world, campaign) == (1, 1)


async def test_a_redis_that_can_not_be_swept_is_told_once(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A right is missing, say. Events are taken all the same."""

    async def refused(_: int) -> NotRun:
        return NotRun("NOPERM no permissions to run the 'scan' command")

    world.ledger.survey = refused  # type: ignore[method-assign, assignment]
    await trio.sleep(5 * PASS_SECONDS)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert "NOPERM" in told[0]
    assert await world.engine.problems() == []


async def test_a_sweep_goes_on_where_a_store_failed_it(autojump_clock: MockClock, world: World) -> None:
    """Redis gives no answer in its midst, Postgres is away for a while; then all of it goes."""
    campaigns = [await world.campaign() for _ in range(10)]
    assert await world.reasons(*map(shown, campaigns)) == ["accepted"] * 10
    world.store.away = True
    await later(world, 2 * BUCKET_SECONDS)
    assert [held(world, campaign) for campaign in campaigns] == [(0, 1)] * 10
    world.store.away = False
    world.ledger.fail_next(Trouble.UNKNOWN_BEFORE)
    await trio.sleep(PASSES_SECONDS)
    assert [held(world, campaign) for campaign in campaigns] == [(0, 0)] * 10
