"""`headrace-bench compare A B`: what of B is faster or slower than A, as far as the samples can tell.

Owns the verdicts and the table. Pure but for reading the two files: knows no system, and starts nothing.

A verdict must survive three things:

- **Noise between rounds.** Figures are compared by ratios of B to A, round by round, and by an interval about their
  median (intervals.py), never by the median alone.
- **Many figures.** With thirty at 95 % each, one or two of them would be faster or slower every time. All verdicts
  together are wrong once in a hundred comparisons of like with like: each interval gets its part of that (Dunn,
  "Multiple comparisons among means", Journal of the American Statistical Association 56, 1961: Bonferroni's bound,
  which holds for figures that depend on each other, as these do). So only what counts is judged: the engine's
  throughput and CPU an event, and the micros. Latencies (which follow from throughput in a closed loop) and the
  peers and ceilings (the same code in any commit: if they differ, the machine does) are told with a plain 95 %.
- **What no sample of one file can show:** a machine that is another one an hour later. The whole interval must lie
  beyond a zone about 1, wide for two files that were measured one after the other, narrow for files of one call that
  measured both in turn (`bench.micro`): a few percent can be seen in the latter only.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from rich.console import Console
from rich.table import Table

from bench.intervals import SAMPLES_MIN, median_interval
from bench.results import Figure, Result, figures, read_result

Verdict = Literal["faster", "slower", "no difference seen", "not judged"]

MISS: Final = 0.01  # that any judged figure at all is called different where none is
MISS_TOLD: Final = 0.05  # of each figure that is not judged
# The least ratio that is worth a word, either way. Code that is the same differs by a percent from checkout to checkout
# (where its bytes lie in memory); a machine differs from itself by several from hour to hour.
ZONE_IN_TURN: Final = 1.02
ZONE_APART: Final = 1.10
ENGINE: Final = "headrace"  # so begins `Run.system` where it is no peer and no ceiling
_JUDGED: Final = ("throughput", "CPU of engine", "CPU of redis", "CPU of postgres")

SAME, SLOWER, INCOMPARABLE = 0, 1, 2  # statuses


class Incomparable(Exception):
    """These two results say nothing about each other; the message is why."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of two results. `ratio` is the median of b / a, round by round; the truth is in `low` to `high`."""

    name: str
    unit: str
    better: Literal["higher", "lower"]
    a: float  # medians
    b: float
    ratio: float
    low: float
    high: float
    rounds: int
    verdict: Verdict


def compare(a: Result, b: Result) -> list[Comparison]:
    """Every figure that both have. Raises `Incomparable`."""
    _check(a, b)
    zone = ZONE_IN_TURN if in_turn(a, b) else ZONE_APART
    pairs = list(_paired(a, b))
    judged = {
        before.name
        for before, after, logs in pairs
        if len(logs) >= SAMPLES_MIN and _counts(before.name, a) and _counts(after.name, b)
    }
    if not judged:
        raise Incomparable(f"no figure that is judged has {SAMPLES_MIN} rounds or more in both")
    miss = MISS / len(judged)
    return [
        _compared(before, after, logs, miss if before.name in judged else None, zone) for before, after, logs in pairs
    ]


def in_turn(a: Result, b: Result) -> bool:
    """Whether one call measured both in turn, round by round: such a call gives both the same start."""
    return a.suite == b.suite and a.started_at == b.started_at


def _check(a: Result, b: Result) -> None:
    for what, ours, theirs in (
        ("format", a.format, b.format),
        ("suite", a.suite, b.suite),
        ("machine", a.machine, b.machine),
    ):
        if ours != theirs:
            raise Incomparable(f"they differ in their {what}: {ours} and {theirs}")
    for name, result in (("first", a), ("second", b)):
        void = sorted({run.experiment for run in result.runs if run.void})
        if void:
            raise Incomparable(f"the {name} is void, its audit found something: {', '.join(void)}")


