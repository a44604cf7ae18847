"""Every mutant."""

from __future__ import annotations

from tests.mutants import bodies, engine, found, judge, ledger, lookups, window

MUTANTS = (
    ledger.MUTANTS + judge.MUTANTS + engine.MUTANTS + window.MUTANTS + bodies.MUTANTS + found.MUTANTS + lookups.MUTANTS
)
