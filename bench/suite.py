"""The suite: which experiments a result is made of, in the quick form and in the full one.

Owns their names, loads and order. A round runs the systems of an experiment one after the other, and every other round
in the other direction, so that whatever the machine does besides meets all alike. What is compared shares a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from bench.chaos import FAULTS, chaos_experiments
from bench.locust_run import Swarm, run_locust
from bench.results import LocustRun, Run, held
from bench.run import Experiment, Load, finish, make_run, open_run
from bench.scenario import Scenario, scenarios
from bench.stand import HEADRACE, System, open_stand
from bench.systems import (
    BATCHER,
    INTAKE,
    LUA_ALONE,
    PEERS,
    POSTGRES_ALONE,
    RAW_COPY,
    ROWS,
    UVICORN,
    Ceiling,
    run_ceiling,
    workers,
)

BATCHES: Final = "batches of 1,000, 100 campaigns"
SINGLES: Final = "single events, 256 connections"
SEARCH_STEPS: Final = 4  # halvings of the last interval: to a sixteenth of it
RUNGS: Final = (0.25, 0.5, 0.7, 0.85, 1.0)  # of what a closed loop reaches
COLD_SECONDS: Final = 10.0
OVERLOAD: Final = 2.0  # the last rung of the overload experiment

Swarming = Callable[[], LocustRun]
Program = Callable[[int], Run]  # the round -> what it comes to; raises `StandFailed`


@dataclass(frozen=True, slots=True)
class Form:
    """How long, and how often."""

    name: str
    rounds: int  # of what is compared with peers and ceilings
    warm_seconds: float
    seconds: float
    soak_seconds: float  # 0: none
    faults: Sequence[str]
    fault_seconds: float  # of load, a third of them before the fault
    micro_rounds: int
    locust_seconds: float

    def swarm(self) -> LocustRun:
        """Locust with all its users at once, on a stand of its own. Raises `StandFailed` and `LocustFailed`."""
        with open_stand(HEADRACE, scenarios()["even"]) as stand:
            run = run_locust(stand, Swarm(LOCUST_USERS, self.locust_seconds, processes=2))
            stand.stop()
            return run


LOCUST_USERS: Final = 20
QUICK: Final = Form("quick", 1, 0.7, 1.5, 0.0, ("engine-killed", "redis-killed"), 5.0, 4, 3.0)
FULL: Final = Form("full", 5, 2.0, 5.0, 180.0, tuple(FAULTS), 15.0, 40, 20.0)


@dataclass(frozen=True, slots=True)
class Item:
    """One run to be made."""

    experiment: str
    system: str
    round: int
    make: Program


def items(form: Form) -> Iterator[Item]:
    """All runs of the suite, in order."""
    for name, programs in _compared(form):
        for round_ in range(form.rounds):
            for system, make in programs if round_ % 2 == 0 else reversed(programs):
                yield Item(name, system, round_, make)
    for experiment in _alone(form):
        for round_ in range(form.rounds):
            yield Item(experiment.name, experiment.system.name, round_, made(experiment))
    yield from _ladders(form)
    yield from map(item_of, chaos_experiments(scenarios()["even"], form.faults, form.fault_seconds))
    if form.soak_seconds:
        soak = Experiment(
            "soak", HEADRACE, scenarios()["soak"], 1_000, [Load(32, form.warm_seconds), Load(32, form.soak_seconds)]
        )
        yield item_of(soak)


def item_of(experiment: Experiment) -> Item:
    """An ordinary run, once."""
    return Item(experiment.name, experiment.system.name, 0, made(experiment))


def made(experiment: Experiment) -> Program:
    """The program of an ordinary run."""
    return lambda round_: make_run(experiment, round_, seed=round_)


def _loads(form: Form, connections: int) -> Sequence[Load]:
    return Load(connections, form.warm_seconds), Load(connections, form.seconds)


# --- With peers and ceilings -----------------------------------------------------------------------------------


def _compared(form: Form) -> Iterator[tuple[str, list[tuple[str, Program]]]]:
    known = scenarios()

    def served(
        name: str, scenario: Scenario, batch: int, connections: int, systems: Sequence[System]
    ) -> Iterator[tuple[str, Program]]:
        for system in systems:
            audited = system not in (UVICORN, INTAKE)
            # The row-at-a-time design answers a batch of 1,000 in eight seconds: it gets batches of ten.
            size = min(batch, 10) if system is ROWS else batch
            load = _loads(form, 32) if system is ROWS else _loads(form, connections)
            yield system.name, made(Experiment(name, system, scenario, size, load, audited))

    def measured(name: str, ceiling: Ceiling) -> tuple[str, Program]:
        scenario = known["even"]
        return ceiling.name, lambda round_: run_ceiling(name, ceiling, scenario, form.seconds, round_)

    yield (
        BATCHES,
        [
            *served(BATCHES, known["even"], 1_000, 32, [HEADRACE, *PEERS]),
            measured(BATCHES, RAW_COPY),
            measured(BATCHES, LUA_ALONE),
        ],
    )
    yield SINGLES, [*served(SINGLES, known["even"], 1, 256, [HEADRACE, *PEERS, UVICORN, INTAKE])]
    name = "single events, 1,024 connections"
    yield name, [*served(name, known["even"], 1, 1_024, [HEADRACE, BATCHER, POSTGRES_ALONE, UVICORN, INTAKE])]


# --- The engine alone ------------------------------------------------------------------------------------------


def _alone(form: Form) -> Iterator[Experiment]:
    """Sizes of batches, numbers of campaigns and processes, and every scenario."""
    known = scenarios()
    one = known["one"]
    for name, scenario, batch, connections, system in (
        ("single events, a lone connection", known["even"], 1, 1, HEADRACE),
        ("batches of 10, 100 campaigns", known["even"], 10, 64, HEADRACE),
        ("batches of 100, 100 campaigns", known["even"], 100, 64, HEADRACE),
        ("batches of 5,000, 100 campaigns", known["even"], 5_000, 16, HEADRACE),
        ("batches of 1,000, 1 campaign", one, 1_000, 16, HEADRACE),
        ("batches of 1,000, 1 campaign, 4 processes", one, 1_000, 16, workers(4)),
    ):
        yield Experiment(name, system, scenario, batch, _loads(form, connections))
    # Fewer connections and a longer warm-up: each of 10,000 campaigns is read from Postgres at its first event.
    many = [Load(8, COLD_SECONDS), Load(8, form.seconds)]
    yield Experiment("batches of 1,000, 10,000 campaigns", HEADRACE, known["many"], 1_000, many)
    for kind in ("hot", "exhausted", "capped", "duplicates", "bad", "reports", "replay"):
        yield Experiment(f"scenario {kind}", HEADRACE, known[kind], 100, _loads(form, 32))
    burst = [Load(64, form.warm_seconds, rate=5_000), Load(64, max(4.0, form.seconds), rate=20_000)]
    yield Experiment("scenario bursts", HEADRACE, known["bursts"], 100, burst)


# --- Throughput against latency --------------------------------------------------------------------------------


def _ladders(form: Form) -> Iterator[Item]:
    even = scenarios()["even"]
    for name, batch, connections in (("single events", 1, 256), ("batches of 1,000", 1_000, 32)):
        experiment = Experiment(f"{name}: rate ladder", HEADRACE, even, batch, _loads(form, connections))
        yield Item(experiment.name, HEADRACE.name, 0, partial(climb, experiment))
    experiment = Experiment("single events: overload", HEADRACE, even, 1, _loads(form, 1_024))
    yield Item(experiment.name, HEADRACE.name, 0, partial(overload, experiment))


def climb(experiment: Experiment, round_: int) -> Run:
    """Rise in an open loop to what a closed loop reaches, then halve the interval of the highest rate that holds."""
    with open_run(experiment, seed=round_) as underway:
        warm, load = experiment.loads
        underway.step(warm)
        top = underway.step(load).events_per_second
        low, high = 0.0, top * RUNGS[-1]
        for rung in RUNGS:
            if not held(underway.step(replace(load, rate=top * rung))):
                high = top * rung
                break
            low = top * rung
        for _ in range(SEARCH_STEPS if low < high else 0):
            rate = (low + high) / 2
            if held(underway.step(replace(load, rate=rate))):
                low = rate
            else:
                high = rate
        underway.step(replace(load, rate=max(low, top * RUNGS[0])))  # what the experiment's figures are of
        return finish(underway, round_, seed=round_)


def overload(experiment: Experiment, round_: int) -> Run:
    """What a closed loop reaches, then twice of it in an open loop."""
    with open_run(experiment, seed=round_) as underway:
        warm, load = experiment.loads
        underway.step(warm)
        top = underway.step(load).events_per_second
        underway.step(replace(load, rate=OVERLOAD * top))
        return finish(underway, round_, seed=round_)
