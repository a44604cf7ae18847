"""Recoveries as an engine asks for them, over fakes: what waits goes together, and nobody is held up."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.model import CampaignId
from engine.recovery import PORTION_EVENTS
from engine.submission import Submission
from engine.verdicts import UNAVAILABLE
from tests.fakes.store import Trouble
from tests.unit.test_engine import World, shown

SETTINGS = {"recoveries_max": 3}  # a bulk, and two alone


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


async def test_no_bulk_is_larger_than_its_bound(
    autojump_clock: MockClock,
    world: World,
    raised: list[tuple[list[CampaignId], bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest follows."""
    monkeypatch.setattr("engine.recoveries.BULK_MAX", 30)
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


async def test_large_campaigns_hold_up_no_small_ones(autojump_clock: MockClock, world: World) -> None:
    """However many there are: they are read alone, two at a time here, and the small ones are open meanwhile."""
    campaigns = [await world.campaign() for _ in range(20)]
    await world.send(*map(shown, campaigns))
    world.ledger.forget()
    large = campaigns[:5]
    reading = most = 0
    release = trio.Event()
    users_on = world.store.users_on

    async def events_since(days: dict[CampaignId, int]) -> dict[CampaignId, int]:
        return {each: PORTION_EVENTS + 1 if each in large else 1 for each in days}

    async def slow(days: dict[CampaignId, int]) -> AsyncGenerator[Any, None]:
        nonlocal reading, most
        if not large[0] <= min(days) <= large[-1]:
            async for piece in users_on(days):
                yield piece
            return
        reading += 1
        most = max(most, reading)
        await release.wait()
        reading -= 1

    world.store.events_since = events_since  # type: ignore[method-assign, assignment]
    world.store.users_on = slow  # type: ignore[method-assign, assignment]
    answers: list[Submission] = []
    world.engine.submit(list(map(shown, large)), answers.append)
    with trio.fail_after(1):
        assert await world.reasons(*map(shown, campaigns[5:])) == ["accepted"] * 15
    await trio.sleep(1)
    assert (answers, most) == ([], 2)
    release.set()
    await trio.sleep(1)
    assert [answer.verdicts for answer in answers] == [{}]


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
