"""The targets: what the engine is to reach, and how each figure is read out of a result.

Owns the table, and the names of the experiments and measures that it needs: the suite makes these, and no others, for
`headrace-bench targets`. Pure: runs nothing.

A figure is a median over rounds. A ratio is taken within each round, whose runs were made in turn; against several
systems, against the best of them in that round. Void runs, and rounds that lack a part of it, do not count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bench.results import OURS, Result, Run
from bench.systems import BATCHER, POSTGRES_ALONE, RAW_COPY, ROWS, UVICORN

SUITE: Final = "targets"  # of a result that was made for the table

BATCHES: Final = "batches of 1,000, 100 campaigns"
BATCHES_100: Final = "batches of 100, 100 campaigns"
BATCHES_10: Final = "batches of 10, 100 campaigns"
MANY: Final = "batches of 1,000, 10,000 campaigns"
ONE_CAMPAIGN: Final = "batches of 1,000, 1 campaign"
ONE_CAMPAIGN_4: Final = "batches of 1,000, 1 campaign, 4 processes"
SINGLES: Final = "single events, 256 connections"
SINGLES_ONE: Final = "single events, 256 connections, 1 campaign"
SINGLES_1024: Final = "single events, 1,024 connections"
SINGLES_1024_ONE: Final = "single events, 1,024 connections, 1 campaign"
LONE: Final = "single events, a lone connection"
HALF: Final = "single events: half the highest rate"
HALF_ONE: Final = "single events: half the highest rate, 1 campaign"
OVERLOAD: Final = "batches of 1,000: twice the highest rate"
FAIR: Final = "fair share: single events beside a campaign that floods"
IDLE: Final = "idle live campaigns"
KNOWN: Final = "start with 100,000 campaigns in the store"
FILLED: Final = "batches of 1,000, full events table"
EMPTY: Final = "batches of 1,000, empty events table"

# Measures of a run.
IDLE_BYTES: Final = "bytes of an idle live campaign"
KNOWN_BYTES: Final = "bytes of a campaign in the store"
READY_SECONDS: Final = "seconds from start to ready"

Read = Callable[[Run], float | None]


def throughput(run: Run) -> float | None:
    """Of the last step."""
    return run.steps[-1].events_per_second


def latency(part: str, step: int = -1) -> Read:
    """A field of `Latency`, of that step."""
    return lambda run: getattr(run.steps[step].latency, part)


def measure(name: str) -> Read:
    """One of the run's measures."""
    return lambda run: run.measures.get(name)


def against_step(other: int) -> Read:
    """Throughput of the last step divided by that of another step of the same run."""
    return lambda run: _divided(run.steps[-1].events_per_second, run.steps[other].events_per_second)


def served(run: Run) -> float | None:
    """What the last step got done of what was offered."""
    step = run.steps[-1]
    return _divided(step.events_per_second, step.offered_events_per_second or 0.0)


def refusal_p99_ms(run: Run) -> float | None:
    """None where nothing was refused: then nothing is known."""
    refusal = run.steps[-1].refusal
    return None if refusal is None else refusal.p99_ms


def engine_mb(run: Run) -> float | None:
    """Resident memory in the last step, at most."""
    return sum(use.memory_mb for use in run.steps[-1].uses if use.role == "engine")


def _divided(ours: float, other: float) -> float | None:
    return ours / other if other else None


@dataclass(frozen=True, slots=True)
class Reading:
    """A number of a run."""

    experiment: str
    system: str = OURS
    read: Read = throughput


@dataclass(frozen=True, slots=True)
class Target:
    """A line of the table. Without `at_least` and `aim` it is only told."""

    figure: str
    at_least: float | None
    aim: float | None
    ours: Reading
    against: Sequence[Reading] = ()
    unit: str = "x"
    lower: bool = False  # less is better

    @property
    def readings(self) -> Sequence[Reading]:
        """All that it takes."""
        return [self.ours, *self.against]


