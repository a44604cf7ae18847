"""What a result says, in rows: one for each experiment and system, and Headrace's ratios to the others.

Owns which runs count and what is put in the middle of them, so that the table, the page and docs/benchmarks.md say the
same. Pure: knows no text, table or plot.

A row's figures are medians over its rounds. Void rounds do not count; a row that has no other shows theirs, is void
itself, and takes part in no ratio. A **ratio** is Headrace's figure divided by that of another system under the same
experiment of the same result.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from bench.results import OURS, Result, Run, Step, grouped, highest_rate, ladder
from bench.scenario import Scenario, scenarios

ROLES: Final = ("engine", "redis", "postgres", "sender")
CEILINGS: Final = frozenset({"raw COPY", "lua alone", "uvicorn constant", "intake constant"})


@dataclass(frozen=True, slots=True)
class Row:
    """One system under one experiment, all rounds. The last step of a round is what it is about."""

    experiment: str
    system: str
    runs: Sequence[Run]

    @property
    def void_rounds(self) -> int:
        """Rounds whose audit found anything."""
        return sum(run.void for run in self.runs)

    @property
    def void(self) -> bool:
        """Whether no round counts."""
        return self.void_rounds == len(self.runs)

    @property
    def counted(self) -> list[Run]:
        """The clean rounds; where there is none, all of them, to be shown as void."""
        return [run for run in self.runs if not run.void] or list(self.runs)

    @property
    def shown(self) -> Run:
        """The round that plots over time show: the first that counts."""
        return self.counted[0]

    @property
    def examples(self) -> list[str]:
        """What the audits of its void rounds found."""
        return [example for run in self.runs if run.audit and run.void for example in run.audit.examples]

    @property
    def audited(self) -> bool:
        """Whether its rows were compared with its answers: a ceiling promises nothing."""
        return any(run.audit for run in self.runs)

    @property
    def sender_was_limit(self) -> bool:
        """In any round that counts: the system could have done more."""
        return any(run.steps[-1].sender_was_limit for run in self.counted)

    def median(self, figure: Callable[[Step], float]) -> float:
        """Over the rounds."""
        return statistics.median(figure(run.steps[-1]) for run in self.counted)

    @property
    def events_per_second(self) -> float:
        """With a verdict."""
        return self.median(lambda step: step.events_per_second)

    def cpu_us(self, role: str) -> float:
        """Microseconds of CPU an event."""
        return self.median(lambda step: step.cpu_us(role))

    def cores(self, role: str) -> float:
        """In use, on average over the step."""
        return self.median(lambda step: cores(step, role))

    def memory_mb(self, role: str) -> float:
        """Resident, at most."""
        return self.median(lambda step: sum(use.memory_mb for use in step.uses if use.role == role))

    @property
    def p50_ms(self) -> float:
        """Of the rounds' medians."""
        return self.median(lambda step: step.latency.p50_ms)

    @property
    def p99_ms(self) -> float:
        """Of the rounds' p99."""
        return self.median(lambda step: step.latency.p99_ms)

    @property
    def cores_of_system(self) -> float:
        """All roles but the sender."""
        return sum(self.cores(role) for role in ROLES if role != "sender")

    @property
    def sent_bytes(self) -> float:
        """To the system, an event."""
        return self.median(lambda step: step.sent_bytes / (step.events or 1))

    @property
    def received_bytes(self) -> float:
        """From the system, an event."""
        return self.median(lambda step: step.received_bytes / (step.events or 1))

    @property
    def refused_share(self) -> float:
        """Of all that was sent."""
        return self.median(lambda step: step.refused / ((step.refused + step.events) or 1))


@dataclass(frozen=True, slots=True)
class Ratio:
    """Headrace's figures divided by another system's. None: one of both has no such figure."""

    experiment: str
    other: str
    throughput: float | None  # of a ladder: the highest rate held
    p99: float | None
    cpu: float | None  # of engine, redis and postgres together, an event

    @property
    def is_ceiling(self) -> bool:
        """Whether the other one does only a part of the work."""
        return self.other in CEILINGS


def cores(step: Step, role: str) -> float:
    """In use, on average."""
    return sum(use.cpu_seconds for use in step.uses if use.role == role) / step.seconds if step.seconds else 0.0


def rows(result: Result) -> list[Row]:
    """Those whose last step is what they are about: all but ladders and faults."""
    every = [Row(*key, with_steps) for key, runs in grouped(result).items() if (with_steps := _with_steps(runs))]
    return [row for row in every if not any(run.fault or ladder(run) for run in row.runs)]


def ladder_rows(result: Result) -> list[Row]:
    """Those that tried rising rates."""
    groups = grouped(result).items()
    return [Row(*key, climbed) for key, runs in groups if (climbed := [run for run in runs if ladder(run)])]


def fault_runs(result: Result) -> list[Run]:
    """Runs through a fault."""
    return [run for run in result.runs if run.fault and run.steps]


