"""`python -m bench.pair BEFORE [AFTER]`: two checkouts under the same loads, in turn, on the same machine.

Owns the order of runs and the table. A round runs each checkout once, and every other round begins with the other one,
so that whatever the machine does besides meets both alike. Each run has stores of its own and is audited; a void one
is told, and fails the whole.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from bench.results import FORMAT, OURS, Figure, Machine, Result, Run, figures
from bench.run import Experiment, Load, make_run
from bench.scenario import scenarios
from bench.stand import HEADRACE, StandFailed, System
from bench.summary import run_told

WARM_SECONDS: Final = 1.5


def experiments(system: System, seconds: float) -> Iterator[Experiment]:
    """What is compared: batches, and single events."""
    known = scenarios()
    for name, scenario, batch, connections in (
        ("batches of 1,000 over 100 campaigns", "even", 1_000, 32),
        ("single events, one campaign", "one", 1, 256),
        ("single events over 100 campaigns", "even", 1, 256),
    ):
        loads = [Load(connections, WARM_SECONDS), Load(connections, seconds)]
        yield Experiment(name, system, known[scenario], batch, loads)


def run_rounds(systems: Sequence[System], rounds: int, seconds: float, console: Console) -> dict[str, list[Run]]:
    """Runs by system. Raises `StandFailed`."""
    runs: dict[str, list[Run]] = {system.name: [] for system in systems}
    for at, _ in enumerate(experiments(systems[0], seconds)):
        for round_ in range(rounds):
            for system in systems if round_ % 2 == 0 else reversed(systems):
                experiment = list(experiments(system, seconds))[at]
                run = make_run(experiment, round_, seed=round_)
                console.print(f"round {round_}: {run_told(run)}")
                runs[system.name].append(run)
    return runs


def compared(before: Sequence[Run], after: Sequence[Run]) -> Iterator[tuple[Figure, Figure, list[float]]]:
    """Figures that both have, and their ratios round by round."""
    ours = {figure.name: figure for figure in figures(_result(after))}
    for theirs in figures(_result(before)):
        if theirs.name in ours:
            pairs = zip(theirs.samples, ours[theirs.name].samples, strict=False)
            yield theirs, ours[theirs.name], [b / a for a, b in pairs if a]


def _result(runs: Sequence[Run]) -> Result:
    """As if both were the same system: what is compared has the same name."""
    same = [msgspec.structs.replace(run, system=OURS) for run in runs]
    return Result(FORMAT, "", False, "", 0.0, Machine("", 0, 0.0, ""), {}, "pair", same)


def show(before: Sequence[Run], after: Sequence[Run], console: Console) -> None:
    """The table."""
    table = Table("figure")
    for column in ("better", "before", "after", "after / before", "from", "to"):
        table.add_column(column, justify="right")
    for theirs, ours, ratios in compared(before, after):
        if not ratios:
            continue
        medians = [f"{figure.median:,.1f}" for figure in (theirs, ours)]
        spread = [f"{ratio:.2f}" for ratio in (statistics.median(ratios), min(ratios), max(ratios))]
        table.add_row(f"{theirs.name} ({theirs.unit})", theirs.better, *medians, *spread)
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and tell; status 1 if any run was void or failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.pair", description=__doc__)
    parser.add_argument("before", type=Path, help="folder of a checkout")
    parser.add_argument("after", type=Path, nargs="?", default=Path(), help="another one (this one)")
    parser.add_argument("--rounds", type=int, default=5, help="of each experiment (5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="a run, after its warm-up (4)")
    options = parser.parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    systems = [
        replace(HEADRACE, name=name, checkout=str(folder.resolve()))
        for name, folder in (("before", options.before), ("after", options.after))
    ]
    try:
        runs = run_rounds(systems, options.rounds, options.seconds, console)
    except StandFailed as failed:
        console.print(str(failed), style="bold red")
        return 1
    show(runs["before"], runs["after"], console)
    return int(any(run.void for each in runs.values() for run in each))


if __name__ == "__main__":
    sys.exit(main())
