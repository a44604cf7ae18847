"""Recoveries as an engine asks for them, over fakes: what waits goes together, and nobody is held up."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.errors import StoreUnavailable
from engine.model import CampaignId
from engine.recoveries import LEFT_SECONDS_MAX, TOLD_SECONDS
from engine.recovery import KEYED_EVENTS
from engine.submission import Submission
from engine.verdicts import UNAVAILABLE
from tests.fakes.store import Trouble
from tests.unit.test_engine import World, shown
from tests.unit.test_window import Second

SETTINGS = {"recoveries_max": 4}  # three bulks, and one alone


@pytest.fixture
def raised(world: World) -> list[tuple[list[CampaignId], bool]]:
    """Campaigns whose generations were raised together, and whether they were waited for."""
    seen: list[tuple[list[CampaignId], bool]] = []
    raise_generations = world.store.raise_generations

    async def note(campaigns: Sequence[CampaignId], *, wait: bool) -> Any:
        seen.append((list(campaigns), wait))
        return await raise_generations(campaigns, wait=wait)

    world.store.raise_generations = note  # type: ignore[method-assign, assignment]
    return seen


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncGenerator[World, None]:
    """An engine on fresh fakes."""
    async with trio.open_nursery() as nursery:
        yield World(nursery, **SETTINGS)
        nursery.cancel_scope.cancel()


async def test_campaigns_that_redis_does_not_know_are_recovered_together(
    autojump_clock: MockClock,
    world: World,
    raised: list[tuple[list[CampaignId], bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their first events wait for one bulk; when Redis has forgotten all, for another."""
    monkeypatch.setattr("engine.rounds.PART_CALLS", 200)  # each part of a round may bring a bulk
    campaigns = [await world.campaign() for _ in range(200)]
    assert await world.reasons(*map(shown, campaigns)) == ["accepted"] * 200
    world.ledger.forget()
    assert await world.reasons(*map(shown, campaigns)) == ["accepted"] * 200
    assert [(sorted(each), wait) for each, wait in raised] == [(campaigns, False)] * 2


@pytest.fixture
def small_bulks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 30 campaigns, from the start of the engine on."""
    monkeypatch.setattr("engine.recoveries.BULK_MAX", 30)


@pytest.mark.usefixtures("small_bulks")
async def test_no_bulk_is_larger_than_its_bound(
    autojump_clock: MockClock, world: World, raised: list[tuple[list[CampaignId], bool]]
) -> None:
    """The rest follows."""
    campaigns = [await world.campaign() for _ in range(100)]
    assert await world.reasons(*map(shown, campaigns)) == ["accepted"] * 100
    assert [len(each) for each, _ in raised] == [30, 30, 30, 10]


async def test_a_flush_that_hangs_holds_up_its_own_campaign_only(
    autojump_clock: MockClock, world: World, raised: list[tuple[list[CampaignId], bool]]
) -> None:
    """Its row is waited for alone, while others are recovered; it goes on when the flush has ended."""
    hangs, *others = [await world.campaign() for _ in range(20)]
    await world.send(shown(hangs))
    release = trio.Event()
    world.store.hold = release.wait
    answers: list[Submission] = []
    world.engine.submit([shown(hangs)], answers.append)
    await trio.sleep(0.1)
    world.store.hold = None
    world.ledger.forget()
    world.engine.submit([shown(hangs, "bob")], answers.append)
    with trio.fail_after(1):
        assert await world.reasons(*map(shown, others)) == ["accepted"] * 19
    assert not answers
    assert ([CampaignId(hangs)], True) in raised
    release.set()
    await trio.sleep(1)
    assert [answer.verdicts for answer in answers] == [{}, {}]
    assert world.spent(hangs) == 3_000


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What recoveries say."""
    caplog.set_level("INFO", "engine.recoveries")
    return caplog


class Slow:
    """Reads of users in one pass (or `of_all`) take until they are released; which campaigns each was for."""

    def __init__(self, world: World, large: Sequence[int], *, of_all: bool = False) -> None:
        self.passes: list[list[int]] = []
        self._of_all = of_all
        self.release = trio.Event()
        self._users_on = world.store.users_on
        self._large = large
        world.store.events_since = self._events_since  # type: ignore[method-assign]
        world.store.users_on = self._read  # type: ignore[method-assign]

    async def _events_since(self, days: Mapping[CampaignId, int]) -> dict[CampaignId, int]:
        return {each: KEYED_EVENTS + 1 if each in self._large else 1 for each in days}

    async def _read(self, days: Mapping[CampaignId, int], *, whole: bool) -> AsyncGenerator[Any, None]:
        if whole or self._of_all:
            self.passes.append(sorted(days))
            await self.release.wait()
        async with aclosing(self._users_on(days, whole=whole)) as pieces:
            async for piece in pieces:
                yield piece


