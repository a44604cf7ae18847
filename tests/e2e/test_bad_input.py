"""Bad input: the right status, a clear problem, nothing lost and nothing accepted. On both listeners."""

from __future__ import annotations

import gzip
import json
import socket
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import zstandard

from tests.e2e.program import Program, impression, running

JSON = {"content-type": "application/json"}
NDJSON = {"content-type": "application/x-ndjson"}
BOMB = bytes(64 << 20)
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes, "gzip": gzip.compress, "zstd": zstandard.compress
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Program]:
    """One program for all of these: none of them may change anything."""
    stores = request.getfixturevalue("stores")
    with running({"DB_URL": stores.db_url, "REDIS_URL": stores.redis_url}) as program:
        program.create()
        yield program


def event(**fields: Any) -> dict[str, Any]:
    """A good impression of campaign 1, changed by `fields`."""
    return {**impression(1), **fields}


def ago(**delta: float) -> str:
    """An instant before now, as senders write it."""
    return (datetime.now(UTC) - timedelta(**delta)).isoformat()


SINGLES: list[tuple[str, bytes, dict[str, str], int]] = [
    ("not JSON", b"hello", JSON, 400),
    ("truncated", json.dumps(event()).encode()[:-5], JSON, 400),
    ("nothing", b"", JSON, 400),
    ("NaN", b'{"campaign_id":NaN,"user_id":"a","event_type":"impression"}', JSON, 400),
    ("not UTF-8", b'{"campaign_id":1,"user_id":"\xff","event_type":"impression"}', JSON, 422),
    ("an array", b"[]", JSON, 422),
    ("wrong types", json.dumps(event(user_id=5)).encode(), JSON, 422),
    ("a huge number", json.dumps(event(campaign_id=10**40)).encode(), JSON, 422),
    ("a negative campaign", json.dumps(event(campaign_id=-1)).encode(), JSON, 422),
    ("a fraction", json.dumps(event(campaign_id=1.5)).encode(), JSON, 422),
    ("NUL", json.dumps(event(user_id="a\0b")).encode(), JSON, 422),
    ("a lone surrogate", b'{"campaign_id":1,"user_id":"\\ud800","event_type":"impression"}', JSON, 422),
    ("an unknown field", json.dumps(event(colour="red")).encode(), JSON, 422),
    ("a missing field", b'{"campaign_id":1,"event_type":"impression"}', JSON, 422),
    ("a long string", json.dumps(event(user_id="u" * 129)).encode(), JSON, 422),
    ("too old", json.dumps(event(occurred_at=ago(hours=49))).encode(), JSON, 422),
    ("too far ahead", json.dumps(event(occurred_at=ago(minutes=-60))).encode(), JSON, 422),
    ("a time without zone", json.dumps(event(occurred_at="2026-01-01T00:00:00")).encode(), JSON, 422),
    ("no UUID", json.dumps(event(event_id="42")).encode(), JSON, 422),
    ("another content type", json.dumps(event()).encode(), {"content-type": "text/plain"}, 415),
    ("curl's default", json.dumps(event()).encode(), {"content-type": "application/x-www-form-urlencoded"}, 415),
    ("another encoding", b"x", {**JSON, "content-encoding": "br"}, 415),
    ("no gzip", b"x", {**JSON, "content-encoding": "gzip"}, 400),
    ("half a gzip", gzip.compress(json.dumps(event()).encode())[:-6], {**JSON, "content-encoding": "gzip"}, 400),
    ("a gzip bomb", gzip.compress(BOMB), {**JSON, "content-encoding": "gzip"}, 413),
    ("a zstd bomb", zstandard.compress(BOMB), {**JSON, "content-encoding": "zstd"}, 413),
    ("an oversized body", b" " * (5 << 20), JSON, 413),
]

BATCHES: list[tuple[str, bytes, dict[str, str], int]] = [
    ("not JSON", b"hello", JSON, 400),
    ("truncated", json.dumps([event()]).encode()[:-5], JSON, 400),
    ("no array", json.dumps(event()).encode(), JSON, 400),
    ("deep nesting", b"[" * 100_000, JSON, 400),
    ("too many", json.dumps([event()] * 5_001).encode(), JSON, 413),
    ("too many lines", b"\n".join([json.dumps(event()).encode()] * 5_001), NDJSON, 413),
    ("a gzip bomb", gzip.compress(BOMB), {**NDJSON, "content-encoding": "gzip"}, 413),
]


