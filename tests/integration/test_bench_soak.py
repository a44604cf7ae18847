"""A soak in its smallest form: an engine on its defaults, a history, a load, a loss of Redis, the audit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
import pytest

from bench import __main__ as bench
from bench.soak import command
from bench.soak.record import Soak, windows
from bench.soak.restart import restarted


def test_a_soak_leaves_figures_and_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every role and store has its figures, all campaigns come back, and nothing was lost."""
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    monkeypatch.setattr(command, "restarted", partial(restarted, minute=0.5))
    arguments = ["--minutes", "0.03", "--campaigns", "5", "--batch", "50", "--connections", "2", "--every", "0.5"]
    more = ["--capped", "--history", "1k/10min", "--history", "500/20d", "--restart-at-end", "empty-redis"]
    assert bench.main(["soak", *arguments, *more]) == 0, capfd.readouterr().out
    (path,) = tmp_path.glob("*.json")
    soak = msgspec.json.decode(path.read_bytes(), type=Soak)
    assert soak.sound
    assert soak.history_rows == 1_500
    assert soak.total("accepted") > 0
    assert (soak.total("refused"), soak.total("rejected")) == (0, 0)
    assert soak.rows > soak.total("accepted"), "the light load has rows, too"
    for sample in soak.samples:
        assert set(sample.memory_mb) == {"engine", "redis", "postgres", "sender"}
        assert all(sample.memory_mb.values())
        assert {"Redis used MB", "tables MB", "WAL MB"} <= sample.gauges.keys()
        assert any(name.startswith("headrace_events_total") for name in sample.metrics)
    first, last = windows(soak.samples)
    assert first.rate("accepted") > 0
    assert last.rate("accepted") > 0
    (restart,) = soak.restarts
    assert (restart.kind, restart.campaigns, restart.never) == ("empty-redis", 5, 0)
    assert restart.first_seconds is not None
    assert restart.all_seconds is not None
    assert restart.first_seconds <= restart.all_seconds
    assert path.with_suffix(".svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--users-a-day", "100000"], "needs --capped"),
        (["--capped", "--users-a-day", "5"], "at least"),
        (["--history", "10"], "no history"),
        (["--setting", "x"], "no setting"),
        (["--minutes", "100000"], "GB of disk"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Before anything is started."""
    assert bench.main(["soak", *arguments]) == bench.FAILED_STATUS
    assert told in capfd.readouterr().out
