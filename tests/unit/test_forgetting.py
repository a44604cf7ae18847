"""What the engine makes of Redis's memory from second to second, over fakes: what is told, and what calls follow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
import trio
from prometheus_client import REGISTRY
from trio.testing import MockClock

from engine.clock import SteadyClock
from engine.forgetting import Forgetting
from engine.memory import MemoryUse, Policy, bucket_times
from engine.model import SECOND_US, CampaignId
from engine.ports import Reserve, ReserveReply, Resolve, ResolveReply
from tests.fakes.ledger import FakeLedger
from tests.unit.test_engine import World, shown
from tests.unit.test_window import timeless

MAX_BYTES = 1_000
FULL_US = 480 * SECOND_US


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncIterator[World]:
    """An engine on fresh fakes, whose Redis has a limit."""
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        world.ledger.used_and_max_bytes = (0, MAX_BYTES)
        yield world
        nursery.cancel_scope.cancel()


def forgetting(ledger: FakeLedger) -> Forgetting:
    """By itself, without slow look-ups."""
    return Forgetting(ledger, SteadyClock(), lambda: 0, FULL_US)


async def observed(found: Forgetting, ledger: FakeLedger, *used_bytes: int) -> Policy:
    """The policy after so many bytes were found, one after the other."""
    for used in used_bytes:
        ledger.used_and_max_bytes = (used, MAX_BYTES)
        await found.observe()
    return found.policy


async def test_new_users_that_are_refused_are_told_once_when_it_begins_and_once_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However often it is asked in between."""
    ledger = FakeLedger()
    found = forgetting(ledger)
    for _ in range(2):
        caplog.clear()
        assert (await observed(found, ledger, *[100] * 3)).new_users
        assert caplog.messages == []
        assert not (await observed(found, ledger, *[900] * 3, *[100] * 59)).new_users
        assert (await observed(found, ledger, *[100] * 3)).new_users
        begun, ended = caplog.messages
        assert "new users of campaigns with a cap are answered 503 overloaded" in begun
        assert "full of users" not in begun  # nobody has counted what it is full of
        assert "Redis has room again" in ended


async def test_a_gauge_tells_that_new_users_are_refused() -> None:
    """For an alarm: the log says it once."""
    ledger = FakeLedger()
    found = forgetting(ledger)
    for used, refused in ((100, 0.0), (900, 1.0), (820, 1.0)):
        await observed(found, ledger, used)
        assert REGISTRY.get_sample_value("headrace_new_users_refused") == refused


async def test_a_slow_answer_tells_nothing_of_redis_s_clock(autojump_clock: MockClock, world: World) -> None:
    """It may be of any moment since it was asked for: what was known before holds."""
    ahead_us, memory = 7 * SECOND_US, world.ledger.memory
    world.ledger.now_us = lambda: world.now_us() + ahead_us
    found = Forgetting(world.ledger, world, lambda: 0, FULL_US)
    await found.observe()
    assert found.policy.redis_ahead_us == ahead_us

    async def slow() -> MemoryUse | None:
        told = await memory()
        await trio.sleep(0.6)
        return told

    world.ledger.memory = slow  # type: ignore[method-assign]
    await found.observe()
    assert found.policy.redis_ahead_us == ahead_us


async def test_readiness_says_for_as_long_as_it_is_so_that_new_users_are_refused(
    autojump_clock: MockClock, world: World
) -> None:
    """The engine is ready: all others are served."""
    await trio.sleep(2)
    assert world.engine.notes() == []
    world.ledger.used_and_max_bytes = (900, MAX_BYTES)
    await trio.sleep(2)
    for _ in range(2):
        (note,) = world.engine.notes()
        assert "new users of campaigns with a cap are answered 503 overloaded" in note
    assert await world.engine.problems() == []
    world.ledger.used_and_max_bytes = (100, MAX_BYTES)
    await trio.sleep(62)
    assert world.engine.notes() == []


async def test_while_redis_can_not_be_asked_the_policy_stays() -> None:
    """It is as full as it was, for all that is known."""
    ledger = FakeLedger()
    found = forgetting(ledger)
    before = await observed(found, ledger, 900)
    assert before == Policy(2 * SECOND_US, new_users=False)
    ledger.away = True
    assert await observed(found, ledger, *[100] * 100) == before


async def test_while_look_ups_are_slow_buckets_live_longer(autojump_clock: MockClock, world: World) -> None:
    """Also before the first slow one has its answer; a look-up counts only in the bucket in which it was sent."""
    campaign = await world.campaign()
    await world.send(timeless(campaign))
    world.ledger.used_and_max_bytes = (650, MAX_BYTES)
    await trio.sleep(2)
    policy = world.registry.forgetting
    assert policy.policy.bucket_us == 2 * SECOND_US
    look_up, release = world.store.look_up, trio.Event()

    async def hang(wanted: Sequence[object]) -> object:
        await release.wait()
        return await look_up(wanted)  # type: ignore[arg-type]

    world.store.look_up = hang  # type: ignore[method-assign, assignment]
    world.engine.submit([timeless(campaign)], lambda _: None)
    await trio.sleep(5.5)
    assert policy.policy.bucket_us >= 4 * 5 * SECOND_US
    release.set()
    await trio.sleep(10)
    assert policy.policy.bucket_us >= 4 * 5 * SECOND_US


async def test_calls_follow_what_memory_asks_for(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From second to second: how old buckets get, and whether there is room for new users."""
    campaign = await world.campaign()
    calls: list[Reserve] = []
    answer = world.ledger.answer

    async def note(asked: Sequence[Reserve | Resolve]) -> list[ReserveReply | ResolveReply]:
        calls.extend(call for call in asked if isinstance(call, Reserve))
        return await answer(asked)

    monkeypatch.setattr(world.ledger, "answer", note)
    for used, bucket_us, new_users in ((100, FULL_US, True), (700, 2 * SECOND_US, True), (900, 2 * SECOND_US, False)):
        world.ledger.used_and_max_bytes = (used, MAX_BYTES)
        await trio.sleep(2)
        assert await world.reasons(shown(campaign)) == ["accepted"]
        assert calls[-1].campaign_id == CampaignId(campaign)
        its_own_us = int(bucket_us * bucket_times(campaign))
        assert (calls[-1].bucket_us, calls[-1].new_users) == (its_own_us, new_users)
