"""What fills a table before a measurement."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from bench.filling import CHUNK, DAYS, chunks

NOW = datetime(2026, 3, 4, 6, tzinfo=UTC)


@pytest.mark.parametrize("rows", [1, 1_000, 4 * CHUNK, 4 * CHUNK + 1])
def test_every_row_is_in_one_chunk(rows: int) -> None:
    """In order, none twice, and no chunk too large; a day more or less is rounded up."""
    found: list[Any] = list(chunks(rows, NOW))
    assert found[0]["first"] == 0
    assert all(after["first"] == before["last"] + 1 for before, after in pairwise(found))
    assert rows <= found[-1]["last"] + 1 < rows + DAYS
    assert all(0 < each["last"] - each["first"] + 1 <= CHUNK for each in found)


def test_each_day_has_its_part_and_none_is_in_the_future() -> None:
    """Today's rows end now, and those of a day before do not reach into the next."""
    found: list[Any] = list(chunks(40, NOW))
    assert [each["start"].day for each in found] == [1, 2, 3, 4]
    for each in found:
        end = each["start"] + (each["last"] - each["first"]) * each["apart"]
        assert end < NOW
        assert end.date() == each["start"].date()
