"""The micro benchmarks: every one gives a sample, of the checkout that it is asked for and of no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import bench.micro
from bench.__main__ import main
from bench.compare import INCOMPARABLE, SAME, SLOWER
from bench.micro import HERE, MicroFailed, measure, micro_pair, run_micros
from bench.micro_work import IN_MEMORY, MICROS
from bench.results import figures, read_result

BATCH = "decode, batch of 1,000"


@pytest.fixture(autouse=True)
def few_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is enough where no figure is looked at."""
    monkeypatch.setattr(bench.micro, "TURNS", 1)
    monkeypatch.setattr(bench.micro, "TURNS_OF_STORES", 1)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A checkout of its own."""
    for package in ("api", "config", "engine"):
        shutil.copytree(HERE / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_every_micro_gives_a_sample_a_round() -> None:
    """With real stores, two rounds of each."""
    micros = run_micros(2)
    assert [micro.name for micro in micros] == list(MICROS)
    assert all(len(micro.us_an_event) == 2 and min(micro.us_an_event) > 0 for micro in micros), micros


def test_each_side_is_measured_with_its_own_engine(other: Path) -> None:
    """One that has lost its rows packs none: that micro is left out of both, and the reason is told."""
    (other / "engine" / "postgres" / "copy.py").write_text("")
    ours, theirs = measure([HERE, other], 1, [BATCH, "pack rows"])
    assert list(ours.of) == list(theirs.of) == [BATCH]
    assert list(theirs.missing) == ["pack rows"]
    assert "guard_call" in theirs.missing["pack rows"]
    assert not ours.missing


def test_the_figures_of_two_checkouts_can_be_compared(other: Path) -> None:
    """Both are of one machine, suite and start; a folder without git has no commit."""
    a, b = micro_pair(HERE, other, 1, [BATCH])
    assert (a.machine, a.suite, a.started_at) == (b.machine, b.suite, b.started_at)
    assert b.commit == ""
    assert [figure.name for figure in figures(b)] == [f"micro: {BATCH}"]


def test_the_command_leaves_both_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And tells of each figure."""
    into = tmp_path / "results"
    assert main(["micro", str(HERE), "--rounds", "3", "--only", "1,000 lines", "--into", str(into)]) in (SAME, SLOWER)
    assert len(read_result(into / "before.json").micros[0].us_an_event) == 3
    assert "decode, 1,000 lines" in capsys.readouterr().out
    assert main(["micro", str(HERE), "--only", "no such micro"]) == INCOMPARABLE


def test_a_folder_without_an_engine_is_told(tmp_path: Path) -> None:
    """It is not measured with somebody else's."""
    with pytest.raises(MicroFailed, match="engine"):
        measure([tmp_path], 1, IN_MEMORY)
