"""The dedup window of engines that share it, over fakes: whose clock, and whose look-ups, say when a bucket closes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import trio
from trio.testing import MockClock

from engine import runtime
from engine.clock import SteadyClock
from engine.model import SECOND_US, CampaignId, StoredEvent
from engine.ports import Wanted
from tests.unit.test_engine import World
from tests.unit.test_window import Second, book, by_id, timeless

SHORT = (65, 100)  # what Redis uses and may use: buckets close as soon as look-ups allow
LOOK_UP_SECONDS = 3


class SlowLookUps:
    """A store that is slow for the engine that asks it by this."""

    def __init__(self, store: object) -> None:
        self._store: Any = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def look_up(self, wanted: Sequence[Wanted]) -> Mapping[tuple[CampaignId, bytes], StoredEvent]:
        """What was there when it was asked."""
        found: Mapping[tuple[CampaignId, bytes], StoredEvent] = await self._store.look_up(wanted)
        await trio.sleep(LOOK_UP_SECONDS)
        return found


async def use(world: World, campaign: int) -> None:
    """Send it fresh events, ten a second, for ever."""
    while True:
        assert await world.reasons(by_id(world, campaign)) == ["accepted"]
        await trio.sleep(0.1)


async def test_a_bucket_waits_for_the_slow_look_ups_of_another_engine(autojump_clock: MockClock) -> None:
    """Each bucket that closes sooner makes them vain; heartbeats tell how slow they are."""
    async with trio.open_nursery() as nursery:
        quick = World(nursery)
        of_slow = SimpleNamespace(settings=quick.settings, store=SlowLookUps(quick.store), ledger=quick.ledger)
        slow = Second(cast(World, of_slow), nursery)
        for world in (quick, slow):
            world.ledger.used_and_max_bytes = SHORT
            engines = world.registry._engines
            nursery.start_soon(
                runtime.heartbeats, world.engine, world.registry, engines, SteadyClock(), world.store, world.ledger
            )
        campaign = await quick.campaign()
        nursery.start_soon(use, quick, campaign)
        await trio.sleep(60)
        await slow.reasons(timeless(campaign))  # until then nobody knows
        for _ in range(5):
            assert await slow.reasons(timeless(campaign)) == ["accepted"]
        await trio.sleep(90)  # and a minute later they are as if they had never been
        number = book(quick, campaign).window.number
        await trio.sleep(30)
        assert book(quick, campaign).window.number - number >= 10
        nursery.cancel_scope.cancel()


async def test_buckets_get_as_old_by_engines_whose_clocks_disagree(autojump_clock: MockClock) -> None:
    """As far as they may: by Redis's clock it is the same time for all, and nobody closes them early or late."""
    async with trio.open_nursery() as nursery:
        ahead = World(nursery)
        behind = Second(ahead, nursery)
        right_us = ahead.now_us
        ahead.clock_step_us, behind.clock_step_us = 25 * SECOND_US, -25 * SECOND_US
        for world in (ahead, behind):
            world.ledger.used_and_max_bytes = SHORT
            world.ledger.now_us = lambda: right_us() - ahead.clock_step_us
        campaign = await ahead.campaign()
        await trio.sleep(1)
        assert await ahead.reasons(by_id(ahead, campaign)) == ["accepted"]
        for users in ((ahead,), (ahead, behind), (behind,)):
            with trio.move_on_after(60):
                async with trio.open_nursery() as sending:
                    for world in users:
                        sending.start_soon(use, world, campaign)
                    number = book(ahead, campaign).window.number
                    await trio.sleep(50)
                    closed = book(ahead, campaign).window.number - number
                    assert 50 / 3.5 < closed <= 50 / 2  # they are 2 to 2.5 s old, and one may be put off by a second
                    sending.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
