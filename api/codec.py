"""Bytes to events, and verdicts to answers: the event contract of HTTP, shared by both listeners.

Owns content types, encodings, JSON and its limits, and the bodies of answers about events. Knows no framework,
no socket and no store. What a typed decode can't check (bytes, NUL, times) is the engine's.

One bad event costs only itself: it becomes an `Invalid` in its place. What can't be read at all raises
`BadRequest`, and then nothing is accepted. A key that stands twice in one object counts with its last value.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import orjson

from api.bad_events import EVENT, EVENT_BYTES_MAX, check_json, explain, mark_lone_surrogates, too_long
from api.bodies import (
    BYTE_ORDER_MARK,
    EVENTS,
    has_long_event,
    malformed,
    read_array,
    read_line,
    read_lines,
    too_many_events,
)
from api.elements import NotJson, skip_blanks
from api.encodings import BodyTooLarge, UnknownEncoding, decode_body
from api.errors import STATUS_OF, Answer, BadRequest, problem
from api.slicing import Reading, next_slice
from config.settings import Settings
from engine import Entry, Event, Invalid, Status, StoredEvent, Submission, Verdict
from engine.model import EVENT_TYPE_NAMES, SECOND_US, decimal_text

__all__ = ["JSON", "JSON_HEADERS", "NDJSON", "batch_answer", "event_answer", "read_events", "start_reading"]

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
RETRY_AFTER_SECONDS: Final = 1

NAME_CHARACTERS_MAX: Final = 64  # of an unknown type, in the answer

# What is decoded in one go if nothing is wrong in it; all else goes in slices. Of an array, elements can't be counted
# before: 1 MiB has 20,000 events at most, which take 6 ms and 4 MB. Of lines there are no more than were split.
ARRAY_BYTES_MAX: Final = 1 << 20
LINES_BYTES_MAX: Final = 4 << 20
GOOD_LINES_MIN: Final = 64  # to each bad one, beside the first
BLANKS: Final = b" \t\r\n"
_OTHER_JSON: Final = re.compile(rb'[{"0-9-]|true|false|null')  # what begins with it is no array


# --- Reading ------------------------------------------------------------------------------------------------


def read_events(
    body: bytes, *, content_type: str, content_encoding: str, batch: bool, limits: Settings
) -> Sequence[Event | Invalid]:
    """The events of one request's body, in one go however long that takes: see `start_reading`."""
    events = start_reading(
        body, content_type=content_type, content_encoding=content_encoding, batch=batch, limits=limits
    )
    while not isinstance(events, list):
        done = next_slice(events)
        events = events if done is None else done
    return events


def start_reading(
    body: bytes, *, content_type: str, content_encoding: str, batch: bool, limits: Settings
) -> list[Event | Invalid] | Reading:
    """The events of one request's body, in order; or the reading of what may take longer.

    What is read at once takes time as its bytes do: a megabyte 2 ms, whatever is in it.

    `content_type` and `content_encoding` are the headers' values, "" when absent; an absent type is JSON, as
    plain HTTP libraries send none. An empty batch has no events. Raises `BadRequest` (400, 413, 415) when the body as
    a whole can't be taken.
    """
    media_type = _media_type(content_type)
    if media_type != JSON and not (batch and media_type == NDJSON):
        raise _bad(415, "unsupported_content_type", _explain_media_type(media_type, batch))
    if len(body) > limits.request_bytes_max:
        raise BadRequest(too_large(limits))
    encoding = content_encoding and content_encoding.strip().lower()
    if encoding and encoding != "identity":
        return _read_encoded(body, encoding, media_type, batch, limits)
    if not batch:
        return [_read_single(body)]
    return _read_lines(body, limits) if media_type == NDJSON else _read_array(body, limits)


@lru_cache(maxsize=64)  # a sender's is always the same
def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower() or JSON


def too_large(limits: Settings) -> Answer:
    """The answer to a body over the limit; listeners give it as soon as they know."""
    return problem(413, "body_too_large", f"the body has more than {limits.request_bytes_max} bytes, decoded")


