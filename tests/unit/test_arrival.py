"""What a sender wrote becomes an entry, or is refused with a reason."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from engine.arrival import arrive
from engine.derived_ids import DerivedIds, derived_event_id
from engine.model import DAY_US, SECOND_US, Event, EventType, Invalid, instant_text, new_event_id
from engine.submission import Entry
from tests.plans import LIMITS, NOON_US, entry, submission, uuid7_us

TODAY = NOON_US // DAY_US


def arrived(**fields: Any) -> Entry | Invalid:
    """An impression of ada, changed by `fields`."""
    values: dict[str, Any] = {"campaign_id": 7, "user_id": "ada", "event_type": "impression"}
    return arrive(Event(**{**values, **fields}), submission(), 0, None, LIMITS)


def seven(offset_us: int = 0) -> uuid.UUID:
    """A UUIDv7 made so long after noon."""
    return uuid.UUID(bytes=new_event_id(NOON_US + offset_us, bytes(10)))


def test_an_event_is_encoded_once() -> None:
    """Text becomes the bytes that its row has."""
    one = entry(user_id="ådä", ad_id="b", event_type="click")
    assert (one.user, one.ad, one.event_type) == ("ådä".encode(), b"b", EventType.CLICK)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"user_id": ""}, "user_id: must have 1 to 128 bytes"),
        ({"user_id": "ä" * 65}, "user_id: must have 1 to 128 bytes, not 130"),
        ({"ad_id": ""}, "ad_id: must have 1 to 128 bytes"),
        ({"user_id": "a\0b"}, "user_id: must not hold a NUL"),
        ({"ad_id": "\ud800"}, "ad_id: must be Unicode text"),
        ({"occurred_at": instant_text(NOON_US - 172_801 * SECOND_US)}, "occurred_at: 172801 s old"),
        ({"occurred_at": instant_text(NOON_US + 301 * SECOND_US)}, "occurred_at: 301 s ahead"),
        ({"occurred_at": "0001-01-01T00:00:00Z"}, "occurred_at"),
        ({"occurred_at": "9999-12-31T00:00:00Z"}, "occurred_at"),
        ({"occurred_at": "yesterday"}, "occurred_at: must be an RFC 3339 time"),
        ({"event_id": uuid.UUID(int=0)}, "event_id: must not be the nil"),
        ({"event_id": uuid.UUID(int=2**128 - 1)}, "event_id: must not be the nil"),
        ({"event_id": seven(301 * SECOND_US)}, "event_id: a UUIDv7 whose time is 301 s ahead"),
    ],
    ids=str,
)
def test_what_types_cannot_say_is_refused_with_the_field(fields: dict[str, Any], told: str) -> None:
    """The detail names the field and what is allowed."""
    refused = arrived(**fields)
    assert isinstance(refused, Invalid)
    assert told in refused.detail


@pytest.mark.parametrize("seconds", [-172_800, 0, 300])
def test_the_window_of_occurred_at_is_inclusive(seconds: int) -> None:
    """48 h back to 5 min ahead."""
    assert isinstance(arrived(occurred_at=instant_text(NOON_US + seconds * SECOND_US)), Entry)


@pytest.mark.parametrize(
    ("fields", "day"),
    [
        ({"occurred_at": instant_text(NOON_US - DAY_US), "event_id": seven()}, TODAY - 1),
        ({"event_id": seven(-3 * DAY_US)}, TODAY - 3),
        ({"event_id": uuid.uuid4()}, TODAY),
        ({}, TODAY),
    ],
    ids=["occurred_at", "UUIDv7", "receipt", "no id"],
)
def test_the_identity_day_is_of_the_first_time_that_is_told(fields: dict[str, Any], day: int) -> None:
    """`occurred_at`, else the time inside a UUIDv7, else receipt."""
    one = arrived(**fields)
    assert isinstance(one, Entry)
    assert one.day == day


def test_the_server_makes_ids_that_tell_their_time() -> None:
    """UUIDv7, each another."""
    first, second = entry(), entry()
    assert first.event_id != second.event_id
    assert uuid7_us(first.event_id) == NOON_US


def test_an_idempotency_key_makes_the_same_ids_again() -> None:
    """A repeated request is a repeat; each place of each campaign has its own."""
    assert entry(key="k").event_id == entry(key="k").event_id == derived_event_id("k", 7, 0)
    others = [("k", 7, 0), ("k", 7, 1), ("k", 8, 0), ("1:k", 7, 0), ("0:k", 7, 1), ("k", 70, 0)]
    assert len({derived_event_id(*each) for each in others}) == len(others)
    assert uuid.UUID(bytes=derived_event_id("k", 7, 0)).version == 8


def test_derived_ids_do_not_depend_on_the_order_of_campaigns() -> None:
    """Nor on events of other campaigns; one that can't be decoded keeps its place in its campaign."""
    first = DerivedIds("k", [1, 2, 1, None, 2, 1])
    other = DerivedIds("k", [2, 2, 1, 1, 1])
    assert [first.of(index) for index in (0, 2, 5)] == [other.of(index) for index in (2, 3, 4)]
    assert [first.of(index) for index in (1, 4)] == [other.of(index) for index in (0, 1)]


def test_an_id_of_its_own_goes_before_the_key() -> None:
    """The key is for events that have none."""
    own = uuid.uuid4()
    assert entry(key="k", event_id=own).event_id == own.bytes


def test_without_a_time_an_event_occurred_when_it_came() -> None:
    """The server's receive time."""
    assert entry().occurred_us == NOON_US
