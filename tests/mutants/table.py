"""Every mutant."""

from __future__ import annotations

from tests.mutants import engine, found, judge, ledger, locks, lookups, process, sweep, window

MUTANTS = (
    ledger.MUTANTS
    + judge.MUTANTS
    + engine.MUTANTS
    + window.MUTANTS
    + lookups.MUTANTS
    + locks.MUTANTS
    + sweep.MUTANTS
    + process.MUTANTS
    + found.MUTANTS
)