async def capped(world: World, count: int) -> list[int]:
    """Campaigns with a cap and an event each, which Redis has forgotten."""
    campaigns = [await world.campaign(freq_cap_impressions_per_day=2) for _ in range(count)]
    assert await world.reasons(*map(shown, campaigns)) == ["accepted"] * count
    await trio.sleep(2)  # Redis has their tags, and the log has told of their first recovery
    world.ledger.forget()
    return campaigns


async def test_large_campaigns_hold_up_no_small_ones(autojump_clock: MockClock, world: World) -> None:
    """However many there are: they are read in one pass, and whoever is small is open meanwhile, again and again."""
    campaigns = await capped(world, 20)
    large, small = campaigns[:5], campaigns[5:]
    slow = Slow(world, large)
    answers: list[Submission] = []
    world.engine.submit(list(map(shown, large)), answers.append)
    with trio.fail_after(1):
        assert await world.reasons(*map(shown, small)) == ["accepted"] * 15
    await trio.sleep(1)
    more = await capped(world, 5)
    with trio.fail_after(1):
        assert await world.reasons(*map(shown, more)) == ["accepted"] * 5
    assert (answers, slow.passes) == ([], [large])
    slow.release.set()
    await trio.sleep(1)
    assert [answer.verdicts for answer in answers] == [{}]
    assert await world.reasons(*map(shown, large)) == ["frequency_capped"] * 5


async def test_large_campaigns_that_come_while_others_are_read_share_the_next_pass(
    autojump_clock: MockClock, world: World
) -> None:
    """There is one pass at a time, however many wait."""
    campaigns = await capped(world, 6)
    slow = Slow(world, campaigns)
    answers: list[Submission] = []
    for campaign in campaigns:
        world.engine.submit([shown(campaign)], answers.append)
        await trio.sleep(0.1)
    assert slow.passes == [campaigns[:1]]
    slow.release.set()
    await trio.sleep(1)
    assert slow.passes == [campaigns[:1], campaigns[1:]]
    assert [answer.verdicts for answer in answers] == [{}] * 6


async def test_who_has_users_to_read_holds_up_nobody_who_has_none(autojump_clock: MockClock, world: World) -> None:
    """However slowly a few users are read by the key: campaigns without a cap, of later bulks, are open meanwhile."""
    slow = Slow(world, [], of_all=True)
    capped_ones = await capped(world, 3)
    answers: list[Submission] = []
    for each in capped_ones:
        world.engine.submit([shown(each)], answers.append)
        await trio.sleep(0.1)
    free = [await world.campaign() for _ in range(3)]
    with trio.fail_after(1):
        assert await world.reasons(*map(shown, free)) == ["accepted"] * 3
    assert (answers, slow.passes) == ([], [capped_ones[:1]])
    slow.release.set()
    await trio.sleep(1)
    assert [answer.verdicts for answer in answers] == [{}] * 3
    assert slow.passes == [capped_ones[:1], capped_ones[1:]]


class Busy:
    """Flushes hold the rows of these campaigns whenever somebody looks without waiting, until it is told otherwise."""

    def __init__(self, world: World, campaigns: Sequence[int]) -> None:
        self.campaigns = {*campaigns}
        self._raise_generations = world.store.raise_generations
        world.store.raise_generations = self._raise  # type: ignore[method-assign, assignment]

    async def _raise(self, campaigns: Sequence[CampaignId], *, wait: bool) -> Any:
        held = [] if wait else [each for each in campaigns if each in self.campaigns]
        self.campaigns -= set(campaigns) if wait else set()
        free = [each for each in campaigns if each not in held]
        return {**await self._raise_generations(free, wait=wait), **dict.fromkeys(held)}


async def test_large_campaigns_whose_rows_were_held_share_the_next_pass(
    autojump_clock: MockClock, world: World, told: pytest.LogCaptureFixture
) -> None:
    """Each row is waited for alone, but no pass is for one campaign; and one line tells of all."""
    campaigns = await capped(world, 20)
    slow = Slow(world, campaigns)
    told.clear()
    Busy(world, campaigns)
    world.engine.submit(list(map(shown, campaigns)), lambda _: None)
    await trio.sleep(TOLD_SECONDS + 1)
    assert world.registry.campaigns_closed == 20
    slow.release.set()
    await trio.sleep(3)
    assert sorted(map(len, slow.passes)) == [1, 19]
    assert await world.reasons(*map(shown, campaigns)) == ["accepted"] * 20
    assert [record.getMessage().split(" (")[0].split(";")[0] for record in told.records] == [
        "campaigns that are closed until they are recovered: 20",
        "campaigns recovered: 20",
    ]


