"""What a campaign may be."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from engine.errors import InvalidCampaign
from engine.model import Campaign, CampaignId, Micros, Pacing, PricingModel, micros_from_decimal
from engine.plans import read_change, read_new

FIELDS: dict[str, Any] = {
    "name": "spring", "pricing_model": "cpm", "unit_price": "10", "total_budget": 5, "daily_budget": Decimal("1.5")
}  # fmt: skip
CURRENT = Campaign(
    id=CampaignId(1), name="spring", pricing_model=PricingModel.CPM, unit_price_micros=Micros(10_000_000),
    total_budget_micros=Micros(5_000_000), daily_budget_micros=Micros(1_000_000), freq_cap_impressions_per_day=2,
    active=True, pacing=Pacing.ASAP, timezone="UTC", version=1, created_us=0,
)  # fmt: skip


def faults_of(fields: dict[str, Any], *, change: bool = False) -> dict[str, str]:
    """Field -> message."""
    with pytest.raises(InvalidCampaign) as caught:
        read_change(fields, CURRENT) if change else read_new(fields)
    return {fault.field: fault.message for fault in caught.value.faults}


def test_a_new_campaign_has_its_defaults() -> None:
    """What is left out has the value that the contract names."""
    new = read_new(FIELDS)
    assert (new.unit_price_micros, new.total_budget_micros, new.daily_budget_micros) == (
        10_000_000,
        5_000_000,
        1_500_000,
    )
    assert (new.freq_cap_impressions_per_day, new.active, new.pacing, new.timezone) == (None, True, Pacing.ASAP, "UTC")


def test_a_new_campaign_keeps_what_it_was_given() -> None:
    """Every field counts."""
    new = read_new(
        {**FIELDS, "name": "ä" * 64, "freq_cap_impressions_per_day": 3, "active": False, "pacing": "even",
         "timezone": "Asia/Kolkata", "pricing_model": "cpa", "daily_budget": "99"}
    )  # fmt: skip
    assert (new.name, new.freq_cap_impressions_per_day, new.active) == ("ä" * 64, 3, False)
    assert (new.pacing, new.timezone, new.pricing_model) == (Pacing.EVEN, "Asia/Kolkata", PricingModel.CPA)
    assert new.daily_budget_micros > new.total_budget_micros  # allowed: the total ends it


def test_every_fault_is_named_at_once() -> None:
    """Missing, unknown and wrong fields together."""
    faults = faults_of({"name": "", "unit_price": -1, "colour": "red", "active": None})
    assert faults.keys() == {"name", "unit_price", "colour", "active", "pricing_model", "total_budget", "daily_budget"}
    assert faults["pricing_model"] == "is missing"


@pytest.mark.parametrize(
    "amount",
    [
        -1, "-0.01", "0.0000001", Decimal("0.1234567"), Decimal("1.00000000000000000000000000000001"),
        Decimal("1e-30"), Decimal("NaN"), Decimal("Infinity"), Decimal("1e400"), 10**400, "9007199254.740992", 2**53,
        True, False, None, 1.5, "", " 1", "1_0", "1e3", "٣", "+1", ".5", "5.", "NaN", "inf", "0x1", "1,5", [1],
    ],
)  # fmt: skip
def test_money_that_is_refused(amount: object) -> None:
    """Below 0, finer than a micro, out of exact range, or no number at all."""
    assert faults_of({**FIELDS, "total_budget": amount}).keys() == {"total_budget"}


def test_a_budget_may_be_zero_and_a_price_may_not() -> None:
    """No budget ends a campaign; no price would never end it."""
    assert read_new({**FIELDS, "total_budget": "0", "daily_budget": 0}).total_budget_micros == 0
    assert faults_of({**FIELDS, "unit_price": "0"}) == {"unit_price": "must be above 0"}


@pytest.mark.parametrize(
    ("amount", "micros"),
    [
        ("0.000001", 1), ("1.0000000000", 1_000_000), (Decimal("1.50"), 1_500_000), (3, 3_000_000), ("007", 7_000_000),
        ("9007199254.740991", 2**53 - 1), (Decimal("1e3"), 1_000_000_000),
    ],
)  # fmt: skip
def test_money_is_exact(amount: object, micros: int) -> None:
    """To the last micro, whatever it is written as."""
    assert read_new({**FIELDS, "total_budget": amount}).total_budget_micros == micros


def test_digits_beyond_any_precision_are_not_dropped() -> None:
    """Decimal's own context would round them away, and take the amount."""
    with pytest.raises(ValueError, match="6 decimals"):
        micros_from_decimal(Decimal("1." + "0" * 40 + "1"))


