"""The api's listener, on real connections: they close, time out, and stay bounded."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import trio
from hypercorn.typing import ASGIFramework
from trio.testing import wait_all_tasks_blocked

from api.app import create_app
from api.listener import serve_api
from config.settings import Settings
from engine import Submission
from tests.fakes.engine import FakeEngine

SETTINGS = Settings(request_bytes_max=100_000, idle_timeout_seconds=60, read_timeout_seconds=60)
GIVE_UP_SECONDS = 30  # only there so that a hanging server ends the test


@asynccontextmanager
async def served(settings: Settings = SETTINGS, app: ASGIFramework | None = None) -> AsyncIterator[trio.SocketStream]:
    """A connection to an api of its own, or to another application."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = listener.getsockname()
    app = app or create_app(FakeEngine(settings))
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_api, app, listener, settings, trio.Event())
        with trio.fail_after(GIVE_UP_SECONDS):
            async with await trio.open_tcp_stream(*address) as stream:
                yield stream
        nursery.cancel_scope.cancel()


async def all_of(stream: trio.SocketStream) -> bytes:
    """Everything up to the end of the connection."""
    return b"".join([part async for part in stream])


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /healthz HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"200"),
        (b"POST /events/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\nfew", b"413"),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
    ],
)  # fmt: skip
async def test_a_connection_that_is_done_is_closed(request_head: bytes, status: bytes) -> None:
    """Asked for, or because nobody knows where the next request would begin."""
    async with served() as stream:
        await stream.send_all(request_head)
        assert (await all_of(stream)).startswith(b"HTTP/1.1 " + status)


async def test_an_idle_connection_times_out_after_its_answer() -> None:
    """Not only before the first one."""
    async with served(replace(SETTINGS, idle_timeout_seconds=1)) as stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await all_of(stream)).startswith(b"HTTP/1.1 200")


async def test_a_connection_is_used_again() -> None:
    """Two requests, two answers."""
    async with served() as stream:
        for _ in range(2):
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            told = b""
            while not told.endswith(b"}"):
                told += await stream.receive_some()
            assert told.startswith(b"HTTP/1.1 200")


async def test_a_body_that_never_comes_is_408() -> None:
    """A slow sender holds memory."""
    async with served(replace(SETTINGS, read_timeout_seconds=1)) as stream:
        await stream.send_all(b"POST /events/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nfew")
        assert (await all_of(stream)).startswith(b"HTTP/1.1 408")


async def test_a_chunked_body_is_bounded() -> None:
    """413 as soon as it is too large, whatever it would have become."""
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    async with served() as stream:
        await stream.send_all(b"POST /events/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 7)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 413")


async def test_a_sender_of_too_large_a_body_hears_so() -> None:
    """Also one that sends all of it before it listens: the connection is not reset over its answer."""
    body = b"x" * (1 << 20)
    async with served() as stream:
        head = b"POST /events/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        await stream.send_all(head + body)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 413")


BODY = b'{"campaign_id":7,"user_id":"u","event_type":"click"}'
LARGE = b"POST /events/ HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n"
CROWDED = replace(SETTINGS, request_bytes_max=700_000, intake_bytes_max=1 << 20)
CHUNKED = b"POST /events/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_body_without_room_is_refused_and_room_comes_back() -> None:
    """Many bodies that never end hold no more than the bound, and a refusal has its reason."""
    async with served(CROWDED) as stream:
        address = stream.socket.getpeername()
        async with await trio.open_tcp_stream(*address) as other:
            await stream.send_all(LARGE + b"x" * 599_999)
            await wait_all_tasks_blocked(0.05)
            await other.send_all(LARGE + b"x" * 599_999)
            told = b""
            while not told.endswith(b"}"):
                told += await other.receive_some()
            assert told.startswith(b"HTTP/1.1 503")
            assert b'"overloaded"' in told
            assert b"retry-after: 1" in told
        await stream.send_all(b"x")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 400")
        async with await trio.open_tcp_stream(*address) as third:
            await third.send_all(LARGE + b"x" * 600_000)
            assert (await third.receive_some()).startswith(b"HTTP/1.1 400")


