"""When all is calm: each campaign answers as its books and its plan say, and what is left of a budget can be spent.

A reservation that was forgotten holds room that the ledger does not know of: it shows here, where the room that the
ledger tells is used up to the last impression. Reservations of engines that are dead are held until others have voided
them, so a campaign is asked again until it answers right, for as long as a recovery may take.

Owns these questions. They are journalled like any others, and judged with them. Knows no fault.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import trio

from tests.faults.load import ANSWER_SECONDS, Body, Load, client_of

CALM_SECONDS = 15.0  # a recovery after a kill -9 takes no longer
PAUSE_SECONDS = 0.1
FILL_MAX = 300  # a budget with more room than for so many impressions is not filled

Ledger = tuple[int, date, int]  # spent, the latest spend day, spent on it
ReadLedger = Callable[[int], Awaitable[Ledger]]


def micros(amount: object) -> int:
    """Of an amount as the API has it."""
    return int(Decimal(str(amount)) * 1_000_000)


def expected(plan: Mapping[str, Any], ledger: Ledger, now: float) -> tuple[int, set[str]]:
    """How many impressions (cpm) are accepted, and what the next one is told."""
    spent, day, today = ledger
    if not plan["active"]:
        return 0, {"inactive"}
    if datetime.fromtimestamp(now, ZoneInfo(plan["timezone"])).date() > day:
        today = 0
    cost = (micros(plan["unit_price"]) + 500) // 1_000
    rooms = {"total_budget": micros(plan["total_budget"]) - spent, "daily_budget": micros(plan["daily_budget"]) - today}
    counts = {reason: max(0, room // cost) for reason, room in rooms.items()}
    room = min(counts.values())
    return room, {reason for reason, count in counts.items() if count == room}


class Probe:
    """Asks one campaign until it answers as it should."""

    def __init__(self, load: Load, campaign: int, plan: Mapping[str, Any], read_ledger: ReadLedger) -> None:
        self._load = load
        self._campaign = campaign
        self._plan = plan
        self._read_ledger = read_ledger
        self._unsettled: list[Body] = []  # what was refused or not answered goes again

    async def run(self) -> str:
        """What is wrong; nothing if all is well."""
        wrong = "no answer"
        async with client_of(ANSWER_SECONDS) as client:
            with trio.move_on_after(CALM_SECONDS):
                while wrong := await self._ask(client):
                    await trio.sleep(PAUSE_SECONDS)
        return wrong

    async def _ask(self, client: httpx.AsyncClient) -> str:
        """One more than there is room for, or one if there is plenty; what is wrong with the answers."""
        room, reasons = await self._expected()
        bodies = self._bodies(1 if room > FILL_MAX else room + 1)
        verdicts = await self._load.attempt(client, bodies)
        self._unsettled = [body for body in bodies if verdicts.get(body["event_id"]) not in ("accepted", "duplicate")]
        refused = [verdicts.get(body["event_id"]) for body in self._unsettled]
        if room > FILL_MAX:
            return "" if not refused else f"room for {room} impressions, and one is told {refused}"
        left, _ = await self._expected()
        if left == 0 and len(refused) == 1 and refused[0] in reasons:
            return ""
        return f"room for {room} impressions, and one more to be told {reasons}: {left} left, these are told {refused}"

    async def _expected(self) -> tuple[int, set[str]]:
        ledger = await self._read_ledger(self._campaign)
        return expected(self._plan, ledger, time.time() + self._load.clock_seconds)

    def _bodies(self, count: int) -> list[Body]:
        fresh = [self._body() for _ in range(count - len(self._unsettled))]
        return [*self._unsettled, *fresh][:count]

    def _body(self) -> Body:
        """An impression for a user whom no cap knows yet."""
        return {
            "campaign_id": self._campaign, "user_id": f"calm-{uuid.uuid4()}", "event_type": "impression",
            "event_id": str(uuid.uuid4()),
        }  # fmt: skip
