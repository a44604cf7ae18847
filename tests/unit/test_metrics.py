"""What is counted for each request, and told later."""

from __future__ import annotations

import random

import pytest
import trio
from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from trio.testing import MockClock

from engine.metrics import Tally
from tests.unit.test_engine import World, shown

BOUNDS = (0.001, 0.5, 1, 10)


@pytest.mark.parametrize("seed", range(5))
def test_a_tally_tells_what_observing_each_would_have_told(seed: int) -> None:
    """Bucket by bucket, and the sum; also when it is told in parts."""
    chance = random.Random(seed)
    registries = CollectorRegistry(), CollectorRegistry()
    one_by_one, at_once = [Histogram("waits", "Waits.", buckets=BOUNDS, registry=each) for each in registries]
    tally = Tally(at_once, BOUNDS)
    for _ in range(3):
        for _ in range(100):
            amount = chance.choice([*BOUNDS, 0, 11, chance.uniform(0, 12)])
            one_by_one.observe(amount)
            tally.observe(amount)
        tally.publish()
    for name in ("waits_count", "waits_sum"):
        told, expected = [each.get_sample_value(name) for each in reversed(registries)]
        assert told == pytest.approx(expected)
    for bound in ("0.001", "0.5", "1.0", "10.0", "+Inf"):
        told, expected = [each.get_sample_value("waits_bucket", {"le": bound}) for each in reversed(registries)]
        assert told == expected


async def test_what_was_counted_last_is_told_at_the_end(autojump_clock: MockClock) -> None:
    """Also what has come since the last tick: of a worker that ends, others tell it."""
    accepted = "headrace_events_total", {"status": "accepted", "reason": ""}
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        campaign = await world.campaign()
        await world.send(shown(campaign))
        await trio.sleep(1)
        before = REGISTRY.get_sample_value(*accepted)
        assert before is not None
        await world.send(shown(campaign), shown(campaign))
        nursery.cancel_scope.cancel()
    assert REGISTRY.get_sample_value(*accepted) == before + 2