async def test_a_body_of_unknown_length_counts_as_it_comes() -> None:
    """Where it finds no more room, it is refused."""
    async with served(CROWDED) as stream:
        async with await trio.open_tcp_stream(*stream.socket.getpeername()) as other:
            await stream.send_all(LARGE + b"x" * 599_999)
            await wait_all_tasks_blocked(0.05)
            await other.send_all(CHUNKED + b"493e0\r\n" + b"x" * 300_000 + b"\r\n")
            await wait_all_tasks_blocked(0.05)
            await other.send_all(b"493e0\r\n" + b"x" * 300_000 + b"\r\n")
            assert (await other.receive_some()).startswith(b"HTTP/1.1 503")
        async with await trio.open_tcp_stream(*stream.socket.getpeername()) as third:
            await third.send_all(CHUNKED + b"493e0\r\n" + b"x" * 300_000 + b"\r\n0\r\n\r\n")
            assert (await third.receive_some()).startswith(b"HTTP/1.1 400")


async def test_whole_bodies_that_wait_are_bounded_together() -> None:
    """A body counts from its first byte to its answer, also when it came at once."""
    engine = FakeEngine(SETTINGS)
    held = trio.Event()

    async def holding(*_: object, **__: object) -> Submission:
        await held.wait()
        raise RuntimeError("let go")

    engine.record = holding  # type: ignore[method-assign]
    settings = replace(SETTINGS, intake_bytes_max=1 << 20)
    event = b"POST /events/ HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + BODY.ljust(60_000)
    async with served(settings, create_app(engine)) as stream:
        others = [await trio.open_tcp_stream(*stream.socket.getpeername()) for _ in range(20)]
        for other in others:
            await other.send_all(event)
            await wait_all_tasks_blocked()
        assert (await others[-1].receive_some()).startswith(b"HTTP/1.1 503")
        held.set()
        assert (await others[0].receive_some()).startswith(b"HTTP/1.1 500")
        await wait_all_tasks_blocked(0.05)
        await others[0].send_all(event)
        assert (await others[0].receive_some()).startswith(b"HTTP/1.1 500")
        for other in others:
            await other.aclose()


