"""What is asked when all is calm finds a campaign that holds what nobody has spent."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from trio.testing import MockClock

from tests.faults.journal import Journal
from tests.faults.load import Body, Doubt, Load
from tests.faults.probe import Probe, expected

PLAN = {
    "active": True, "unit_price": "1.00", "total_budget": "0.150", "daily_budget": "0.120", "timezone": "UTC",
    "freq_cap_impressions_per_day": None,
}  # fmt: skip
DAY = date(2026, 1, 1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()
TODAY = datetime.now(UTC).date()


class Campaign(Load):
    """A campaign with budget for some impressions and a cap of two, some of both held by nobody; and what it says."""

    def __init__(self, journal: Journal, budget: int) -> None:
        super().__init__(journal, random.Random(1), list, [1])
        self.budget = budget
        self.rows: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.refusal = "total_budget"

    async def ledger(self, campaign: int) -> tuple[int, date, int]:
        """What is committed."""
        spent = sum(self.rows.values()) * 1_000
        return spent, TODAY, spent

    async def shown(self, campaign: int, day: date) -> Mapping[str, int]:
        """What is committed, of each user."""
        return self.rows if day == TODAY else {}

    async def _post(self, client: httpx.AsyncClient, bodies: Sequence[Body]) -> Sequence[str]:
        return [self._one(body["user_id"]) for body in bodies]

    def _one(self, user: str) -> str:
        if sum(self.rows.values()) + sum(self.held.values()) >= self.budget:
            return self.refusal
        if self.rows[user] + self.held[user] >= 2:
            return "frequency_capped"
        self.rows[user] += 1
        return "accepted"


async def ask(
    path: Path, held: Mapping[str, int], budget: int = 150, refusal: str = "total_budget", **plan: Any
) -> str:
    """What is wrong with such a campaign."""
    journal = Journal(path / "journal")
    campaign = Campaign(journal, budget)
    campaign.held.update(held)
    campaign.refusal = refusal
    campaign.rows["u1"] = 1
    fields = {**PLAN, "total_budget": f"{budget / 1_000}", "daily_budget": "1000", **plan}
    wrong = await Probe(campaign, 1, fields, campaign).run()
    journal.close()
    return wrong


async def test_a_budget_can_be_spent_to_the_last_impression(tmp_path: Path, autojump_clock: MockClock) -> None:
    """And the next one is refused, for the right reason."""
    assert await ask(tmp_path, {}) == ""
    assert "one more to be told" in await ask(tmp_path, {}, refusal="daily_budget")
    assert "1 left" in await ask(tmp_path, {"leaked": 1})


async def test_with_plenty_of_budget_an_impression_is_accepted(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Whatever it is told instead."""
    assert await ask(tmp_path, {}, budget=9_000) == ""
    assert "one is told" in await ask(tmp_path, {"leaked": 9_000}, budget=9_000)
    assert "one is told" in await ask(tmp_path, {"leaked": 9_000}, budget=9_000, refusal=Doubt("unavailable"))


async def test_each_user_sees_as_many_as_the_cap_allows(tmp_path: Path, autojump_clock: MockClock) -> None:
    """What was counted for nothing is found with that user."""
    assert await ask(tmp_path, {}, budget=9_000, freq_cap_impressions_per_day=2) == ""
    assert "1 left" in await ask(tmp_path, {"u3": 1}, budget=9_000, freq_cap_impressions_per_day=2)


@pytest.mark.parametrize(
    ("ledger", "room", "reasons"),
    [
        ((0, date(1970, 1, 1), 0), 120, {"daily_budget"}),
        ((100_000, DAY, 20_500), 50, {"total_budget"}),
        ((100_000, date(2025, 12, 31), 100_000), 50, {"total_budget"}),
        ((150_000, DAY, 120_000), 0, {"total_budget", "daily_budget"}),
        ((151_000, DAY, 0), 0, {"total_budget"}),
    ],
)
def test_what_there_is_room_for_follows_from_ledger_and_plan(
    ledger: tuple[int, date, int], room: int, reasons: set[str]
) -> None:
    """So many as fit into both budgets, and then a refusal by the smaller; what was spent yesterday is past."""
    assert expected(PLAN, ledger, NOON) == (room, reasons)
    assert expected({**PLAN, "active": False}, ledger, NOON) == (0, {"inactive"})
