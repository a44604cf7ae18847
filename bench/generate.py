"""Generated events: the same for the same seed, in any number, in little memory.

Owns the shape of a load: which campaigns and users it is about (Zipf: a few have most), event types, ad ids, times,
repeats of earlier events and bad events. Pure: the present is an argument. Knows no HTTP and no engine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import accumulate, islice
from typing import Final

CHUNK_EVENTS: Final = 4_096  # drawn at once: `choices` is three times as fast for many as for one
RECENT_EVENTS_MAX: Final = 10_000  # from which repeats are taken: about 2 MB
LATE_US_MAX: Final = 12 * 3_600 * 1_000_000  # how old late events are at most
RECENT_US_MAX: Final = 2_000_000  # and the others that tell their time


@dataclass(frozen=True)
class Mix:
    """What a load is made of. Shares are parts of all events; the rest is good, new and of the present.

    The first of `campaigns` gets most events. An exponent of 0 spreads evenly, 1 is Zipf's law.
    """

    campaigns: Sequence[int]
    campaign_exponent: float = 0.8
    users: int = 50_000
    user_exponent: float = 0.9
    ads: int = 20
    clicks_share: float = 0.08
    conversions_share: float = 0.02
    repeats_share: float = 0.02
    bad_share: float = 0.005
    late_share: float = 0.01  # with an `occurred_at` of up to 12 hours ago
    timed_share: float = 0.5  # with an `occurred_at` of the last seconds

    def __post_init__(self) -> None:
        if not self.campaigns or self.users < 1 or self.ads < 1:
            raise ValueError("a mix needs at least one campaign, user and ad")


def generate(mix: Mix, *, seed: int, start_us: int) -> Iterator[bytes]:
    """Events without end, as JSON, one after the other; `islice` takes as many as needed.

    `start_us` is the present of the load, in microseconds since the epoch: ids are UUIDv7 of then.
    """
    rng = random.Random(seed)
    recent: list[bytes] = []
    for event in _good_events(mix, rng, start_us):
        chance = rng.random()
        if chance < mix.repeats_share and recent:
            yield rng.choice(recent)
        elif mix.repeats_share <= chance < mix.repeats_share + mix.bad_share:
            yield rng.choice(BAD_KINDS)(json.loads(event))
        else:
            if len(recent) < RECENT_EVENTS_MAX:
                recent.append(event)
            else:
                recent[int(RECENT_EVENTS_MAX * rng.random())] = event
            yield event


def take(events: int, mix: Mix, *, seed: int, start_us: int) -> Iterator[bytes]:
    """So many of them."""
    return islice(generate(mix, seed=seed, start_us=start_us), events)


def zipf_weights(count: int, exponent: float) -> list[float]:
    """Cumulative weights of the ranks 1 to `count`: rank r has 1 / r ** exponent."""
    return list(accumulate(1.0 / rank**exponent for rank in range(1, count + 1)))


def _good_events(mix: Mix, rng: random.Random, start_us: int) -> Iterator[bytes]:
    """Good events, every one new. Written by hand: a third of the time of a dict and `json.dumps`."""
    campaign_weights = zipf_weights(len(mix.campaigns), mix.campaign_exponent)
    user_weights = zipf_weights(mix.users, mix.user_exponent)
    users = range(mix.users)
    types = ("impression", "click", "conversion")
    type_weights = (1 - mix.clicks_share - mix.conversions_share, mix.clicks_share, mix.conversions_share)
    while True:
        campaigns = rng.choices(mix.campaigns, cum_weights=campaign_weights, k=CHUNK_EVENTS)
        chosen_users = rng.choices(users, cum_weights=user_weights, k=CHUNK_EVENTS)
        chosen_types = rng.choices(types, weights=type_weights, k=CHUNK_EVENTS)
        for campaign, user, event_type in zip(campaigns, chosen_users, chosen_types, strict=True):
            event_id = _uuid7(start_us, rng.getrandbits(74))
            occurred = _occurred(mix, rng, start_us)
            yield (
                f'{{"event_id":"{event_id}","campaign_id":{campaign},"user_id":"user-{user}",'
                f'"event_type":"{event_type}","ad_id":"ad-{campaign}-{int(mix.ads * rng.random())}"{occurred}}}'
            ).encode()


def _occurred(mix: Mix, rng: random.Random, start_us: int) -> str:
    """The field `occurred_at`, or nothing."""
    chance = rng.random()
    if chance >= mix.late_share + mix.timed_share:
        return ""
    back_us = LATE_US_MAX if chance < mix.late_share else RECENT_US_MAX
    second, microsecond = divmod(start_us - int(back_us * rng.random()), 1_000_000)
    return f',"occurred_at":"{_second_text(second)}.{microsecond:06d}Z"'


@lru_cache(maxsize=1_024)  # most are of the last seconds
def _second_text(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _uuid7(instant_us: int, randomness: int) -> str:
    """A UUIDv7 (RFC 9562, section 5.7) from 74 random bits."""
    low = randomness & (1 << 62) - 1 | 1 << 63
    when = f"{instant_us // 1_000:012x}"
    tail = f"{low:016x}"
    return f"{when[:8]}-{when[8:]}-7{randomness >> 62:03x}-{tail[:4]}-{tail[4:]}"


# --- Bad events: each kind as senders get it wrong ---


Fields = dict[str, object]


def _json(fields: Fields) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _changed(**changes: object) -> Callable[[Fields], bytes]:
    return lambda fields: _json({**fields, **changes})


def _without(name: str) -> Callable[[Fields], bytes]:
    return lambda fields: _json({field: value for field, value in fields.items() if field != name})


BAD_KINDS: Final[tuple[Callable[[Fields], bytes], ...]] = (
    _changed(event_type="view"),
    _changed(campaign_id="one"),
    _changed(campaign_id=-1),
    _changed(user_id=""),
    _changed(user_id="u" * 129),
    _changed(ad_id="null\x00byte"),
    _changed(event_id="not-a-uuid"),
    _changed(occurred_at="yesterday"),
    _changed(occurred_at="2001-01-01T00:00:00Z"),
    _changed(colour="red"),
    _without("user_id"),
    _without("event_type"),
    lambda fields: _json(fields)[:-20],
    lambda _: b"[]",
)
