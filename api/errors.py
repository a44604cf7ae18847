"""Everything that is not a success, as HTTP says it: the only status table of the project.

Owns which status a verdict's reason has, the stable codes of problems, and the problem body (RFC 9457). Knows no
framework and no socket: both listeners send an `Answer` as it is.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

import msgspec
import orjson

from engine import Fault, Reason

__all__ = ["PROBLEMS", "PROBLEM_JSON", "STATUS_OF", "Answer", "BadRequest", "problem"]

PROBLEM_JSON: Final = "application/problem+json"

STATUS_OF: Final[Mapping[Reason, int]] = {
    Reason.TOTAL_BUDGET: 402,
    Reason.DAILY_BUDGET: 402,
    Reason.INACTIVE: 402,
    Reason.UNKNOWN_CAMPAIGN: 404,
    Reason.INVALID: 422,
    Reason.ID_REUSED: 422,
    Reason.FREQUENCY_CAPPED: 429,
    Reason.PACED: 429,
    Reason.IN_FLIGHT: 503,
    Reason.UNAVAILABLE: 503,
    Reason.OVERLOADED: 503,
}

# Every code that a problem can have, with its status. Codes are a promise: senders may rely on them.
PROBLEMS: Final[Mapping[str, int]] = {
    **{reason.value: status for reason, status in STATUS_OF.items()},
    "malformed_http": 400,
    "malformed_json": 400,
    "malformed_encoding": 400,
    "malformed_idempotency_key": 400,
    "not_an_array": 400,
    "campaign_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "body_too_large": 413,
    "too_many_events": 413,
    "unsupported_content_type": 415,
    "unsupported_encoding": 415,
    "invalid_campaign": 422,
    "invalid_parameter": 422,
    "head_too_large": 431,
    "internal_error": 500,
    "not_implemented": 501,
    "not_ready": 503,
    "store_unavailable": 503,
    "unsupported_http_version": 505,
}

_TITLES: Final = {status.value: status.phrase for status in HTTPStatus}


class Answer(msgspec.Struct, frozen=True):
    """A whole answer. Its length is the sender's to add, for it knows how the body travels."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def with_header(self, name: bytes, value: bytes) -> Answer:
        """The same with one more header; the list of this one, which others may share, stays as it is."""
        return msgspec.structs.replace(self, headers=[*self.headers, (name, value)])


class BadRequest(Exception):
    """A request that can't be taken as a whole; `answer` says why."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    retry_after_seconds: int | None = None,
    errors: Sequence[Fault] | None = None,
    event_id: str | uuid.UUID | None = None,
) -> Answer:
    """A problem in the terms of RFC 9457: `code` is for programs and stable, `detail` is for people.

    `errors` names each field that is wrong; `event_id` the event that the problem is about.
    """
    body: dict[str, object] = {
        "type": "about:blank",  # RFC 9457, 4.2.1: the problem means no more than its status; `code` tells which
        "title": _TITLES[status],
        "status": status,
        "detail": detail,
        "code": code,
    }
    if errors is not None:
        body["errors"] = [{"field": fault.field, "message": fault.message} for fault in errors]
    if event_id is not None:
        body["event_id"] = event_id
    headers = [(b"content-type", PROBLEM_JSON.encode())]
    if retry_after_seconds is not None:
        headers.append((b"retry-after", b"%d" % retry_after_seconds))
    return Answer(status, headers, orjson.dumps(body))
