"""A log of JSON lines as a load: its events, users and campaigns in its order, at its own pace or faster.

Owns the reading. The log's ids become the bench's (a line that is repeated within its request stays a repeat), so that
the audit can tell what became of each; its campaigns become those of the stand, in the order of their appearance; its
times are kept as when to send, and not sent: what is counted today has no cap of years ago. Pure but for the file.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from bench.bodies import STEM, Line, Template, request_of
from bench.generate import Mix, take
from bench.scenario import Scenario

LOG_EVENTS_MAX: Final = 200_000  # of a file: 60 MB of requests, and more than a minute holds at any pace of a log's
GENERATED_EVENTS: Final = 20_000  # where no file was named
GENERATED_RATE: Final = 2_000.0  # events a second, on average
_TYPES: Final = {"impression": 0, "click": 1, "conversion": 2}


class LogLine(msgspec.Struct):
    """What is read of a line."""

    event_id: str
    campaign_id: int
    user_id: str
    event_type: str
    ad_id: str = "ad"
    occurred_at: datetime | None = None


def read_log(scenario: Scenario, *, seed: int) -> list[LogLine]:
    """Its lines, in order; the seed's own where the scenario names no file. Raises `ValueError` with a bad line."""
    read = msgspec.json.Decoder(LogLine)
    lines = []
    for number, text in enumerate(islice(_texts(scenario, seed), LOG_EVENTS_MAX), start=1):
        try:
            lines.append(read.decode(text))
        except msgspec.DecodeError as error:
            raise ValueError(f"{scenario.log}, line {number}: {error}") from error
    return lines


def templates_of(log: Sequence[LogLine], batch: int, campaign_ids: Sequence[int], host: str) -> list[Template]:
    """The log's requests, in order."""
    campaigns = _mapped(log, campaign_ids)
    return [
        _template(log[start : start + batch], number, campaigns, host)
        for number, start in enumerate(range(0, len(log) - batch + 1, batch))
    ]


def times_of(log: Sequence[LogLine], batch: int, speed: float) -> list[float]:
    """When each request is planned, in seconds from the first: when the last of its events happened, over the speed."""
    happened = [line.occurred_at.timestamp() for line in log if line.occurred_at]
    first = min(happened, default=0.0)
    last = [max(happened[start : start + batch]) for start in range(0, len(happened) - batch + 1, batch)]
    return sorted((at - first) / speed for at in last)


def _texts(scenario: Scenario, seed: int) -> Iterable[bytes]:
    if scenario.log:
        return [text for text in Path(scenario.log).read_bytes().splitlines() if text.strip()]
    mix = Mix(range(1, scenario.campaigns + 1), scenario.campaign_exponent, scenario.users, bad_share=0, timed_share=0)
    return _timed(take(GENERATED_EVENTS, mix, seed=seed, start_us=time.time_ns() // 1_000), seed)


def _timed(events: Iterable[bytes], seed: int) -> Iterator[bytes]:
    """Give each a time, as independent arrivals have them."""
    rng, at = random.Random(seed), 0.0
    for event in events:
        at += rng.expovariate(GENERATED_RATE)
        moment = datetime.fromtimestamp(at).astimezone().isoformat()
        yield msgspec.json.encode(msgspec.json.decode(event) | {"occurred_at": moment})


def _mapped(lines: Sequence[LogLine], campaign_ids: Sequence[int]) -> dict[int, int]:
    """The log's campaigns to the stand's; where it has more, some share one."""
    seen = dict.fromkeys(line.campaign_id for line in lines)
    return {logged: campaign_ids[at % len(campaign_ids)] for at, logged in enumerate(seen)}


def _template(lines: Sequence[LogLine], number: int, campaigns: dict[int, int], host: str) -> Template:
    events: dict[str, tuple[Line, bytes]] = {}
    chosen = []
    for at, line in enumerate(lines):
        if line.event_id not in events:
            events[line.event_id] = _event(line, f"{number:06x}{at:06x}", campaigns[line.campaign_id])
        chosen.append(events[line.event_id])
    return Template(request_of([body for _, body in chosen], host), [line for line, _ in chosen], repeats=False)


def _event(line: LogLine, tail: str, campaign: int) -> tuple[Line, bytes]:
    body = msgspec.json.encode(
        {
            "event_id": f"{STEM.decode()}-{tail}",
            "campaign_id": campaign,
            "user_id": line.user_id,
            "event_type": line.event_type,
            "ad_id": line.ad_id,
        }
    )
    return Line(tail, campaign, line.user_id, _TYPES[line.event_type], old=False, bad=False), body