def _ratio(figure: str, at_least: float | None, aim: float | None, experiment: str, *others: Reading) -> Target:
    return Target(figure, at_least, aim, Reading(experiment), others)


def _told(figure: str, at_least: float | None, aim: float | None, unit: str, experiment: str, read: Read) -> Target:
    return Target(figure, at_least, aim, Reading(experiment, OURS, read), unit=unit, lower=unit != "x")


def _of(experiment: str, *systems: str) -> Sequence[Reading]:
    return [Reading(experiment, system) for system in systems]


_ROWS, _BATCHER, _ALONE, _UVICORN = ROWS.name, BATCHER.name, POSTGRES_ALONE.name, UVICORN.name

TARGETS: Final = (
    _ratio("batches of 1,000 over 100 campaigns / row at a time", 1_000, 1_600, BATCHES, *_of(BATCHES, _ROWS)),
    _ratio("the same / row at a time, singles of 1 campaign", 1_000, 1_600, BATCHES, *_of(SINGLES_ONE, _ROWS)),
    _ratio("the same / the best peer", 2, 4, BATCHES, *_of(BATCHES, _BATCHER, _ALONE)),
    _ratio("the same / raw COPY", 0.28, 0.4, BATCHES, *_of(BATCHES, RAW_COPY.name)),
    _ratio("singles of 1 campaign, 256 connections / row at a time", 180, 280, SINGLES_ONE, *_of(SINGLES_ONE, _ROWS)),
    _ratio("the same / the best peer", 5, 9, SINGLES_ONE, *_of(SINGLES_ONE, _BATCHER, _ALONE)),
    _ratio("the same / uvicorn's constant answer", 1.0, 1.5, SINGLES_ONE, *_of(SINGLES_ONE, _UVICORN)),
    _ratio("the same, 1,024 connections", 1.4, 2.0, SINGLES_1024_ONE, *_of(SINGLES_1024_ONE, _UVICORN)),
    _ratio("singles over 100 campaigns, 256 connections / row at a time", 180, 280, SINGLES, *_of(SINGLES, _ROWS)),
    _ratio("the same / the best peer", 5, 9, SINGLES, *_of(SINGLES, _BATCHER, _ALONE)),
    _ratio("the same / uvicorn's constant answer", 1.0, 1.5, SINGLES, *_of(SINGLES, _UVICORN)),
    _ratio("the same, 1,024 connections", 1.4, 2.0, SINGLES_1024, *_of(SINGLES_1024, _UVICORN)),
    _ratio("batches of 100 / of 1,000", 0.6, 0.8, BATCHES_100, *_of(BATCHES, OURS)),
    _ratio("batches of 10 / of 1,000", 0.25, 0.4, BATCHES_10, *_of(BATCHES, OURS)),
    _ratio("10,000 campaigns, Zipf / 100 campaigns, batches of 1,000", 0.5, 0.75, MANY, *_of(BATCHES, OURS)),
    _ratio("one hot campaign, 4 processes / 1 process", 0.85, 1.0, ONE_CAMPAIGN_4, *_of(ONE_CAMPAIGN, OURS)),
    _told("singles of 1 campaign at half the highest rate, p50", 6, 3, "ms", HALF_ONE, latency("p50_ms")),
    _told("the same, p99", 30, 12, "ms", HALF_ONE, latency("p99_ms")),
    _told("singles over 100 campaigns at half the highest rate, p50", 6, 3, "ms", HALF, latency("p50_ms")),
    _told("the same, p99", 30, 12, "ms", HALF, latency("p99_ms")),
    _told("a lone connection, p50", 1.5, 1.0, "ms", LONE, latency("p50_ms")),
    _told("at twice the highest rate, served / highest", 0.8, 0.95, "x", OVERLOAD, against_step(-2)),
    _told("the same, p99 of a refusal", 20, None, "ms", OVERLOAD, refusal_p99_ms),
    _told("the same, memory of the engine", 400, 250, "MB", OVERLOAD, engine_mb),
    _told("memory of an idle live campaign", 4_096, 2_048, "B", IDLE, measure(IDLE_BYTES)),
    # "Nothing": a megabyte, with which the allocator does as it likes, over 100,000 campaigns.
    _told("memory of a campaign in the store, known but idle", 10, None, "B", KNOWN, measure(KNOWN_BYTES)),
    _told("start to ready with 100,000 campaigns in the store", 3, 1, "s", KNOWN, measure(READY_SECONDS)),
    _ratio("events table full / empty, batches of 1,000", 0.8, 0.95, FILLED, *_of(EMPTY, OURS)),
    _told("beside a campaign that floods, the others' events served / sent", None, None, "x", FAIR, served),
    _told("the same, p50 of the others", None, None, "ms", FAIR, latency("p50_ms")),
    _told("the same, p99 of the others", None, None, "ms", FAIR, latency("p99_ms")),
    _told("without the flood, p50 of the others", None, None, "ms", FAIR, latency("p50_ms", -3)),
    _told("without the flood, p99 of the others", None, None, "ms", FAIR, latency("p99_ms", -3)),
)