def _read_encoded(body: bytes, encoding: str, media_type: str, batch: bool, limits: Settings) -> Reading:
    try:
        body = yield from decode_body(body, encoding, limits.request_bytes_max)
    except UnknownEncoding as error:
        raise _bad(415, "unsupported_encoding", str(error)) from None
    except BodyTooLarge:
        raise BadRequest(too_large(limits)) from None
    except ValueError as error:
        raise _bad(400, "malformed_encoding", str(error)) from None
    if len(body) > ARRAY_BYTES_MAX:
        yield
    events = start_reading(body, content_type=media_type, content_encoding="", batch=batch, limits=limits)
    if isinstance(events, list):
        return events
    yield
    return (yield from events)


def _bad(status: int, code: str, detail: str) -> BadRequest:
    return BadRequest(problem(status, code, detail))


def _explain_media_type(media_type: str, batch: bool) -> str:
    allowed = f"{JSON} or {NDJSON}" if batch else JSON
    hint = f"; with curl: -H 'Content-Type: {JSON}'" if media_type.endswith("form-urlencoded") else ""
    return f"Content-Type is {media_type[:NAME_CHARACTERS_MAX]!r}, it must be {allowed}{hint}"


def _read_single(body: bytes) -> Event | Invalid:
    if len(body) > EVENT_BYTES_MAX:
        body = body.removeprefix(BYTE_ORDER_MARK).strip(BLANKS)
        if len(body) > EVENT_BYTES_MAX:
            return _refuse_unread(body)
    try:
        return EVENT.decode(body)
    except (ValueError, RecursionError):
        return _explain_single(mark_lone_surrogates(body.removeprefix(BYTE_ORDER_MARK)))


def _refuse_unread(body: bytes) -> Invalid:
    """A body that is too long for an event: 400 if its first byte shows that it is no JSON."""
    if not (body.startswith(b"[") or _OTHER_JSON.match(body)):
        raise malformed(NotJson("it begins with neither an array nor an event"))
    return too_long(body)


def _explain_single(body: bytes) -> Event | Invalid:
    """A body that is no event: 400 if it is no JSON either."""
    try:
        check_json(body)
    except NotJson as wrong:
        raise malformed(wrong) from None
    return explain(body)


def _read_array(body: bytes, limits: Settings) -> list[Event | Invalid] | Reading:
    if len(body) <= ARRAY_BYTES_MAX and not has_long_event(body, 0, len(body), b"{"):
        try:
            events: list[Event | Invalid] = EVENTS.decode(body)  # type: ignore[assignment]  # a list of fewer kinds
        except (ValueError, RecursionError):
            pass
        else:
            if len(events) > limits.request_events_max:
                raise too_many_events(limits)
            return events
    return _read_array_in_slices(body, limits)


def _read_array_in_slices(body: bytes, limits: Settings) -> Reading:
    at = len(BYTE_ORDER_MARK) if body.startswith(BYTE_ORDER_MARK) else 0
    begun = -1
    while begun < at:
        begun, at = at, skip_blanks(body, at)
    if body[at : at + 1] != b"[":
        raise _no_array(body[at:])
    return (yield from read_array(body, at, limits))


def _no_array(body: bytes) -> BadRequest:
    if not _OTHER_JSON.match(body):
        return malformed(NotJson("it begins with neither an array nor an event"))
    return _bad(400, "not_an_array", f"the body must be a JSON array of events, or one event a line as {NDJSON}")


def _read_lines(body: bytes, limits: Settings) -> list[Event | Invalid] | Reading:
    """One event a line, blank ones skipped. Lines are read in slices if they are many, long, or too many are bad."""
    splits_max = 2 * limits.request_events_max  # as many blank lines as there may be events
    if len(body) <= LINES_BYTES_MAX and not has_long_event(body, 0, len(body), b"\n"):
        lines = body.removeprefix(BYTE_ORDER_MARK).split(b"\n", splits_max)
        events = _read_good_lines(lines) if len(lines) <= splits_max else None
        if events is not None:
            if len(events) > limits.request_events_max:
                raise too_many_events(limits)
            return events
    return read_lines(body, limits)


