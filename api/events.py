"""Calls about events: one, or a batch.

Owns their place in the table of calls and the types that describe them. Bytes to events and verdicts to answers
is `api/codec.py`'s; `api/intake.py` serves the same two calls leaner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, Protocol
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType
from quart import request

from api.calls import JSON, NDJSON, Gives, Parameter, call
from api.campaigns import Instant, Money
from api.codec import batch_answer, event_answer, start_reading
from api.errors import STATUS_OF, Answer
from api.headers import KEY_CHARACTERS_MAX, read_idempotency_key
from api.slicing import Turns
from config.settings import Settings
from engine import Event, Invalid, Reason, Submission

__all__ = ["EVENT_NOTES", "EventCalls", "EventRecorder"]


class EventRecorder(Protocol):
    """The part of the engine that takes events."""

    async def record(self, events: Sequence[Event | Invalid], *, idempotency_key: str | None = None) -> Submission:
        """Take the events of one request, and wait for their verdicts."""
        ...


# What the type of an event can't say: the engine checks it (engine/arrival.py).
_TEXT: Final = "1 to `HEADRACE_STRING_BYTES_MAX` bytes of UTF-8 (128 unless set otherwise), no NUL."
EVENT_NOTES: Final[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
    "Event": {
        "user_id": {"minLength": 1, "description": _TEXT},
        "ad_id": {"description": _TEXT},
        "event_id": {
            "description": "The sender's id, which makes a retry safe; not the nil or max UUID. "
            "Absent: the server makes a UUIDv7."
        },
        "occurred_at": {
            "description": "With its zone, and at most 6 decimals. Absent: the time of receipt. "
            "At most 48 h old and 5 min ahead, unless set otherwise."
        },
    }
}


class EventAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """An event as it is stored."""

    event_id: UUID
    campaign_id: int
    ad_id: str | None
    user_id: str
    event_type: Literal["impression", "click", "conversion"]
    cost: Money
    ts: Instant
    status: Annotated[
        Literal["accepted", "duplicate"],
        Meta(description="`duplicate`: it had been accepted before; this is what was stored then."),
    ]


class BatchResult(msgspec.Struct, forbid_unknown_fields=True):
    """An event of a batch that is not `accepted`."""

    index: Annotated[int, Meta(description="Its place in the batch, from 0.")]
    event_id: UUID | None
    status: Annotated[
        Literal["duplicate", "rejected", "retry"],
        Meta(description="`retry`: nothing is known of it yet; send it again, with the same id."),
    ]
    reason: Reason | None
    detail: str | UnsetType = UNSET


class BatchAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """What became of a batch; `results` has every event that is not `accepted`."""

    received: int
    accepted: int
    duplicate: int
    rejected: int
    retry: int
    results: list[BatchResult]


_Lines = Annotated[
    str,
    Meta(
        description="One event a line, as in the JSON array. A line that can't be read costs that event only.",
        examples=['{"campaign_id":1,"user_id":"ada","event_type":"impression"}\n'],
    ),
]
_Batch = Annotated[
    list[Event], Meta(description="At most `HEADRACE_REQUEST_EVENTS_MAX` events (5,000 unless set otherwise).")
]
_KEY: Final = Parameter(
    "header",
    "Idempotency-Key",
    Annotated[str, Meta(min_length=1, max_length=KEY_CHARACTERS_MAX, pattern="^[ -~]+$")],
    "Makes a request whose events have no ids repeatable: ids are derived from it.",
)
_ENCODING: Final = Parameter(
    "header", "Content-Encoding", Literal["gzip", "zstd", "identity"], "How the body is compressed, if it is."
)
_UNREADABLE: Final = ("malformed_json", "malformed_encoding", "malformed_idempotency_key")


class EventCalls:
    """Handlers of the calls about events."""

    def __init__(self, engine: EventRecorder, settings: Settings) -> None:
        self._engine = engine
        self._limits = settings
        self._turns = Turns(settings)

    @call(
        "POST",
        "/events/",
        tag="events",
        takes={JSON: Event},
        parameters=(_KEY, _ENCODING),
        gives=Gives(200, "Accepted, or accepted before: the event as it is stored.", {JSON: EventAnswer}),
        problems=(*_UNREADABLE, *(reason.value for reason in STATUS_OF)),
    )
    async def take_event(self) -> Answer:
        """Take one event.

        A 200 means that it is committed, counted once, and inside every budget and cap.
        """
        return event_answer(await self._record(batch=False))

    @call(
        "POST",
        "/events/batch",
        tag="events",
        takes={JSON: _Batch, NDJSON: _Lines},
        parameters=(_KEY, _ENCODING),
        gives=Gives(
            200,
            "What became of each event.",
            {JSON: BatchAnswer},
            {"Retry-After": "Seconds to wait before the events with status `retry` are sent again."},
        ),
        problems=(*_UNREADABLE, "not_an_array", "too_many_events", "overloaded"),
    )
    async def take_batch(self) -> Answer:
        """Take a batch of events.

        Each has its own verdict: one bad event never costs the others.
        """
        return batch_answer(await self._record(batch=True))

    async def _record(self, *, batch: bool) -> Submission:
        headers = request.headers
        key = read_idempotency_key(_joined(headers.getlist("Idempotency-Key")))
        body = await request.get_data(cache=True, as_text=False, parse_form_data=False)
        reading = start_reading(
            body,
            content_type=_joined(headers.getlist("Content-Type")) or "",
            content_encoding=_joined(headers.getlist("Content-Encoding")) or "",
            batch=batch,
            limits=self._limits,
        )
        events = reading if isinstance(reading, list) else await self._turns.finish(reading, len(body))
        assert events is not None, "somebody waits for them"
        return await self._engine.record(events, idempotency_key=key)


def _joined(values: Sequence[str]) -> str | None:
    """A header that came more than once is one list (RFC 9110, 5.3)."""
    return ", ".join(values) if values else None
