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

import msgspec
import orjson

from api.bad_campaigns import campaign_of
from api.encodings import BodyTooLarge, UnknownEncoding, decode_body
from api.errors import STATUS_OF, Answer, BadRequest, problem
from config.settings import Settings
from engine import Entry, Event, Invalid, Status, StoredEvent, Submission, Verdict
from engine.model import EVENT_TYPE_NAMES, SECOND_US, EventId, decimal_text

__all__ = ["JSON", "JSON_HEADERS", "NDJSON", "batch_answer", "event_answer", "read_events"]

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
RETRY_AFTER_SECONDS: Final = 1

NAME_CHARACTERS_MAX: Final = 64  # of an unknown field, in the answer

_EVENT: Final = msgspec.json.Decoder(Event)
_EVENTS: Final = msgspec.json.Decoder(list[Event])
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)
_RAW_ARRAY: Final = msgspec.json.Decoder(list[msgspec.Raw])
_RAW_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Named(msgspec.Struct):
    """What can still be read of a bad event: the id that its sender will look for."""

    event_id: uuid.UUID | None = None


_NAMED: Final = msgspec.json.Decoder(_Named)

_MUST_BE: Final = {
    "campaign_id": "must be a whole number from 1 to 9223372036854775807",
    "user_id": "must be a string",
    "event_type": f"must be one of {', '.join(EVENT_TYPE_NAMES)}",
    "ad_id": "must be a string or null",
    "event_id": "must be a UUID or null",
    "occurred_at": "must be an RFC 3339 time with its zone, such as 2026-01-31T12:00:00Z, or null",
}
_NESTED: Final = "nested far too deep for an event"


# --- Reading ------------------------------------------------------------------------------------------------


def read_events(
    body: bytes, *, content_type: str, content_encoding: str, batch: bool, limits: Settings
) -> Sequence[Event | Invalid]:
    """The events of one request's body, in order; an empty batch has none.

    `content_type` and `content_encoding` are the headers' values, "" when absent; an absent type is JSON, as
    plain HTTP libraries send none. Raises `BadRequest` (400, 413, 415) when the body as a whole can't be taken.
    """
    media_type = _media_type(content_type)
    if media_type != JSON and not (batch and media_type == NDJSON):
        raise _bad(415, "unsupported_content_type", _explain_media_type(media_type, batch))
    if len(body) > limits.request_bytes_max:
        raise BadRequest(too_large(limits))
    body = _decode(body, content_encoding.strip().lower(), limits)
    if not batch:
        return [_read_single(body)]
    if media_type == NDJSON:
        return _read_lines(body, limits)
    return _read_array(body, limits)


@lru_cache(maxsize=64)  # a sender's is always the same
def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower() or JSON


def too_large(limits: Settings) -> Answer:
    """The answer to a body over the limit; listeners give it as soon as they know."""
    return problem(413, "body_too_large", f"the body has more than {limits.request_bytes_max} bytes, decoded")


def _decode(body: bytes, encoding: str, limits: Settings) -> bytes:
    try:
        return decode_body(body, encoding, limits.request_bytes_max)
    except UnknownEncoding as error:
        raise _bad(415, "unsupported_encoding", str(error)) from None
    except BodyTooLarge:
        raise BadRequest(too_large(limits)) from None
    except ValueError as error:
        raise _bad(400, "malformed_encoding", str(error)) from None


def _bad(status: int, code: str, detail: str) -> BadRequest:
    return BadRequest(problem(status, code, detail))


def _explain_media_type(media_type: str, batch: bool) -> str:
    allowed = f"{JSON} or {NDJSON}" if batch else JSON
    hint = f"; with curl: -H 'Content-Type: {JSON}'" if media_type.endswith("form-urlencoded") else ""
    return f"Content-Type is {media_type[:NAME_CHARACTERS_MAX]!r}, it must be {allowed}{hint}"


def _read_single(body: bytes) -> Event | Invalid:
    try:
        return _EVENT.decode(body)
    except (ValueError, RecursionError):
        return _explain_single(_mark_lone_surrogates(body))


def _explain_single(body: bytes) -> Event | Invalid:
    """A body that is no event: 400 if it is no JSON either."""
    try:
        _RAW.decode(body)
    except RecursionError:
        return Invalid(_NESTED)
    except ValueError as error:
        raise _malformed(error) from None
    return _read_one(body)