def check_problem(answer: httpx.Response, status: int) -> None:
    """A problem document that says what is wrong."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["code"]
    assert problem["detail"]


@pytest.mark.parametrize("listener", [0, 1], ids=["api", "intake"])
@pytest.mark.parametrize(
    ("body", "headers", "status"), [case[1:] for case in SINGLES], ids=[case[0] for case in SINGLES]
)
def test_a_bad_event(shared: Program, listener: int, body: bytes, headers: dict[str, str], status: int) -> None:
    """Refused, and the report does not move."""
    before = shared.report(1)
    check_problem(shared.client.post(f"{shared.listeners[listener]}/events/", content=body, headers=headers), status)
    assert shared.report(1) == before


@pytest.mark.parametrize("listener", [0, 1], ids=["api", "intake"])
@pytest.mark.parametrize(
    ("body", "headers", "status"), [case[1:] for case in BATCHES], ids=[case[0] for case in BATCHES]
)
def test_a_batch_that_cannot_be_read(
    shared: Program, listener: int, body: bytes, headers: dict[str, str], status: int
) -> None:
    """Nothing of it is accepted."""
    before = shared.report(1)
    check_problem(
        shared.client.post(f"{shared.listeners[listener]}/events/batch", content=body, headers=headers), status
    )
    assert shared.report(1) == before


@pytest.mark.parametrize("listener", [0, 1], ids=["api", "intake"])
@pytest.mark.parametrize("encoding", ["identity", "gzip", "zstd"])
@pytest.mark.parametrize("form", ["array", "lines"])
def test_every_form_and_encoding_is_taken_and_bad_events_cost_themselves(
    shared: Program, listener: int, encoding: str, form: str
) -> None:
    """Fifty events, of which each fifth is bad."""
    good = [json.dumps(event()).encode() for _ in range(40)]
    bad = [
        b'{"campaign_id":1,"user_id":"\\ud800","event_type":"click"}',
        json.dumps(event(user_id="")).encode(),
        b"[[[[1]]]]",
        b"null",
        json.dumps(event(event_type="view")).encode(),
        json.dumps(event(event_id=5)).encode(),
        json.dumps(event(occurred_at="yesterday")).encode(),
        json.dumps(event(campaign_id=10**30)).encode(),
        json.dumps(event(more=1)).encode(),
        b"{}",
    ]
    lines = [line for five in range(10) for line in (*good[4 * five : 4 * five + 4], bad[five])]
    body = b"[" + b",".join(lines) + b"]" if form == "array" else b"\n".join(lines) + b"\n"
    packed = PACKERS[encoding](body)
    headers = {**(JSON if form == "array" else NDJSON), "content-encoding": encoding}
    answer = shared.client.post(f"{shared.listeners[listener]}/events/batch", content=packed, headers=headers).json()
    assert (answer["accepted"], answer["rejected"]) == (40, 10)
    assert [result["index"] for result in answer["results"]] == list(range(4, 50, 5))
    assert all(result["reason"] == "invalid" and result["detail"] for result in answer["results"])


@pytest.mark.parametrize("listener", [0, 1], ids=["api", "intake"])
def test_conflicting_lengths_are_refused_and_the_connection_is_closed(shared: Program, listener: int) -> None:
    """Two lengths, or a length and chunks: nobody guesses where the request ends."""
    address = urlsplit(shared.listeners[listener])
    for framing in ("Content-Length: 5\r\nContent-Length: 7", "Content-Length: 5\r\nTransfer-Encoding: chunked"):
        with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as peer:
            head = f"POST /events/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
            peer.sendall(head.encode() + b"hello")
            answer = b""
            while piece := peer.recv(65_536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 400"), answer[:100]


@pytest.mark.parametrize("listener", [0, 1], ids=["api", "intake"])
def test_an_id_stands_for_one_event(shared: Program, listener: int) -> None:
    """Twice in a batch: a duplicate; with another body: reused."""
    one = event(event_id=str(uuid.uuid4()))
    answer = shared.batch([one, one, {**one, "ad_id": "other"}], to=shared.listeners[listener])
    assert answer["accepted"] == 1
    assert [(result["status"], result["reason"]) for result in answer["results"]] == [
        ("duplicate", None),
        ("rejected", "id_reused"),
    ]


@pytest.mark.parametrize("listener", [0, 1], ids=["api", "intake"])
def test_unknown_paths_and_methods_are_problems_too(shared: Program, listener: int) -> None:
    """404 and 405."""
    to = shared.listeners[listener]
    check_problem(shared.client.get(f"{to}/nothing"), 404)
    check_problem(shared.client.delete(f"{to}/events/"), 405)


def test_every_fault_of_a_campaign_is_named_at_once(shared: Program) -> None:
    """One answer, not one fault after the other."""
    answer = shared.client.post(
        f"{shared.api}/campaigns/",
        json={
            "name": "", "pricing_model": "cpx", "unit_price": "0", "total_budget": "-1",
            "daily_budget": "0.0000001", "freq_cap_impressions_per_day": 0, "colour": "red",
        },
    )  # fmt: skip
    check_problem(answer, 422)
    assert {fault["field"] for fault in answer.json()["errors"]} == {
        "name", "pricing_model", "unit_price", "total_budget", "daily_budget", "freq_cap_impressions_per_day", "colour"
    }  # fmt: skip


def test_bounds_that_cannot_be_read_are_refused(shared: Program) -> None:
    """The old system ignored them."""
    for query in ("start=yesterday", "end=2026-13-01", "start=2026-02-02&end=2026-01-01", "from=2026-01-01"):
        check_problem(shared.client.get(f"{shared.api}/report/campaign/1?{query}"), 422)