def run_told(run: Run) -> str:
    """A line on one run."""
    if run.measures:
        told = f"{run.experiment}, {run.system}: " + ", ".join(
            f"{value:,.2f} {name}" for name, value in run.measures.items()
        )
        return told + _audit_told(run)
    step = run.steps[-1]
    told = f"{run.experiment}, {run.system}: {step.events_per_second:,.0f} events/s"
    if step.requests:
        told += f", p50 {step.latency.p50_ms:.1f} ms, p99 {step.latency.p99_ms:.1f} ms"
    if step.refused:
        told += f", {step.refused:,} refused"
    if run.fault:
        recovered = run.fault.recovered_seconds
        told += ", not well again" if recovered is None else f", well again after {recovered:.1f} s"
    return told + _audit_told(run) + (", the sender was the limit" if step.sender_was_limit else "")


def _audit_told(run: Run) -> str:
    if run.audit is None:
        return ""
    return f", VOID: {'; '.join(run.audit.examples)}" if run.void else ", audit clean"


def void_told(result: Result) -> list[str]:
    """A line for each void run, with what its audit found."""
    return [
        f"{run.experiment}, {run.system}, round {run.round}: " + ("; ".join(run.audit.examples[:5]) or "no example")
        for run in result.runs
        if run.audit and run.void
    ]


def commit_told(result: Result) -> str:
    """And whether it is all of the code."""
    return f"{result.commit[:12] or 'unknown'}{' with changes' if result.changed else ''}"


def machine_told(result: Result) -> str:
    """In one line."""
    machine = result.machine
    return f"{machine.processor}, {machine.cores} cores, {machine.memory_gb:.0f} GB, {machine.kernel}"


def versions_told(result: Result) -> str:
    """In one line."""
    return ", ".join(f"{name} {version}" for name, version in result.versions.items())


def _with_steps(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.steps]


def rate_held(row: Row) -> float | None:
    """The highest rate that a ladder held; None where some round that counts held none."""
    rates = [rate for run in row.counted if (rate := highest_rate(run)) is not None]
    return statistics.median(rates) if len(rates) == len(row.counted) else None


def ratios(result: Result) -> list[Ratio]:
    """Of all experiments that Headrace and another system went through, and where both did anything."""
    every = [
        Ratio(
            ours.experiment, other.system,
            throughput=_divided(ours.events_per_second, other.events_per_second),
            p99=_divided(ours.p99_ms, other.p99_ms),
            cpu=_divided(_cpu_us_of_all(ours), _cpu_us_of_all(other)),
        )
        for ours, other in _pairs(rows(result))
    ]  # fmt: skip
    every += [
        Ratio(ours.experiment, other.system, _divided(rate_held(ours), rate_held(other)), None, None)
        for ours, other in _pairs(ladder_rows(result))
    ]
    return [ratio for ratio in every if ratio.throughput is not None]


def _pairs(found: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Headrace, and another system under the same experiment; both clean."""
    ours = {row.experiment: row for row in found if row.system == OURS and not row.void}
    for row in found:
        if row.system != OURS and not row.void and row.experiment in ours:
            yield ours[row.experiment], row


def _cpu_us_of_all(row: Row) -> float:
    return sum(row.cpu_us(role) for role in ROLES if role != "sender")


def _divided(ours: float | None, other: float | None) -> float | None:
    return ours / other if ours and other else None


# --- What throughput is plotted against ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scaling:
    """Throughput of like runs that differ in one thing: points of (that thing, events a second)."""

    system: str
    fixed: str  # what they have in common
    points: list[tuple[int, float]]


def by_batch(result: Result) -> list[Scaling]:
    """Against events a request."""
    return _scalings(result, lambda run: run.steps[-1].batch, lambda run: f"{run.scenario}, {_processes(run)}")


def by_campaigns(result: Result) -> list[Scaling]:
    """Against the number of campaigns, where scenarios differ in nothing else."""
    return _scalings(result, _campaigns, lambda run: f"batches of {run.steps[-1].batch:,}, {_processes(run)}")


def by_processes(result: Result) -> list[Scaling]:
    """Against engine processes."""
    return _scalings(result, _workers, lambda run: f"{run.scenario}, batches of {run.steps[-1].batch:,}")


def _scalings(result: Result, x: Callable[[Run], int | None], fixed: Callable[[Run], str]) -> list[Scaling]:
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in rows(result):
        for run in row.counted:
            at = x(run)
            if at is not None and not run.void and run.steps[-1].loop == "closed":
                points = found.setdefault((row.system, fixed(run)), {})
                points.setdefault(at, []).append(run.steps[-1].events_per_second)
    return [
        Scaling(*key, [(at, statistics.median(points[at])) for at in sorted(points)])
        for key, points in found.items()
        if len(points) > 1
    ]


def _workers(run: Run) -> int:
    return int(run.settings.get("HEADRACE_WORKERS", "1"))


def _processes(run: Run) -> str:
    count = _workers(run)
    return "1 process" if count == 1 else f"{count} processes"


def _campaigns(run: Run) -> int | None:
    scenario = scenarios().get(run.scenario)
    if scenario is None:
        return None
    plain = Scenario(about="")
    like = msgspec.structs.replace(
        scenario, about="", name="", campaigns=plain.campaigns, campaign_exponent=plain.campaign_exponent
    )
    return scenario.campaigns if like == plain else None
