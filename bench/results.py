"""What a run of the bench leaves behind: one JSON file, which every table, page and comparison reads.

Owns the words and units of a result. Pure data: knows no system and no sender.

A **result** is one call of the suite on one commit. It holds **runs**: one system (the engine, or a peer) under one
scenario, on fresh stores, audited at its end. A run holds **steps**: so many connections, for so many seconds, in a
closed loop or at an offered rate. A **figure** is what two results are compared by: a name, and a sample a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

FORMAT: Final = 1  # raised when a file of before can't be read any more
OURS: Final = "headrace"  # the system whose figures bear no prefix
P99_MS_MAX: Final = 50.0  # a rate counts as held below it
HELD_SHARE: Final = 0.98  # of what was offered must have been done


class Latency(msgspec.Struct, frozen=True):
    """Of all answers of a step, in milliseconds. In an open loop it counts from the planned time of sending."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    longest_ms: float


class Slice(msgspec.Struct, frozen=True):
    """A quarter of a second of a step, from its start."""

    at_seconds: float
    events: int  # with a verdict
    refused: int  # events answered 503 or `retry`, or not answered
    p50_ms: float
    p99_ms: float


class Use(msgspec.Struct, frozen=True):
    """What the processes of one role took during a step."""

    role: str  # engine, redis, postgres or sender
    processes: int
    cpu_seconds: float
    memory_mb: float  # resident, at most; pages that processes share count once for each


class Sample(msgspec.Struct, frozen=True):
    """CPU by role at one moment of a step, as cores in use since the sample before."""

    at_seconds: float
    cores: dict[str, float]
    memory_mb: dict[str, float]


class Step(msgspec.Struct, frozen=True):
    """One load for some time."""

    loop: Literal["closed", "open"]
    connections: int
    batch: int  # events a request
    offered_events_per_second: float | None  # of an open loop
    seconds: float
    requests: int
    events: int  # with a verdict: accepted, duplicate or rejected
    accepted: int
    duplicate: int
    rejected: int
    refused: int  # answered 503 or `retry`, or not answered
    sent_bytes: int
    received_bytes: int
    latency: Latency
    slices: list[Slice]
    uses: list[Use]
    samples: list[Sample]
    sender_was_limit: bool  # the sender's own CPU was used up, or it could not keep its plan
    reports: int = 0  # that were read meanwhile
    refusal: Latency | None = None  # of answers that refuse all of their request; counts from when it was really sent

    @property
    def events_per_second(self) -> float:
        """Events with a verdict."""
        return self.events / self.seconds

    def cpu_us(self, role: str) -> float:
        """Microseconds of CPU an event."""
        used = sum(use.cpu_seconds for use in self.uses if use.role == role)
        return 1e6 * used / self.events if self.events else 0.0


class Command(msgspec.Struct, frozen=True):
    """A row of Redis's `commandstats`, during the measured steps."""

    name: str
    calls: int
    us_a_call: float


class Wait(msgspec.Struct, frozen=True):
    """How often a busy Postgres backend was seen waiting for this, in parts of all its looks; `CPU`: for nothing."""

    event: str
    share: float


class Audit(msgspec.Struct, frozen=True):
    """What the rows say of the answers. A run with any of the first group is void."""

    lost: int  # acknowledged, and no row
    double: int  # ids with more than one row
    phantom: int  # rows that nobody sent, or that are not what was sent
    denied: int  # refused for good, and yet a row
    overspend_micros: int
    over_cap: int
    unbalanced: int  # campaigns whose ledger is not the sum of their rows
    acknowledged: int
    unknown: int  # sent, and no verdict known
    unknown_committed: int  # of these are rows
    seconds: float
    examples: list[str] = []

    @property
    def clean(self) -> bool:
        """Whether the run counts."""
        return not (
            self.lost or self.double or self.phantom or self.denied or self.overspend_micros or self.over_cap
            or self.unbalanced
        )  # fmt: skip


class Fault(msgspec.Struct, frozen=True):
    """A fault during a step (chaos mode)."""

    name: str
    at_seconds: float  # when it began, from the step's start
    over_seconds: float  # when it was over
    recovered_seconds: float | None  # from then until throughput was nine tenths of before; None: not within the step


class Run(msgspec.Struct, frozen=True):
    """One system under one scenario, on fresh stores."""

    experiment: str  # the name under which the suite lists it
    system: str  # headrace, or a peer or ceiling
    scenario: str
    round: int  # of the repetitions of this experiment, from 0
    seed: int
    settings: dict[str, str]  # of the system, other than the defaults
    steps: list[Step]  # the last one is what the experiment is about
    audit: Audit | None  # None: a ceiling that promises nothing
    commands: list[Command] = []
    waits: list[Wait] = []
    fault: Fault | None = None
    measures: dict[str, float] = {}  # what is no matter of a step: its name, with the unit, and less is better

    @property
    def void(self) -> bool:
        """Whether its audit found anything."""
        return self.audit is not None and not self.audit.clean


class Micro(msgspec.Struct, frozen=True):
    """One micro benchmark: microseconds an event, a sample a round."""

    name: str
    us_an_event: list[float]


