"""Every mutant."""

from __future__ import annotations

from tests.mutants import (
    bodies,
    bounds,
    engine,
    found,
    judge,
    lane,
    ledger,
    locks,
    lookups,
    memory,
    peers,
    process,
    sweep,
    watermark,
)

MUTANTS = (
    ledger.MUTANTS
    + judge.MUTANTS
    + engine.MUTANTS
    + watermark.MUTANTS
    + bounds.MUTANTS
    + lookups.MUTANTS
    + lane.MUTANTS
    + memory.MUTANTS
    + locks.MUTANTS
    + sweep.MUTANTS
    + bodies.MUTANTS
    + peers.MUTANTS
    + process.MUTANTS
    + found.MUTANTS
)
