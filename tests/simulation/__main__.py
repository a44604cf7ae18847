"""`python -m tests.simulation`: many seeds, or one of them told line by line. Exit status 1 when a promise broke."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

from tests.simulation.run import Outcome, simulate

LINES_SHOWN = 40
PROGRESS_SECONDS = 15.0


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed, with everything that happens")
    parser.add_argument("--first", type=int, default=0, help="the first of many seeds")
    parser.add_argument("--seeds", type=int, default=2_000, help="how many")
    parser.add_argument("--steps", type=int, default=200, help="steps of each")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    options = parser.parse_args()
    if options.seed is not None:
        outcomes: Iterator[Outcome] = iter([simulate(options.seed, options.steps, print)])
    else:
        outcomes = _many(range(options.first, options.first + options.seeds), options.steps, options.jobs)
    return _report(outcomes, keep_going=options.keep_going, told=options.seed is not None)


def _many(seeds: range, steps: int, jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from map(partial(simulate, steps=steps), seeds)
        return
    # (Spawned, because a fork would share the parent's random state and open files.)
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(partial(simulate, steps=steps), seeds, chunksize=4)


def _report(outcomes: Iterator[Outcome], *, keep_going: bool, told: bool) -> int:
    counts: Counter[str] = Counter()
    seeds = steps = sent = acknowledged = failed = 0
    started = spoken = time.monotonic()
    for outcome in outcomes:
        seeds, steps = seeds + 1, steps + outcome.steps
        sent, acknowledged = sent + outcome.sent, acknowledged + outcome.acknowledged
        counts += outcome.counts
        if outcome.violations:
            failed += 1
            _tell(outcome, lines=0 if told else LINES_SHOWN)
            if not keep_going:
                break
        if time.monotonic() - spoken > PROGRESS_SECONDS:
            spoken = time.monotonic()
            print(f"{seeds} seeds, {sent} events sent, {failed} seeds with violations", flush=True)
    for name, count in sorted(counts.items()):
        print(f"  {count:>9} {name}")
    print(
        f"{seeds} seeds, {steps} steps, {sent} events sent, {acknowledged} acknowledged, "
        f"{sum(count for name, count in counts.items() if not name.startswith('verdict'))} faults, "
        f"{failed} seeds with violations, {time.monotonic() - started:.0f} s"
    )
    return 1 if failed else 0


def _tell(outcome: Outcome, *, lines: int) -> None:
    if lines:
        print(f"--- the last {lines} lines of seed {outcome.seed}", *outcome.lines[-lines:], sep="\n")
    print(f"--- a promise is broken by {outcome.told}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
