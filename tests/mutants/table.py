"""Every mutant."""

from __future__ import annotations

from tests.mutants import engine, found, judge, ledger, process, window

MUTANTS = ledger.MUTANTS + judge.MUTANTS + engine.MUTANTS + window.MUTANTS + found.MUTANTS + process.MUTANTS
