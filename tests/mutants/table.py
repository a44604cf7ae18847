"""Every mutant."""

from __future__ import annotations

from tests.mutants import engine, found, judge, ledger, locks, window

MUTANTS = ledger.MUTANTS + judge.MUTANTS + engine.MUTANTS + window.MUTANTS + locks.MUTANTS + found.MUTANTS
