"""Runs one mutant: a copy of the tree, the edits, and stage after stage until a test fails.

Owns copies and processes, and what the end of a run means. Knows nothing of what a mutant is about.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.mutants.mutant import Edit, Mutant

ROOT = Path(__file__).resolve().parents[2]
STAGE_SECONDS = 900
STOP_SECONDS = 60

# Whatever the table does not name. The check of the table itself must fail in a copy, and how the house is kept says
# nothing of a rule; the stores' own lives and the workers' are no part of the protocol.
SUITE = (
    "tests/unit", "tests/contract", "tests/simulation", "tests/integration/test_audit.py",
    "--ignore=tests/unit/test_mutants.py", "--ignore=tests/unit/test_tidy.py",
)  # fmt: skip
SIMULATION = "tests/simulation/__main__.py"

# What the simulation prints of a promise that is broken, and of a run that broke down itself.
_VIOLATION, _RUN_ENDED = "a promise is broken by seed", "the run ended:"

_FAILED = re.compile(r"^FAILED (\S+(?:\[.*?\])?)(?: - |$)", re.MULTILINE)
# A line that can't run at all is no rule switched off: whatever fails then, fails for another reason.
_BROKEN = re.compile(
    r"\b(?:NameError|SyntaxError|IndentationError|ImportError|UnboundLocalError|AttributeError|TypeError)\b"
    r"|syntax error at|user_function:\d+: (?:Script attempted|attempt to)"
)


class Outcome(Enum):
    """What became of a mutant."""

    CAUGHT = "caught"
    SURVIVED = "SURVIVED"
    INVALID = "INVALID"  # it does not apply, can't run, or hangs: it proves nothing


@dataclass(frozen=True, slots=True)
class Result:
    """How it was found out, or why not, and how long that took."""

    outcome: Outcome
    told: str
    seconds: float


@contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of all that git knows or would know, changes that are not committed included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="headrace-mutant-")).resolve()
    try:
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        yield folder
    finally:
        shutil.rmtree(folder)


def code_under_test(folder: Path) -> Path:
    """The folder whose code runs when Python starts in this one."""
    told = run([sys.executable, "-c", "import engine; print(engine.__file__)"], folder)[1]
    return Path(told.strip()).parent.parent


@contextmanager
def mutated_tree(edits: Sequence[Edit]) -> Iterator[Path]:
    """A copy of the tree with these edits. Raises `ValueError` when one does not apply."""
    with copied_tree() as folder:
        for edit in edits:
            edit.apply(folder)
        yield folder


def run_mutant(mutant: Mutant, *, quick: bool, seeds: int) -> Result:
    """Apply and run until something fails; `quick`: only the tests that the table names."""
    started = time.monotonic()
    try:
        with mutated_tree(mutant.edits) as folder:
            commands = stages(folder, mutant.tests, seeds)
            outcome, told = _until_caught([next(commands)] if quick or mutant.own else commands, folder)
    except ValueError as wrong:
        outcome, told = Outcome.INVALID, str(wrong)
    return Result(outcome, told, time.monotonic() - started)


def _until_caught(commands: Iterable[list[str]], folder: Path) -> tuple[Outcome, str]:
    for stage, command in enumerate(commands):
        status, output = run(command, folder)
        if status != 0:
            outcome, told = judge(status, output, is_pytest="pytest" in command)
            if outcome is Outcome.CAUGHT and stage > 0 and "pytest" in command:
                return confirm(told, folder)
            return outcome, told
    return Outcome.SURVIVED, "no test failed"


def confirm(test: str, folder: Path) -> tuple[Outcome, str]:
    """A test that nobody expected has failed: it must fail again, and pass without the mutant, or it proves nothing."""
    status, output = run(pytest([test]), folder)
    if status == 0:
        return Outcome.INVALID, f"{test} failed, and passed when it was run again"
    outcome, told = judge(status, output, is_pytest=True)
    if outcome is Outcome.CAUGHT:
        with copied_tree() as sound:
            if run(pytest([test]), sound)[0] != 0:
                return Outcome.INVALID, f"{test} fails without the mutant, too"
    return outcome, told


def run_sound(tests: Sequence[str], *, quick: bool, seeds: int) -> Result:
    """All stages on a copy without any mutant: they pass, or a mutant would be caught by a broken suite."""
    started = time.monotonic()
    with copied_tree() as folder:
        ours = code_under_test(folder)
        if ours != folder:
            return Result(Outcome.INVALID, f"Python would run the code of {ours}, not that of the copy", 0.0)
        commands = stages(folder, tests, seeds)
        for command in [next(commands)] if quick else commands:
            status, output = run(command, folder)
            if status != 0:
                return Result(Outcome.INVALID, last_lines(output), time.monotonic() - started)
    return Result(Outcome.SURVIVED, last_lines(output), time.monotonic() - started)


def stages(folder: Path, tests: Sequence[str], seeds: int) -> Iterator[list[str]]:
    """The likeliest tests, then all, then the simulation with seeds of its own."""
    yield pytest(tests)
    yield pytest(SUITE)
    if seeds and (folder / SIMULATION).exists():
        yield [sys.executable, "-m", "tests.simulation", "--seeds", str(seeds)]


def pytest(arguments: Sequence[str]) -> list[str]:
    """A quiet run that stops at the first failure."""
    return [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", *arguments]


def judge(status: int, output: str, *, is_pytest: bool) -> tuple[Outcome, str]:
    """What a run that did not end with 0 means: only a test that failed, or a violation, has caught anything."""
    broken = _BROKEN.search(output)
    if status == 1 and broken is None:
        if not is_pytest:
            if _VIOLATION in output and _RUN_ENDED not in output:
                return Outcome.CAUGHT, "python -m tests.simulation"
        elif (failed := _FAILED.search(output)) is not None:
            return Outcome.CAUGHT, failed[1]
    return Outcome.INVALID, f"status {status}{f', {broken[0]}' if broken else ''}: {last_lines(output)}"


def last_lines(output: str) -> str:
    """The end of an output in one line."""
    return " | ".join(line for line in output.splitlines()[-3:] if line)


def run(command: Sequence[str], folder: Path) -> tuple[int, str]:
    """Run in the copy, which comes first on `sys.path`; exit status and output. Whoever hangs is interrupted."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=STAGE_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # so that it stops the stores that it started
        try:
            output, _ = process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        return 2, f"{output}\nno end after {STAGE_SECONDS} s"
    return process.returncode, output
