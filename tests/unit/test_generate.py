"""Generated loads: the same for the same seed, and of the shares that were asked for."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec
import pytest

from api.codec import read_events
from bench.generate import BAD_KINDS, Mix, take, zipf_weights
from config.settings import Settings
from engine import Event, Invalid, Submission
from engine.arrival import ArrivalLimits, arrive
from engine.instants import instant_us
from engine.model import SECOND_US
from tests.plans import uuid7_us

NOW_US = 1_800_000_000 * SECOND_US
EVENTS = 20_000


def events(seed: int = 1, count: int = EVENTS, **mix: Any) -> list[bytes]:
    """A load over ten campaigns."""
    return list(take(count, Mix(**{"campaigns": range(1, 11), **mix}), seed=seed, start_us=NOW_US))


def is_refused(read: Event | Invalid) -> bool:
    """Whether the engine calls it invalid."""
    if isinstance(read, Invalid):
        return True
    submission = Submission(NOW_US, NOW_US, lambda _: None, lambda _: None)
    return isinstance(arrive(read, submission, 0, None, ArrivalLimits.of(Settings())), Invalid)


def good(lines: list[bytes]) -> list[dict[str, Any]]:
    """The events of lines that are all good."""
    return [json.loads(line) for line in lines]


def test_the_same_seed_makes_the_same_events() -> None:
    """And another seed others, with no id in common."""
    first = events(seed=1)
    assert first == events(seed=1)
    assert first[:100] == events(seed=1, count=100)
    assert set(first) & set(events(seed=2)) <= {b"[]"}


def test_without_bad_ones_and_repeats_every_event_is_new_and_valid() -> None:
    """Ids are UUIDv7 of the present, times lie in the last 12 hours."""
    lines = events(bad_share=0, repeats_share=0)
    decoded = msgspec.json.decode(b"[" + b",".join(lines) + b"]", type=list[Event])
    assert len({event.event_id for event in decoded}) == EVENTS
    assert {uuid7_us(event.event_id.bytes) for event in decoded if event.event_id} == {NOW_US}
    times = [instant_us(event.occurred_at) for event in decoded if event.occurred_at]
    assert NOW_US - 12 * 3_600 * SECOND_US <= min(times) <= max(times) <= NOW_US
    assert len(times) / EVENTS == pytest.approx(0.51, abs=0.02)
    assert sum(time < NOW_US - 2 * SECOND_US for time in times) / EVENTS == pytest.approx(0.01, abs=0.005)


def test_a_few_campaigns_and_users_have_most_events() -> None:
    """Zipf's law: rank r has 1 / r of the first one's share."""
    lines = good(events(bad_share=0, repeats_share=0, campaign_exponent=1, user_exponent=1, users=100))
    for name, count in (("campaign_id", 10), ("user_id", 100)):
        shares = [number for _, number in Counter(event[name] for event in lines).most_common()]
        assert len(shares) == count
        assert shares[0] / shares[4] == pytest.approx(5, rel=0.15)
    assert Counter(event["campaign_id"] for event in lines).most_common(1)[0][0] == 1
    assert zipf_weights(3, 0) == [1, 2, 3]


def test_types_have_their_shares() -> None:
    """Impressions are what clicks and conversions leave."""
    kinds = Counter(event["event_type"] for event in good(events(bad_share=0, clicks_share=0.2, conversions_share=0.1)))
    assert kinds["impression"] / EVENTS == pytest.approx(0.7, abs=0.02)
    assert kinds["click"] / EVENTS == pytest.approx(0.2, abs=0.02)


def test_repeats_have_their_share() -> None:
    """A repeat is an earlier event, byte for byte."""
    lines = events(bad_share=0, repeats_share=0.1)
    assert 1 - len(set(lines)) / EVENTS == pytest.approx(0.1, abs=0.01)


def test_bad_events_have_their_share_and_the_engine_refuses_every_one() -> None:
    """What is meant as bad is bad, and nothing else is."""
    body = b"\n".join(events(bad_share=0.05, repeats_share=0))
    limits = Settings(request_events_max=EVENTS, request_bytes_max=len(body))
    read = read_events(body, content_type="application/x-ndjson", content_encoding="", batch=True, limits=limits)
    assert len(read) == EVENTS
    refused = sum(is_refused(event) for event in read)
    assert refused / EVENTS == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("kind", BAD_KINDS)
def test_each_kind_of_bad_event_is_refused(kind: Any) -> None:
    """By the codec, or on arrival."""
    (line,) = events(count=1, bad_share=0, timed_share=1)
    body = kind(json.loads(line))
    (read,) = read_events(body, content_type="application/x-ndjson", content_encoding="", batch=True, limits=Settings())
    assert is_refused(read)


def test_a_mix_needs_something_to_choose_from() -> None:
    """Said at once."""
    with pytest.raises(ValueError, match="at least one campaign"):
        Mix(campaigns=[])
