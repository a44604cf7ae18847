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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.mutants.mutant import Edit

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


def run_mutant(edits: Sequence[Edit], tests: Sequence[str], *, quick: bool, seeds: int) -> Result:
    """Apply and run until something fails; `quick`: only these tests."""
    started = time.monotonic()

    def result(outcome: Outcome, told: str) -> Result:
        return Result(outcome, told, time.monotonic() - started)

    with copied_tree() as folder:
        try:
            for edit in edits:
                edit.apply(folder)
        except ValueError as wrong:
            return result(Outcome.INVALID, str(wrong))
        for command in [pytest(tests)] if quick else stages(folder, tests, seeds):
            status, output = run(command, folder)
            if status != 0:
                return result(*judge(status, output, is_pytest="pytest" in command))
    return result(Outcome.SURVIVED, "no test failed")


def run_sound(tests: Sequence[str]) -> Result:
    """The same tests on a copy without any mutant: all pass, or a mutant would be caught by a broken suite."""
    started = time.monotonic()
    with copied_tree() as folder:
        ours = code_under_test(folder)
        if ours != folder:
            return Result(Outcome.INVALID, f"Python would run the code of {ours}, not that of the copy", 0.0)
        status, output = run(pytest(tests), folder)
    outcome = Outcome.SURVIVED if status == 0 else Outcome.INVALID
    return Result(outcome, last_lines(output), time.monotonic() - started)


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
            return Outcome.CAUGHT, "python -m tests.simulation"
        failed = _FAILED.search(output)
        if failed is not None:
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
