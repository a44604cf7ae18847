"""A short form of `make fuzz`: mutated requests against both listeners of a served program."""

from __future__ import annotations

import pytest
import trio

from bench.serving import serving
from tests.fuzz.attack import Attack
from tests.fuzz.mutate import plan_of

pytestmark = pytest.mark.stores

SEED = 20_261_201
REQUESTS = 400


def test_mutated_requests_end_nothing_and_hear_no_lie() -> None:
    """The program lives, both listeners serve, its log has no fault of its own, and every 200 is counted once."""
    with serving() as program:
        attack = Attack(program, SEED)
        found = trio.run(lambda: attack.run(requests=REQUESTS))
    assert found.faults == []
    assert found.accepted > 0
    assert sum(found.statuses.values()) > REQUESTS // 2


def test_a_plan_can_be_repeated() -> None:
    """By its seed and its number alone; another seed sends something else."""
    assert plan_of(1, 7) == plan_of(1, 7)
    assert plan_of(1, 7) != plan_of(2, 7)
