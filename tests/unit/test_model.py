"""Money, times and ids."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from engine.model import (
    MICROS_MAX,
    PricingModel,
    cost_per_event,
    datetime_from_us,
    decimal_text,
    micros_from_decimal,
    us_from_datetime,
)


@pytest.mark.parametrize(
    ("price", "cost"),
    [("1.00", 1_000), ("1.2345", 1_235), ("1.2344", 1_234), ("10", 10_000), ("0.0005", 1), ("0.0004", 0)],
)
def test_a_cpm_price_is_of_a_thousand_rounded_half_up(price: str, cost: int) -> None:
    """1.2345 costs 0.001235 an impression."""
    assert cost_per_event(PricingModel.CPM, micros_from_decimal(Decimal(price))) == cost


@pytest.mark.parametrize("model", [PricingModel.CPC, PricingModel.CPA])
def test_other_prices_are_of_one(model: PricingModel) -> None:
    """A click, a conversion."""
    assert cost_per_event(model, 1_500_000) == 1_500_000


@pytest.mark.parametrize("text", ["0.0000001", "NaN", "Infinity", "9007199254.740992", "1e400"])
def test_money_that_micros_cannot_hold_is_refused(text: str) -> None:
    """Never rounded in silence."""
    with pytest.raises(ValueError, match="must"):
        micros_from_decimal(Decimal(text))


def test_money_survives_the_border_both_ways() -> None:
    """Up to the largest."""
    for amount in (0, 1, 10_000, 1_500_000, MICROS_MAX):
        assert micros_from_decimal(Decimal(decimal_text(amount))) == amount
    assert decimal_text(-1) == "-0.000001"


def test_sums_of_a_million_events_are_exact() -> None:
    """Integers do not drift."""
    assert sum(cost_per_event(PricingModel.CPM, 1_234_500) for _ in range(1_000_000)) == 1_235_000_000


def test_instants_survive_to_the_microsecond() -> None:
    """Far from what floats hold."""
    source = random.Random(5)
    for _ in range(1_000):
        instant_us = source.randrange(0, 4_000_000_000_000_000)
        assert us_from_datetime(datetime_from_us(instant_us)) == instant_us
    assert us_from_datetime(datetime(1969, 12, 31, tzinfo=UTC)) == -86_400_000_000
