"""Calls for operators, and what becomes of errors."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

import pytest
import trio

from api.errors import PROBLEMS
from tests.fakes.api import CAMPAIGN, FakeApi

API = Path(__file__).resolve().parents[2] / "api"


async def test_health_asks_nobody() -> None:
    """200 even when nothing else works."""
    api = FakeApi()
    api.engine.not_ready = ["redis: no answer"]
    told = await api.send("GET", "/healthz")
    assert (told.status, told.json) == (200, {"status": "ok"})


async def test_readiness_names_what_is_in_the_way() -> None:
    """503 with every problem; 200 without."""
    api = FakeApi()
    assert (await api.send("GET", "/readyz")).json == {"status": "ready"}
    api.engine.not_ready = ["postgres: no answer", "redis: no answer"]
    told = await api.send("GET", "/readyz")
    assert (told.status, told.code, told.headers["retry-after"]) == (503, "not_ready", "1")
    assert told.json["detail"] == "postgres: no answer; redis: no answer"


async def test_metrics_are_prometheus_text() -> None:
    """OpenMetrics if it is asked for."""
    api = FakeApi()
    told = await api.send("GET", "/metrics")
    assert told.headers["content-type"].startswith("text/plain; version=")
    assert b"headrace_flush_seconds_bucket" in told.body
    asked = await api.send("GET", "/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert asked.headers["content-type"].startswith("application/openmetrics-text")
    assert asked.body.endswith(b"# EOF\n")


@pytest.mark.parametrize("version", ["x", "", "1.0.0;", "2.0.0", "99999", "1.0.0; escaping=x", "'1'", "\xff", "1e5"])
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
async def test_metrics_are_told_in_whatever_version_is_asked_for(kind: str, version: str) -> None:
    """One that is none, or unknown, gets a format that everybody reads."""
    told = await FakeApi().send("GET", "/metrics", accept=f"{kind};version={version}")
    assert told.status == 200
    assert b"headrace_flush_seconds_bucket" in told.body


async def test_metrics_are_summed_over_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process counts in a file of its own; whoever is asked adds them up."""
    count = "from engine import metrics; metrics.actor_faults.inc(2); metrics.actors.set(5)"
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        await trio.run_process([sys.executable, "-c", count], env=environment, cwd=API.parent)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    told = await FakeApi().send("GET", "/metrics")
    assert b"headrace_actor_faults_total 4.0" in told.body


@pytest.mark.parametrize("path", ["/", "/x", "/events", "/events/x", "/campaigns", "/campaigns/1/", "/docs/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_path_that_is_none_is_404_and_no_redirect(method: str, path: str) -> None:
    """A redirected POST loses its body with many clients; what is nearly right is named."""
    told = await FakeApi().send(method, path)
    assert (told.status, told.code) == (404, "not_found")
    assert "location" not in told.headers
    if (method, path) == ("POST", "/events"):
        assert "did you mean /events/ ?" in told.json["detail"]


async def test_a_wrong_method_is_405_and_names_the_right_ones() -> None:
    """In `Allow`, as HTTP wants it."""
    told = await FakeApi().send("DELETE", "/campaigns/1")
    assert (told.status, told.code) == (405, "method_not_allowed")
    assert {"GET", "PATCH"} <= set(told.headers["allow"].split(", "))


async def test_a_fault_of_ours_is_500_without_its_story(caplog: pytest.LogCaptureFixture) -> None:
    """The sender hears a code; the log has the rest."""
    api = FakeApi()
    api.engine.failure = RuntimeError("the secret of the house")
    with caplog.at_level(logging.ERROR):
        told = await api.send("POST", "/campaigns/", CAMPAIGN)
    assert (told.status, told.code) == (500, "internal_error")
    assert b"secret" not in told.body
    assert b"Traceback" not in told.body
    assert "the secret of the house" in caplog.text


def test_every_problem_of_the_listeners_is_in_the_table() -> None:
    """With the status that the table gives its code."""
    found = 0
    for path in API.glob("*.py"):
        for status, code in re.findall(r'(?:problem|_bad)\(\s*(\d{3}),\s*"(\w+)"', path.read_text()):
            assert PROBLEMS[code] == int(status), f"{path.name}: {code}"
            found += 1
    assert found > 10
