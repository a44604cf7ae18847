"""Chaos mode: faults under load are timed and audited, and the audit catches an engine that answers before COMMIT."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bench.chaos import CONNECTIONS, FAULTS, chaos_experiments
from bench.injection import Injection, recovered_seconds
from bench.results import Run, Slice
from bench.run import Experiment, Load, make_run
from bench.scenario import Scenario
from bench.stand import HEADRACE, System

SCENARIO = Scenario(about="", name="tried", campaigns=3)
HASTY = System("hasty", ("tests.integration.hasty",), addresses=2)
KILL = FAULTS["engine-killed"]
WAIT_SECONDS = 240.0  # for what takes a few, on a machine that others use, too


def run_with(injection: Injection | None, system: System = HEADRACE) -> Run:
    """Two connections, and the fault a second after the load's begin."""
    loads = [Load(2, 0.3), Load(2, 3.0)]
    return make_run(Experiment("tried", system, SCENARIO, 10, loads, injection=injection), 0, seed=1)


def lost(run: Run) -> int:
    """Events that were acknowledged, and are not there."""
    assert run.audit is not None
    assert run.audit.acknowledged > 0
    return run.audit.lost


def assert_clean_through(run: Run, fault: str) -> None:
    """The fault came within the load, and nothing came of it."""
    assert run.fault is not None
    assert run.fault.name == fault
    assert 0 < run.fault.at_seconds < run.steps[-1].seconds
    assert run.fault.at_seconds < run.fault.over_seconds
    assert run.audit is not None
    assert not run.void, run.audit.examples


def test_a_killed_engine_loses_nothing() -> None:
    """Kill -9 under load; what nobody answered is unknown, and the rest is true."""
    run = run_with(KILL)
    assert_clean_through(run, "engine-killed")
    assert lost(run) == 0
    assert run.audit is not None
    assert run.audit.unknown > 0


def test_an_engine_that_answers_before_commit_is_caught_when_it_is_killed() -> None:
    """The same kill: what it had promised is lost, and the run is void."""
    run = run_with(KILL, HASTY)
    assert lost(run) > 0
    assert run.void
    assert run.audit is not None
    assert any(example.startswith("lost: ") for example in run.audit.examples)


def test_an_engine_that_answers_before_commit_is_sound_while_it_lives() -> None:
    """So it is the kill that brings it to light, and not some other fault of the broken engine."""
    run = run_with(None, HASTY)
    assert lost(run) == 0
    assert not run.void


@pytest.mark.parametrize("fault", ["redis-killed", "network-cut"])
def test_a_store_that_went_away_takes_nothing_with_it(fault: str) -> None:
    """Redis killed, and empty afterwards; both stores out of reach."""
    assert_clean_through(run_with(FAULTS[fault]), fault)


def test_every_fault_is_an_experiment_of_its_own() -> None:
    """A worker can only be killed where there are two."""
    made = {each.injection.name: each for each in chaos_experiments(SCENARIO) if each.injection}
    assert set(made) == set(FAULTS)
    assert made["worker-killed"].system.settings == {"HEADRACE_WORKERS": "2"}
    assert {each.loads[-1].connections for each in made.values()} == {CONNECTIONS}


def slices(*events: int) -> list[Slice]:
    """Of a quarter of a second each."""
    return [Slice(0.25 * at, count, 0, 0.0, 0.0) for at, count in enumerate(events)]


@pytest.mark.parametrize(
    ("events", "recovered"),
    [
        ((100, 100, 100, 100, 0, 0, 50, 95, 100), 0.35),  # in the slice from 1.75 s on
        ((100, 100, 100, 100, 100, 0, 50, 80, 80), None),  # not within the step
        ((0, 0, 0, 0, 0, 0, 50, 95, 100), None),  # nothing to compare with
        ((100, 0, 100, 0, 0, 0, 50, 95, 100), 0.35),  # the pauses of bursts are no measure
        ((100, 100, 100, 100, 0, 0, 0, 0, 0, 100), None),  # answered after the step's end
    ],
)
def test_recovery_counts_from_the_end_of_the_fault(events: tuple[int, ...], recovered: float | None) -> None:
    """Until nine tenths of the median before it; the fault lasts from 1.1 to 1.4 s of 2.25."""
    assert recovered_seconds(slices(*events), 1.1, 1.4, 2.25) == recovered


def test_an_interrupted_run_leaves_nothing_behind() -> None:
    """Not even a frozen store."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-test-"))  # the stores' sockets need a short path
    folder.chmod(0o711)
    command = [sys.executable, "-m", "bench", "chaos", "one", "--fault", "redis-frozen", "--seconds", "3"]
    program = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(folder)})
    try:
        end_at = time.monotonic() + WAIT_SECONDS
        while not any(is_frozen(pid) for pid in processes_of(folder)):
            assert time.monotonic() < end_at, "Redis is frozen"
            assert program.poll() is None
            time.sleep(0.05)
        program.send_signal(signal.SIGTERM)
        assert program.wait(WAIT_SECONDS) == 130
        assert processes_of(folder) == []
        assert list(folder.iterdir()) == []
    finally:
        program.terminate()
        program.wait()
        shutil.rmtree(folder)


def processes_of(folder: Path) -> list[int]:
    """Those that were started with a path in this folder."""
    found = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def is_frozen(pid: int) -> bool:
    """Whether it has stopped on a signal."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
