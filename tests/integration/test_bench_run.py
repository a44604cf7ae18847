"""A whole run of the bench, from fresh stores to the audit: of the engine, and of a system that lies."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from bench.profile import HERE, REST, SOCKETS, STAGES, experiments, profile
from bench.results import FORMAT, Machine, Result, figures, read_result, write_result
from bench.run import Experiment, Load, make_run
from bench.scenario import Scenario
from bench.stand import HEADRACE, StandFailed, System, open_stand

SCENARIO = Scenario(about="", name="tried", campaigns=3, repeats_share=0.1, bad_share=0.05)
LOADS = (Load(2, 0.3), Load(2, 0.5, rate=200.0))


def test_a_run_of_the_engine_is_measured_and_clean(tmp_path: Path) -> None:
    """Every step has its figures; repeats and bad events are told apart; a result can be written and read again."""
    run = make_run(Experiment("tried", HEADRACE, SCENARIO, 10, LOADS), 0, seed=1)
    assert run.audit is not None
    assert run.audit.clean, run.audit
    closed, opened = run.steps
    for step in run.steps:
        assert step.accepted > 0
        assert step.duplicate > 0
        assert step.rejected > 0
        assert step.refused == 0
        # The last slice may reach beyond the step, and what is answered after its end does not count.
        assert 0 < step.events <= sum(each.events for each in step.slices)
        assert {use.role for use in step.uses} == {"engine", "sender", "redis", "postgres"}
        assert step.latency.p50_ms <= step.latency.p99_ms <= step.latency.longest_ms
    assert (closed.loop, opened.loop, opened.offered_events_per_second) == ("closed", "open", 200.0)
    assert any(command.name == "fcall" for command in run.commands)
    result = Result(FORMAT, "", False, "", 1.0, Machine("", 2, 1.0, ""), {}, "tried", [run])
    write_result(result, tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == result
    assert {figure.better for figure in figures(result)} == {"higher", "lower"}


def test_a_system_that_lies_is_found_out() -> None:
    """It answers 200 and keeps nothing: every event is lost, and the run is void."""
    run = make_run(Experiment("tried", System("liar", ("tests.integration.liar",)), SCENARIO, 10, LOADS[:1]), 0, seed=1)
    assert run.void
    assert run.audit is not None
    assert run.audit.lost == run.audit.acknowledged > 0
    assert list(figures(Result(FORMAT, "", False, "", 1.0, Machine("", 2, 1.0, ""), {}, "tried", [run]))) == []


def test_a_system_that_does_not_start_is_told_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of the stand is left."""
    folder = tempfile.mkdtemp(prefix="headrace-test-")  # the stores' sockets need a short path
    Path(folder).chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    with pytest.raises(StandFailed, match="No module named"), open_stand(System("none", ("no.such.module",)), SCENARIO):
        pass
    left = subprocess.run(["pgrep", "-f", folder], capture_output=True, text=True, check=False)
    assert left.stdout == ""
    Path(folder).rmdir()


def test_a_file_that_is_no_result_is_told(tmp_path: Path) -> None:
    """With its name."""
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json is no result"):
        read_result(path)


def test_a_profile_tells_all_of_the_engines_cpu() -> None:
    """Stage by stage, of the engine as it is, in a run that is audited."""
    experiment = next(experiments(HERE, 0.7))
    run, us = profile(replace(experiment, loads=[Load(8, 0.2), Load(8, 0.7)]), 0)
    assert not run.void
    assert sum(us[stage] for stage in STAGES) == pytest.approx(us["all of the engine"])
    assert us[SOCKETS] > 0
    assert us[REST] < 0.2 * us["all of the engine"], "code of ours without a stage"
