"""When all is calm: each campaign answers as books and plan say, and what is left of budgets and caps can be had.

A reservation that was forgotten holds room that Postgres does not know of: it shows here, where the room that Postgres
tells is used up to the last impression. Reservations of engines that are dead are held until others have voided them,
so a campaign is asked again until it answers right, for as long as a recovery may take.

Owns these questions. They are journalled like any others, and judged with them. Knows no fault.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import httpx
import trio

from tests.faults.load import ANSWER_SECONDS, OK, USERS, Body, Load, client_of

CALM_SECONDS = 15.0  # a recovery after a kill -9 takes no longer
PAUSE_SECONDS = 0.1
FILL_MAX = 300  # a budget with more room than for so many impressions is not filled

NEW_USERS = ""  # each impression for another user, whom no cap knows

Ledger = tuple[int, date, int]  # spent, the latest spend day, spent on it


class Books(Protocol):
    """What Postgres says of a campaign."""

    async def ledger(self, campaign: int) -> Ledger:
        """Its row of the ledger."""

    async def shown(self, campaign: int, day: date) -> Mapping[str, int]:
        """Impressions of each user on a spend day."""


def micros(amount: object) -> int:
    """Of an amount as the API has it."""
    return int(Decimal(str(amount)) * 1_000_000)


def spend_day(plan: Mapping[str, Any], ledger: Ledger, now: float) -> date:
    """The day in the campaign's zone, unless it has been a later one already."""
    return max(ledger[1], datetime.fromtimestamp(now, ZoneInfo(plan["timezone"])).date())


def expected(plan: Mapping[str, Any], ledger: Ledger, now: float) -> tuple[int, set[str]]:
    """How many impressions (cpm) are accepted, and what the next one is told."""
    spent, day, today = ledger
    if not plan["active"]:
        return 0, {"inactive"}
    if spend_day(plan, ledger, now) > day:
        today = 0
    cost = (micros(plan["unit_price"]) + 500) // 1_000
    rooms = {"total_budget": micros(plan["total_budget"]) - spent, "daily_budget": micros(plan["daily_budget"]) - today}
    counts = {reason: max(0, room // cost) for reason, room in rooms.items()}
    room = min(counts.values())
    return room, {reason for reason, count in counts.items() if count == room}


class Probe:
    """Asks one campaign until it answers as it should."""

    def __init__(self, load: Load, campaign: int, plan: Mapping[str, Any], books: Books) -> None:
        self._load = load
        self._campaign = campaign
        self._plan = plan
        self._books = books
        self._refused: dict[str, list[Body]] = {}  # by user; what was refused or not answered goes again

    async def run(self) -> str:
        """What is wrong; nothing if all is well."""
        async with client_of(ANSWER_SECONDS) as client:
            wrong = await self._until_right(client, self._ask_budget)
            if not wrong and self._plan.get("freq_cap_impressions_per_day") is not None:
                wrong = await self._until_right(client, self._ask_cap)
        return wrong

    async def _until_right(self, client: httpx.AsyncClient, ask: Callable[[httpx.AsyncClient], Awaitable[str]]) -> str:
        self._refused.clear()
        wrong = "no answer"
        with trio.move_on_after(CALM_SECONDS):
            while wrong := await ask(client):
                await trio.sleep(PAUSE_SECONDS)
        return wrong

    # --- budgets ---

    async def _ask_budget(self, client: httpx.AsyncClient) -> str:
        """One more than there is room for, or one if there is plenty; what is wrong with the answers."""
        room, reasons = await self._room()
        told = await self._send(client, {NEW_USERS: 1 if room > FILL_MAX else room + 1})
        if room > FILL_MAX:
            return "" if not told else f"room for {room} impressions, and one is told {told}"
        left, _ = await self._room()
        if left == 0 and len(told) == 1 and told[0] in reasons:
            return ""
        return f"room for {room} impressions, and one more to be told {reasons}: {left} left, these are told {told}"

    async def _room(self) -> tuple[int, set[str]]:
        return expected(self._plan, await self._books.ledger(self._campaign), self._now())

    # --- caps ---

    async def _ask_cap(self, client: httpx.AsyncClient) -> str:
        """One more to every user than the cap lets through; what is wrong with the answers."""
        room, _ = await self._room()
        if room <= FILL_MAX:
            return ""
        left = await self._left()
        told = await self._send(client, {user: count + 1 for user, count in left.items()})
        after = sum((await self._left()).values())
        if not after and told == ["frequency_capped"] * len(left):
            return ""
        return f"room for {left}, and one more each to be capped: {after} left, these are told {told}"

    async def _left(self) -> dict[str, int]:
        """How many impressions each user of the load may see today."""
        cap = self._plan["freq_cap_impressions_per_day"]
        day = spend_day(self._plan, await self._books.ledger(self._campaign), self._now())
        shown = await self._books.shown(self._campaign, day)
        return {user: max(0, cap - shown.get(user, 0)) for user in USERS}

    # --- sending ---

    async def _send(self, client: httpx.AsyncClient, counts: Mapping[str, int]) -> list[str | None]:
        """So many impressions for each of these users; what those that were not accepted are told."""
        bodies = [body for user, count in counts.items() for body in self._bodies(user, count)]
        verdicts = await self._load.attempt(client, bodies)
        self._refused = {user: [] for user in counts}
        told = []
        for user, body in zip([user for user, count in counts.items() for _ in range(count)], bodies, strict=True):
            if verdicts.get(body["event_id"]) not in OK:
                self._refused[user].append(body)
                told.append(verdicts.get(body["event_id"]))
        return told

    def _bodies(self, user: str, count: int) -> list[Body]:
        bodies = self._refused.get(user, [])[:count]
        return bodies + [self._body(user) for _ in range(count - len(bodies))]

    def _body(self, user: str) -> Body:
        event_id = str(uuid.uuid4())
        return {
            "campaign_id": self._campaign, "user_id": user or f"calm-{event_id}", "event_type": "impression",
            "event_id": event_id,
        }  # fmt: skip

    def _now(self) -> float:
        return time.time() + self._load.clock_seconds
