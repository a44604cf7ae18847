"""The required mutants under real faults: `make faults` must be able to fail.

Owns which fault should notice which mutant, and what a run of the fault matrix means. Apart from the suite's count:
the suite looks at each line by itself, and a real run at what becomes of the whole, where another line may hide it.
"""

from __future__ import annotations

import re
import sys
import time
from typing import Final, NamedTuple

from tests.mutants.mutant import Mutant
from tests.mutants.runner import Outcome, Result, copied_tree, last_lines, mutated_tree, run


class UnderFault(NamedTuple):
    """A mutant, the fault that should notice it, and with how many seeds at most."""

    mutant: str
    fault: str
    seeds: int
    hidden: str = ""  # the line that keeps every promise without it: then it is told, and no error


UNDER_FAULTS: Final = (
    UnderFault("memory-image", "redis: old copy restored", 5),
    UnderFault("generation-in-redis", "engine: zombie with a reservation", 5),
    UnderFault("generation-in-postgres", "engine: zombie with a flush", 10),
    UnderFault("in-flight-apart-from-duplicate", "client: the same id over three connections", 3),
    UnderFault("duplicate-before-cap", "client: hangs up before the answer", 3),
    UnderFault("rebuild-after-the-raise", "engine: frozen before a recovery, Redis emptied again", 20),
    UnderFault("void-removes-ids", "kill -9 at store.flush.before", 5),
    UnderFault(
        "total-budget-in-postgres",
        "redis: two that both lead",
        5,
        hidden="only what the newest generation has reserved commits, and its Redis keeps the budget",
    ),
    UnderFault(
        "commit-tag",
        "postgres: immediate restart",
        5,
        hidden="Postgres reports the error that turns a COMMIT into a ROLLBACK before its tag",
    ),
    UnderFault("no-void-of-an-unknown-outcome", "postgres: answer to COMMIT swallowed", 5),
)

# "    seed 3: lost: …", or what the audit says; a traceback is a fault of the harness, or of the mutant (an engine that
# answers nothing any more has a line of its own: `waiting.explain`).
COMPLAINT: Final = re.compile(r"^ {4}(?:seed (\d+)|audit): (?!Traceback|  \+ Exception Group)(.*)", re.MULTILINE)


def run_under_fault(each: UnderFault, mutant: Mutant) -> Result:
    """Run the fault on the mutant; what is found must not be found without it."""
    started = time.monotonic()
    try:
        with mutated_tree(mutant.edits) as folder:
            status, output = run(_faults(each.fault, 0, each.seeds), folder)
    except ValueError as wrong:
        return Result(Outcome.INVALID, str(wrong), 0.0)
    outcome, told = _judge(each, status, output)
    return Result(outcome, told, time.monotonic() - started)


def _judge(each: UnderFault, status: int, output: str) -> tuple[Outcome, str]:
    if status == 0:
        return Outcome.SURVIVED, f"no promise was broken in {each.seeds} seeds"
    found = COMPLAINT.search(output)
    if status != 1 or found is None:
        return Outcome.INVALID, f"status {status}: {last_lines(output)}"
    first, seeds = (int(found[1]), 1) if found[1] else (0, each.seeds)
    with copied_tree() as sound:
        if run(_faults(each.fault, first, seeds), sound)[0] != 0:
            return Outcome.INVALID, f"found without the mutant, too: {found[0].strip()}"
    return Outcome.CAUGHT, found[0].strip()[:160]


def _faults(fault: str, first: int, seeds: int) -> list[str]:
    options = ["--only", fault, "--first", str(first), "--seeds", str(seeds), "--jobs", "1"]
    return [sys.executable, "-m", "tests.faults", *options]
