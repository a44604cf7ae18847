"""The pure parts of the locust harness: events, verdicts, counts."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from bench import locust_run
from bench.locust_events import (
    RENEWED_US,
    Summary,
    Tally,
    an_edit,
    campaign_fields,
    judge_batch,
    judge_single,
    new_events,
)
from bench.locust_run import LocustFailed, Swarm, drive
from bench.results import LocustRun

NOW_US = 1_800_000_000_000_000


def test_events_are_for_the_campaigns_of_the_load() -> None:
    """Every event is JSON of one of them; ids are new but for repeats."""
    events = [json.loads(event) for event in islice(new_events([7, 9], 50, lambda: NOW_US), 2_000)]
    assert {event["campaign_id"] for event in events} == {7, 9}
    assert 1_800 < len({event["event_id"] for event in events}) < 2_000
    assert len({event["user_id"] for event in events}) <= 50


def test_the_present_of_events_is_renewed() -> None:
    """A run of days sends no event that is too old."""
    times = iter(range(NOW_US, NOW_US + 40 * RENEWED_US, RENEWED_US // 2))
    events = islice(new_events([1], 5, lambda: next(times)), 12)
    stamps = {json.loads(event)["event_id"][:13] for event in events}
    assert len(stamps) > 2


def test_two_senders_make_different_events() -> None:
    """Processes that start in the same moment don't send each other's ids."""
    one, other = ({*islice(new_events([1], 5, lambda: NOW_US), 500)} for _ in range(2))
    assert not {json.loads(event)["event_id"] for event in one} & {json.loads(event)["event_id"] for event in other}


@pytest.mark.parametrize(
    ("status", "answer", "told", "complaint"),
    [
        (200, {"status": "accepted"}, Tally(1, accepted=1), ""),
        (200, {"status": "duplicate"}, Tally(1, duplicate=1), ""),
        (402, {"code": "daily_budget"}, Tally(1, rejected=1), ""),
        (404, {"code": "unknown_campaign"}, Tally(1, rejected=1), ""),
        (429, {"code": "frequency_capped"}, Tally(1, rejected=1), ""),
        (503, {"code": "overloaded"}, Tally(1, refused=1), "503 overloaded"),
        (404, {"code": "not_found"}, Tally(1, refused=1), "404 not_found"),
        (200, {"status": "stored"}, Tally(1, refused=1), "200 without a verdict for each event"),
        (0, None, Tally(1, refused=1), "no answer"),
    ],
)
def test_a_single_event_has_the_verdict_of_its_answer(status: int, answer: Any, told: Tally, complaint: str) -> None:
    """What is no verdict is refused, and a failure of its request."""
    assert judge_single(status, json.dumps(answer).encode()) == (told, complaint)


def test_a_batch_has_the_counts_of_its_answer() -> None:
    """Events to be sent again are refused; the request did not fail."""
    body = json.dumps(
        {"received": 10, "accepted": 4, "duplicate": 3, "rejected": 2, "retry": 1, "results": []}
    ).encode()
    assert judge_batch(10, 200, body) == (Tally(10, 4, 3, 2, 1), "")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"received":9,"accepted":9,"duplicate":0,"rejected":0,"retry":0}']
)
def test_a_batch_whose_answer_has_not_every_event_is_refused(body: bytes) -> None:
    """Nothing is taken for accepted that the answer does not say."""
    assert judge_batch(10, 200, body) == (Tally(10, refused=10), "200 without a verdict for each event")


def test_counts_of_workers_are_summed_and_reported_once() -> None:
    """What was taken is 0 afterwards."""
    master, worker = Tally(5, accepted=5), Tally(3, accepted=1, refused=2)
    master.add(worker.take())
    master.add(worker.take())
    assert master == Tally(8, accepted=6, refused=2)
    assert master.told == 6


def test_the_summary_tells_offered_from_achieved() -> None:
    """What was refused was offered."""
    figures = Summary(Tally(100, 60, 10, 10, 20), 10.0, 50.0, 12, 1, 3.0, 9.0).figures()
    assert (figures["rate"], figures["offered_per_second"], figures["achieved_per_second"]) == (50.0, 10.0, 8.0)


def test_campaigns_of_the_load_have_no_budget_that_bites() -> None:
    """Nor do edits take it away."""
    assert {campaign_fields(number)["pricing_model"] for number in range(3)} == {"cpm", "cpc", "cpa"}
    for _ in range(50):
        assert all(int(str(value)) > 10**8 for name, value in an_edit().items() if name.endswith("budget"))


@pytest.mark.parametrize(
    ("rows", "refused", "clean", "agrees"),
    [(5, 0, True, True), (4, 0, True, False), (6, 0, True, False), (6, 1, True, True), (5, 0, False, False)],
)
def test_a_run_agrees_if_the_rows_are_what_was_told(rows: int, refused: int, clean: bool, agrees: bool) -> None:
    """An event without a verdict may be a row; any other difference counts."""
    run = LocustRun(
        [], 1, 1, 1.0, 1, 0, 5 + refused, 5, 0, 0, refused, None, 5.0, 5.0, 1.0, 1.0, rows=rows, audit_clean=clean
    )
    assert run.agrees == agrees


def test_without_locust_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the name of the target."""
    monkeypatch.setattr(locust_run, "LOCUST", tmp_path / ".venv-locust" / "bin" / "locust")
    with pytest.raises(LocustFailed, match="make locust-setup"):
        drive("http://127.0.0.1:1", "http://127.0.0.1:1", Swarm(1, 1.0))


def test_what_locust_imports_of_ours_is_pure() -> None:
    """Neither trio nor anything outside the standard library comes with it."""
    code = "import sys, bench.locust_events; print({'trio', 'msgspec', 'httpx', 'psycopg'} & {*sys.modules})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
