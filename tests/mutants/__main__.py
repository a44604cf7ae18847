"""`python -m tests.mutants`: every mutant of the table, a line each; status 1 unless all are caught."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from tests.mutants.faults import UNDER_FAULTS, run_under_fault
from tests.mutants.mutant import Mutant
from tests.mutants.runner import Outcome, Result, run_mutant, run_sound
from tests.mutants.table import MUTANTS


def main() -> int:
    """Run, tell, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", help="this one (may be given several times)")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time, each with its own stores (2)")
    parser.add_argument("--quick", action="store_true", help="only the tests that the table names, not all others")
    parser.add_argument("--seeds", type=int, default=100, help="seeds of the simulation, the last stage (100; 0: none)")
    parser.add_argument("--faults", action="store_true", help="instead: the ten required ones under a real fault each")
    asked = parser.parse_args()
    chosen = [each for each in MUTANTS if not asked.only or each.name in asked.only]
    unknown = set(asked.only or ()) - {each.name for each in MUTANTS}
    if unknown:
        parser.error(f"not in the table: {', '.join(sorted(unknown))}")
    if asked.faults:
        return under_faults(set(asked.only or ()))
    sound = run_sound(sorted({test for each in chosen for test in each.tests}), quick=asked.quick, seeds=asked.seeds)
    say(f"without a mutant: {sound.told} ({sound.seconds:.0f} s)")
    if sound.outcome is Outcome.INVALID:
        return 1
    counted, caught = run_all(chosen, asked.jobs, quick=asked.quick, seeds=asked.seeds)
    say(f"caught {caught}/{counted}")
    return 0 if caught == counted else 1


def run_all(chosen: list[Mutant], jobs: int, *, quick: bool, seeds: int) -> tuple[int, int]:
    """How many of them count, and how many of those were caught."""
    counted = caught = 0
    with ThreadPoolExecutor(jobs) as pool:
        runs = {pool.submit(run_mutant, each, quick=quick, seeds=seeds): each for each in chosen}
        for done in ended(pool, runs):
            mutant, result = runs[done], done.result()
            mark = " (second line)" if mutant.second else ""
            say(f"{result.outcome.value:8} {mutant.name:40} {result.seconds:6.1f} s  {result.told}{mark}")
            # A second line that survives is none the worse; one that does not apply is a fault of the table.
            if not mutant.second or result.outcome is Outcome.INVALID:
                counted += 1
                caught += result.outcome is Outcome.CAUGHT
    return counted, caught


def under_faults(only: set[str]) -> int:
    """Each against its fault, one after the other: that the fault matrix can fail, too. Not part of the count above."""
    missed = 0
    for each in UNDER_FAULTS:
        if not only or each.mutant in only:
            result = run_under_fault(each, next(mutant for mutant in MUTANTS if mutant.name == each.mutant))
            hidden = each.hidden and result.outcome is Outcome.SURVIVED
            missed += result.outcome is not Outcome.CAUGHT and not hidden
            told = f"hidden: {each.hidden}" if hidden else result.told
            say(f"{result.outcome.value:8} {each.mutant:40} {result.seconds:6.1f} s  {each.fault}: {told}")
    return 1 if missed else 0


def ended(pool: ThreadPoolExecutor, runs: Mapping[Future[Result], Mutant]) -> Iterator[Future[Result]]:
    """Runs as they end; when interrupted, what has not begun never does."""
    try:
        yield from as_completed(runs)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def say(line: str) -> None:
    """A line at once, also into a pipe."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
