"""The table of targets from one command, in its smallest form; and that a full table is one that the audit accepts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from bench import __main__ as bench
from bench.filling import FIRST_TAG, empty_events, fill_events
from bench.results import read_result
from bench.suite import FOR_TARGETS
from bench.targets import FAIR, reached
from config.settings import Settings
from engine.auditor import audit
from engine.postgres.store import open_store
from tests.contract.flushes import new_campaign


def test_the_table_comes_from_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flood has a step of its own, all of it is audited, and what was not asked for is left open."""
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "FOR_TARGETS", replace(FOR_TARGETS, warm_seconds=0.3))
    assert bench.main(["targets", "--rounds", "1", "--seconds", "0.5", "--only", "fair share"]) == 0
    (path,) = tmp_path.glob("*-targets-*.json")
    result = read_result(path)
    (run,) = result.runs
    assert run.audit is not None
    assert run.audit.clean
    assert run.audit.acknowledged > 0
    assert [(step.batch, step.loop) for step in run.steps[-3:]] == [(1, "open"), (1_000, "closed"), (1, "open")]
    assert {each.target.ours.experiment for each in reached(result) if each.samples} == {FAIR}


@pytest.mark.stores
async def test_a_filled_table_has_sound_books(database_url: str, redis_url: str) -> None:
    """Rows in a partition of each day, rollups with them, and no money in it."""
    async with open_store(database_url, Settings()) as store:
        for _ in range(2):
            await new_campaign(store, freq_cap_impressions_per_day=1)
    fill_events(database_url, 1_000)
    result = await audit(database_url, redis_url, Settings())
    assert result.findings == []
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            "SELECT count(*), count(DISTINCT event_id), count(DISTINCT tableoid), min(batch) >= %s, max(batch) < 0"
            " FROM events", [FIRST_TAG],
        ).fetchone()  # fmt: skip
        assert found == (1_000, 1_000, 4, True, True)
    empty_events(database_url)
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT FROM events").fetchone() is None