async def test_closed_campaigns_are_counted_until_they_are_open(autojump_clock: MockClock, world: World) -> None:
    """Waiting, under way, or failed so far, each once; and whoever asks for readiness is told."""
    campaigns = await capped(world, 10)
    slow = Slow(world, campaigns[:2])
    world.store.away = True
    world.engine.submit(list(map(shown, campaigns)), lambda _: None)
    await trio.sleep(1)
    assert world.registry.campaigns_closed == 10
    assert world.engine.notes() == ["campaigns that are closed until they are recovered: 10"]
    world.store.away = False
    await trio.sleep(3)
    assert world.registry.campaigns_closed == 2
    slow.release.set()
    await trio.sleep(1)
    assert world.registry.campaigns_closed == 0
    assert world.engine.notes() == []


async def test_a_halted_campaign_is_no_longer_counted_as_closed(autojump_clock: MockClock, world: World) -> None:
    """It is told as halted, and waits for an operator."""
    (campaign,) = await capped(world, 1)
    world.store.ledger[CampaignId(campaign)].halted = "as the test wished"
    assert await world.reasons(shown(campaign)) == ["unavailable"]
    assert world.registry.campaigns_closed == 0


async def test_who_failed_while_it_was_read_is_no_longer_counted_as_closed(
    autojump_clock: MockClock, world: World
) -> None:
    """Its actor is gone, and the next one is closed in its place: one campaign, not two."""
    (campaign,) = await capped(world, 1)
    slow = Slow(world, [campaign])
    world.engine.submit([shown(campaign)], lambda _: None)
    await trio.sleep(1)
    assert world.registry.campaigns_closed == 1
    world.registry._actors[CampaignId(campaign)].fail()
    await trio.sleep(1)
    assert world.registry.campaigns_closed == 1
    slow.release.set()
    await trio.sleep(1)
    assert world.registry.campaigns_closed == 0


WHEN = r"closed from \d\d:\d\d:\d\d\.\d{3}Z to \d\d:\d\d:\d\d\.\d{3}Z"


async def test_the_log_says_what_was_closed_and_how_much_was_read(
    autojump_clock: MockClock, world: World, told: pytest.LogCaptureFixture
) -> None:
    """One line for all that was closed together, which says from when to when; progress while it takes long."""
    campaigns = await capped(world, 3)
    told.clear()
    slow = Slow(world, campaigns[:2])
    world.engine.submit([shown(campaign, user) for campaign in campaigns for user in ("ada", "bob")], lambda _: None)
    await trio.sleep(3 * TOLD_SECONDS + 1.5)
    slow.release.set()
    await trio.sleep(3)
    *progress, last = [record.getMessage() for record in told.records]
    assert progress == [
        "campaigns that are closed until they are recovered: 2; 1 are open again, "
        f"{seconds} s after the first was closed; users read: 1"
        for seconds in (10, 30)
    ]
    assert re.fullmatch(rf"campaigns recovered: 3 \(3, 1, 2\), {WHEN} \(31\.50 s\); users read: 3", last)


async def test_one_line_tells_of_any_number_of_campaigns(
    autojump_clock: MockClock, world: World, told: pytest.LogCaptureFixture
) -> None:
    """Also of those that were recovered one after the other; it names some, and each of them is counted once."""
    for _ in range(30):
        assert await world.reasons(shown(await world.campaign())) == ["accepted"]
        await trio.sleep(0.1)
    await trio.sleep(2)
    (line,) = [record.getMessage() for record in told.records]
    named = ", ".join(map(str, range(1, 11)))
    assert re.fullmatch(rf"campaigns recovered: 30 \({named}, and 20 more\), {WHEN} \(2\.9\d s\); users read: 0", line)


async def test_while_a_store_is_away_no_progress_is_told(
    autojump_clock: MockClock, world: World, told: pytest.LogCaptureFixture
) -> None:
    """The outage was told, once; the line at the end says how long it took."""
    campaign = await world.campaign()
    await world.send(shown(campaign))
    await trio.sleep(2)
    told.clear()
    world.ledger.forget()
    world.store.away = True
    world.engine.submit([shown(campaign)], lambda _: None)
    await trio.sleep(1_000)
    assert not [record for record in told.records if record.name == "engine.recoveries"]
    world.store.away = False
    await trio.sleep(5)
    (line,) = [record.getMessage() for record in told.records if record.levelname == "INFO"]
    assert re.fullmatch(rf"campaigns recovered: 1 \(1\), {WHEN} \(100\d\.\d\d s\); users read: 0", line)


