"""The bytes of one connection to whole HTTP/1.1 requests, for both listeners.

Owns where a request ends and the next begins, how large head and body may be, and the heads that are remembered. Knows
no socket, no clock and no engine; `http_head` says what a head means, `chunked` how chunks are put together. A sender's
heads are mostly the same bytes again and again, so what one says is remembered: reading it anew would cost more than
decoding an event. A head means the same wherever it stands, so what is remembered lets nothing pass.
"""

from __future__ import annotations

from typing import Final

import msgspec

from api.chunked import FRAMING_BYTES_MAX, ChunkedBody, MalformedChunk, TooMuchFraming
from api.codec import too_large
from api.errors import Answer, BadRequest, problem
from api.http_head import HEAD_END, Head, check_beginning, head_too_large, read_head
from config.settings import Settings

__all__ = ["Head", "Heads", "Request", "RequestReader"]

# Of a request whose head is remembered: a single event, or a few. What a larger body costs is not its head.
REMEMBERED_BYTES_MAX: Final = 4_096
# Some kinds of sender, and for each the lengths that an event may have. 20 MB at most; then they start afresh.
HEADS_MAX: Final = 1_024


class Request(msgspec.Struct, frozen=True):
    """A whole request."""

    head: Head
    body: bytes


# Of one body, before they are put together: byte by byte, a body would else take forty times its size.
PARTS_MAX: Final = 1_024
_NOTHING: Final = (b"", b"\r")  # begins no request; the second is half of an empty line
Heads = dict[bytes, Head]  # the bytes of a head -> what they say


class RequestReader:
    """Feed it what arrives; take whole requests from `requests`, in order.

    `refusal`, once set, is the answer to what came after those requests; nothing is read any more. Nor is what comes
    behind a request that is to be the last of its connection (RFC 9112, 9.6).
    `awaits_continue` says that the sender waits for "100 Continue"; who sends it sets it back.
    `heads` are those of all connections. `room` is how many whole requests it may make of what it is fed; what stands
    behind them is `unread`, until it is fed again, with nothing if need be.
    """

    def __init__(self, settings: Settings, heads: Heads) -> None:
        self.requests: list[Request] = []
        self.room = settings.pipelined_requests_max
        self.unread = False
        self.refusal: Answer | None = None
        self.ended = False  # nothing more is read
        self.awaits_continue = False
        self.partial = False  # a request has begun, and is not whole
        self.body_bytes = 0  # of the request that is arriving
        self._settings = settings
        self._heads = heads
        self._come = b""  # what can't be read before more has come: part of a head, or of a line between chunks
        self._head: Head | None = None  # of the request whose body is arriving
        self._left = 0  # bytes of a body whose length is known
        self._parts: list[bytes] = []  # of it
        self._chunked: ChunkedBody | None = None

    def feed(self, data: bytes | memoryview) -> None:
        """Read on. Whatever the sender may write, this does not raise."""
        if self._left:  # most bytes of a batch: straight from the socket's buffer
            end = self._read_body(data)
            if end == len(data):
                self.unread = False
                return
            data = data[end:]
        piece, at = self._come + bytes(data) if self._come else bytes(data), 0
        try:
            while at < len(piece) and not self.ended and len(self.requests) < self.room:
                taken = self._read_request(piece, at) if self._head is None else self._read_chunks(piece, at)
                if taken == at:
                    break  # more must come
                at = taken
        except BadRequest as refused:
            self.refuse(refused.answer)
        self.unread = len(self.requests) >= self.room and at < len(piece) and not self.ended
        if at < len(piece) and not self.ended:
            self._come = piece[at:]
            self.partial = self._come not in _NOTHING or self._head is not None
        else:
            self._come = b""
            self.partial = self._head is not None

    def refuse(self, answer: Answer) -> None:
        """Read nothing more; the first reason stands."""
        if self.refusal is None:
            self.refusal = answer
            self._end()

    # --- heads ----------------------------------------------------------------------------------------------

    def _read_request(self, piece: bytes, at: int) -> int:
        """A head, and what has come of its body. Returns where it stopped, as those below."""
        body_at = piece.find(HEAD_END, at) + len(HEAD_END)
        head = self._heads.get(piece[at:body_at])
        if head is None:
            while piece.startswith(b"\r\n", at):  # (RFC 9112, 2.2)
                at += 2
            body_at = piece.find(HEAD_END, at) + len(HEAD_END)
            if body_at < len(HEAD_END):
                self._check_part(piece[at:])
                return at
            head = self._read_head(piece[at:body_at])
        if head.body_bytes is None:
            self._head, self._chunked = head, ChunkedBody()
        else:
            end = body_at + head.body_bytes
            if end <= len(piece):  # as almost always
                self.requests.append(Request(head, piece[body_at:end]))
                if not head.keep_alive:
                    self._end()
                return end
            self._head, self._left = head, head.body_bytes
            body_at += self._read_body(memoryview(piece)[body_at:])
        self.awaits_continue = head.awaits_continue
        return body_at

    def _read_head(self, text: bytes) -> Head:
        head = read_head(text, self._settings)
        if head.body_bytes is not None and len(text) + head.body_bytes <= REMEMBERED_BYTES_MAX:
            if len(self._heads) >= HEADS_MAX:
                self._heads.clear()
            self._heads[text] = head
        return head

    def _check_part(self, begun: bytes) -> None:
        """Part of a head: is it one to wait for."""
        check_beginning(begun[: self._settings.header_bytes_max])
        if len(begun) > self._settings.header_bytes_max:
            raise BadRequest(head_too_large(self._settings))

    # --- bodies ---------------------------------------------------------------------------------------------

    def _read_body(self, data: bytes | memoryview) -> int:
        """Some of a body whose length is known, or its end."""
        part = bytes(data[: self._left])
        self._parts.append(part)
        self._left -= len(part)
        self.body_bytes += len(part)
        if self._left == 0:
            assert self._head is not None
            self._complete(self._head, b"".join(self._parts))
        elif len(self._parts) == PARTS_MAX:
            self._parts = [b"".join(self._parts)]
        return len(part)

    def _read_chunks(self, piece: bytes, at: int) -> int:
        assert self._head is not None
        assert self._chunked is not None
        try:
            end = self._chunked.feed(piece, at)
        except MalformedChunk as error:
            raise BadRequest(problem(400, "malformed_http", f"not a request of HTTP/1.1: {error}")) from None
        except TooMuchFraming:
            detail = f"more than {FRAMING_BYTES_MAX} bytes of chunk sizes, extensions and trailers; send larger chunks"
            raise BadRequest(problem(413, "body_too_large", detail)) from None
        self.body_bytes = len(self._chunked.body)
        if self.body_bytes > self._settings.request_bytes_max:
            raise BadRequest(too_large(self._settings))
        if self._chunked.whole:
            self._complete(self._head, bytes(self._chunked.body))
        return end

    def _complete(self, head: Head, body: bytes) -> None:
        self.requests.append(Request(head, body))
        if head.keep_alive:
            self._drop_body()
        else:
            self._end()

    def _drop_body(self) -> None:
        self._head, self._chunked, self._parts = None, None, []
        self._left = self.body_bytes = 0
        self.partial = self.awaits_continue = False

    def _end(self) -> None:
        self.ended = True
        self._come = b""
        self._drop_body()
