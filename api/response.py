"""Answers as bytes of HTTP/1.1: the head that both listeners send.

Owns the head's lines and who adds which: status, date and what is said of the connection are the server's, the rest
is the answer's. Knows no socket and no framework.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from api.codec import JSON_HEADERS
from api.errors import Answer
from api.intake_reader import Head

__all__ = ["CONTINUE", "SENT", "encode_answer", "encode_head"]

CONTINUE: Final = Answer(100, [], b"")
SENT: Final = Answer(0, [], b"")  # the answer has gone out already, part by part
OK: Final = 200
_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}


def encode_answer(answer: Answer, head: Head, date: bytes, last: bool) -> bytes:
    """A whole answer to the request with this head; `last` says that the connection ends with it."""
    if answer.status < OK:
        return b"HTTP/1.1 100 Continue\r\n\r\n" if answer is CONTINUE else b""
    body, connection = answer.body, b""
    if last or head.asks_keep_alive:  # seldom: most answers have no such line
        connection = _connection_line(head, last)
    return b"HTTP/1.1 %d %b\r\ndate: %b\r\n%bcontent-length: %d\r\n%b\r\n%b" % (
        answer.status,
        _REASONS[answer.status],
        date,
        _JSON_LINES if answer.headers is JSON_HEADERS else _lines(answer.headers),
        len(body),
        connection,
        b"" if head.method == b"HEAD" else body,
    )


def encode_head(status: int, headers: Iterable[tuple[bytes, bytes]], head: Head, date: bytes, last: bool) -> bytes:
    """The head of an answer whose body goes out in parts; what frames the body is among its headers."""
    return b"HTTP/1.1 %d %b\r\ndate: %b\r\n%b%b\r\n" % (
        status,
        _REASONS.get(status, b""),
        date,
        _lines(headers),
        _connection_line(head, last),
    )


def _connection_line(head: Head, last: bool) -> bytes:
    if last:
        return b"connection: close\r\n"
    return b"connection: keep-alive\r\n" if head.asks_keep_alive else b""


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


_JSON_LINES: Final = _lines(JSON_HEADERS)  # as of most answers
