"""What is counted for each request, and told later."""

from __future__ import annotations

import random
import uuid

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


async def test_each_event_is_counted_by_its_verdict(autojump_clock: MockClock) -> None:
    """Those that share one, as the refused do, and those that have one of their own."""

    def counted(status: str, reason: str) -> float:
        return REGISTRY.get_sample_value("headrace_events_total", {"status": status, "reason": reason}) or 0

    verdicts = [("accepted", ""), ("duplicate", ""), ("rejected", "unknown_campaign"), ("rejected", "frequency_capped")]
    before = [counted(*each) for each in verdicts]
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        campaign = await world.campaign(freq_cap_impressions_per_day=1)
        known = shown(campaign, event_id=uuid.uuid4())
        await world.send(known)
        await world.send(known, known, *[shown(campaign)] * 3, *[shown(77)] * 4)
        nursery.cancel_scope.cancel()
    assert [counted(*each) - count for each, count in zip(verdicts, before, strict=True)] == [1, 2, 4, 3]


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
