"""The bytes of one connection to whole HTTP/1.1 requests: limits, conflicts and what is refused on the way.

Owns what may stand in a request's head and how large head and body may be. Knows no socket, no clock and no
engine. llhttp (through httptools) does the parsing, strictly: two lengths, a length beside a transfer coding,
folded headers and the like are errors. A sender's heads are mostly the same bytes again and again, so what llhttp made
of one is remembered: parsing it anew would cost more than decoding an event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import httptools
import msgspec

from api.codec import too_large
from api.errors import Answer, problem
from config.settings import Settings

__all__ = ["Head", "Heads", "Request", "RequestReader"]

LINE_BYTES: Final = 4  # ": " and the end of a header's line
HEAD_END: Final = b"\r\n\r\n"
# Of a request whose head is remembered: a single event, or a few. What a larger body costs is not its head.
REMEMBERED_BYTES_MAX: Final = 4_096
# Some kinds of sender, and for each the lengths that an event may have. 20 MB at most; then they start afresh.
HEADS_MAX: Final = 1_024


class Head(msgspec.Struct, frozen=True):
    """What stands before a body. A header that came twice is joined with ", "."""

    method: bytes
    path: bytes
    keep_alive: bool
    asks_keep_alive: bool  # in so many words: HTTP/1.0 keeps a connection only if both sides say so
    content_type: str = ""
    content_encoding: str = ""
    idempotency_key: str | None = None
    version: str = "1.1"
    target: bytes = b""  # as it was sent
    headers: Mapping[bytes, bytes] = {}  # all of them, by their names in small letters


class Request(msgspec.Struct, frozen=True):
    """A whole request."""

    head: Head
    body: bytes


Heads = dict[bytes, tuple[Head, int]]  # the bytes of a head -> what they say, and the bytes of the body behind them


class RequestReader:
    """Feed it what arrives; take whole requests from `requests`, in order.

    `refusal`, once set, is the answer to what came after those requests; nothing is read any more.
    `awaits_continue` says that the sender waits for "100 Continue"; who sends it sets it back.
    `heads` are those of all connections.
    """

    def __init__(self, settings: Settings, heads: Heads) -> None:
        self.requests: list[Request] = []
        self.refusal: Answer | None = None
        self.awaits_continue = False
        self.partial = False  # a request has begun, and is not whole
        self.body_bytes = 0  # of the request that is arriving
        self._settings = settings
        self._heads = heads
        self._parser = httptools.HttpRequestParser(self)
        self._begin()

    def feed(self, data: bytes | memoryview) -> None:
        """Read on. Whatever the sender may write, this does not raise."""
        if self.partial or self.refusal is not None or len(data) > REMEMBERED_BYTES_MAX:
            self._parse(data)
            return
        piece = bytes(data)
        body_at = piece.find(HEAD_END) + len(HEAD_END)
        head, body_bytes = self._heads.get(piece[:body_at], (None, 0))
        if head is not None and len(piece) == body_at + body_bytes:
            self.requests.append(Request(head, piece[body_at:]))
            return
        self._parse(piece)
        self._remember(piece, body_at)

    def _remember(self, piece: bytes, body_at: int) -> None:
        """Remember the head of what was one whole request, which leaves the connection as it was."""
        if len(self.requests) != 1 or self.partial or self.refusal is not None:
            return
        head, body = self.requests[0].head, self.requests[0].body
        alone = len(piece) == body_at + len(body)  # (chunks are longer than what is in them)
        if alone and head.keep_alive:
            if len(self._heads) >= HEADS_MAX:
                self._heads.clear()
            self._heads[piece[:body_at]] = head, len(body)

    def _parse(self, data: bytes | memoryview) -> None:
        in_head = self.partial and not self._head_done
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(bytes(data[upgrade.args[0] :]))
        except httptools.HttpParserCallbackError:
            raise  # ours, not the sender's
        except httptools.HttpParserError as error:
            self.refuse(problem(400, "malformed_http", f"not a request of HTTP/1.1: {error}"))
        if in_head and not self._head_done:
            # Whole headers are counted one by one; this also counts one that never ends.
            self._head_wire_bytes += len(data)
            self._check_head(self._head_wire_bytes)

    def refuse(self, answer: Answer) -> None:
        """Read nothing more; the first reason stands."""
        if self.refusal is None:
            self.refusal = answer
            self.partial = False
            self._drop_body()

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = self._head_wire_bytes = 0
        self._head_done = self._upgrading = False
        self._drop_body()

    def _drop_body(self) -> None:
        self._chunks: list[bytes] = []
        self.body_bytes = 0

    def _check_head(self, size: int) -> None:
        if size > self._settings.header_bytes_max:
            self.refuse(
                problem(
                    431, "head_too_large", f"the request's head has more than {self._settings.header_bytes_max} bytes"
                )
            )

    def _decline_upgrade(self, rest: bytes) -> None:
        """Stay with HTTP/1.1, as RFC 9110 (7.8) lets a server do.

        Some clients offer h2c with every request (Java's does). llhttp then takes the body for another
        protocol, so the head goes through once more, without the offer.
        """
        if self.refusal is not None:
            return
        headers = [b"%b: %b\r\n" % pair for pair in self._headers.items() if pair[0] != b"upgrade"]
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (self._parser.get_method(), self._url, b"".join(headers))
        self._parser = httptools.HttpRequestParser(self)
        self._parse(head + rest)

    def _text(self, name: bytes) -> str | None:
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    # --- what the parser calls ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        if self.refusal is None:
            self._begin()
            self.partial = True

    def on_url(self, part: bytes) -> None:
        """The target, maybe in parts."""
        self._url += part
        self._head_bytes += len(part)
        self._check_head(self._head_bytes)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or a trailer, which nobody asked for."""
        self._head_bytes += len(name) + len(value) + LINE_BYTES
        self._check_head(self._head_bytes)
        if self.refusal is None and not self._head_done:
            name, value = name.lower(), value.rstrip(b" \t")  # llhttp leaves blanks at the end (RFC 9112, 5)
            known = self._headers.get(name)
            self._headers[name] = value if known is None else b"%b, %b" % (known, value)

    def on_headers_complete(self) -> None:
        """The head is whole. Is the body one to wait for, or refused already."""
        if self.refusal is not None:
            return
        self._head_done = True
        if self._parser.get_method() == b"CONNECT":
            self.refuse(problem(405, "method_not_allowed", "this is no proxy"))
        elif self._parser.should_upgrade():
            self._upgrading = True
        elif int(self._headers.get(b"content-length", b"0")) > self._settings.request_bytes_max:
            self.refuse(too_large(self._settings))
        elif self._headers.get(b"expect", b"").lower() == b"100-continue":
            self.awaits_continue = self._parser.get_http_version() == "1.1"

    def on_body(self, part: bytes) -> None:
        """Some of the body."""
        if self.refusal is not None:
            return
        self.body_bytes += len(part)
        if self.body_bytes > self._settings.request_bytes_max:
            self.refuse(too_large(self._settings))
        else:
            self._chunks.append(part)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self.refusal is not None or self._upgrading:
            return
        self.partial = self.awaits_continue = False
        path = self._url.partition(b"?")[0]
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        asks_keep_alive = self._headers.get(b"connection", b"").lower() == b"keep-alive"
        head = Head(
            self._parser.get_method(),
            path,
            self._parser.should_keep_alive(),
            asks_keep_alive,
            self._text(b"content-type") or "",
            self._text(b"content-encoding") or "",
            self._text(b"idempotency-key"),
            self._parser.get_http_version(),
            self._url,
            self._headers,
        )
        self.requests.append(Request(head, body))
        self._drop_body()
