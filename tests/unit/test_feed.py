"""Lines to events: what is changed, what is left alone, what can't be sent."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from api.feed import LINE_BYTES_MAX, Feed, Lines, Unreadable
from engine.model import SECOND_US, instant_text
from tests.plans import uuid7_us

NOW_US = 1_800_000_000 * SECOND_US
ID = "cedc2e55-d20e-51dd-b42b-300ecee02c39"


def prepared(line: str, *, feed: Feed | None = None, now_us: int = NOW_US) -> dict[str, Any]:
    """The event that a line becomes."""
    event = json.loads((feed or Feed()).prepare(line.encode(), now_us))
    assert isinstance(event, dict)
    return event


def occurred(seconds: float) -> str:
    """A line of an event that occurred so long after an instant of 2013."""
    return json.dumps({"event_id": ID, "occurred_at": instant_text(int((1_382_000_000 + seconds) * SECOND_US))})


def test_lines_are_cut_and_numbered_whatever_the_chunks() -> None:
    """Blank lines count, but are no lines to send; the last one needs no end."""
    text = b"\xef\xbb\xbf{1}\r\n\n  \n{4}\n{5}"
    for size in (1, 2, 7, 100):
        lines = Lines()
        found = [line for at in range(0, len(text), size) for line in lines.feed(text[at : at + size])]
        if size > 2:  # the mark at the start is known when the first line is whole
            assert found + lines.end() == [(1, b"{1}"), (4, b"{4}"), (5, b"{5}")]
        assert lines.end() == [] or size <= 2


def test_an_endless_line_is_not_held_in_memory() -> None:
    """Only as much is kept as tells that it is too long."""
    lines = Lines()
    for _ in range(40):
        assert lines.feed(b"x" * 65_536) == []
    ((number, line), after) = lines.feed(b"\n{}\n")
    assert (number, after) == (1, (2, b"{}"))
    assert len(line) < LINE_BYTES_MAX + 65_537
    with pytest.raises(Unreadable, match="longer than"):
        Feed().prepare(line, NOW_US)


def test_an_event_with_an_id_goes_out_byte_for_byte() -> None:
    """Whatever else is in it: the server judges."""
    line = b'{ "event_id":"%s", "n": 1.0000000000000000000001e9, "event_id_":null, "x": {"y": [NaN]}}' % ID.encode()
    line = line.replace(b"NaN", b"1E400")
    assert Feed().prepare(line, NOW_US) == line


@pytest.mark.parametrize("line", ['{"user_id":"u"}', '{"user_id":"u","event_id":null}'])
def test_an_event_without_an_id_gets_one_with_the_present_time(line: str) -> None:
    """A UUIDv7, so that the server knows it is new; two events get two."""
    first, second = prepared(line), prepared(line)
    assert uuid7_us(uuid.UUID(first["event_id"]).bytes) == NOW_US
    assert first["event_id"] != second["event_id"]
    assert first["user_id"] == "u"


def test_what_is_changed_leaves_the_other_fields_as_they_stand() -> None:
    """Digits and all."""
    sent = Feed().prepare(b'{"campaign_id":1.50,"extra":12345678901234567890123}', NOW_US)
    assert b'"campaign_id":1.50,"extra":12345678901234567890123,' in sent


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"[1]", "not a JSON object"),
        (b'"event"', "not a JSON object"),
        (b'{"a":', "not JSON"),
        (b"{} {}", "not JSON"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
    ],
)
def test_what_is_no_object_can_not_be_sent(line: bytes, why: str) -> None:
    """No id can be given to it."""
    with pytest.raises(Unreadable, match=why):
        Feed().prepare(line, NOW_US)


def test_campaigns_are_renamed() -> None:
    """Numbers and texts; others stay."""
    feed = Feed(renames={"2821": 7, "spring": 8})
    found = [prepared(f'{{"campaign_id":{old}}}', feed=feed)["campaign_id"] for old in ("2821", '"spring"', "282", "7")]
    assert found == [7, 8, 282, 7]


def test_rebased_times_keep_their_distances() -> None:
    """The first becomes the present, earlier ones lie before it."""
    feed = Feed(rebase_time=True)
    times = [prepared(occurred(seconds), feed=feed)["occurred_at"] for seconds in (10.5, 3, 10.5)]
    assert times == [instant_text(NOW_US), instant_text(NOW_US - 7_500_000), instant_text(NOW_US)]


def test_rebased_times_are_never_ahead_of_the_present() -> None:
    """A file of hours would be refused otherwise; as time goes on, they come into their own."""
    feed = Feed(rebase_time=True)
    prepared(occurred(0), feed=feed)
    assert prepared(occurred(3_600), feed=feed)["occurred_at"] == instant_text(NOW_US)
    later_us = NOW_US + 7_200 * SECOND_US
    assert prepared(occurred(3_600), feed=feed, now_us=later_us)["occurred_at"] == instant_text(
        NOW_US + 3_600 * SECOND_US
    )


@pytest.mark.parametrize("time", ["null", '"yesterday"', "5", '"2013-10-21T10:00:00"', "[]"])
def test_times_that_are_none_are_left_to_the_server(time: str) -> None:
    """They don't set the shift, either."""
    feed = Feed(rebase_time=True)
    assert prepared(f'{{"occurred_at":{time}}}', feed=feed)["occurred_at"] == json.loads(time)
    assert prepared(occurred(0), feed=feed)["occurred_at"] == instant_text(NOW_US)
