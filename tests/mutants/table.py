"""Every mutant."""

from __future__ import annotations

from tests.mutants import engine, found, judge, ledger, locks, lookups, process, window

MUTANTS = (
    ledger.MUTANTS
    + judge.MUTANTS
    + engine.MUTANTS
    + window.MUTANTS
    + lookups.MUTANTS
    + locks.MUTANTS
    + process.MUTANTS
    + found.MUTANTS
)
