"""What is counted for each request, and told later."""

from __future__ import annotations

import random

import pytest
from prometheus_client import CollectorRegistry, Histogram

from engine.metrics import Tally

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
