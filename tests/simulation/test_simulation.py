"""The simulation in the daily suite: some seeds, that a seed tells all, and that whatever ends one is told.

Thousands of seeds are `make sim`, and what they have found is in `test_found.py`. What it injects and checks: faults in
`simulation.py`, messages in `network.py`, invariants in `checker.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from tests.simulation.run import simulate
from tests.simulation.simulation import Simulation

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 60
STEPS = 100


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_fails_every_promise_holds(seed: int) -> None:
    """One answer a request, no acknowledged event lost or doubled, no budget or cap exceeded, equal books."""
    assert simulate(seed, STEPS).told == ""


def test_a_seed_tells_all() -> None:
    """The same seed gives the same trace of every message, in any process."""
    code = f"from tests.simulation.run import simulate; print(*[simulate(n, {STEPS}).digest for n in (1, 2)])"
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(told) == 1
    assert told == {f"{simulate(1, STEPS).digest} {simulate(2, STEPS).digest}\n"}


async def _raise(_: Simulation) -> None:
    raise KeyError("a fault of the simulation itself")


async def _hang(_: Simulation) -> None:
    await trio.sleep_forever()


async def _compute(_: Simulation) -> None:
    while True:
        pass


@pytest.mark.parametrize(("step", "told"), [(_raise, "KeyError"), (_hang, "TooSlowError"), (_compute, "TooSlow:")])
def test_whatever_ends_a_seed_is_told_with_the_command_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch, step: Callable[[Simulation], Awaitable[None]], told: str
) -> None:
    """A run that raises, waits for ever or computes for ever is a violation, not a traceback without a seed."""
    monkeypatch.setattr(Simulation, "step", step)
    monkeypatch.setattr("tests.simulation.run.WALL_SECONDS", 2)
    monkeypatch.setattr("tests.simulation.run.END_SECONDS", 0)
    outcome = simulate(7, 3)
    assert "make sim SEED=7 STEPS=3" in outcome.told
    assert told in outcome.told
