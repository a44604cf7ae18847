"""Calls about events, on the api listener."""

from __future__ import annotations

import gzip
import json
import uuid

import msgspec
import pytest

from api.errors import STATUS_OF
from api.events import BatchAnswer, EventAnswer
from config.settings import Settings
from engine import Reason, Status, Verdict
from engine.model import SECOND_US, instant_text
from tests.fakes.api import EVENT, FakeApi
from tests.fakes.engine import NOW_US


async def test_an_accepted_event_is_told_as_it_is_stored() -> None:
    """200 with every field of the contract."""
    sent_id = str(uuid.uuid4())
    told = await FakeApi().send("POST", "/events/", {**EVENT, "event_id": sent_id, "ad_id": "banner"})
    assert told.status == 200
    assert told.json == {
        "event_id": sent_id, "campaign_id": 1, "ad_id": "banner", "user_id": "ada", "event_type": "impression",
        "cost": "0.010000", "ts": "2023-11-14T22:13:20.000000Z", "status": "accepted",
    }  # fmt: skip
    msgspec.json.decode(told.body, type=EventAnswer)


async def test_a_duplicate_is_200_with_what_was_stored() -> None:
    """The sender hears what became of it the first time."""
    api = FakeApi()
    api.engine.verdicts["ada"] = Verdict(Status.DUPLICATE)
    told = await api.send("POST", "/events/", EVENT)
    assert (told.status, told.json["status"]) == (200, "duplicate")


@pytest.mark.parametrize("reason", Reason)
async def test_each_reason_has_its_status(reason: Reason) -> None:
    """A problem whose code is the reason; with Retry-After where a retry may help."""
    api = FakeApi()
    kind = Status.RETRY if STATUS_OF[reason] == 503 else Status.REJECTED
    api.engine.verdicts["ada"] = Verdict(kind, reason, "because", retry_after_seconds=7 if reason == "paced" else None)
    told = await api.send("POST", "/events/", {**EVENT, "event_id": str(uuid.uuid4())})
    assert (told.status, told.code) == (STATUS_OF[reason], reason.value)
    assert told.headers.get("retry-after") == {429: "7" if reason == "paced" else "1", 503: "1"}.get(told.status)


def test_the_statuses_are_those_of_the_contract() -> None:
    """Written out, so that a change of the table is a change of the contract."""
    assert {reason.value: status for reason, status in STATUS_OF.items()} == {
        "total_budget": 402, "daily_budget": 402, "inactive": 402, "unknown_campaign": 404, "invalid": 422,
        "id_reused": 422, "frequency_capped": 429, "paced": 429, "in_flight": 503, "unavailable": 503,
        "overloaded": 503,
    }  # fmt: skip
    assert set(STATUS_OF) == set(Reason)


async def test_a_batch_tells_each_event_that_is_not_accepted() -> None:
    """Counts and results; Retry-After when any is `retry`."""
    api = FakeApi()
    api.engine.verdicts.update(
        bob=Verdict(Status.DUPLICATE),
        eve=Verdict(Status.REJECTED, Reason.TOTAL_BUDGET),
        zoe=Verdict(Status.RETRY, Reason.OVERLOADED, retry_after_seconds=3),
    )
    told = await api.send(
        "POST", "/events/batch", [{**EVENT, "user_id": user} for user in ("ada", "bob", "eve", "zoe")]
    )
    answer = msgspec.json.decode(told.body, type=BatchAnswer)
    assert (answer.received, answer.accepted, answer.duplicate, answer.rejected, answer.retry) == (4, 1, 1, 1, 1)
    assert [(result.index, result.status, result.reason) for result in answer.results] == [
        (1, "duplicate", None), (2, "rejected", "total_budget"), (3, "retry", "overloaded")
    ]  # fmt: skip
    assert told.headers["retry-after"] == "3"


async def test_lines_and_packed_bodies_are_read() -> None:
    """NDJSON and gzip, together too."""
    api = FakeApi()
    lines = b"\n".join(json.dumps(EVENT).encode() for _ in range(3)) + b"\nnot json\n"
    told = await api.send(
        "POST", "/events/batch", data=gzip.compress(lines), content_type="application/x-ndjson", content_encoding="gzip"
    )
    assert (told.json["accepted"], told.json["rejected"]) == (3, 1)


async def test_what_can_not_be_read_at_all_is_refused() -> None:
    """400, 413, 415; and the engine hears nothing of it."""
    api = FakeApi(Settings(request_bytes_max=2_000, request_events_max=2))
    expected = [
        ({"data": b"["}, 400, "malformed_json"),
        ({"data": b"{}", "content_type": "text/plain"}, 415, "unsupported_content_type"),
        ({"data": b"{}", "content_encoding": "br"}, 415, "unsupported_encoding"),
        ({"data": b"{}", "content_encoding": "gzip"}, 400, "malformed_encoding"),
        ({"data": b" " * 2_001}, 413, "body_too_large"),
        ({"data": gzip.compress(b" " * 2_001), "content_encoding": "gzip"}, 413, "body_too_large"),
        ({"body": [EVENT] * 3}, 413, "too_many_events"),
        ({"body": dict(EVENT)}, 400, "not_an_array"),
    ]
    for request, status, code in expected:
        told = await api.send("POST", "/events/batch", **request)  # type: ignore[arg-type]
        assert (told.status, told.code) == (status, code)
    assert api.engine.recorded == []


async def test_an_idempotency_key_is_handed_on() -> None:
    """And is None without the header."""
    api = FakeApi()
    assert (await api.send("POST", "/events/", EVENT)).status == 200
    for key in ("a b~!", "k" * 255):
        assert (await api.send("POST", "/events/", EVENT, idempotency_key=key)).status == 200
    assert api.engine.keys == [None, "a b~!", "k" * 255]


@pytest.mark.parametrize("key", ["", "k" * 256, "ä", "a\tb", "a\x7fb"])
async def test_a_key_nobody_should_rely_on_is_refused(key: str) -> None:
    """1 to 255 printable ASCII characters."""
    api = FakeApi()
    told = await api.send("POST", "/events/", EVENT, idempotency_key=key)
    assert (told.status, told.code) == (400, "malformed_idempotency_key")
    assert api.engine.recorded == []


@pytest.mark.parametrize("seconds", [172_801, 172_800 + 3_601], ids=["looked up first", "refused at once"])
async def test_what_is_too_old_is_told_its_age_and_its_id(seconds: int) -> None:
    """The same words and the same id, alone and in a batch, whether it was looked up or not."""
    sent_id = str(uuid.uuid4())
    old = {**EVENT, "event_id": sent_id, "occurred_at": instant_text(NOW_US - seconds * SECOND_US)}
    detail = f"occurred_at: {seconds} s old, at most 172800 s are allowed"
    told = await FakeApi().send("POST", "/events/", old)
    assert (told.status, told.code, told.json["detail"], told.json["event_id"]) == (422, "invalid", detail, sent_id)
    told = await FakeApi().send("POST", "/events/batch", [old])
    assert told.json["results"] == [
        {"index": 0, "event_id": sent_id, "status": "rejected", "reason": "invalid", "detail": detail}
    ]
