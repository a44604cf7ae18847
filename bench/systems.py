"""Whom the suite measures: the engine, its peers, and the ceilings.

Owns their names and how each is started. Peers (bench/peers) do the same work and are audited alike; a ceiling does a
part of it, promises nothing, and tells how far from the possible a figure is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

from bench.results import Latency, Run, Step, Use
from bench.scenario import Scenario
from bench.stand import HEADRACE, StandFailed, System, environment_of, open_stores_with

ROWS: Final = System("row at a time", ("bench.peers.rows",))
BATCHER: Final = System("batcher", ("bench.peers.batcher",))
POSTGRES_ALONE: Final = System("postgres alone", ("bench.peers.plpgsql",))
PEERS: Final = (ROWS, BATCHER, POSTGRES_ALONE)

# Servers of a constant answer: the sender loads them as it loads everybody.
UVICORN: Final = System("uvicorn constant", ("bench.peers.ceilings", "uvicorn"))
INTAKE: Final = System("intake constant", ("bench.peers.ceilings", "intake"))

CEILING_SECONDS_MAX: Final = 120.0  # beyond what was asked for: its rows are packed between stretches


def workers(count: int) -> System:
    """The engine in so many processes."""
    return System(HEADRACE.name, HEADRACE.command, HEADRACE.addresses, {"HEADRACE_WORKERS": str(count)})


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A program that measures itself: no sender, no HTTP."""

    name: str
    program: tuple[str, ...]
    batch: int


RAW_COPY: Final = Ceiling("raw COPY", ("bench.peers.ceilings", "copy"), 10_000)
LUA_ALONE: Final = Ceiling("lua alone", ("bench.peers.ceilings", "lua", "--cap", "10"), 1_000)


def run_ceiling(experiment: str, ceiling: Ceiling, scenario: Scenario, seconds: float, round_: int) -> Run:
    """Measure it on fresh stores. Raises `StandFailed`."""
    with open_stores_with(scenario) as stores:
        told = subprocess.run(
            [sys.executable, "-m", *ceiling.program, "--seconds", str(seconds)],
            env=environment_of(stores), capture_output=True, text=True, check=False,
            timeout=seconds + CEILING_SECONDS_MAX,
        )  # fmt: skip
    if told.returncode != 0:
        raise StandFailed(f"{ceiling.name} failed:\n{told.stderr[-2_000:]}")
    line = json.loads(told.stdout.splitlines()[-1])
    step = Step(
        loop="closed", connections=1, batch=ceiling.batch, offered_events_per_second=None, seconds=line["seconds"],
        requests=line["events"] // ceiling.batch, events=line["events"], accepted=line["events"], duplicate=0,
        rejected=0, refused=0, sent_bytes=0, received_bytes=0, latency=Latency(0, 0, 0, 0, 0), slices=[],
        uses=[Use("engine", 1, line["cpu_seconds"], 0.0)], samples=[], sender_was_limit=False,
    )  # fmt: skip
    return Run(experiment, ceiling.name, scenario.name, round_, 0, {}, [step], audit=None)
