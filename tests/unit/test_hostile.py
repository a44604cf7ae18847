"""What peers may send to either listener: whatever it is, the listener lives, logs nothing, and tells the truth.

Each case is a connection of its own to a listener over a fake engine. An answer of 200 to an event stands for exactly
one event that the engine was given, and no event is given to the engine without its 200.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import httptools
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from api.app import create_app
from api.intake import serve_intake
from api.listener import serve_api
from config.settings import Settings
from tests.fakes.engine import FakeEngine

SETTINGS = Settings(request_bytes_max=100_000, intake_bytes_max=1 << 20)
GIVE_UP_SECONDS = 20  # only there so that a hanging server ends the test
LISTENERS = ["api", "intake"]
BODY = b'{"campaign_id":7,"user_id":"u","event_type":"click"}'
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c2VjcmV0\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def get(headers: bytes = b"", *, path: bytes = b"/healthz", version: bytes = b"1.1", method: bytes = b"GET") -> bytes:
    """A request without a body."""
    return b"%b %b HTTP/%b\r\nHost: h\r\n%b\r\n" % (method, path, version, headers)


def post(headers: bytes = b"", *, version: bytes = b"1.1", body: bytes = BODY) -> bytes:
    """An event."""
    return b"POST /events/ HTTP/%b\r\nHost: h\r\nContent-Length: %d\r\n%b\r\n%b" % (version, len(body), headers, body)


def chunked(*chunks: bytes, headers: bytes = b"", end: bytes = b"0\r\n\r\n") -> bytes:
    """An event in chunks."""
    parts = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"POST /events/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n" + headers + b"\r\n" + parts + end


CLOSE = b"Connection: close\r\n"
EXPECT = b"Expect: 100-continue\r\n"
SECOND = post(body=BODY.replace(b'"u"', b'"second"'))
SETTINGS_FRAME = b"\0\0\0\4\0\0\0\0\0"

# What is sent, piece by piece (the server reads each before the next is sent), and the statuses of the answers.
CASES: dict[str, tuple[Sequence[bytes], Sequence[int]]] = {
    # Point 9: the answer of what was taken is sent, whatever stands behind it.
    "close, then a CRLF": ([post(CLOSE) + b"\r\n"], [200]),
    "close, then two CRLF": ([post(CLOSE) + b"\r\n\r\n"], [200]),
    "close, then a late CRLF": ([post(CLOSE), b"\r\n"], [200]),
    "close, then a second event": ([post(CLOSE) + SECOND], [200]),
    "close, then a late second event": ([post(CLOSE), SECOND], [200]),
    "close, then rubbish": ([post(CLOSE) + b"rubbish\r\n\r\n"], [200]),
    "close, then half a request": ([post(CLOSE) + b"POST /events/ HT"], [200]),
    "close, then a preface": ([post(CLOSE) + PREFACE], [200]),
    "close in capitals among others": ([post(b"Connection: TE, CLOSE\r\n") + SECOND], [200]),
    "1.0": ([post(version=b"1.0")], [200]),
    "1.0, then a CRLF": ([post(version=b"1.0") + b"\r\n"], [200]),
    "1.0, then a late CRLF": ([get(version=b"1.0"), b"\r\n"], [200]),
    "1.0 without a Host": ([b"GET /healthz HTTP/1.0\r\n\r\n"], [200]),
    "1.0, then a second event": ([post(version=b"1.0") + SECOND], [200]),
    "1.0 that asks to keep, then close": (
        [post(b"Connection: keep-alive\r\n", version=b"1.0"), post(CLOSE, version=b"1.0") + b"\r\n"], [200, 200]
    ),
    "an event, then rubbish": ([post() + b"rubbish\r\n\r\n"], [200, 400]),
    "an event, then late rubbish": ([post(), b"rubbish\r\n\r\n"], [200, 400]),
    "an event, then two lengths": ([post() + post(b"Content-Length: 5\r\n")], [200, 400]),
    "an event, then too large a one": ([post() + post(body=b" " * 100_001)[:200]], [200, 413]),
    "an event, then too large a head": ([post() + get(b"A: " + b"b" * 20_000 + b"\r\n")], [200, 431]),
    "an event, then a preface": ([post() + PREFACE], [200, 505]),
    "an event, then CONNECT": ([post() + get(path=b"h:1", method=b"CONNECT") + SECOND], [200, 501]),
    "an event, then half a request": ([post() + post()[:-5]], [200, 400]),
    "three events, then close": ([post() * 3 + post(CLOSE) + SECOND], [200] * 4),
    "CRLF before, between and behind": ([b"\r\n" + post() + b"\r\n\r\n" + post() + b"\r\n"], [200, 200]),
    "late CRLF between": ([post(), b"\r\n", post()], [200, 200]),
    "chunks, then a CRLF": ([chunked(BODY, headers=CLOSE) + b"\r\n"], [200]),
    "chunks, then a second event": ([chunked(BODY[:9], BODY[9:]) + SECOND], [200, 200]),
    "chunks with a trailer": ([chunked(BODY, end=b"0\r\nX: y\r\n\r\n") + SECOND], [200, 200]),
    "chunks that end too early": ([chunked(BODY, end=b"")], [400]),
    "a wrong chunk": ([chunked(BODY, end=b"zz\r\n")], [400]),
    "an event without its end": ([post()[:-1]], [400]),
    "an event in pieces": ([post()[index : index + 7] for index in range(0, len(post()), 7)], [200]),
    "continue": ([post(EXPECT)[: -len(BODY)], BODY], [100, 200]),
    "continue, not waited for": ([post(EXPECT)], [200]),
    "continue behind an event": ([post() + post(EXPECT)[: -len(BODY)], BODY], [200, 100, 200]),
    "continue, then nothing": ([post(EXPECT)[: -len(BODY)]], [100, 400]),
    "continue at 1.0": ([post(EXPECT, version=b"1.0")], [200]),
    # Point 8: other protocols.
    "websocket": ([get(WEBSOCKET)], [200]),
    "websocket, and a byte behind": ([get(WEBSOCKET) + b"\x81"], [200, 400]),
    "websocket, and a frame behind": ([get(WEBSOCKET) + b"\x81\x85\0\0\0\0hello"], [200, 400]),
    "websocket, and a late frame": ([get(WEBSOCKET), b"\x81\x85\0\0\0\0hello"], [200, 400]),
    "websocket without a key": ([get(b"Connection: Upgrade\r\nUpgrade: websocket\r\n")], [200]),
    "websocket with an event": ([post(WEBSOCKET) + SECOND], [200, 200]),
    "websocket and close": ([post(WEBSOCKET.replace(b"Upgrade\r", b"close, Upgrade\r", 1)) + SECOND], [200]),
    "websocket at 1.0": ([get(WEBSOCKET, version=b"1.0")], [200]),
    "a byte above 127 in Connection": ([get(b"Connection: Upgrade, \xe9\r\nUpgrade: websocket\r\n")], [200]),
    "a byte above 127 in a websocket's key": ([get(WEBSOCKET.replace(b"c2VjcmV0", b"\xff"))], [200]),
    "h2c": ([get(H2C)], [200]),
    "h2c with bad settings": ([get(H2C.replace(b"AAMAAABkAAQAoAAA", b"AAAAAAA"))], [200]),
    "h2c with an event": ([post(H2C) + SECOND], [200, 200]),
    "h2c, then the preface": ([get(H2C) + PREFACE + SETTINGS_FRAME], [200, 505]),
    "an upgrade to TLS": ([get(b"Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n")], [200]),
    "the preface": ([PREFACE], [505]),
    "the preface and frames": ([PREFACE + SETTINGS_FRAME + b"\0\0\5\2\0\0\0\0\1\0\0\0\0\0" * 1_099], [505]),
    "half of the preface": ([PREFACE[:10]], [400]),
    "the preface in pieces": ([PREFACE[:14], PREFACE[14:]], [505]),
    "CONNECT": ([get(path=b"h:1", method=b"CONNECT") + SECOND], [501]),
    "CONNECT with a body": ([b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"], [501]),
    "TLS": ([b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(range(64))], [400]),
    "a method above 127": ([b"G\xc9T /healthz HTTP/1.1\r\nHost: h\r\n\r\n"], [400]),
    "zeros": ([bytes(200)], [400]),
    "a reply": ([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], [400]),
    "two lengths": ([post(b"Content-Length: 5\r\n")], [400]),
    "a length and a coding": ([post(b"Transfer-Encoding: chunked\r\n")], [400]),
    "a length below zero": ([b"POST /events/ HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n"], [400]),
    "a folded header": ([get(b"A: b\r\n c\r\n")], [400]),
    "a control character": ([get(b"A: \x01\r\n")], [400]),
    "a blank before a colon": ([get(b"A : b\r\n")], [400]),
    "a header without a name": ([get(b": b\r\n")], [400]),
    "nothing": ([], []),
    "CRLF only": ([b"\r\n\r\n"], []),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Served:
    """A listener, and the engine behind it."""

    engine: FakeEngine
    address: tuple[str, int]
    stop: trio.Event
    returned: trio.Event

    @property
    def events(self) -> int:
        """Those that the engine was given."""
        return sum(map(len, self.engine.recorded))

    async def told(self, pieces: Sequence[bytes], *, end: bool = True) -> list[int]:
        """The statuses of all answers to these pieces, up to the connection's end."""
        async with await trio.open_tcp_stream(*self.address) as stream:
            for piece in pieces:
                try:
                    await stream.send_all(piece)
                except trio.BrokenResourceError:
                    break  # it was closed, as it may be; what it was told must have come
                await wait_all_tasks_blocked()
            if end:
                await stream.send_eof()
            return statuses(b"".join([part async for part in stream]))

    async def lives(self) -> bool:
        """Whether it serves."""
        return await self.told([get()]) == [200]


