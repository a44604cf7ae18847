"""The suite: which experiments a result is made of, in the quick form and in the full one.

Owns their names, loads and order. A round runs the systems of an experiment one after the other, and every other round
in the other direction, so that whatever the machine does besides meets all alike. What is compared shares a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

import msgspec

from bench.chaos import FAULTS, chaos_experiments
from bench.locust_run import Swarm, run_locust
from bench.results import LocustRun, Run, held
from bench.run import Experiment, Flood, Load, finish, make_run, open_run
from bench.scenario import scenarios
from bench.stand import HEADRACE, System, open_stand
from bench.standing import fill_and_compare, start, visit
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
from bench.targets import (
    BATCHES,
    BATCHES_10,
    BATCHES_100,
    EMPTY,
    FAIR,
    FILLED,
    HALF,
    HALF_ONE,
    IDLE,
    KNOWN,
    LONE,
    MANY,
    ONE_CAMPAIGN,
    ONE_CAMPAIGN_4,
    OVERLOAD,
    SINGLES,
    SINGLES_1024,
    SINGLES_1024_ONE,
    SINGLES_ONE,
    SUITE,
    needed,
)

SEARCH_STEPS: Final = 4  # halvings of the last interval: to a sixteenth of it
RUNGS: Final = (0.25, 0.5, 0.7, 0.85, 1.0)  # of what a closed loop reaches
HALF_OF_TOP: Final = 0.5
TWICE_THE_TOP: Final = 2.0
FAIR_RATE: Final = 1_000.0  # single events a second beside the flood

Swarming = Callable[[], LocustRun]
Program = Callable[[int], Iterable[Run]]  # the round -> what it comes to; raises `StandFailed`


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
    cold_seconds: float = 10.0  # of warm-up, where each of 10,000 campaigns is read from Postgres at its first event
    live: int = 20_000  # idle campaigns whose memory is weighed
    known: int = 100_000  # campaigns in the store at a start
    rows: int = 50_000_000  # of the full events table

    def swarm(self) -> LocustRun:
        """Locust with all its users at once, on a stand of its own. Raises `StandFailed` and `LocustFailed`."""
        with open_stand(HEADRACE, scenarios()["even"]) as stand:
            run = run_locust(stand, Swarm(LOCUST_USERS, self.locust_seconds, processes=2))
            stand.stop()
            return run


LOCUST_USERS: Final = 20
QUICK: Final = Form("quick", 1, 0.7, 1.5, 0.0, ("engine-killed", "redis-killed"), 5.0, 4, 3.0)
FULL: Final = Form("full", 5, 1.0, 3.0, 180.0, tuple(FAULTS), 15.0, 40, 20.0)
FOR_TARGETS: Final = Form(SUITE, 5, 2.0, 5.0, 0.0, (), 0.0, 0, 0.0)


@dataclass(frozen=True, slots=True)
class Item:
    """One run to be made."""

    experiment: str
    system: str
    round: int
    make: Program


class Entry(NamedTuple):
    """A system under an experiment. Those of one group are run in turn, because they are compared with each other."""

    experiment: str
    system: str
    make: Program


Group = Sequence[Entry]


def items(form: Form) -> Iterator[Item]:
    """All runs of the suite, in order."""
    for group in [*_compared(form), *_alone(form), *_offered(form)]:
        yield from _in_turn(group, form.rounds)
    yield from _ladders(form)
    yield from map(item_of, chaos_experiments(scenarios()["even"], form.faults, form.fault_seconds))
    if form.soak_seconds:
        soak = Experiment(
            "soak", HEADRACE, scenarios()["soak"], 1_000, [Load(32, form.warm_seconds), Load(32, form.soak_seconds)]
        )
        yield item_of(soak)


def target_items(form: Form) -> Iterator[Item]:
    """The runs that the table of targets needs."""
    wanted = needed()
    for group in [*_compared(form), *_alone(form), *_offered(form), *_standing(form)]:
        yield from _in_turn([entry for entry in group if entry[:2] in wanted], form.rounds)
    filled, empty = (_experiment(form, name, "even", 1_000, 32) for name in (FILLED, EMPTY))
    yield Item(FILLED, HEADRACE.name, 0, lambda _: fill_and_compare(filled, empty, form.rows, form.rounds))


def _in_turn(group: Group, rounds: int) -> Iterator[Item]:
    for round_ in range(rounds):
        for experiment, system, make in group if round_ % 2 == 0 else reversed(group):
            yield Item(experiment, system, round_, make)


def item_of(experiment: Experiment) -> Item:
    """An ordinary run, once."""
    return Item(experiment.name, experiment.system.name, 0, made(experiment))


def made(experiment: Experiment) -> Program:
    """The program of an ordinary run."""
    return lambda round_: [make_run(experiment, round_, seed=round_)]


def _entry(experiment: Experiment) -> Entry:
    return Entry(experiment.name, experiment.system.name, made(experiment))


def _loads(form: Form, connections: int) -> Sequence[Load]:
    return Load(connections, form.warm_seconds), Load(connections, form.seconds)


def _experiment(
    form: Form, name: str, scenario: str, batch: int, connections: int, system: System = HEADRACE
) -> Experiment:
    audited = system not in (UVICORN, INTAKE)
    return Experiment(name, system, scenarios()[scenario], batch, _loads(form, connections), audited)


# --- With peers and ceilings, and with what else is put beside these figures -------------------------------------


def _compared(form: Form) -> Iterator[Group]:
    def served(name: str, scenario: str, batch: int, connections: int, *systems: System) -> Iterator[Entry]:
        for system in systems:
            # The row-at-a-time design answers a batch of 1,000 in eight seconds: it gets batches of ten.
            slow = system is ROWS
            yield _entry(
                _experiment(
                    form, name, scenario, min(batch, 10) if slow else batch, 32 if slow else connections, system
                )
            )

    def measured(name: str, ceiling: Ceiling) -> Entry:
        scenario = scenarios()["even"]
        return Entry(name, ceiling.name, lambda round_: [run_ceiling(name, ceiling, scenario, form.seconds, round_)])

    # A longer warm-up: each of 10,000 campaigns is read from Postgres, and recovered, at its first event.
    many = [Load(32, form.cold_seconds), Load(32, form.seconds)]
    yield [
        *served(BATCHES, "even", 1_000, 32, HEADRACE, *PEERS),
        measured(BATCHES, RAW_COPY),
        measured(BATCHES, LUA_ALONE),
        _entry(_experiment(form, BATCHES_10, "even", 10, 64)),
        _entry(_experiment(form, BATCHES_100, "even", 100, 64)),
        _entry(_experiment(form, "batches of 5,000, 100 campaigns", "even", 5_000, 16)),
        _entry(Experiment(MANY, HEADRACE, scenarios()["many"], 1_000, many)),
    ]
    # One campaign is what the targets were calibrated on; a hundred is what an ad server sends.
    for name, scenario in ((SINGLES, "even"), (SINGLES_ONE, "one")):
        yield list(served(name, scenario, 1, 256, HEADRACE, *PEERS, UVICORN, INTAKE))
    for name, scenario in ((SINGLES_1024, "even"), (SINGLES_1024_ONE, "one")):
        yield list(served(name, scenario, 1, 1_024, HEADRACE, BATCHER, POSTGRES_ALONE, UVICORN, INTAKE))
    yield [
        _entry(_experiment(form, ONE_CAMPAIGN, "one", 1_000, 16)),
        _entry(_experiment(form, ONE_CAMPAIGN_4, "one", 1_000, 16, workers(4))),
    ]


# --- The engine alone ------------------------------------------------------------------------------------------


def _alone(form: Form) -> Iterator[Group]:
    """A lone connection, and every scenario."""
    yield [_entry(_experiment(form, LONE, "even", 1, 1))]
    for kind in ("hot", "exhausted", "capped", "duplicates", "bad", "reports", "replay"):
        yield [_entry(_experiment(form, f"scenario {kind}", kind, 100, 32))]
    burst = [Load(64, seconds, rate=20_000) for seconds in (form.warm_seconds, max(4.0, form.seconds))]
    yield [_entry(Experiment("scenario bursts", HEADRACE, scenarios()["bursts"], 100, burst))]


def _offered(form: Form) -> Iterator[Group]:
    """At a share of the highest rate, and beside a flood."""
    known = scenarios()
    warm, seconds = form.warm_seconds, form.seconds
    # Events that wait are bounded by number, and a request in an open loop has a connection of its own: only batches
    # come to more than may wait.
    for name, scenario, batch, connections, share in (
        (HALF, "even", 1, (256, 256), HALF_OF_TOP),
        (HALF_ONE, "one", 1, (256, 256), HALF_OF_TOP),
        (OVERLOAD, "even", 1_000, (32, 512), TWICE_THE_TOP),
    ):
        closed, opened = connections
        loads = [Load(closed, warm), Load(closed, seconds), Load(opened, seconds)]
        experiment = Experiment(name, HEADRACE, known[scenario], batch, loads)
        yield [Entry(name, HEADRACE.name, partial(offer, experiment, share))]
    loads = [
        Load(1_024, length, FAIR_RATE, flooded) for length, flooded in ((warm, True), (seconds, False), (seconds, True))
    ]
    flood = Flood(known["one"], 1_000, 32)
    yield [_entry(Experiment(FAIR, HEADRACE, known["even"], 1, loads, flood=flood))]


def _standing(form: Form) -> Iterator[Group]:
    scenario = msgspec.structs.replace(scenarios()["visited"], campaigns=form.live + form.live // 5)
    system = replace(HEADRACE, settings={"HEADRACE_ACTOR_IDLE_SECONDS": "3600"})
    visited = Experiment(IDLE, system, scenario, 1_000, [])
    yield [Entry(IDLE, HEADRACE.name, lambda round_: [visit(visited, form.live, round_)])]
    yield [Entry(KNOWN, HEADRACE.name, lambda round_: [start(KNOWN, form.known, round_)])]


# --- Throughput against latency --------------------------------------------------------------------------------


def _ladders(form: Form) -> Iterator[Item]:
    even = scenarios()["even"]
    for name, batch, connections in (("single events", 1, 256), ("batches of 1,000", 1_000, 32)):
        experiment = Experiment(f"{name}: rate ladder", HEADRACE, even, batch, _loads(form, connections))
        yield Item(experiment.name, HEADRACE.name, 0, partial(climb, experiment))


def climb(experiment: Experiment, round_: int) -> list[Run]:
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
        return [finish(underway, round_, seed=round_)]


def offer(experiment: Experiment, share: float, round_: int) -> list[Run]:
    """What a closed loop reaches, then a share of it in an open loop."""
    with open_run(experiment, seed=round_) as underway:
        warm, closed, opened = experiment.loads
        underway.step(warm)
        top = underway.step(closed).events_per_second
        underway.step(replace(opened, rate=share * top))
        return [finish(underway, round_, seed=round_)]
