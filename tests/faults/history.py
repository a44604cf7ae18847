"""What a journal tells, in the judge's words: events and their attempts, plans and when they were in force, clocks.

Owns the reading of a journal. Judges nothing, and shares no code with the engine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from tests.faults.past import Before

BILLABLE = {"cpm": "impression", "cpc": "click", "cpa": "conversion"}
# An engine hears of a change a moment after another has acknowledged it, and goes on under the old plan meanwhile.
PLAN_SECONDS = 1.0
# An engine follows its machine's clock with its next heartbeat that finds it to be right.
FOLLOW_SECONDS = 3.0
CLOCK_SECONDS = 2.0  # by so much, clocks that nobody moved may differ


@dataclass(frozen=True)
class Attempt:
    """One request about an event: asked, and answered or not."""

    asked: float
    told: float = float("inf")
    answer: str = ""  # ok, fail, info; empty while it is open
    word: str = ""  # of ok: accepted or duplicate; of fail: the reason


@dataclass
class Event:
    """What the journal tells of one id."""

    campaign: int
    user: str
    kind: str
    attempts: dict[Any, Attempt] = field(default_factory=dict)

    @cached_property
    def first_invoke(self) -> float:
        """Nothing can have happened to it before that."""
        return min(attempt.asked for attempt in self.attempts.values())

    @cached_property
    def ok_since(self) -> float | None:
        """It was committed by then."""
        return min((each.told for each in self.attempts.values() if each.answer == "ok"), default=None)

    @cached_property
    def settled(self) -> float | None:
        """The first verdict, whatever it was."""
        return min((each.told for each in self.attempts.values() if each.answer in ("ok", "fail")), default=None)

    @property
    def refused_every_time(self) -> bool:
        """No attempt can have recorded it."""
        return all(each.answer == "fail" for each in self.attempts.values())


@dataclass(frozen=True)
class Plan:
    """A campaign as somebody made it: in force from some moment between `asked` and `told`."""

    asked: float
    told: float
    campaign: int
    total_micros: int
    daily_micros: int
    cap: int | None
    model: str
    price_micros: int
    zone: str
    active: bool
    spent: int  # by the ledger, as are these two, at `told` or a little before
    day: date
    today_micros: int

    def cost_micros(self, kind: str) -> int:
        """What an event of this kind costs: a thousandth of the price under cpm, half up."""
        if kind != BILLABLE[self.model]:
            return 0
        price = Decimal(self.price_micros)
        return int((price / 1_000 if self.model == "cpm" else price).quantize(Decimal(1), ROUND_HALF_UP))


@dataclass
class History:
    """A whole journal. Times are those of the journal, in seconds."""

    events: dict[str, Event] = field(default_factory=dict)
    plans: dict[int, list[Plan]] = field(default_factory=lambda: defaultdict(list))
    before: dict[int, Before] = field(default_factory=dict)  # campaigns that have rows of before the journal
    faults: list[tuple[float, list[int]]] = field(default_factory=list)  # when, and whom it does not concern
    clears: list[float] = field(default_factory=list)
    clocks: list[tuple[float, str, float]] = field(default_factory=list)  # when, whose, how far it is off from then on
    wall_seconds: float = 0.0  # what a clock on the wall says when the journal's says 0
    end: float = 0.0

    @property
    def clocks_moved(self) -> bool:
        """Whether an engine's clock was ever wrong."""
        return any(seconds for _, _, seconds in self.clocks)

    def in_force(self, campaign: int, start: float, end: float) -> list[Plan]:
        """The plans under which something may have been decided between these times."""
        plans = self.plans[campaign]
        return [
            plan
            for index, plan in enumerate(plans)
            if plan.asked <= end and (index + 1 == len(plans) or start <= plans[index + 1].told + PLAN_SECONDS)
        ]

    def days(self, zone: str, start: float, end: float) -> tuple[date, date]:
        """The first and the last day that engines may have had in a zone between these times.

        A spend day moves forward only: once an engine's clock was ahead, its day may be that of all.
        """
        low = min(self._offsets(start - FOLLOW_SECONDS, end), default=0.0)
        high = max([low, *(seconds for at, _, seconds in self.clocks if at <= end)])
        return (
            self._day(zone, start + low - CLOCK_SECONDS),
            self._day(zone, min(end, self.end) + high + CLOCK_SECONDS),
        )

    def _offsets(self, start: float, end: float) -> list[float]:
        """How far off clocks were at any time between these."""
        until: dict[str, float] = {}
        offsets = []
        for at, whose, seconds in reversed(self.clocks):
            if at <= end and until.get(whose, float("inf")) >= start:
                offsets.append(seconds)
            until[whose] = at
        return offsets

    def _day(self, zone: str, at: float) -> date:
        return datetime.fromtimestamp(self.wall_seconds + at, ZoneInfo(zone)).date()


def read_journal(records: Iterable[Mapping[str, Any]]) -> History:
    """Everything that was recorded, in the order in which it happened."""
    history = History()
    for record in records:
        at = history.end = record["t"]
        match record["what"]:
            case "start":
                history.wall_seconds = record["wall"] - at
            case "plan":
                history.plans[record["campaign"]].append(_plan(record))
            case "past":
                history.before[record["campaign"]] = Before(
                    record["spent"], date.fromisoformat(record["day"]), record["today_micros"]
                )
            case "clock":
                history.clocks.append((at, record["whose"], record["seconds"]))
            case "fault":
                history.faults.append((at, record["others"]))
            case "clear":
                history.clears.append(at)
            case "invoke":
                event = history.events.setdefault(
                    record["id"], Event(record["campaign"], record["user"], record["type"])
                )
                event.attempts[record["attempt"]] = Attempt(at)
            case answer:
                attempts = history.events[record["id"]].attempts
                word = record.get("status") or record.get("reason") or ""
                attempts[record["attempt"]] = Attempt(attempts[record["attempt"]].asked, at, answer, word)
    return history


def _plan(record: Mapping[str, Any]) -> Plan:
    return Plan(
        told=record["t"],
        day=date.fromisoformat(record["day"]),
        **{name: value for name, value in record.items() if name not in ("t", "what", "day")},
    )
