"""What a sender wrote becomes an entry, or is refused with a reason."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from engine.arrival import arrive
from engine.derived_ids import DerivedIds, derived_event_id
from engine.model import DAY_US, SECOND_US, Event, EventType, Invalid, instant_text, new_event_id
from engine.ports import NO_TIME
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


def telling_time(telling: str, seconds: int) -> dict[str, Any]:
    """An id, and what tells a time so long after noon: the sender's word, or the id itself."""
    if telling == "UUIDv7":
        return {"event_id": seven(seconds * SECOND_US)}
    return {"event_id": uuid.uuid4(), "occurred_at": instant_text(NOON_US + seconds * SECOND_US)}


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
        ({"occurred_at": instant_text(NOON_US - 176_401 * SECOND_US), "event_id": uuid.uuid4()}, "occurred_at: 176401"),
        ({"occurred_at": instant_text(NOON_US + 301 * SECOND_US)}, "occurred_at: 301 s ahead"),
        ({"occurred_at": "0001-01-01T00:00:00Z"}, "occurred_at"),
        ({"occurred_at": "9999-12-31T00:00:00Z"}, "occurred_at"),
        ({"occurred_at": "yesterday"}, "occurred_at: must be an RFC 3339 time"),
        ({"event_id": uuid.UUID(int=0)}, "event_id: must not be the nil"),
        ({"event_id": uuid.UUID(int=2**128 - 1)}, "event_id: must not be the nil"),
        ({"event_id": seven(301 * SECOND_US)}, "event_id: a UUIDv7 whose time is 301 s ahead"),
        ({"event_id": seven(-176_401 * SECOND_US)}, "event_id: a UUIDv7 whose time is 176401 s old"),
        ({"event_id": seven(-NOON_US)}, "event_id: a UUIDv7 whose time is 1767268800 s old"),
    ],
    ids=str,
)
def test_what_types_cannot_say_is_refused_with_the_field(fields: dict[str, Any], told: str) -> None:
    """The detail names the field and what is allowed."""
    refused = arrived(**fields)
    assert isinstance(refused, Invalid)
    assert told in refused.detail


@pytest.mark.parametrize("seconds", [-172_800, 0, 300])
@pytest.mark.parametrize("telling", ["occurred_at", "UUIDv7"])
def test_times_are_accepted_up_to_their_limits(telling: str, seconds: int) -> None:
    """48 h back to 5 min ahead, both included."""
    one = arrived(**telling_time(telling, seconds))
    assert isinstance(one, Entry)
    assert one.refusal is None


@pytest.mark.parametrize("seconds", [-172_801, -176_400])
@pytest.mark.parametrize("telling", ["occurred_at", "UUIDv7"])
def test_an_event_that_is_too_old_by_an_hour_at_most_may_be_a_repeat(telling: str, seconds: int) -> None:
    """It goes on, to be looked up, with the refusal that it hears otherwise."""
    one = arrived(**telling_time(telling, seconds))
    assert isinstance(one, Entry)
    assert one.refusal is not None
    assert f"{-seconds} s old, at most 172800 s are allowed" in (one.refusal.detail or "")


def test_occurred_at_goes_before_the_time_in_an_id() -> None:
    """An id that was made long before its event, or after it, is no fault."""
    for days in (-30, 30):
        one = arrived(event_id=seven(days * DAY_US), occurred_at=instant_text(NOON_US))
        assert isinstance(one, Entry)
        assert (one.refusal, one.id_time_us, one.day) == (None, NOON_US, TODAY)


@pytest.mark.parametrize(
    ("fields", "day"),
    [
        ({"occurred_at": instant_text(NOON_US - DAY_US), "event_id": seven()}, TODAY - 1),
        ({"event_id": seven(-2 * DAY_US)}, TODAY - 2),
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


@pytest.mark.parametrize(
    ("fields", "us"),
    [
        ({"occurred_at": instant_text(NOON_US - DAY_US), "event_id": seven()}, NOON_US - DAY_US),
        ({"occurred_at": instant_text(NOON_US - DAY_US), "event_id": uuid.uuid4()}, NOON_US - DAY_US),
        ({"event_id": seven(-SECOND_US)}, NOON_US - SECOND_US),
        ({"event_id": uuid.uuid4()}, NO_TIME),
    ],
    ids=["occurred_at", "occurred_at and UUIDv4", "UUIDv7", "UUIDv4"],
)
def test_the_id_time_is_what_a_repeat_repeats(fields: dict[str, Any], us: int) -> None:
    """`occurred_at`, else the time inside a UUIDv7, else none: the time of receipt is another at each try."""
    one = arrived(**fields)
    assert isinstance(one, Entry)
    assert one.id_time_us == us


def test_an_id_of_a_key_tells_no_time() -> None:
    """It is the same whenever the request comes; its events tell one if they say when they occurred."""
    assert entry(key="k").id_time_us == NO_TIME
    assert entry(key="k", occurred_at=instant_text(NOON_US - SECOND_US)).id_time_us == NOON_US - SECOND_US


def test_the_server_makes_ids_that_tell_their_time() -> None:
    """UUIDv7, each another."""
    first, second = entry(), entry()
    assert first.event_id != second.event_id
    assert uuid7_us(first.event_id) == first.id_time_us == NOON_US
    assert first.made_here
    assert not entry(event_id=uuid.uuid4()).made_here


def test_an_id_made_by_the_server_has_day_and_id_time_of_its_event() -> None:
    """Sent again under that id, with the same `occurred_at`, it must be found under the same unique key."""
    occurred_at = instant_text(NOON_US - DAY_US)
    first = entry(occurred_at=occurred_at)
    again = entry(occurred_at=occurred_at, event_id=uuid.UUID(bytes=first.event_id))
    assert (first.day, first.id_time_us) == (again.day, again.id_time_us) == (TODAY - 1, NOON_US - DAY_US)
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
