"""The pure parts of a soak: what is sent, what is counted, and what is made of it."""

from __future__ import annotations

import json
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from bench.bodies import make_templates
from bench.scenario import Scenario
from bench.soak.drawing import draw, panels, ticks
from bench.soak.probe import CONNECTIONS_MAX, accepted_of, groups_of
from bench.soak.record import Sample, windows
from bench.soak.restart import reached, rises
from bench.soak.steady import Requests, Tick, count_answer
from bench.soak.watch import sample_of, series_of

NOW_MS = 1_800_000_000_000
BATCH = 10


def requests(ids: Any = "v7", groups: int = 0) -> Requests:
    """Of two templates."""
    scenario = Scenario(about="", campaigns=3)
    templates = make_templates(scenario, BATCH, [7, 8, 9], seed=1, host="h")[:2]
    return Requests([template.request for template in templates], ids, groups)


def sent(request: bytes) -> list[dict[str, Any]]:
    """Its events, as the system reads them."""
    head, _, body = request.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"
    events: list[dict[str, Any]] = json.loads(body)
    return events


@pytest.mark.parametrize(("ids", "version"), [("v7", 7), ("v4", 4)])
def test_every_id_is_new_and_of_its_version(ids: str, version: int) -> None:
    """Of version 7: of the request's own time. Every event has a user of its own."""
    made = requests(ids)
    events = [event for number in range(6) for event in sent(made.make(number, NOW_MS + number))]
    found = [uuid.UUID(event["event_id"]) for event in events]
    assert len(set(found)) == len({event["user_id"] for event in events}) == 6 * BATCH
    assert {each.version for each in found} == {version}
    if version == 7:
        assert [each.int >> 80 for each in found] == [NOW_MS + at // BATCH for at in range(6 * BATCH)]
    else:
        assert len({each.int >> 80 for each in found}) == 6 * BATCH, "ids of one request would lie together"


def test_users_come_again_when_there_are_groups() -> None:
    """As many as places and groups, of the same campaign each time."""
    made = requests(groups=2)
    seen: dict[str, set[int]] = {}
    for number in range(0, 200, 2):
        for event in sent(made.make(number, NOW_MS)):
            seen.setdefault(event["user_id"], set()).add(event["campaign_id"])
    assert len(seen) == 2 * BATCH
    assert all(len(campaigns) == 1 for campaigns in seen.values())


def test_verdicts_are_counted_with_their_reasons() -> None:
    """What is not in `results` is accepted; without a 200 nothing is."""
    tick = Tick()
    results = [
        {"index": 0, "status": "rejected", "reason": "frequency_capped"},
        {"index": 1, "status": "retry", "reason": "unavailable"},
        {"index": 2, "status": "duplicate"},
    ]
    count_answer(tick, 200, json.dumps({"results": results}).encode(), BATCH)
    count_answer(tick, 200, b'{"results":[]}', BATCH)
    count_answer(tick, 503, b'{"code":"overloaded"}', BATCH)
    assert (tick.accepted, tick.duplicate, tick.rejected, tick.refused) == (17, 1, 1, 11)
    assert tick.reasons == {"rejected frequency_capped": 1, "retry unavailable": 1, "http 503 overloaded": BATCH}


def sample(at: float, accepted: int = 0, seconds: float = 5.0) -> Sample:
    """Five seconds that end then."""
    return sample_of([Tick(at_seconds=at, accepted=accepted)], at - seconds, ({}, {}), {}, {})


def test_a_sample_is_all_that_was_told_in_it() -> None:
    """Sums, reasons, and percentiles over all answers."""
    ticks_ = [Tick(1.0, accepted=5, reasons={"x": 1}, latencies_ms=[1.0, 2.0]),
              Tick(2.0, refused=2, reasons={"x": 2}, latencies_ms=[9.0])]  # fmt: skip
    found = sample_of(ticks_, 0.5, ({}, {"engine": 7.0}), {}, {})
    assert (found.at_seconds, found.seconds, found.accepted, found.refused) == (2.0, 1.5, 5, 2)
    assert (found.reasons, found.requests, found.p50_ms, found.p99_ms) == ({"x": 3}, 3, 2.0, 9.0)


def test_the_windows_are_five_minutes_or_half_of_it() -> None:
    """The first and the last; they don't overlap."""
    whole = [sample(5.0 * number, number) for number in range(1, 241)]
    first, last = windows(whole)
    assert (first.seconds, last.seconds) == (300.0, 300.0)
    assert (first.samples[-1].at_seconds, last.samples[0].at_seconds) == (300.0, 905.0)
    first, last = windows(whole[:4])
    assert [len(first.samples), len(last.samples)] == [2, 2]
    assert last.rate("accepted") == 7 / 10


def test_a_counter_that_begins_anew_has_risen_from_nothing() -> None:
    """A process was started; one that could not be asked is left out. Only what tells of look-ups counts."""
    name = "headrace_look_up_seconds_count"
    readings: list[dict[str, float]] = [{name: 5.0, "headrace_flushes_total": 1.0}, {}, {name: 8.0}, {name: 2.0}]
    assert rises(readings) == {name: 5.0}


def test_a_share_of_the_campaigns_is_reached_when_the_last_of_it_is_seen() -> None:
    """None, if it never was."""
    assert [reached([0.1, 0.2, 0.5], campaigns) for campaigns in (1, 2, 3, 4)] == [0.1, 0.2, 0.5, None]


def test_campaigns_are_asked_one_by_one_as_far_as_connections_suffice() -> None:
    """Else a few together."""
    assert groups_of([1, 2, 3]) == [[1], [2], [3]]
    many = list(range(5 * CONNECTIONS_MAX))
    groups = groups_of(many)
    assert len(groups) == CONNECTIONS_MAX
    assert [campaign for group in groups for campaign in group] == many
    assert list(accepted_of([4], 200, b"")) == [4]
    assert list(accepted_of([4], 503, b"")) == []
    assert list(accepted_of([4, 5], 200, b'{"results":[{"index":0}]}')) == [5]


def test_metrics_are_read_but_for_buckets() -> None:
    """Labels stay with the name."""
    text = (
        'a_total 1\nheadrace_events_total{status="accepted",reason=""} 12.0\n'
        'headrace_flush_seconds_bucket{le="1"} 3.0\n'
        "# HELP headrace_actors x\nheadrace_actors 4.0\nheadrace_actors_created 1.7e9\n"
    )
    expected: Mapping[str, float] = {
        'headrace_events_total{status="accepted",reason=""}': 12.0, "headrace_actors": 4.0
    }  # fmt: skip
    assert series_of(text) == expected


def test_the_plot_is_an_svg_with_a_line_each() -> None:
    """What nobody knows has no point; scales begin at 0 and have round numbers."""
    shown = list(panels([sample(5.0, 100), msgspec.structs.replace(sample(10.0, 50), gauges={"tables MB": 7.0})]))
    root = ET.fromstring(draw(shown, "minutes"))
    lines = [each for each in root.iter() if each.tag.endswith("polyline")]
    assert len(lines) == sum(len(panel.lines) for panel in shown)
    assert ticks(100_000) == [0, 20_000, 40_000, 60_000, 80_000, 100_000]
    assert ticks(0.3) == [0, 0.1, 0.2, 0.3]