@pytest.mark.parametrize(("price", "allowed"), [("0.0005", True), ("0.000499", False)])
def test_a_price_that_rounds_to_nothing_is_refused(price: str, allowed: bool) -> None:
    """A campaign that charges nothing never ends. For a click, a micro is a micro."""
    if allowed:
        assert read_new({**FIELDS, "unit_price": price}).unit_price_micros == 500
        assert read_change({"unit_price": price}, CURRENT) == {"unit_price_micros": 500}
    else:
        assert faults_of({**FIELDS, "unit_price": price}).keys() == {"unit_price"}
        assert faults_of({"unit_price": price}, change=True).keys() == {"unit_price"}
    assert read_new({**FIELDS, "pricing_model": "cpc", "unit_price": "0.000001"}).unit_price_micros == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""), ("name", "a" * 129), ("name", "ä" * 65), ("name", "a\0b"), ("name", "\ud800"), ("name", 1),
        ("name", None), ("pricing_model", "CPM"), ("pricing_model", None), ("pricing_model", ["cpm"]),
        ("freq_cap_impressions_per_day", 0), ("freq_cap_impressions_per_day", -1),
        ("freq_cap_impressions_per_day", True),
        ("freq_cap_impressions_per_day", Decimal("1.5")), ("freq_cap_impressions_per_day", "2"),
        ("freq_cap_impressions_per_day", 2**31), ("active", 1), ("active", "true"), ("active", None),
        ("pacing", "fast"),
        ("pacing", None), ("pacing", {}), ("timezone", "Mars/Olympus"), ("timezone", "../etc/passwd"), ("timezone", ""),
        ("timezone", "localtime"), ("timezone", "America"), ("timezone", None), ("timezone", "UTC\0"),
    ],
)  # fmt: skip
def test_other_values_that_are_refused(field: str, value: object) -> None:
    """Each names its field and nothing else."""
    assert faults_of({**FIELDS, field: value}).keys() == {field}


def test_a_name_of_ours_makes_a_fault_that_can_be_sent() -> None:
    """An unknown field may be called anything: it is cut, and made text."""
    (name,) = faults_of({**FIELDS, "\ud800" + "x" * 5_000: 1})
    assert len(name.encode()) < 100


def test_a_change_has_the_names_of_the_model() -> None:
    """Only what was sent changes; null takes the cap away."""
    assert read_change({}, CURRENT) == {}
    assert read_change({"freq_cap_impressions_per_day": None}, CURRENT) == {"freq_cap_impressions_per_day": None}
    changes = read_change(
        {
            "name": "summer",
            "unit_price": "2",
            "total_budget": 7,
            "daily_budget": "3",
            "active": False,
            "pacing": "even",
        },
        CURRENT,
    )
    assert changes == {
        "name": "summer", "unit_price_micros": 2_000_000, "total_budget_micros": 7_000_000,
        "daily_budget_micros": 3_000_000, "active": False, "pacing": Pacing.EVEN,
    }  # fmt: skip
    assert changes.keys() <= set(Campaign.__struct_fields__)


def test_what_can_not_be_changed_says_so() -> None:
    """Model and time zone are for life, even as they are."""
    faults = faults_of(
        {"pricing_model": "cpm", "timezone": "UTC", "id": 5, "version": 2, "total_budget": -1}, change=True
    )
    assert faults.keys() == {"pricing_model", "timezone", "id", "version", "total_budget"}
    assert "can't be changed" in faults["pricing_model"]
    assert "can't be changed" in faults["timezone"]
