"""One request through Hypercorn to Quart-Trio, and the answer's parts back to its connection.

Owns which headers of a request are the application's, and how an answer's body is framed. What Hypercorn gets is a
whole request that `intake_reader` has accepted, as values: no second parser reads a byte of a peer. Of Hypercorn this
uses the half that speaks ASGI (`HTTPStream`); it neither meets sockets nor changes protocols.

A connection that ends cancels what still works on its request.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.protocol import events
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState

from api.errors import problem
from api.faults import in_one_line
from api.intake_connection import Exchange
from api.intake_reader import Head, Request
from api.response import SENT, encode_head

__all__ = ["Framework"]

STREAM_ID: Final = 1  # HTTP/1.1 has no others
# Of the connection, not of the request (RFC 9110, 7.6.1), or dealt with when the body was read.
_HOP_BY_HOP: Final = frozenset({
    b"connection", b"content-length", b"expect", b"http2-settings", b"keep-alive", b"proxy-connection", b"te",
    b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
# No call depends on the name that the server is called by, and the framework would fail on one that is no domain's.
_HOST: Final = (b"host", b"localhost")
_BODILESS: Final = (204, 304)
_log = logging.getLogger("headrace.api")
_FAULT: Final = problem(500, "internal_error", "a fault of the server; it has been logged")


class Framework:
    """The application behind Hypercorn."""

    def __init__(self, app: AppWrapper, config: Config, state: dict[str, Any]) -> None:
        self.app = app
        self.config = config
        self.context = WorkerContext(max_requests=None)
        self.state = ConnectionState(state)

    async def answer(self, exchange: Exchange, request: Request, date: bytes) -> None:
        """Answer one request, whose turn it is on its connection; if that can't be done, the connection is closed."""
        answer = _Answer(exchange, date)
        connection = exchange.connection
        with trio.CancelScope() as scope:

            def changed() -> None:
                if connection.closed:
                    scope.cancel()
                answer.room.set()

            connection.on_change = changed
            try:
                async with TaskGroup() as tasks:
                    await self._hand_on(request, HTTPStream(
                        self.app, self.config, self.context, tasks, False, None, None, answer.on_event, STREAM_ID
                    ))  # fmt: skip
            finally:
                connection.on_change = None
        if exchange.answer is None:
            connection.close()

    async def _hand_on(self, request: Request, stream: HTTPStream) -> None:
        head = request.head
        await stream.handle(
            events.Request(
                stream_id=STREAM_ID,
                headers=_headers(head, len(request.body)),
                http_version=head.version,
                method=head.method.decode(),
                raw_path=head.target,
                state=self.state,
            )
        )
        if request.body:
            await stream.handle(events.Body(STREAM_ID, request.body))
        await stream.handle(events.EndBody(STREAM_ID))


class _Answer:
    """What Hypercorn says of one answer, as bytes for the connection."""

    def __init__(self, exchange: Exchange, date: bytes) -> None:
        self.room = trio.Event()
        self._exchange = exchange
        self._date = date
        self._head = b""  # goes out with the first part of its body, if that follows at once
        self._chunked = False
        self._until_end = False  # the body ends with the connection
        self._left: int | None = None  # of a body whose length was said

    async def on_event(self, event: events.Event) -> None:
        """Take the next event of the answer. What goes wrong here is this connection's, not the application's."""
        if self._exchange.connection.closed or self._exchange.answer is not None:
            return
        try:
            await self._take(event)
        except Exception as error:  # noqa: BLE001 - boundary: see above
            _log.error("an answer failed; its connection is closed: %s", in_one_line(error))
            self._exchange.connection.close()

    async def _take(self, event: events.Event) -> None:
        if isinstance(event, events.Response):
            await self._begin(event)
        elif isinstance(event, events.Body):
            await self._continue(event.data)
        elif isinstance(event, events.EndBody):
            await self._end()

    async def _begin(self, event: events.Response) -> None:
        exchange, headers = self._exchange, list(event.headers)
        if event.status_code == 500 and (b"connection", b"close") in headers:
            # Hypercorn's own: the application has died without an answer.
            exchange.finish(_FAULT)
            return
        length = next((int(value) for name, value in headers if name.lower() == b"content-length"), None)
        if exchange.head.method == b"HEAD" or event.status_code in _BODILESS:
            self._left = 0
        elif length is not None:
            self._left = length
        elif exchange.head.version == "1.0":
            self._until_end = True
        else:
            self._chunked = True
            headers.append((b"transfer-encoding", b"chunked"))
        last = self._until_end or exchange.connection.is_last(exchange)
        self._head = encode_head(event.status_code, headers, exchange.head, self._date, last)
        if self._left is None:  # a stream, whose first part may be a while in coming
            await self._write(b"")

    async def _continue(self, data: bytes) -> None:
        if self._left is not None:
            self._left -= len(data)
        await self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def _end(self) -> None:
        await self._write(b"0\r\n\r\n" if self._chunked else b"")
        connection = self._exchange.connection
        if self._left or (self._until_end and not connection.is_last(self._exchange)):
            connection.close()  # nobody must take the next answer for the rest of this one
        elif not connection.closed:
            connection.on_change = None  # the answer is out: what is left to do is not cancelled with the connection
            self._exchange.finish(SENT)

    async def _write(self, part: bytes) -> None:
        """Send it, after the head if that waits, and wait until the reader has made room."""
        connection = self._exchange.connection
        if part or self._head:
            connection.write(self._head + part)
            self._head = b""
        while connection.unsent:
            self.room = trio.Event()
            await self.room.wait()


def _headers(head: Head, body_bytes: int) -> list[tuple[bytes, bytes]]:
    headers = [pair for pair in head.headers.items() if pair[0] not in _HOP_BY_HOP]
    headers = [_HOST, *(pair for pair in headers if pair[0] != b"host")]
    if body_bytes:
        headers.append((b"content-length", b"%d" % body_bytes))
    return headers
