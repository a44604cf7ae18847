"""Every mutant."""

from __future__ import annotations

from tests.mutants import (
    bodies,
    engine,
    found,
    judge,
    ledger,
    locks,
    lookups,
    memory,
    peers,
    process,
    sweep,
    watermark,
    window,
)

MUTANTS = (
    ledger.MUTANTS
    + judge.MUTANTS
    + engine.MUTANTS
    + watermark.MUTANTS
    + window.MUTANTS
    + lookups.MUTANTS
    + memory.MUTANTS
    + locks.MUTANTS
    + sweep.MUTANTS
    + bodies.MUTANTS
    + peers.MUTANTS
    + process.MUTANTS
    + found.MUTANTS
)