def _read_array(body: bytes, limits: Settings) -> Sequence[Event | Invalid]:
    try:
        events = _EVENTS.decode(body)
    except (ValueError, RecursionError):
        elements = _split_array(_mark_lone_surrogates(body))
        _check_count(len(elements), limits)
        return [_read_one(bytes(element)) for element in elements]
    _check_count(len(events), limits)
    return events


def _split_array(body: bytes) -> list[msgspec.Raw]:
    try:
        return _RAW_ARRAY.decode(body)
    except RecursionError:
        raise _bad(400, "malformed_json", f"the body is {_NESTED}") from None
    except msgspec.ValidationError:
        raise _bad(
            400, "not_an_array", f"the body must be a JSON array of events, or one event a line as {NDJSON}"
        ) from None
    except ValueError as error:
        raise _malformed(error) from None


def _read_lines(body: bytes, limits: Settings) -> Sequence[Event | Invalid]:
    """One event a line; the line is the frame, so whatever stands in it costs no other. Blank lines are skipped."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    _check_count(len(lines), limits)
    return [_read_line(line) for line in lines]


def _read_line(line: bytes) -> Event | Invalid:
    try:
        return _EVENT.decode(line)
    except (ValueError, RecursionError):
        return _read_one(_mark_lone_surrogates(line))


def _malformed(error: ValueError) -> BadRequest:
    return _bad(400, "malformed_json", f"the body is not JSON: {_why_not_json(error)}")


def _why_not_json(error: ValueError) -> str:
    message = str(error)
    return "it ends too early" if "truncated" in message else message.removeprefix("JSON is malformed: ")


def _check_count(count: int, limits: Settings) -> None:
    if count > limits.request_events_max:
        raise _bad(
            413, "too_many_events", f"the batch has {count} events, at most {limits.request_events_max} are allowed"
        )


def _read_one(raw: bytes) -> Event | Invalid:
    """One event, or what is wrong with it. Lone surrogates are marked already."""
    try:
        return _EVENT.decode(raw)
    except msgspec.ValidationError as error:
        detail = _explain(str(error))
    except UnicodeDecodeError:
        detail = f"{_field_not_unicode(raw)}: must be Unicode text without lone surrogates"
    except RecursionError:
        detail = _NESTED
    except ValueError as error:
        detail = f"not JSON: {_why_not_json(error)}"
    return Invalid(detail, _id_of(raw), campaign_of(raw))


_EXPLANATIONS: Final = re.compile(
    r"Object contains unknown field `(?P<unknown>.*)`$"
    r"|Object missing required field `(?P<missing>.*)`$"
    r"|.* - at `\$\.(?P<wrong>\w+)`$",
    re.DOTALL,
)


def _explain(message: str) -> str:
    """A message of msgspec in our words: which field, and what is allowed there."""
    match = _EXPLANATIONS.match(message)
    if match is None:
        return "an event must be a JSON object"
    if match["unknown"] is not None:
        return f"{match['unknown'][:NAME_CHARACTERS_MAX]}: no such field in an event"
    if match["missing"]:
        return f"{match['missing']}: is missing"
    return f"{match['wrong']}: {_MUST_BE[match['wrong']]}"


def _field_not_unicode(raw: bytes) -> str:
    try:
        fields = _RAW_OBJECT.decode(raw)
    except (ValueError, RecursionError):
        return "the name of a field"
    for name, value in fields.items():
        try:
            bytes(value).decode()
        except UnicodeDecodeError:
            return name
    return "a field that stands there twice"


def _id_of(raw: bytes) -> EventId | None:
    try:
        event_id = _NAMED.decode(raw).event_id
    except (ValueError, RecursionError):
        return None
    return None if event_id is None else EventId(event_id.bytes)


# Backslashes go in pairs; what is left begins an escape. A pair of surrogates is one character, a lone one is none.
_SURROGATES: Final = re.compile(
    rb"(?:\\\\)+|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def _mark_lone_surrogates(body: bytes) -> bytes:
    """Make each escape of a lone surrogate, such as D800, a byte that is no UTF-8.

    Such escapes are well-formed JSON, but msgspec takes them for an end of the text: one would cost the whole
    batch. The byte in its place costs the string that it stands in.
    """
    return _SURROGATES.sub(lambda match: b"\xff" if match["lone"] else match[0], body)


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
