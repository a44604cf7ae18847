"""A log as a load."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.bodies import STEM
from bench.replay import read_log, templates_of, times_of
from bench.scenario import Scenario, scenarios

LOG = """\
{"event_id":"a","campaign_id":7,"user_id":"ann","event_type":"impression","occurred_at":"2013-10-21T10:00:00Z"}
{"event_id":"b","campaign_id":9,"user_id":"bob","event_type":"click","occurred_at":"2013-10-21T10:00:04Z"}
{"event_id":"b","campaign_id":9,"user_id":"bob","event_type":"click","occurred_at":"2013-10-21T10:00:04Z"}
{"event_id":"c","campaign_id":7,"user_id":"ann","event_type":"conversion","occurred_at":"2013-10-21T10:00:10Z"}
"""


@pytest.fixture
def logged(tmp_path: Path) -> Scenario:
    """The replay scenario, of `LOG`."""
    path = tmp_path / "log.ndjson"
    path.write_text(LOG)
    return msgspec.structs.replace(scenarios()["replay"], log=str(path), speed=2.0)


def test_a_log_keeps_its_order_users_and_kinds_on_the_stands_campaigns(logged: Scenario) -> None:
    """Campaigns are mapped in the order in which they appear."""
    first, second = templates_of(read_log(logged, seed=1), 2, [31, 32], "h")
    told = [(line.campaign_id, line.user, line.event_type) for line in (*first.lines, *second.lines)]
    assert told == [(31, "ann", 0), (32, "bob", 1), (32, "bob", 1), (31, "ann", 2)]
    assert first.request.count(STEM) == 2


def test_a_line_that_is_repeated_in_its_request_is_a_repeat(logged: Scenario) -> None:
    """It has the same id."""
    (only,) = templates_of(read_log(logged, seed=1), 4, [1], "h")
    tails = [line.tail for line in only.lines]
    assert tails[1] == tails[2]
    assert len(set(tails)) == 3


def test_requests_are_planned_at_the_logs_own_pace_times_the_speed(logged: Scenario) -> None:
    """A request is due when the last of its events happened."""
    assert times_of(read_log(logged, seed=1), 2, logged.speed) == [2.0, 5.0]


def test_a_log_is_made_where_none_is_named() -> None:
    """The same for the same seed, but for its ids."""
    scenario = scenarios()["replay"]
    log = read_log(scenario, seed=3)
    assert times_of(log, 100, 1.0) == times_of(read_log(scenario, seed=3), 100, 1.0)
    assert len(templates_of(log, 100, [1, 2, 3], "h")) == 200


def test_a_line_that_is_no_event_is_told(tmp_path: Path) -> None:
    """With the file and the line."""
    path = tmp_path / "log.ndjson"
    path.write_text(LOG + "{}\n")
    with pytest.raises(ValueError, match=r"log\.ndjson, line 5: "):
        read_log(Scenario(about="", replay=True, log=str(path)), seed=1)
