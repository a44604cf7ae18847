"""The mutation proof: each safety line of the ledger protocol is switched off in turn, and the suite must fail.

`python -m tests.mutants` copies the tree for each mutant of the table, applies it, and runs the tests that should
notice first, then all others, and at last the simulation. A mutant that no test notices is a rule without a test.
`--faults` runs the ten required ones under real faults instead, apart from that count (`faults.py`).
`--only NAME` runs one, `--quick` only the tests that the table names: seconds a mutant, for whoever adds one.

The edits are of the real engine and not of the fakes: the contract tests hold those to the same rules. Only where a
script of the simulation is on trial (`found.py`), lines of the library are switched off in the fake that it runs on.

Lines that are kept as a second line stand in the table too, marked `second`: without one of them another line still
keeps every 200 true, and only progress or the freshness of a refusal suffers (protocol.md, section 8). They are run
and told, and not counted. Left out altogether, because nothing but time or room is lost without them: NOTIFY, the
order in which a flush locks its rows, the look-up on other identity days of an id that Redis knows, dropping the
records of told tags, the look at an idle connection before a flush, halving a refused flush.
A void added after an unknown outcome is no mutant either: the actor closes at once, its recovery forgets the void,
and Redis would refuse it for its generation; so the mutant there takes the unknown outcome for a certain one.
"""
