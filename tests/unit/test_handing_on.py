"""How the events of one request are handed on: a large request in steps, between which everybody else has a turn."""

from __future__ import annotations

import uuid
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from engine.model import CampaignId, Event
from engine.submission import Entry, Submission
from tests.unit.test_engine import World, shown

STEP: Final = 1_000  # events that one step hands on


@pytest.fixture
async def world(autojump_clock: MockClock) -> Any:
    """An engine over fakes."""
    async with trio.open_nursery() as nursery:
        yield World(nursery)
        nursery.cancel_scope.cancel()


def handed_on(submission: Submission) -> int:
    """Events that are with their actors."""
    return sum(isinstance(entry, Entry) for entry in submission.entries)


async def test_a_large_request_is_handed_on_in_steps(autojump_clock: MockClock, world: World) -> None:
    """No step makes more than its share, and every event has its verdict in its place."""
    campaigns = [await world.campaign() for _ in range(3)]
    events = [shown(campaigns[n % 3], event_id=uuid.UUID(int=n, version=4)) for n in range(2 * STEP + 7)]
    events[-1] = Event(campaign_id=77, user_id="ada", event_type="impression")
    done = trio.Event()
    submission = world.engine.submit(events, lambda _: done.set())
    assert handed_on(submission) == STEP
    await done.wait()
    assert {index: str(verdict.reason) for index, verdict in submission.verdicts.items()} == {
        len(events) - 1: "unknown_campaign"
    }
    assert sum(len(world.store.rows_of(CampaignId(each))) for each in campaigns) == len(events) - 1


async def test_what_is_not_handed_on_by_its_deadline_is_told_to_come_again(
    autojump_clock: MockClock, world: World
) -> None:
    """It is with no actor, so nothing of it is counted later."""
    campaign = await world.campaign()
    deadline_seconds = world.settings.request_deadline_seconds
    done = trio.Event()
    submission = world.engine.submit([shown(campaign)] * (STEP + 3), lambda _: done.set())
    submission.deadline -= deadline_seconds + 1
    await done.wait()
    assert [str(submission.verdicts[STEP + n].reason) for n in range(3)] == ["unavailable"] * 3


async def test_a_request_that_can_not_be_handed_on_whole_is_answered(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had gone to its actor may be counted; its sender hears that nothing is known, and a repeat is safe."""
    campaign = await world.campaign()
    events = [shown(campaign, event_id=uuid.UUID(int=n, version=4)) for n in range(STEP + 5)]
    refusal, asked = world.registry.refusal, 0

    def fail_at_the_second(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise MemoryError
        return refusal(*arguments)

    monkeypatch.setattr(world.registry, "refusal", fail_at_the_second)
    answered: list[Submission] = []
    world.engine.submit(events, answered.append)
    await trio.sleep(1)
    (submission,) = answered
    assert {str(verdict.reason) for verdict in submission.verdicts.values()} == {"unavailable"}
    assert len(submission.verdicts) >= 5
    for event in (events[0], events[-1]):
        assert await world.reasons(event) in (["accepted"], ["duplicate"])
        assert event.event_id is not None
        rows = world.store.rows_of(CampaignId(campaign))
        assert sum(row.event.event_id == event.event_id.bytes for row in rows) == 1