def needed() -> frozenset[tuple[str, str]]:
    """Experiments, and the systems that go through them."""
    return frozenset((each.experiment, each.system) for target in TARGETS for each in target.readings)


class Met(StrEnum):
    """How a figure stands to its target."""

    AIM = "aim"
    YES = "yes"
    NO = "no"
    UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class Reached:
    """A target, and what a result says of it: a sample a round."""

    target: Target
    samples: Sequence[float]
    limited: Sequence[str]  # systems of which the sender was the limit: they could have done more

    @property
    def median(self) -> float:
        """Of the rounds, of which there is one at least."""
        return statistics.median(self.samples)

    @property
    def met(self) -> Met:
        """By the median."""
        target = self.target
        if not self.samples or target.at_least is None:
            return Met.UNKNOWN
        sign = -1 if target.lower else 1
        if target.aim is not None and sign * self.median >= sign * target.aim:
            return Met.AIM
        return Met.YES if sign * self.median >= sign * target.at_least else Met.NO


def reached(result: Result) -> list[Reached]:
    """Of each target, in order; of none, if the result was not made for them."""
    if result.suite != SUITE:
        return []
    runs = {(run.experiment, run.system, run.round): run for run in result.runs if not run.void}
    rounds = sorted({run.round for run in result.runs})
    return [_reached(target, runs, rounds) for target in TARGETS]


def _reached(target: Target, runs: dict[tuple[str, str, int], Run], rounds: Sequence[int]) -> Reached:
    samples: list[float] = []
    limited: set[str] = set()
    for round_ in rounds:
        values: list[float] = []
        taken = [(each, runs.get((each.experiment, each.system, round_))) for each in target.readings]
        for each, run in taken:
            value = None if run is None else each.read(run)
            if value is not None:
                values.append(value)
        if len(values) < len(taken) or (target.against and not max(values[1:])):
            continue
        samples.append(values[0] / max(values[1:]) if target.against else values[0])
        limited |= {each.system for each, run in taken if run and any(step.sender_was_limit for step in run.steps[-1:])}
    return Reached(target, samples, sorted(limited))


def lines(result: Result) -> Iterator[list[str]]:
    """The table, as text, under `COLUMNS`."""
    for each in reached(result):
        target, samples = each.target, each.samples
        note = f"; the sender was the limit of {', '.join(each.limited)}" if each.limited else ""
        bounds = [target.at_least, target.aim]
        numbers = [each.median, min(samples), max(samples)] if samples else [None] * 3
        yield [target.figure, *(_number(target, value) for value in [*bounds, *numbers]), each.met.value + note]


COLUMNS: Final = ("figure", "at least", "aim", "reached", "lowest", "highest", "met")


def _number(target: Target, value: float | None) -> str:
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}{'' if target.unit == 'x' else ' ' + target.unit}"