async def test_who_failed_tries_again_while_others_are_well(autojump_clock: MockClock, world: World) -> None:
    """Nobody waits for a store that is away, and all are back soon after it is."""
    campaigns = [await world.campaign() for _ in range(50)]
    await world.send(*map(shown, campaigns))
    world.ledger.forget()
    world.store.away = True
    answers: list[Submission] = []
    world.engine.submit(list(map(shown, campaigns)), answers.append)
    await trio.sleep(0.5)
    assert set(answers[0].verdicts.values()) == {UNAVAILABLE}
    await trio.sleep(60)
    world.store.away = False
    await trio.sleep(2.5)
    assert all(world.ledger.books[CampaignId(each)].open for each in campaigns)
    assert await world.reasons(*map(shown, campaigns)) == ["accepted"] * 50


async def test_many_unknown_commits_are_recovered_together(
    autojump_clock: MockClock,
    world: World,
    raised: list[tuple[list[CampaignId], bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A COMMIT without an answer: one bulk for all of its campaigns, and each event is counted once."""
    monkeypatch.setattr("engine.rounds.PART_CALLS", 100)  # each part of a round may bring a flush
    campaigns = [await world.campaign() for _ in range(100)]
    await world.send(*map(shown, campaigns))
    raised.clear()
    world.store.trouble.append(Trouble.UNKNOWN_AFTER)
    assert await world.reasons(*map(shown, campaigns)) == ["accepted"] * 100
    assert [len(each) for each, _ in raised] == [100]
    assert [world.spent(each) for each in campaigns] == [2_000] * 100


@pytest.fixture
async def other(world: World) -> AsyncGenerator[World, None]:
    """Another engine on the same stores; each knows that the other lives."""
    async with trio.open_nursery() as nursery:
        second = Second(world, nursery)
        world.registry._engines.alive = frozenset([1, 2])
        yield second
        nursery.cancel_scope.cancel()


async def lost(world: World, other: World, count: int) -> list[int]:
    """Campaigns with a cap and an event each, which the Redis of both engines has forgotten."""
    campaigns = await capped(world, count)
    other.ledger.image = world.ledger.image
    return campaigns


async def use(world: World, campaign: int) -> None:
    """Send an event until it is accepted."""
    while await world.reasons(shown(campaign, "bob")) != ["accepted"]:  # noqa: ASYNC110 - as senders do
        await trio.sleep(0.1)


@pytest.mark.parametrize("seconds", [5, 100])
async def test_engines_leave_to_each_other_what_they_read(
    autojump_clock: MockClock, world: World, other: World, seconds: int
) -> None:
    """However long that takes: nobody's read is undone by another's raise, and each campaign is read once."""
    first, second = await lost(world, other, 2)
    slow = Slow(world, [first, second])
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for engine, campaign in ((world, first), (other, second), (world, second), (other, first)):
            nursery.start_soon(use, engine, campaign)
            await trio.sleep(0.1)
        await trio.sleep(seconds)
        slow.release.set()
    assert sorted(slow.passes) == [[first], [second]]
    assert trio.current_time() - start < seconds + 5


@pytest.mark.parametrize("dies", [True, False], ids=["an engine that dies", "one that never ends"])
async def test_what_another_engine_reads_is_taken_over(
    autojump_clock: MockClock, world: World, other: World, dies: bool
) -> None:
    """As soon as it is dead, or when no read takes as long: the campaign is not closed for ever."""
    (campaign,) = await lost(world, other, 1)
    slow = Slow(world, [campaign])
    other.engine.submit([shown(campaign)], lambda _: None)
    await trio.sleep(1)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, world, campaign)
        await trio.sleep(60)
        assert len(slow.passes) == 1
        if dies:
            world.registry._engines.alive = frozenset([1])
        while len(slow.passes) == 1:  # noqa: ASYNC110 - a read sets no event
            await trio.sleep(1)
        waited = trio.current_time() - start
        slow.release.set()
    assert 60 < waited < 65 if dies else LEFT_SECONDS_MAX <= waited < LEFT_SECONDS_MAX + 10


async def test_an_engine_recovers_what_it_has_closed_itself(
    autojump_clock: MockClock, world: World, other: World
) -> None:
    """Its actor failed after that, and a store was away: it is not left to others, who know nothing of it."""
    (campaign,) = await lost(world, other, 1)
    users_on, reads = world.store.users_on, 0

    async def read(days: Mapping[CampaignId, int], *, whole: bool) -> AsyncGenerator[Any, None]:
        nonlocal reads
        reads += 1
        if reads == 1:
            world.registry._actors[CampaignId(campaign)].fail()
            raise StoreUnavailable("gone", certain=True)
        async with aclosing(users_on(days, whole=whole)) as pieces:
            async for piece in pieces:
                yield piece

    world.store.users_on = read  # type: ignore[method-assign]
    world.engine.submit([shown(campaign)], lambda _: None)
    with trio.fail_after(5):
        await use(world, campaign)
    assert reads == 2
