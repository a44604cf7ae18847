"""The demo's arithmetic: campaigns whose limits bite, and what must tie."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from api.sender import Tally
from bench.demo import PLANS, faults, main, plans
from engine.plans import read_new


@pytest.mark.parametrize("events", [1, 200_000])
def test_every_plan_is_a_campaign_that_the_engine_takes(events: int) -> None:
    """Each pricing model has an ample one and two with limits."""
    made = [read_new({**fields, "unit_price": Decimal(str(fields["unit_price"]))}) for fields in plans(events)]
    assert [campaign.name for campaign in made] == [plan.name for plan in PLANS]
    assert {campaign.pricing_model for campaign in made} == {"cpm", "cpc", "cpa"}


def tally(**counts: Any) -> Tally:
    """Ten events with verdicts."""
    return Tally(**{"read": 10, "accepted": 8, "duplicate": 2, **counts})


def test_what_ties_has_no_faults() -> None:
    """Every event has a verdict, and reports have what was accepted."""
    assert faults(10, tally(), 8) == []


@pytest.mark.parametrize("counted", [7, 9])
def test_reports_must_have_what_was_accepted(counted: int) -> None:
    """Neither less nor more."""
    (fault,) = faults(10, tally(), counted)
    assert fault == f"8 events were accepted, and reports have {counted}"


def test_an_answer_that_was_lost_makes_a_duplicate_of_a_counted_event() -> None:
    """Then reports may have more than was accepted, by the duplicates at most."""
    assert faults(10, tally(repeated_requests=1), 10) == []
    assert faults(10, tally(repeated_requests=1), 11) != []


def test_an_event_without_a_verdict_is_a_fault() -> None:
    """Also when it was never read."""
    assert faults(10, tally(read=11), 8) != []
    assert faults(11, tally(), 8) != []


def test_one_url_is_not_enough(capsys: pytest.CaptureFixture[str]) -> None:
    """Campaigns are made at the one, events go to the other."""
    with pytest.raises(SystemExit):
        main(["--api", "http://127.0.0.1:1"])
    assert "belong together" in capsys.readouterr().err