@pytest.mark.parametrize("target", [b"/x", b"/%2a", b"http://x", b"http://x/nowhere?a"])
async def test_a_target_that_is_no_path_is_404(target: bytes) -> None:
    """Neither a fault nor a line in the log."""
    async with served() as stream:
        await stream.send_all(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        told = await all_of(stream)
        assert told.startswith(b"HTTP/1.1 404")
        assert b'"not_found"' in told


async def test_a_proxys_form_of_a_target_is_understood() -> None:
    """RFC 9112 wants servers to accept it."""
    async with served() as stream:
        await stream.send_all(b"GET http://x/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await all_of(stream)).startswith(b"HTTP/1.1 200")


async def test_requests_of_one_connection_are_answered_one_by_one() -> None:
    """What is read after a change was sent has the change in it."""
    campaign = (
        b'{"name":"a","pricing_model":"cpm","unit_price":"1","total_budget":"1","daily_budget":"1","active":true}'
    )
    create = b"POST /campaigns/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    async with served() as stream:
        read = b"GET /campaigns/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        await stream.send_all(create % (len(campaign), campaign) + read)
        told = await all_of(stream)
        assert told.startswith(b"HTTP/1.1 201")
        assert told.count(b"HTTP/1.1 200") == 1


# --- Answers that come in parts ---


class Streaming:
    """An application whose answers have parts of which nobody knows the length."""

    def __init__(self, parts: int = 2, part: bytes = b"part") -> None:
        self.parts = parts
        self.part = part
        self.sent = 0
        self.more = trio.Event()
        self.cancelled = trio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"  # so it says that it has no lifespan
        headers = [(b"content-length", b"9")] if scope["path"] == "/short" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            for _ in range(self.parts):
                await send({"type": "http.response.body", "body": self.part, "more_body": True})
                self.sent += 1
                await self.more.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        if scope["path"] == "/dies":
            raise RuntimeError("no more")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def test_a_part_is_sent_when_it_is_there() -> None:
    """Long before the answer is whole; the connection goes on afterwards."""
    app = Streaming()
    async with served(app=app) as stream:
        for _ in range(2):
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            told = b""
            while not told.endswith(b"4\r\npart\r\n"):
                told += await stream.receive_some()
            assert b"transfer-encoding: chunked" in told
            app.more.set()
            while not told.endswith(b"0\r\n\r\n"):
                told += await stream.receive_some()
            assert told.count(b"part") == 2
            app.more = trio.Event()


@pytest.mark.parametrize("wish", [b"", b"Connection: keep-alive\r\n"])
async def test_http_1_0_hears_the_end_of_a_stream_by_that_of_its_connection(wish: bytes) -> None:
    """It knows no chunks, also where it would like to keep the connection."""
    app = Streaming()
    app.more.set()
    async with served(app=app) as stream:
        await stream.send_all(b"GET / HTTP/1.0\r\n%b\r\n" % wish)
        told = await all_of(stream)
        assert b"connection: close" in told
        assert told.endswith(b"\r\n\r\npartpart")


@pytest.mark.parametrize("path", [b"/short", b"/dies"])
async def test_an_answer_that_stays_incomplete_ends_its_connection(path: bytes) -> None:
    """Else the next one would be taken for its rest."""
    app = Streaming()
    app.more.set()
    async with served(app=app) as stream:
        await stream.send_all((b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path) * 2)
        told = await all_of(stream)
        assert told.count(b"HTTP/1.1") == 1
        assert not told.endswith(b"0\r\n\r\n")


async def test_who_reads_no_stream_is_not_sent_more_and_is_closed() -> None:
    """What waits for a reader is bounded; its application is cancelled."""
    app = Streaming(10_000, b"x" * 65_536)
    app.more.set()
    async with served(replace(SETTINGS, read_timeout_seconds=1), app) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await app.cancelled.wait()
        assert app.sent < 1_000


async def test_who_leaves_cancels_the_stream() -> None:
    """As soon as its connection is known to have ended."""
    app = Streaming()
    async with served(app=app) as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.receive_some()
        await trio.aclose_forcefully(stream)
        await app.cancelled.wait()


async def test_an_application_that_dies_is_500() -> None:
    """With a problem, as every refusal; the connection goes on."""

    async def dying(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a bug")

    async with served(app=dying) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        await stream.send_eof()
        told = await all_of(stream)
        assert told.count(b"HTTP/1.1 500") == 2
        assert told.count(b'"internal_error"') == 2


# --- Stopping ---


@dataclass(frozen=True, slots=True)
class Stopping:
    """An api that is asked to yield, or to stop."""

    address: tuple[str, int]
    successors: socket.socket  # the same listening socket, as a successor has it
    yielding: trio.Event
    stop: trio.Event
    returned: trio.Event

    async def connect(self) -> trio.SocketStream:
        """A connection that has been served once."""
        stream = await trio.open_tcp_stream(*self.address)
        assert b"connection: close" not in await self.ask(stream)
        return stream

    async def ask(self, stream: trio.SocketStream) -> bytes:
        """A request and its answer."""
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        told = b""
        while not told.endswith(b"}"):
            part = await stream.receive_some()
            assert part, "the connection ended before the answer"
            told += part
        return told


@asynccontextmanager
async def stopping() -> AsyncIterator[Stopping]:
    """An api that the test stops; ends when that has returned."""
    listener = socket.create_server(("127.0.0.1", 0))
    with listener.dup() as successors:
        api = Stopping(listener.getsockname(), successors, trio.Event(), trio.Event(), trio.Event())

        async def run(task_status: trio.TaskStatus[None]) -> None:
            app = create_app(FakeEngine(SETTINGS))
            await serve_api(app, listener, SETTINGS, api.stop, api.yielding, task_status=task_status)
            api.returned.set()

        with trio.fail_after(GIVE_UP_SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(run)
                yield api


async def test_who_yields_answers_each_connection_once_more() -> None:
    """Idle ones are not closed under a request that is on its way, and hear in its answer that it was the last."""
    async with stopping() as api:
        async with await api.connect() as used, await trio.open_tcp_stream(*api.address) as fresh:
            await wait_all_tasks_blocked()
            api.yielding.set()
            await wait_all_tasks_blocked()
            for stream in (used, fresh):
                assert not api.returned.is_set()
                assert b"connection: close" in await api.ask(stream)
                assert await stream.receive_some() == b""
        await api.returned.wait()


async def test_who_yields_leaves_new_connections_to_its_successor() -> None:
    """They are neither answered here nor reset."""
    async with stopping() as api:
        await wait_all_tasks_blocked()
        api.yielding.set()
        await api.returned.wait()
        async with await trio.open_tcp_stream(*api.address) as late:
            peer, address = api.successors.accept()
            peer.close()
            assert address == late.socket.getsockname()


async def test_a_stop_closes_what_is_idle() -> None:
    """Also what has been left open by who yields."""
    async with stopping() as api:
        async with await api.connect() as idle:
            api.yielding.set()
            await wait_all_tasks_blocked()
            assert not api.returned.is_set()
            api.stop.set()
            assert await idle.receive_some() == b""
        await api.returned.wait()
