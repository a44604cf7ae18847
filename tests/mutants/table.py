"""Every mutant."""

from __future__ import annotations

from tests.mutants import bodies, engine, found, judge, ledger, locks, lookups, peers, process, sweep, window

MUTANTS = (
    ledger.MUTANTS
    + judge.MUTANTS
    + engine.MUTANTS
    + window.MUTANTS
    + lookups.MUTANTS
    + locks.MUTANTS
    + sweep.MUTANTS
    + bodies.MUTANTS
    + peers.MUTANTS
    + process.MUTANTS
    + found.MUTANTS
)