def statuses(data: bytes) -> list[int]:
    """Of whole answers, each of which says what it is about."""
    found: list[int] = []

    class Reading:
        body = b""

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            status = parser.get_status_code()
            found.append(status)
            assert status < 400 or b'"code"' in self.body, f"{status} without a problem"
            self.body = b""

    while data.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
        found.append(100)
        data = data[25:]
    before, interim, after = data.partition(b"HTTP/1.1 100 Continue\r\n\r\n")
    parser: Any = httptools.HttpResponseParser(Reading())
    parser.feed_data(before)
    return [*found, 100, *statuses(after)] if interim else found


@asynccontextmanager
async def served(name: str, settings: Settings = SETTINGS) -> AsyncIterator[Served]:
    """One of the two listeners, with an engine of its own."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    this = Served(FakeEngine(settings), listener.getsockname(), trio.Event(), trio.Event())

    async def run(task_status: trio.TaskStatus[None]) -> None:
        if name == "api":
            await serve_api(create_app(this.engine), listener, settings, this.stop, task_status=task_status)
        else:
            task_status.started()
            await serve_intake(this.engine, listener, settings, this.stop)
        this.returned.set()

    with trio.fail_after(GIVE_UP_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            yield this
            nursery.cancel_scope.cancel()


async def check(case: str, name: str, settings: Settings, *, end: bool) -> None:
    """Whole requests are answered in order, and as many events are taken as are answered 200."""
    pieces, expected = CASES[case]
    async with served(name, settings) as listener:
        told = await listener.told(pieces, end=end)
        # What is not whole is told so when its time is up.
        told = [400 if status == 408 and not end else status for status in told]
        assert told == expected, case
        assert listener.events == (told.count(200) if b"POST" in b"".join(pieces) else 0), case
        assert await listener.lives(), case


@pytest.mark.parametrize("name", LISTENERS)
@pytest.mark.parametrize("case", CASES)
async def test_every_answer_is_true(case: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of a sender that ends its half of the connection when it has sent all; nothing is logged."""
    with caplog.at_level(logging.INFO):
        await check(case, name, SETTINGS, end=True)
    assert not caplog.records


