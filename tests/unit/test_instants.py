"""Times as events and reports have them: one rule."""

from __future__ import annotations

import pytest

from api.query import instant
from engine.instants import instant_us
from engine.model import Invalid, instant_text
from engine.submission import Entry
from tests.plans import NOON_US
from tests.unit.test_arrival import arrived

NOON = instant_text(NOON_US)[:19]


@pytest.mark.parametrize(
    ("tail", "offset_us"),
    [
        ("Z", 0), ("z", 0), (".5Z", 500_000), (".000001Z", 1), (".123456Z", 123_456), (".12345Z", 123_450),
        (".123456+00:00", 123_456), ("-00:00", 0), ("+01:00", -3_600_000_000), (".5-00:01", 60_500_000),
    ],
)  # fmt: skip
def test_an_instant_is_read_to_the_microsecond(tail: str, offset_us: int) -> None:
    """By events and by reports alike; T and Z in small letters, too, or a blank for T."""
    for text in (NOON + tail, (NOON + tail).lower(), (NOON + tail).replace("T", " ")):
        assert instant_us(text) == instant(text) == NOON_US + offset_us
        event = arrived(occurred_at=text)
        assert isinstance(event, Invalid if offset_us > 300_000_000 else Entry)
        assert isinstance(event, Invalid) or event.occurred_us == NOON_US + offset_us


WRONG = [
    "", "x", NOON, NOON[:16] + "Z", NOON + "+0100", NOON + "+01", NOON + ".1234567Z", NOON + ".Z", NOON + ",5Z",
    NOON + ".12345zZ", NOON + ".+12345Z", NOON + ".1_2345Z", NOON + ".٣٣٣٣٣٣Z", NOON + "+24:00", NOON + "+01:60",
    NOON + " Z", NOON + "Z ", NOON + ".123456Z\n", NOON + "Z\0", "٢٠٢٦" + NOON[4:] + "Z", NOON.replace("T", "_") + "Z",
    NOON[:17] + "60Z", NOON[:11] + "24:00:00Z", NOON[:8] + "32" + NOON[10:] + "Z", "2026-02-30T12:00:00.000000Z",
    "2026-02-30T12:00:00Z", "2026-W05-1T12:00:00Z", "20260131T120000Z", "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59-00:01", "0000-01-01T00:00:00.000000Z",
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_instant_is_refused_by_events_and_reports(text: str) -> None:
    """Nothing is guessed, and nothing is cut off."""
    for read in (instant_us, instant):
        with pytest.raises(ValueError, match="must be an RFC 3339 time"):
            read(text)
    refused = arrived(occurred_at=text)
    assert isinstance(refused, Invalid)
    assert refused.detail.startswith("occurred_at: must be an RFC 3339 time")
