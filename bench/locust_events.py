"""The pure parts of the locust harness: which events and edits are sent, and what their answers come to.

Owns the words that locust's users count in: events that are offered end as accepted, duplicate, rejected or refused.
Knows no locust, and imports nothing but the standard library and `bench.generate`: `import locust` patches a process
with gevent, in which trio, and so most of this repository, can't run.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from bench.generate import Mix, generate

RENEWED_US: Final = 60_000_000  # how old the present of generated events may be
AMPLE: Final = "1000000000"  # a budget that no run reaches
EDITS: Final[tuple[tuple[str, tuple[object, ...]], ...]] = (
    ("unit_price", ("0.50", "1", "2.50")),
    ("total_budget", (AMPLE, "900000000")),
    ("daily_budget", (AMPLE, "800000000")),
    ("freq_cap_impressions_per_day", (None, 5, 100)),
)
# The codes of a single event that is refused for good (docs/api.md). Any other 4xx is a request that went wrong.
REJECTIONS: Final = frozenset(
    (
        "total_budget",
        "daily_budget",
        "inactive",
        "unknown_campaign",
        "frequency_capped",
        "paced",
        "invalid",
        "id_reused",
    )
)


@dataclass
class Tally:
    """Events by what was said of them."""

    offered: int = 0
    accepted: int = 0
    duplicate: int = 0
    rejected: int = 0
    refused: int = 0  # answered 503 or `retry`, or not answered

    @property
    def told(self) -> int:
        """With a verdict."""
        return self.accepted + self.duplicate + self.rejected

    def add(self, other: Mapping[str, int]) -> None:
        """Take in the counts of another process, or of one answer."""
        for name, count in other.items():
            setattr(self, name, getattr(self, name) + count)

    def take(self) -> dict[str, int]:
        """All counts, which are then 0 here: every event is reported once."""
        counts = asdict(self)
        for field in fields(self):
            setattr(self, field.name, 0)
        return counts


def judge_single(status: int, body: bytes) -> tuple[Tally, str]:
    """What the answer to a single event says of it, and what is wrong with the answer, if anything. Status 0: none."""
    answer = _read(body)
    if status == 200 and answer.get("status") in ("accepted", "duplicate"):
        return Tally(offered=1, **{answer["status"]: 1}), ""
    if status in (402, 404, 422, 429) and answer.get("code") in REJECTIONS:
        return Tally(offered=1, rejected=1), ""
    return Tally(offered=1, refused=1), _complaint(status, answer)


def judge_batch(events: int, status: int, body: bytes) -> tuple[Tally, str]:
    """The same for a request with so many events."""
    answer = _read(body)
    if status == 200:
        counts = [answer.get(name) for name in ("accepted", "duplicate", "rejected", "retry")]
        told = [count for count in counts if isinstance(count, int)]
        if len(told) == len(counts) and sum(told) == events == answer.get("received"):
            return Tally(events, *told), ""
    return Tally(offered=events, refused=events), _complaint(status, answer)


def _read(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _complaint(status: int, answer: Mapping[str, Any]) -> str:
    if not status:
        return "no answer"
    if status == 200:
        return "200 without a verdict for each event"
    return f"{status} {answer.get('code', 'which is none of ours')}"


def new_events(campaign_ids: list[int], users: int, now_us: Callable[[], int]) -> Iterator[bytes]:
    """Events without end, as JSON: mostly new and good, some repeated, some late. Their present is renewed."""
    mix = Mix(campaign_ids, users=users, bad_share=0.0)  # a bad one may cost its whole request, and nothing is learnt
    while True:
        present = now_us()
        for event in generate(mix, seed=random.getrandbits(64), start_us=present):
            yield event
            if now_us() - present > RENEWED_US:
                break


def campaign_fields(number: int) -> dict[str, object]:
    """A campaign of the load: the pricing models in turn, and a cap that bites for every other one."""
    return {
        "name": f"locust {number}",
        "pricing_model": ("cpm", "cpc", "cpa")[number % 3],
        "unit_price": "1",
        "total_budget": AMPLE,
        "daily_budget": AMPLE,
        "freq_cap_impressions_per_day": 20 if number % 2 else None,
    }


def an_edit() -> dict[str, object]:
    """What an owner changes. Budgets stay ample: a run should not end in refusals."""
    field, values = random.choice(EDITS)
    return {field: random.choice(values)}


@dataclass
class Summary:
    """A run as it stands: the same figures on paper, on the web page and in the file."""

    tally: Tally
    seconds: float
    rate: float  # events a second that were asked for; 0: as many as its users manage
    requests: int
    failures: int
    p50_ms: float
    p99_ms: float

    def figures(self) -> dict[str, int | float | None]:
        """By name, for a file."""
        seconds = max(self.seconds, 1e-9)
        return {
            "seconds": round(self.seconds, 3),
            "requests": self.requests,
            "failures": self.failures,
            **asdict(self.tally),
            "rate": self.rate or None,
            "offered_per_second": round(self.tally.offered / seconds, 1),
            "achieved_per_second": round(self.tally.told / seconds, 1),
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
        }

    def rows(self) -> list[dict[str, str]]:
        """For people."""
        tally, seconds = self.tally, max(self.seconds, 1e-9)
        asked = f"{self.rate:,.0f}" if self.rate else "closed loop"
        return [
            *({"what": name, "events": f"{count:,}"} for name, count in asdict(tally).items()),
            {"what": "asked for a second", "events": asked},
            {"what": "offered a second", "events": f"{tally.offered / seconds:,.0f}"},
            {"what": "achieved a second", "events": f"{tally.told / seconds:,.0f}"},
        ]

    def __str__(self) -> str:
        lines = [f"{row['what']:<20} {row['events']:>14}" for row in self.rows()]
        return "\n".join([f"Events in {self.seconds:.1f} s (users wait for their answers)", *lines])
