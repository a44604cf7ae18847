"""What a history is made of: which rows are inserted together, and of when each is."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from bench.history import CHUNK, DAY_US, History, Part, Span, parts_of, rank_of, span_of

NOW = datetime(2026, 3, 4, 0, 5, tzinfo=UTC)  # five minutes after midnight
NOW_US = int(NOW.timestamp()) * 1_000_000


def moment_us(part: Part, row: int) -> int:
    """As the INSERT has it."""
    return part.start_us + math.floor((row - part.zero) * part.apart_us)


@pytest.mark.parametrize("rows", [1, 7, 1_000, 4 * CHUNK, 4 * CHUNK + 1])
@pytest.mark.parametrize("time", ["10min", "4d", "today"])
def test_every_row_is_in_one_part_and_on_its_day(rows: int, time: str) -> None:
    """Numbers rise from 0 without a gap, no part is too large, none reaches into the next day or into the future."""
    numbers = 0
    for part in parts_of(History([span_of(f"{rows}/{time}", NOW)])):
        assert part.first == numbers
        assert 0 < part.last - part.first + 1 <= CHUNK
        numbers = part.last + 1
        first, last = moment_us(part, part.first), moment_us(part, part.last)
        assert part.day * DAY_US <= first <= last < min((part.day + 1) * DAY_US, NOW_US)
    assert numbers == rows


def test_spans_that_overlap_share_the_numbers_of_a_day() -> None:
    """So that a user who comes again on the same day is counted over all spans."""
    history = History([span_of("1000/10min", NOW), span_of("300/today", NOW)], events_a_user=4)
    parts = parts_of(history)
    today = [part for part in parts if part.day == NOW_US // DAY_US]
    assert sum(part.last - part.first + 1 for part in today) == 800
    assert {part.users for part in today} == {200}
    users = Counter(row % part.users for part in today for row in range(part.first, part.last + 1))
    assert max(users.values()) == 4


def test_a_span_says_rows_and_time() -> None:
    """Days include today; everything ends now."""
    assert span_of("10m/10min", NOW) == Span(10_000_000, NOW - timedelta(minutes=10), NOW)
    assert span_of("1.5k/3h", NOW) == Span(1_500, NOW - timedelta(hours=3), NOW)
    assert span_of("5/today", NOW) == span_of("5/1d", NOW) == Span(5, NOW - timedelta(minutes=5), NOW)
    assert span_of("50m/365d", NOW).start == datetime(2025, 3, 5, tzinfo=UTC)
    for wrong in ("10m", "x/10min", "10m/10", "10m/yesterday"):
        with pytest.raises(ValueError, match="no history"):
            span_of(wrong, NOW)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.3])
def test_ranks_begin_with_the_first_campaign_and_end_with_the_last(exponent: float) -> None:
    """And the first has its share: all alike at 0, more than a tenth of a thousand campaigns from 1 on."""

    def rank(u: float) -> int:
        """The SQL, by the same names in Python."""
        expression = rank_of(1_000, exponent).replace("::float8", "")
        return min(1_000, math.floor(float(eval(expression, {"power": pow, "u": u}))))

    assert (rank(0.0), rank(1 - 1e-12)) == (1, 1_000)
    first = sum(rank(number / 10_000) == 1 for number in range(10_000)) / 10_000
    assert first == pytest.approx(0.001, abs=2e-4) if exponent == 0 else first > 0.01
    if exponent >= 1:
        assert 0.09 < first < 0.5
