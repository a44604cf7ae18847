"""Locust against a real engine, with two processes, held against the database."""

from __future__ import annotations

import subprocess

import pytest

from bench.locust_run import LOCUST, LocustFailed, Swarm, drive, run_locust
from bench.scenario import Scenario
from bench.stand import HEADRACE, open_stand

pytestmark = pytest.mark.skipif(not LOCUST.exists(), reason="locust is not installed: make locust-setup")


def test_what_locust_was_told_is_in_the_database() -> None:
    """The mix in two processes, then batches at a rate: the counts of all workers arrive, and are the rows."""
    with open_stand(HEADRACE, Scenario(about="", name="tried", campaigns=1)) as stand:
        mixed = run_locust(stand, Swarm(users=16, seconds=4, processes=2, batch=20))
        paced = run_locust(stand, Swarm(users=2, seconds=4, batch=5, rate=100.0, classes=("Batch", "Gzip")))
    for run in (mixed, paced):
        assert run.accepted > 0
        assert run.failures == run.refused == 0
        assert run.events == run.offered
        assert run.agrees, run
    assert (mixed.rate, paced.rate) == (None, 100.0)
    left = subprocess.run(["pgrep", "-f", "bench/locustfile[.]py.*" + stand.api], capture_output=True, check=False)
    assert left.stdout == b""


def test_an_engine_that_is_not_there_is_told() -> None:
    """With what locust said of it."""
    with pytest.raises(LocustFailed, match="No campaign could be made"):
        drive("http://127.0.0.1:9", "http://127.0.0.1:9", Swarm(users=1, seconds=2))
