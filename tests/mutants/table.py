"""Every mutant."""

from __future__ import annotations

from tests.mutants import engine, found, judge, ledger, lookups, process, window

MUTANTS = (
    ledger.MUTANTS
    + judge.MUTANTS
    + engine.MUTANTS
    + window.MUTANTS
    + lookups.MUTANTS
    + process.MUTANTS
    + found.MUTANTS
)
