"""The table of mutants fits the code: a refactoring that moves a safety line must move its mutant with it."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.__main__ import FAULTS
from tests.faults.waiting import explain
from tests.mutants.faults import COMPLAINT, UNDER_FAULTS, UnderFault
from tests.mutants.mutant import Mutant
from tests.mutants.runner import ROOT, Outcome, judge
from tests.mutants.table import MUTANTS


def test_names_are_unique() -> None:
    """`--only` means one of them."""
    assert [name for name, times in Counter(each.name for each in MUTANTS).items() if times > 1] == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code(mutant: Mutant) -> None:
    """What it replaces occurs exactly once, and what it says is there changes something."""
    assert mutant.protects.endswith(".")
    for edit in mutant.edits:
        assert (ROOT / edit.file).read_text(encoding="utf-8").count(edit.old) == 1, f"{edit.file}: {edit.old!r}"
        assert edit.old != edit.new


@pytest.mark.parametrize("test", sorted({test for each in MUTANTS for test in each.tests}))
def test_the_tests_that_should_notice_are_there(test: str) -> None:
    """A renamed test would be found out only by the run."""
    file, _, name = test.partition("::")
    assert f"def {name.partition('[')[0]}" in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("status", "output", "outcome"),
    [
        (1, "FAILED tests/a.py::test_b[x y] - assert 1 == 2", Outcome.CAUGHT),
        (1, "ERROR tests/a.py::test_b - assert 1 == 2", Outcome.INVALID),
        (1, "E   NameError: no\nFAILED tests/a.py::test_b - NameError: no", Outcome.INVALID),
        (2, "ERROR tests/a.py - SyntaxError: invalid", Outcome.INVALID),
        (4, "ERROR: not found: tests/a.py::test_b", Outcome.INVALID),
        (5, "no tests ran", Outcome.INVALID),
    ],
)
def test_only_a_test_that_failed_has_caught_a_mutant(status: int, output: str, outcome: Outcome) -> None:
    """Not a collection that failed, nor a line that can't run."""
    assert judge(status, output, is_pytest=True)[0] is outcome


@pytest.mark.parametrize(
    ("output", "outcome"),
    [
        ("--- a promise is broken by seed 3; again: make sim SEED=3 STEPS=200\nc1: committed twice", Outcome.CAUGHT),
        ("--- a promise is broken by seed 3; again: …\nthe run ended:\nKeyError: 7", Outcome.INVALID),
        ("Traceback …\nKeyError: 7", Outcome.INVALID),
    ],
)
def test_only_a_broken_promise_of_the_simulation_has_caught_a_mutant(output: str, outcome: Outcome) -> None:
    """Not a fault of the simulation itself, which has the same exit status."""
    assert judge(1, output, is_pytest=False)[0] is outcome


@pytest.mark.parametrize("each", UNDER_FAULTS, ids=lambda each: each.mutant)
def test_what_runs_under_a_fault_is_there(each: UnderFault) -> None:
    """A renamed mutant or fault would be found out only by the run; and a name must mean one fault."""
    assert each.mutant in {mutant.name for mutant in MUTANTS}
    assert [name for name in FAULTS if each.fault in name] == [each.fault]


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (
            ExceptionGroup("of a nursery", [AssertionError("did not happen within 30 s: 10 requests are answered")]),
            True,
        ),
        (ExceptionGroup("of a nursery", [ExceptionGroup("of another", [OSError("no such file")])]), False),
        (ExceptionGroup("of a nursery", [AssertionError("one thing"), AssertionError("another")]), False),
        (AssertionError(), False),
    ],
)
def test_a_broken_promise_has_a_line_and_a_fault_of_the_harness_a_traceback(error: Exception, counts: bool) -> None:
    """Only the first may be what catches a mutant."""
    inner = error
    while isinstance(inner, ExceptionGroup):
        inner = inner.exceptions[0]
    with pytest.raises(type(inner)):
        raise inner  # so that it has a traceback
    try:
        raise error
    except Exception as raised:  # noqa: BLE001 - as the harness does
        told = f"    seed 3: {explain(raised)}"
    assert (COMPLAINT.search(told) is not None) == counts