def _read_good_lines(lines: list[bytes]) -> list[Event | Invalid] | None:
    """The events of lines nearly all of which are good, else None: a bad one takes ten times as long."""
    events: list[Event | Invalid] = []
    decode, add = EVENT.decode, events.append
    pending = iter(lines)
    for _ in range(2 + len(lines) // GOOD_LINES_MIN):
        try:
            for line in pending:
                if line.strip():
                    add(decode(line))
        except (ValueError, RecursionError):
            read_line(line, events)
        else:
            return events
    return None


# --- Answering ----------------------------------------------------------------------------------------------

JSON_HEADERS: Final = [(b"content-type", b"application/json")]


def event_answer(submission: Submission) -> Answer:
    """The answer to a single event: the event as it is stored, or a problem whose code is the reason."""
    entry, verdict = submission.entries[0], submission.verdicts.get(0)
    if verdict is None:
        assert isinstance(entry, Entry)
        return _stored_answer(entry.as_stored(0), Status.ACCEPTED)
    if verdict.status is Status.DUPLICATE:
        assert verdict.event is not None, "the stored event comes with a single duplicate"
        return _stored_answer(verdict.event, Status.DUPLICATE)
    assert verdict.reason is not None
    status = STATUS_OF[verdict.reason]
    retry_after_seconds = verdict.retry_after_seconds
    if retry_after_seconds is None and status in (429, 503):
        retry_after_seconds = RETRY_AFTER_SECONDS
    return problem(
        status,
        verdict.reason,
        verdict.detail or verdict.reason,
        retry_after_seconds=retry_after_seconds,
        event_id=_told_id(entry),
    )


def batch_answer(submission: Submission) -> Answer:
    """The answer to a batch: counts, and one result for every event that is not accepted."""
    received, entries = len(submission.entries), submission.entries
    counts = {Status.DUPLICATE: 0, Status.REJECTED: 0, Status.RETRY: 0}
    said: dict[int, bytes] = {}  # of a verdict, by its identity: a thousand results may say the same
    retry_after_seconds = 0
    for verdict, count in submission.verdict_counts():
        counts[verdict.status] += count
        said[id(verdict)] = _result_of(verdict)
        if verdict.status is Status.RETRY:
            retry_after_seconds = max(retry_after_seconds, verdict.retry_after_seconds or RETRY_AFTER_SECONDS)
    results = [
        b'{"index":%d,"event_id":%b,%b' % (index, orjson.dumps(_told_id(entries[index])), said[id(verdict)])
        for index, verdict in sorted(submission.verdicts.items())
    ]
    body = b'{"received":%d,"accepted":%d,"duplicate":%d,"rejected":%d,"retry":%d,"results":[%b]}' % (
        received,
        received - len(results),
        counts[Status.DUPLICATE],
        counts[Status.REJECTED],
        counts[Status.RETRY],
        b",".join(results),
    )
    answer = Answer(200, JSON_HEADERS, body)
    return answer.with_header(b"retry-after", b"%d" % retry_after_seconds) if retry_after_seconds else answer


def _result_of(verdict: Verdict) -> bytes:
    """The end of a result, from its status on."""
    result: dict[str, str | None] = {"status": verdict.status, "reason": verdict.reason}
    if verdict.detail is not None:
        result["detail"] = verdict.detail
    return orjson.dumps(result)[1:]


def _told_id(entry: Entry | Event | Invalid) -> str | uuid.UUID | None:
    return entry.event_id if isinstance(entry, Event) else _uuid_text(entry.event_id)


def _stored_answer(event: StoredEvent, status: Status) -> Answer:
    body = {
        "event_id": _uuid_text(event.event_id),
        "campaign_id": event.campaign_id,
        "ad_id": event.ad_id,
        "user_id": event.user_id,
        "event_type": EVENT_TYPE_NAMES[event.event_type],
        "cost": _cost_text(event.cost_micros),
        "ts": _time_text(event.occurred_us),
        "status": status,
    }
    return Answer(200, JSON_HEADERS, orjson.dumps(body))


_cost_text: Final = lru_cache(maxsize=1_024)(decimal_text)  # a campaign's events cost the same


def _time_text(instant_us: int) -> str:
    """RFC 3339 in UTC, with microseconds."""
    second, microsecond = divmod(instant_us, SECOND_US)
    return f"{_second_text(second)}.{microsecond:06d}Z"


@lru_cache(maxsize=1_024)  # events are mostly of the last few seconds: a sixth of the price
def _second_text(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _uuid_text(event_id: bytes | None) -> str | None:
    """As `str(uuid.UUID(bytes=…))`, at a third of its price."""
    if event_id is None:
        return None
    text = event_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
