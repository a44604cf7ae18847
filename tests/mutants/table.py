"""Every mutant."""

from __future__ import annotations

from tests.mutants import engine, found, judge, ledger, peers, window

MUTANTS = ledger.MUTANTS + judge.MUTANTS + engine.MUTANTS + window.MUTANTS + found.MUTANTS + peers.MUTANTS