def _paired(a: Result, b: Result) -> Iterator[tuple[Figure, Figure, list[float]]]:
    """Figures that both have, and the logarithms of their ratios; a round in which either was 0 has none."""
    of_b = {figure.name: figure for figure in figures(b)}
    for before in figures(a):
        after = of_b.get(before.name)
        if after is not None:
            rounds = zip(before.samples, after.samples, strict=False)
            logs = [math.log(theirs / ours) for ours, theirs in rounds if ours > 0 and theirs > 0]
            if logs:
                yield before, after, logs


def _counts(name: str, result: Result) -> bool:
    """Whether a figure is judged."""
    if name.startswith("micro: "):
        return True
    experiment, _, what = name.rpartition(": ")
    return what in _JUDGED and any(
        run.experiment == experiment and run.system.startswith(ENGINE) for run in result.runs
    )


def _compared(before: Figure, after: Figure, logs: Sequence[float], miss: float | None, zone: float) -> Comparison:
    low, high = -math.inf, math.inf
    if len(logs) >= SAMPLES_MIN:
        low, high = median_interval(logs, MISS_TOLD if miss is None else miss)
    verdict: Verdict = "no difference seen"
    if miss is None:
        verdict = "not judged"
    elif low > math.log(zone):
        verdict = "faster" if before.better == "higher" else "slower"
    elif high < -math.log(zone):
        verdict = "slower" if before.better == "higher" else "faster"
    return Comparison(
        before.name, before.unit, before.better, before.median, after.median,
        math.exp(statistics.median(logs)), _ratio(low), _ratio(high), len(logs), verdict,
    )  # fmt: skip


def _ratio(log: float) -> float:
    """Few and wild samples can have an interval whose ends no float holds."""
    return math.exp(min(log, 700.0)) if log < math.inf else math.inf


# --- Telling ------------------------------------------------------------------------------------------------

_STYLES: Final = {"faster": "green", "slower": "bold red", "no difference seen": "", "not judged": "dim"}


def show(a: Result, b: Result, compared: Sequence[Comparison], console: Console) -> None:
    """What is compared, the table, and what is to be known about it."""
    for letter, result in (("a", a), ("b", b)):
        changed = ", with changes that no commit has" if result.changed else ""
        console.print(f"{letter}: {result.commit or 'no commit'}{changed}, suite {result.suite}, {result.started_at}")
    table = Table("figure", width=None if console.is_terminal else 140)
    for column in ("better", "a", "b", "b / a", "from", "to", "rounds"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for each in compared:
        numbers = [f"{number:,.4g}" if number < 1_000 else f"{number:,.0f}" for number in (each.a, each.b)]
        ratios = [f"{ratio:.3f}" for ratio in (each.ratio, each.low, each.high)]
        table.add_row(
            f"{each.name} ({each.unit})", each.better, *numbers, *ratios, str(each.rounds), each.verdict,
            style=_STYLES[each.verdict],
        )  # fmt: skip
    console.print(table)
    for package in sorted(a.versions.keys() | b.versions.keys()):
        if a.versions.get(package) != b.versions.get(package):
            console.print(f"{package} differs: {a.versions.get(package)} and {b.versions.get(package)}")
    console.print(_explained(a, b, compared))


def _explained(a: Result, b: Result, compared: Sequence[Comparison]) -> str:
    judged = sum(each.verdict != "not judged" for each in compared)
    how, zone = ("in turn", ZONE_IN_TURN) if in_turn(a, b) else ("one after the other", ZONE_APART)
    return (
        f"{judged} figures are judged, and one of them is wrong in less than {MISS:.0%} of all comparisons of a commit"
        f" with itself. Measured {how}: less than {zone - 1:.0%} is no difference."
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line."""
    parser.add_argument("a", type=Path, help="a result, from before")
    parser.add_argument("b", type=Path, help="a result, from after")


def run(options: argparse.Namespace) -> int:
    """Compare and tell. Status 1: something is slower; 2: the two can't be compared."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        a, b = read_result(options.a), read_result(options.b)
        compared = compare(a, b)
    except (ValueError, Incomparable) as error:
        console.print(f"These can't be compared: {error}", style="bold red")
        return INCOMPARABLE
    show(a, b, compared, console)
    return status(compared)


def status(compared: Sequence[Comparison]) -> int:
    """For CI."""
    return SLOWER if any(each.verdict == "slower" for each in compared) else SAME