@pytest.mark.parametrize("name", LISTENERS)
async def test_every_connection_ends(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """In whatever state its sender leaves it, with the same answers."""
    settings = replace(SETTINGS, idle_timeout_seconds=3, read_timeout_seconds=3)  # all cases share two cores
    with caplog.at_level(logging.INFO):
        async with trio.open_nursery() as nursery:
            for case in CASES:
                nursery.start_soon(partial(check, case, name, settings, end=False))
    assert not caplog.records


# --- Many connections, and those that stay ---

HELD = {
    "idle": b"",
    "half a head": b"GET /healthz HTTP/1.1\r\nX: ",
    "half a body": post()[:-5],
    "half a preface": PREFACE[:9],
    "a websocket's handshake": get(WEBSOCKET),
    "a websocket's handshake without a key": get(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    "an answer": post(),
    "a refusal": PREFACE,
}


@asynccontextmanager
async def held(listener: Served) -> AsyncIterator[list[trio.SocketStream]]:
    """A connection of each kind, left as it is."""
    streams = [await trio.open_tcp_stream(*listener.address) for _ in HELD]
    try:
        for stream, piece in zip(streams, HELD.values(), strict=True):
            if piece:
                await stream.send_all(piece)
        await wait_all_tasks_blocked(0.05)
        yield streams
    finally:
        for stream in streams:
            await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("name", LISTENERS)
async def test_every_connection_counts(name: str) -> None:
    """Above the cap a connection is refused, whatever the others are doing; one that ends makes room."""
    async with served(name, replace(SETTINGS, connections_max=len(HELD) - 1)) as listener, held(listener) as streams:
        for _ in range(20):  # more than may linger
            assert await listener.told([], end=False) == [503]
        await streams[1].aclose()
        await wait_all_tasks_blocked(0.05)
        assert await listener.lives()


async def send_for_ever(stream: trio.SocketStream) -> None:
    """A byte now and then."""
    while True:
        await stream.send_all(b"x")
        await wait_all_tasks_blocked()


@pytest.mark.parametrize("name", LISTENERS)
async def test_those_that_linger_are_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that is refused and stays makes room for the next one that is."""
    monkeypatch.setattr("api.intake_connection.LINGER_SECONDS", 2 * GIVE_UP_SECONDS)
    async with served(name, replace(SETTINGS, connections_max=9)) as listener:
        streams = [await trio.open_tcp_stream(*listener.address) for _ in range(9)]
        for stream in streams:
            await stream.send_all(PREFACE)
            assert b" 505 " in await stream.receive_some()
            await wait_all_tasks_blocked()
        assert await listener.told([]) == []  # not refused: nobody counts any more
        with pytest.raises(trio.BrokenResourceError):  # the first of them is closed, not only half
            await send_for_ever(streams[0])
        for stream in streams:
            await stream.aclose()


@pytest.mark.parametrize("name", LISTENERS)
async def test_nobody_holds_up_a_drain(name: str) -> None:
    """However their connections were left: no timeout is waited for."""
    async with served(name) as listener, held(listener):
        listener.stop.set()
        await listener.returned.wait()


@pytest.mark.parametrize("name", LISTENERS)
async def test_a_drain_ends_the_idle_at_once(name: str) -> None:
    """Who waits for such a connection sees its end."""
    async with served(name) as listener, await trio.open_tcp_stream(*listener.address) as stream:
        await wait_all_tasks_blocked(0.05)
        listener.stop.set()
        assert await stream.receive_some() == b""


@pytest.mark.parametrize("name", LISTENERS)
async def test_slow_heads_are_408_and_hold_up_nobody(name: str) -> None:
    """A byte now and then buys no time."""
    async with served(name, replace(SETTINGS, read_timeout_seconds=1)) as listener:
        streams = [await trio.open_tcp_stream(*listener.address) for _ in range(50)]
        for byte in b"GET /healthz HTTP/1.1\r\nX: ":
            for stream in streams:
                await stream.send_all(bytes([byte]))
        assert await listener.lives()
        for stream in streams:
            assert statuses(b"".join([part async for part in stream])) == [408]
            await stream.aclose()


@pytest.mark.parametrize("name", LISTENERS)
async def test_a_sender_that_resets_its_connection_harms_nobody(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """At any moment of a request."""
    async with served(name) as listener:
        for piece in (*HELD.values(), post() * 20, chunked(BODY, end=b"")):
            stream = await trio.open_tcp_stream(*listener.address)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await stream.send_all(piece)
            await trio.aclose_forcefully(stream)
        assert await listener.lives()
    assert not caplog.records


@pytest.mark.parametrize("name", LISTENERS)
async def test_what_one_connection_breaks_ends_that_one(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it is: one line in the log, and the listener serves the others."""

    def broken(*_: object, **__: object) -> None:
        raise ExceptionGroup("several", [RecursionError("too deep")])

    async with served(name) as listener:
        for place in ("api.intake_reader.RequestReader.feed", "api.intake_connection.Connection.write_answers",
                      "api.framework._headers", "api.framework.encode_head"):  # fmt: skip
            with monkeypatch.context() as patch:
                patch.setattr(place, broken)
                caplog.clear()
                told = await listener.told([get()])
                assert told in ([], [200])  # it may have been sent already
                met = name == "api" or "framework" not in place
                assert [record.levelname for record in caplog.records] == ["ERROR"] * met
                assert all("RecursionError at test_hostile.py" in line for line in caplog.messages)
                assert "Traceback" not in caplog.text
            assert await listener.lives()


@pytest.mark.parametrize("name", LISTENERS)
async def test_a_late_byte_destroys_no_answer(name: str) -> None:
    """A closed socket answers it with a reset: so the connection is open until its sender has gone, for a while."""
    async with served(name) as listener, await trio.open_tcp_stream(*listener.address) as stream:
        await stream.send_all(post(CLOSE))
        assert statuses(b"".join([part async for part in stream])) == [200]
        for _ in range(5):
            await stream.send_all(b"\r\n")
            await wait_all_tasks_blocked()
        assert await stream.receive_some() == b""