class LocustRun(msgspec.Struct, frozen=True):
    """One headless run of locust against the engine: its users wait for their answers, so this is no ceiling."""

    classes: list[str]  # of users; empty: the mix of all
    users: int
    processes: int
    seconds: float
    requests: int  # of all users, readers and editors too; so are failures and latencies
    failures: int  # not answered, or with something that is no verdict
    offered: int  # events; what is not told below is refused
    accepted: int
    duplicate: int
    rejected: int
    refused: int  # answered 503 or `retry`, or not answered
    rate: float | None  # events a second that were asked for; None: as many as the users manage
    offered_per_second: float
    achieved_per_second: float  # with a verdict
    p50_ms: float  # as locust rounds it
    p99_ms: float
    rows: int  # that the run added to the events table
    audit_clean: bool  # `headrace audit` found no difference

    @property
    def events(self) -> int:
        """With a verdict: accepted, duplicate or rejected."""
        return self.accepted + self.duplicate + self.rejected

    @property
    def agrees(self) -> bool:
        """Whether the rows are what locust was told. Events without a verdict may be rows or not."""
        return self.audit_clean and self.accepted <= self.rows <= self.accepted + self.refused


class Machine(msgspec.Struct, frozen=True):
    """Where it ran."""

    processor: str
    cores: int
    memory_gb: float
    kernel: str


class Result(msgspec.Struct, frozen=True):
    """One call of the suite on one commit."""

    format: int
    commit: str
    changed: bool  # there were changes that no commit has
    started_at: str  # RFC 3339
    seconds: float
    machine: Machine
    versions: dict[str, str]  # Python, Redis, Postgres, and the packages on the path of an event
    suite: str  # quick, full, or what was asked for
    runs: list[Run]
    micros: list[Micro] = []
    locusts: list[LocustRun] = []


class Figure(msgspec.Struct, frozen=True):
    """What is compared: a sample a round, in order."""

    name: str
    unit: str
    better: Literal["higher", "lower"]
    samples: list[float]

    @property
    def median(self) -> float:
        """Of the samples."""
        return statistics.median(self.samples)


def ladder(run: Run) -> list[Step]:
    """Its steps at offered rates, the lowest first, if it tried more than one rate; else none."""
    tried = [step for step in run.steps if step.offered_events_per_second is not None]
    rates = {step.offered_events_per_second for step in tried}
    return sorted(tried, key=lambda step: step.offered_events_per_second or 0.0) if len(rates) > 1 else []


def held(step: Step, p99_ms_max: float = P99_MS_MAX) -> bool:
    """Whether an offered rate was: p99 below the limit, done as offered, and nothing refused."""
    offered = step.offered_events_per_second
    return (
        offered is not None
        and step.latency.p99_ms < p99_ms_max
        and step.events_per_second >= HELD_SHARE * offered
        and step.refused == 0
    )


def highest_rate(run: Run, p99_ms_max: float = P99_MS_MAX) -> float | None:
    """The highest offered rate that was held."""
    return max((step.offered_events_per_second or 0.0 for step in run.steps if held(step, p99_ms_max)), default=None)


def grouped(result: Result) -> dict[tuple[str, str], list[Run]]:
    """Runs by experiment and system, each in the order of its rounds."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in result.runs:
        groups.setdefault((run.experiment, run.system), []).append(run)
    return {key: sorted(runs, key=lambda run: run.round) for key, runs in groups.items()}


def figures(result: Result) -> Iterator[Figure]:
    """All figures of a result; void runs have none. Rounds are in order, so that two results can be paired.

    Headrace's bear the name of the experiment alone; those of other systems have the system's before it.
    """
    for (experiment, system), runs in grouped(result).items():
        counted = [run for run in runs if not run.void]
        name = experiment if system == OURS else f"{system}: {experiment}"
        if stepped := [run for run in counted if run.steps]:
            yield from _figures_of(name, stepped)
        for measure in counted[0].measures if counted else ():
            yield Figure(f"{name}: {measure}", "", "lower", [run.measures[measure] for run in counted])
    for micro in result.micros:
        yield Figure(f"micro: {micro.name}", "us/event", "lower", micro.us_an_event)


def _figures_of(name: str, runs: list[Run]) -> Iterator[Figure]:
    """A ladder's last step is one that it could not hold, and a fault's step is mostly about the fault."""
    last = [run.steps[-1] for run in runs]
    if all(map(ladder, runs)):
        yield Figure(f"{name}: highest rate", "events/s", "higher", [highest_rate(run) or 0.0 for run in runs])
        return
    if all(run.fault for run in runs):
        yield Figure(f"{name}: time to recover", "s", "lower", [recovery_seconds(run) for run in runs])
        return
    yield Figure(f"{name}: throughput", "events/s", "higher", [step.events_per_second for step in last])
    yield Figure(f"{name}: p50", "ms", "lower", [step.latency.p50_ms for step in last])
    yield Figure(f"{name}: p99", "ms", "lower", [step.latency.p99_ms for step in last])
    for role in ("engine", "redis", "postgres"):
        yield Figure(f"{name}: CPU of {role}", "us/event", "lower", [step.cpu_us(role) for step in last])


def recovery_seconds(run: Run) -> float:
    """From the end of its fault until it had recovered; where it had not, until the step ended, which is too little."""
    assert run.fault is not None
    known = run.fault.recovered_seconds
    return run.steps[-1].seconds - run.fault.over_seconds if known is None else known


def write_result(result: Result, path: Path) -> None:
    """As indented JSON, whole or not at all."""
    half = path.with_suffix(".part")
    half.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    half.rename(path)


def read_result(path: Path) -> Result:
    """Raises `ValueError` with what is wrong with the file."""
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError) as error:
        raise ValueError(f"{path} is no result of the bench: {error}") from error
    if result.format != FORMAT:
        raise ValueError(f"{path} has format {result.format}, this bench reads {FORMAT}: measure again")
    return result
