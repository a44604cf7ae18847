"""The lean listener over real loopback sockets, with an engine that answers when the test says so."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import Any, NamedTuple

import httptools
import pytest
import trio
import zstandard
from trio.testing import wait_all_tasks_blocked

from api.intake import Intake, serve_intake
from config.settings import Settings
from engine import Event, Invalid, Reason, Status, Submission, Verdict
from engine.arrival import ArrivalLimits, arrive

NOW_US = 1_769_860_800_000_000
LIMITS = ArrivalLimits.of(Settings())
BODY = b'{"campaign_id":7,"user_id":"u","event_type":"click"}'
OK = b"HTTP/1.1 200 OK\r\n"


class HeldEngine:
    """Takes events and holds them until the test settles their submission; `at_once` answers by itself."""

    def __init__(self) -> None:
        self.at_once = False
        self.not_ready: list[str] = []
        self.noted: list[str] = []
        self.failure: Exception | None = None
        self.full = False
        self.keys: list[str | None] = []
        self.taken = self.asked = 0
        self._hand_over, self._taken = trio.open_memory_channel[Submission](inf)

    def submit(
        self,
        events: Sequence[Event | Invalid],
        answer: Callable[[Submission], None],
        *,
        idempotency_key: str | None = None,
    ) -> Submission:
        if self.failure is not None:
            raise self.failure
        submission = Submission(NOW_US, NOW_US, lambda _: None, answer)
        for index, event in enumerate(events):
            entry = event if isinstance(event, Invalid) else arrive(event, submission, index, None, LIMITS)
            submission.entries.append(entry)
            if isinstance(entry, Invalid):
                submission.verdicts[index] = Verdict(Status.REJECTED, Reason.INVALID, entry.detail)
        self.keys.append(idempotency_key)
        self.taken += 1
        if self.at_once:
            answer(submission)
        else:
            self._hand_over.send_nowait(submission)
        return submission

    def overloaded(self) -> bool:
        self.asked += 1
        return self.full

    async def problems(self) -> list[str]:
        return self.not_ready

    def notes(self) -> list[str]:
        return self.noted

    async def next(self) -> Submission:
        """The next submission that is held."""
        return await self._taken.receive()


def accept(submission: Submission) -> None:
    """As the engine's flush does it."""
    submission.answer(submission)


class Answered(NamedTuple):
    """One answer as its sender sees it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)


class Sender:
    """A connection to the intake."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._arrived: list[Answered] = []
        self._headers: dict[str, str] = {}
        self._body = b""
        self._parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._arrived.append(Answered(self._parser.get_status_code(), self._headers, self._body))
        self._headers, self._body = {}, b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def answer(self) -> Answered:
        """The next answer."""
        while not self._arrived:
            data = await self.stream.receive_some()
            assert data, "the connection ended before the answer"
            self._parser.feed_data(data)
        return self._arrived.pop(0)

    async def ended(self) -> None:
        """The intake closes the connection, and sends nothing more before."""
        assert not self._arrived
        assert await self.stream.receive_some() == b""


class Served:
    """A running intake."""

    def __init__(self, engine: HeldEngine, intake: Intake, address: tuple[str, int], stop: trio.Event) -> None:
        self.engine = engine
        self.intake = intake
        self.address = address
        self.stop = stop
        self.yielding = trio.Event()
        self.returned = trio.Event()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Sender]:
        stream = await trio.open_tcp_stream(*self.address)
        async with stream:
            yield Sender(stream)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._yield_at_stop)
            await self.intake.run(self.stop, self.yielding)
            nursery.cancel_scope.cancel()
        self.returned.set()

    async def _yield_at_stop(self) -> None:
        await self.stop.wait()
        self.yielding.set()


def listening() -> socket.socket:
    """A listener on a free port, whose connections have small buffers."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    return listener


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Served]:
    """An intake with these settings, for the length of a test."""
    engine, listener = HeldEngine(), listening()
    served = Served(engine, Intake(engine, listener, Settings(**settings)), listener.getsockname(), trio.Event())
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            yield served
            nursery.cancel_scope.cancel()


def post(body: bytes = BODY, *headers: str, path: str = "/events/") -> bytes:
    """A whole request."""
    lines = [f"POST {path} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def get(path: str, method: str = "GET") -> bytes:
    """A whole request without a body."""
    return f"{method} {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode()


# --- Requests and answers ---


async def test_an_event_is_answered_when_the_engine_says_so() -> None:
    """The answer is the codec's, the connection stays."""
    async with serving() as served, served.connect() as sender:
        await sender.send(post())
        accept(await served.engine.next())
        answer = await sender.answer()
        assert answer.status == 200
        assert answer.content["status"] == "accepted"
        assert answer.headers["content-type"] == "application/json"
        assert "connection" not in answer.headers


async def test_a_connection_serves_many_requests() -> None:
    """Keep-alive is the default."""
    async with serving() as served, served.connect() as sender:
        served.engine.at_once = True
        for _ in range(3):
            await sender.send(post())
            assert (await sender.answer()).status == 200


async def test_a_batch_is_answered_as_a_batch() -> None:
    """NDJSON goes by the same path."""
    async with serving() as served, served.connect() as sender:
        served.engine.at_once = True
        await sender.send(post(b"[" + BODY + b",5]", path="/events/batch"))
        assert (await sender.answer()).content["rejected"] == 1
        await sender.send(post(BODY + b"\n", "content-type: application/x-ndjson", path="/events/batch?"))
        assert (await sender.answer()).content["accepted"] == 1


async def test_the_idempotency_key_is_passed_on() -> None:
    """Without the blanks around it, as at the api; one that nobody should rely on is refused."""
    async with serving() as served, served.connect() as sender:
        served.engine.at_once = True
        keys: tuple[list[str], ...] = ["idempotency-KEY: k-1"], ["Idempotency-Key: k-1 \t"], [], ["Idempotency-Key: "]
        for headers, status in zip(keys, (200, 200, 200, 400), strict=True):
            await sender.send(post(BODY, *headers))
            assert (await sender.answer()).status == status
        assert served.engine.keys == ["k-1", "k-1", None]


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Even when the verdicts come in another."""
    async with serving() as served, served.connect() as sender:
        await sender.send(b"".join(post(BODY.replace(b'"u"', b'"u%d"' % number)) for number in range(3)))
        submissions = [await served.engine.next() for _ in range(3)]
        for index in (2, 0, 1):
            accept(submissions[index])
        assert [(await sender.answer()).content["user_id"] for _ in range(3)] == ["u0", "u1", "u2"]


async def test_an_error_waits_for_the_answers_before_it() -> None:
    """A refusal is an answer like any other, and the last one."""
    async with serving() as served, served.connect() as sender:
        await sender.send(post() + get("/nowhere") + b"rubbish\r\n\r\n")
        accept(await served.engine.next())
        assert [(await sender.answer()).status for _ in range(3)] == [200, 404, 400]
        await sender.ended()


async def test_a_connection_with_enough_under_way_is_not_read() -> None:
    """It is read again once an answer is out."""
    async with serving(pipelined_requests_max=2) as served, served.connect() as sender:
        await sender.send(post() + post())
        first = await served.engine.next()
        await served.engine.next()
        await sender.send(post())
        await wait_all_tasks_blocked()
        assert served.engine.taken == 2
        accept(first)
        await served.engine.next()


async def test_one_read_makes_no_more_requests_than_may_be_pipelined() -> None:
    """What stands behind them waits in its bytes, is read when there is room, and is not cut off by a half close."""
    async with serving(pipelined_requests_max=2) as served, served.connect() as sender:
        await sender.send(post() * 5 + get("/healthz") * 5)
        await sender.stream.send_eof()
        for number in range(5):
            submission = await served.engine.next()
            await wait_all_tasks_blocked()
            assert served.engine.taken <= number + 2
            accept(submission)
        assert [(await sender.answer()).status for _ in range(10)] == [200] * 10
        await sender.ended()


async def test_a_request_may_arrive_byte_by_byte() -> None:
    """As a slow but honest sender sends it."""
    async with serving() as served, served.connect() as sender:
        served.engine.at_once = True
        for byte in post():
            await sender.send(bytes([byte]))
            await wait_all_tasks_blocked()
        assert (await sender.answer()).status == 200


async def test_a_chunked_body_is_put_together() -> None:
    """With an extension and a trailer, which say nothing to us."""
    chunks = b"%x;a=b\r\n%b\r\n%x\r\n%b\r\n0\r\nContent-Type: text/plain\r\n\r\n" % (
        9,
        BODY[:9],
        len(BODY) - 9,
        BODY[9:],
    )
    async with serving() as served, served.connect() as sender:
        served.engine.at_once = True
        await sender.send(b"POST /events/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        assert (await sender.answer()).status == 200


async def test_connection_close_is_done_and_said() -> None:
    """After the answer."""
    async with serving() as served, served.connect() as sender:
        await sender.send(post(BODY, "Connection: close"))
        accept(await served.engine.next())
        assert (await sender.answer()).headers["connection"] == "close"
        await sender.ended()


@pytest.mark.parametrize("keep", [False, True])
async def test_http_1_0_keeps_its_connection_only_if_it_asks(keep: bool) -> None:
    """And is told that it may."""
    async with serving() as served, served.connect() as sender:
        served.engine.at_once = True
        request = post(BODY, *(["Connection: Keep-Alive"] if keep else [])).replace(b"HTTP/1.1", b"HTTP/1.0")
        await sender.send(request)
        assert (await sender.answer()).headers["connection"] == ("keep-alive" if keep else "close")
        if keep:
            await sender.send(request)
            await sender.answer()
        else:
            await sender.ended()


async def test_a_sender_that_waits_to_continue_is_told_to() -> None:
    """100 comes before the body, in its turn."""
    async with serving() as served, served.connect() as sender:
        await sender.send(post() + post(BODY, "Expect: 100-continue")[: -len(BODY)])
        accept(await served.engine.next())
        assert [(await sender.answer()).status for _ in range(2)] == [200, 100]
        await sender.send(BODY)
        accept(await served.engine.next())
        assert (await sender.answer()).status == 200


async def test_an_offer_to_upgrade_is_declined() -> None:
    """Java's client offers h2c with each request; its event is taken over HTTP/1.1."""
    async with serving() as served, served.connect() as sender:
        served.engine.at_once = True
        offer = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB"]
        await sender.send(post(BODY, *offer)[:-5])
        await sender.send(BODY[-5:])
        assert (await sender.answer()).status == 200
        await sender.send(post())
        assert (await sender.answer()).status == 200


async def test_a_sender_that_ends_its_side_is_answered() -> None:
    """As with `nc`."""
    async with serving() as served, served.connect() as sender:
        await sender.send(post())
        submission = await served.engine.next()
        await sender.stream.send_eof()
        await wait_all_tasks_blocked()
        accept(submission)
        assert (await sender.answer()).status == 200
        await sender.ended()


async def test_a_sender_that_has_gone_costs_nothing() -> None:
    """Its verdict finds nobody; the next sender is served."""
    async with serving() as served:
        async with served.connect() as sender:
            await sender.send(post())
            submission = await served.engine.next()
        async with served.connect() as sender:
            served.engine.at_once = True
            await sender.send(post())
            assert (await sender.answer()).status == 200
        accept(submission)


# --- Paths ---


async def test_healthz() -> None:
    """It lives; HEAD is GET without the body."""
    async with serving() as served, served.connect() as sender:
        await sender.send(get("/healthz"))
        assert (await sender.answer()).content == {"status": "ok"}
        await sender.send(get("/healthz", "HEAD"))
        head = await sender.stream.receive_some()
        assert head.startswith(OK)
        assert head.endswith(b"content-length: 15\r\n\r\n")


async def test_readyz() -> None:
    """It says why it is not ready."""
    async with serving() as served, served.connect() as sender:
        await sender.send(get("/readyz"))
        assert (await sender.answer()).status == 200
        served.engine.not_ready = ["redis: no answer", "postgres: no answer"]
        await sender.send(get("/readyz"))
        answer = await sender.answer()
        assert (answer.status, answer.content["code"]) == (503, "not_ready")
        assert answer.content["detail"] == "redis: no answer; postgres: no answer"
        assert answer.headers["retry-after"] == "1"


async def test_readyz_tells_what_is_refused_though_the_engine_is_ready() -> None:
    """Some campaigns, or some of their users: no reason to send all others elsewhere."""
    async with serving() as served, served.connect() as sender:
        served.engine.noted = ["campaigns that are closed until they are recovered: 3"]
        await sender.send(get("/readyz"))
        answer = await sender.answer()
        assert (answer.status, answer.content["notes"]) == (200, served.engine.noted)


async def test_all_who_ask_for_readiness_at_once_are_answered_by_one_check() -> None:
    """One packet may ask hundreds of times; nobody else waits for hundreds of tasks."""
    async with serving() as served, served.connect() as sender, served.connect() as other:
        asked, go_on = 0, trio.Event()

        async def slow() -> list[str]:
            nonlocal asked
            asked += 1
            await go_on.wait()
            return []

        served.engine.problems = slow  # type: ignore[method-assign]
        await sender.send(get("/readyz") * Settings().pipelined_requests_max)
        await other.send(get("/readyz"))
        await wait_all_tasks_blocked()
        go_on.set()
        assert (await other.answer()).status == 200
        for _ in range(Settings().pipelined_requests_max):
            assert (await sender.answer()).status == 200
        assert asked == 1
        await sender.send(get("/readyz"))
        assert (await sender.answer()).status == 200
        assert asked == 2


async def test_a_readiness_check_that_fails_ends_the_connections_that_wait_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is one line in the log, and the next who asks is answered."""
    async with serving() as served:

        async def broken() -> list[str]:
            raise RuntimeError("broken")

        ready, served.engine.problems = served.engine.problems, broken  # type: ignore[method-assign]
        async with served.connect() as sender:
            await sender.send(get("/readyz") * 2)
            await sender.ended()
        assert caplog.text.count("the readiness check failed") == 1
        served.engine.problems = ready  # type: ignore[method-assign]
        async with served.connect() as sender:
            await sender.send(get("/readyz"))
            assert (await sender.answer()).status == 200


@pytest.mark.parametrize("path", ["/", "/events", "/campaigns/", "/metrics"])
async def test_other_paths_are_not_found(path: str) -> None:
    """The problem says where to go."""
    async with serving() as served, served.connect() as sender:
        await sender.send(get(path))
        answer = await sender.answer()
        assert (answer.status, answer.content["code"]) == (404, "not_found")
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", "/events/", "POST"), ("DELETE", "/events/batch", "POST"), ("POST", "/readyz", "GET, HEAD")],
)
async def test_wrong_methods_are_told_the_right_ones(method: str, path: str, allow: str) -> None:
    """405 with Allow; the connection stays."""
    async with serving() as served, served.connect() as sender:
        for _ in range(2):
            await sender.send(get(path, method))
            answer = await sender.answer()
            assert (answer.status, answer.headers["allow"]) == (405, allow)


async def test_a_body_that_cannot_be_read_is_refused_and_the_connection_stays() -> None:
    """The HTTP was right; only its body was not."""
    async with serving() as served, served.connect() as sender:
        served.engine.at_once = True
        await sender.send(post(b"{"))
        assert (await sender.answer()).status == 400
        await sender.send(post(BODY, "Content-Type: text/plain"))
        assert (await sender.answer()).status == 415
        await sender.send(post(BODY, "Content-Encoding: gzip", "Content-Encoding: gzip"))
        assert (await sender.answer()).status == 415
        await sender.send(post())
        assert (await sender.answer()).status == 200
        assert served.engine.taken == 1


# --- Bad HTTP ---

CONFLICTS = {
    "two lengths": ["Content-Length: 53"],
    "length and coding": ["Transfer-Encoding: chunked"],
    "unknown coding": ["Transfer-Encoding: gzip"],
    "folded header": ["A: b", " c"],
    "space before colon": ["A : b"],
    "control character": ["A: \x01"],
}


@pytest.mark.parametrize("headers", CONFLICTS.values(), ids=CONFLICTS)
async def test_conflicting_heads_are_refused(headers: list[str]) -> None:
    """400, and the connection ends: nobody can know where the next request begins."""
    async with serving() as served, served.connect() as sender:
        await sender.send(post(BODY, *headers))
        answer = await sender.answer()
        assert (answer.status, answer.content["code"]) == (400, "malformed_http")
        assert answer.headers["connection"] == "close"
        await sender.ended()
        assert served.engine.taken == 0


@pytest.mark.parametrize(
    ("rubbish", "status"),
    [(b"hello\r\n", 400), (b"\x16\x03\x01\x02\x00", 400), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505)],
)
async def test_what_is_not_http_is_refused(rubbish: bytes, status: int) -> None:
    """Text, TLS, HTTP/2 with prior knowledge: at once, before an empty line has come."""
    async with serving() as served, served.connect() as sender:
        await sender.send(rubbish)
        assert (await sender.answer()).status == status
        await sender.ended()


async def test_connect_is_refused() -> None:
    """We are no proxy: what comes behind it are no requests."""
    async with serving() as served, served.connect() as sender:
        await sender.send(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n" + post())
        assert (await sender.answer()).status == 501
        await sender.ended()
        assert served.engine.taken == 0


async def test_a_request_that_is_cut_off_is_refused() -> None:
    """A truncated body is never taken for a whole one."""
    async with serving() as served, served.connect() as sender:
        await sender.send(post()[:-1])
        await sender.stream.send_eof()
        assert (await sender.answer()).status == 400
        await sender.ended()
        assert served.engine.taken == 0


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 2_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"b" * 1_000,
    ],
    ids=["target", "headers", "endless"],
)
async def test_a_head_above_the_limit_is_refused(head: bytes) -> None:
    """431; an endless header is not waited for."""
    async with serving(header_bytes_max=1_024) as served, served.connect() as sender:
        for start in range(0, len(head), 500):
            await sender.send(head[start : start + 500])
            await wait_all_tasks_blocked()
        if not head.endswith(b"\r\n\r\n"):
            await sender.send(b"b" * 1_000)
        answer = await sender.answer()
        assert (answer.status, answer.content["code"]) == (431, "head_too_large")
        await sender.ended()


async def test_a_body_above_the_limit_is_refused_at_its_head() -> None:
    """The sender hears it, though it goes on sending for a while."""
    async with serving(request_bytes_max=1_024) as served, served.connect() as sender:
        await sender.send(post(b" " * 10_000)[:200])
        answer = await sender.answer()
        assert (answer.status, answer.content["code"]) == (413, "body_too_large")
        for _ in range(9):
            await sender.send(b" " * 1_000)
        await sender.ended()


async def test_a_chunked_body_above_the_limit_is_refused() -> None:
    """As soon as it is."""
    async with serving(request_bytes_max=1_024) as served, served.connect() as sender:
        await sender.send(
            b"POST /events/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n500\r\n" + b" " * 1_200
        )
        assert (await sender.answer()).status == 413
        await sender.ended()


async def send_for_ever(sender: Sender) -> None:
    """A sender that does not listen."""
    while True:
        await sender.send(b" " * 65_536)


async def test_a_refused_sender_is_not_listened_to_for_ever() -> None:
    """What it still sends is thrown away up to a bound; then it is cut off."""
    async with serving(request_bytes_max=1_024) as served, served.connect() as sender:
        await sender.send(post(b" " * 10_000)[:200])
        assert (await sender.answer()).status == 413
        with pytest.raises(trio.BrokenResourceError):
            await send_for_ever(sender)


async def test_bodies_on_their_way_in_are_bounded_over_all_connections() -> None:
    """Who brings the one too many is told to come again, the others go on."""
    size = 800_000
    async with (
        serving(request_bytes_max=1 << 20, intake_bytes_max=1 << 20) as served,
        served.connect() as first,
        served.connect() as second,
    ):
        request = post(BODY.ljust(size))
        await first.send(request[:-1])
        await wait_all_tasks_blocked()
        await second.send(request[:-1])
        answer = await second.answer()
        assert (answer.status, answer.content["code"]) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        served.engine.at_once = True
        await first.send(request[-1:])
        assert (await first.answer()).status == 200
        assert served.intake.body_bytes == 0


# --- Time, and slow readers ---


async def test_a_request_must_arrive_in_time() -> None:
    """408 for what has begun and is not whole; bytes on the way do not buy time."""
    async with serving() as served, served.connect() as sender:
        await sender.send(post(BODY, "Expect: 100-continue")[: -len(BODY)])
        assert (await sender.answer()).status == 100
        begun = served.intake.now
        served.intake.sweep(begun + 20)
        await sender.send(BODY[:9])
        await wait_all_tasks_blocked()
        served.intake.sweep(begun + 31)
        answer = await sender.answer()
        assert (answer.status, answer.content["code"]) == (408, "request_timeout")
        await sender.ended()


async def test_an_idle_connection_is_closed() -> None:
    """Without a word, and not before its time."""
    async with serving() as served, served.connect() as sender:
        served.engine.at_once = True
        await sender.send(post())
        await sender.answer()
        served.intake.sweep(served.intake.now + 70)
        assert len(served.intake.connections) == 1
        served.intake.sweep(served.intake.now + 10)
        await sender.ended()


async def test_a_request_under_way_is_not_idle() -> None:
    """The engine has its own deadline, and always answers."""
    async with serving() as served, served.connect() as sender:
        await sender.send(post())
        submission = await served.engine.next()
        served.intake.sweep(served.intake.now + 3_600)
        accept(submission)
        assert (await sender.answer()).status == 200


LONG = b"[" + b"1," * 4_999 + b"1]"  # its answer has half a megabyte


async def test_a_sender_that_does_not_read_is_not_read() -> None:
    """While an answer waits for it; then it goes on."""
    async with serving() as served, served.connect() as sender:
        await sender.send(post(LONG, path="/events/batch"))
        accept(await served.engine.next())
        await sender.send(post())
        await wait_all_tasks_blocked()
        assert served.engine.taken == 1
        assert (await sender.answer()).content["rejected"] == 5_000
        accept(await served.engine.next())
        assert (await sender.answer()).status == 200


async def test_a_slow_reader_past_the_bound_is_closed() -> None:
    """Answers do not pile up."""
    async with serving() as served, served.connect() as sender:
        await sender.send(post(LONG, path="/events/batch"))
        first = await served.engine.next()
        await sender.send(post(LONG, path="/events/batch"))
        second = await served.engine.next()
        accept(first)
        assert len(served.intake.connections) == 1
        accept(second)
        assert not served.intake.connections


async def long_body_arrives(served: Served) -> None:
    """Until it has arrived, and is not read."""
    while served.engine.asked == 0:
        await trio.lowlevel.checkpoint()
    assert served.engine.taken == 0


async def test_long_bodies_wait_for_turns_of_their_own() -> None:
    """Pipelined bombs of some hundred bytes hold up nobody: others are taken while they are read."""
    bomb = zstandard.ZstdCompressor().compress(b"[" + b'{"campaign_id":0},' * 4_999 + b"1]")
    pipelined = post(bomb, "Content-Encoding: zstd", path="/events/batch") * 8
    async with serving() as served, served.connect() as attacker, served.connect() as sender:
        await attacker.send(pipelined)
        await sender.send(post())
        bombs = 0
        while len((submission := await served.engine.next()).entries) > 1:
            bombs += 1
        assert bombs < 8
        accept(submission)
        for _ in range(8 - bombs):
            await served.engine.next()
        await attacker.stream.aclose()
        assert (await sender.answer()).status == 200


async def test_answers_to_long_bodies_keep_their_place() -> None:
    """What was read at once behind one of them is answered behind it."""
    async with serving() as served, served.connect() as sender:
        served.engine.at_once = True
        await sender.send(post(LONG, path="/events/batch") + post())
        assert "received" in (await sender.answer()).content
        assert (await sender.answer()).content["status"] == "accepted"


async def test_a_long_body_whose_connection_is_closed_is_not_submitted() -> None:
    """Nobody would hear of it; its sender sends it again."""
    async with serving() as served, served.connect() as sender:
        await sender.send(post(LONG, path="/events/batch"))
        await long_body_arrives(served)
        next(iter(served.intake.connections)).close()
        await wait_all_tasks_blocked()
        assert served.engine.taken == 0


async def test_a_fault_of_a_long_body_ends_its_connection_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """It is met by a task of its own, whose end must not be the intake's."""
    async with serving() as served, served.connect() as sender, served.connect() as other:
        served.engine.failure = RuntimeError("a fault of the engine")
        await sender.send(post(LONG, path="/events/batch"))
        await sender.ended()
        assert "a fault of the engine" in caplog.text
        served.engine.failure = None
        served.engine.at_once = True
        await other.send(post())
        assert (await other.answer()).status == 200


async def test_a_drain_waits_for_long_bodies() -> None:
    """They were taken whole, and are answered."""
    async with serving() as served, served.connect() as sender:
        served.engine.at_once = True
        await sender.send(post(LONG, path="/events/batch"))
        await long_body_arrives(served)
        served.stop.set()
        assert (await sender.answer()).content["rejected"] == 5_000
        await served.returned.wait()


async def test_more_long_bodies_than_there_is_room_for_are_refused() -> None:
    """503, and they may be sent again."""
    async with serving(intake_bytes_max=1 << 20, request_bytes_max=1 << 20) as served, served.connect() as sender:
        served.engine.at_once = True
        body = LONG[:-1] + b" " * ((1 << 19) + 1 - len(LONG)) + b"]"
        await sender.send(post(body, path="/events/batch") * 3)
        statuses = [(await sender.answer()).status for _ in range(3)]
        assert sorted(statuses)[0] == 200
        assert sorted(statuses)[-1] == 503


async def test_a_reader_without_progress_is_closed() -> None:
    """An answer that nobody takes does not stay for ever."""
    async with serving() as served, served.connect() as sender:
        await sender.send(post(LONG, path="/events/batch"))
        accept(await served.engine.next())
        served.intake.sweep(served.intake.now + 31)
        assert not served.intake.connections


# --- Many connections ---


async def test_connections_above_the_cap_are_refused() -> None:
    """503 and closed; room comes back when a connection ends."""
    async with serving(connections_max=1) as served:
        served.engine.at_once = True
        async with served.connect() as first, served.connect() as second:
            answer = await second.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            await second.ended()
            await first.send(post())
            assert (await first.answer()).status == 200
        await wait_all_tasks_blocked()
        async with served.connect() as third:
            await third.send(post())
            assert (await third.answer()).status == 200


async def test_a_full_engine_refuses_unread() -> None:
    """Whatever the request holds: 503 at once, and the connection goes on."""
    async with serving() as served, served.connect() as sender:
        served.engine.at_once = served.engine.full = True
        await sender.send(post(b"no JSON at all"))
        answer = await sender.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert b'"overloaded"' in answer.body
        assert served.engine.taken == 0
        served.engine.full = False
        await sender.send(post())
        assert (await sender.answer()).status == 200


async def test_without_free_descriptors_accepting_pauses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It neither ends nor spins, and goes on with the next sweep. One line when it begins, and one when it ends."""
    async with serving() as served:
        served.engine.at_once = True
        failing = FailingListener(served.intake._listener, OSError(errno.EMFILE, "too many open files"))
        monkeypatch.setattr(served.intake, "_listener", failing)
        async with served.connect() as sender:
            await sender.send(post())
            await wait_all_tasks_blocked()
            assert failing.calls == 1
            for calls in range(2, 5):
                served.intake.sweep(served.intake.now)
                await wait_all_tasks_blocked()
                assert failing.calls == calls
            assert ["ulimit -n" in message for message in caplog.messages] == [True]
            failing.error = None
            served.intake.sweep(served.intake.now)
            assert (await sender.answer()).status == 200
            served.intake.sweep(served.intake.now + 60)
            assert ["accepted again" in message for message in caplog.messages] == [False, True]


class FailingListener:
    """A listener whose accept fails."""

    def __init__(self, listener: socket.socket, error: Exception | None) -> None:
        self.error = error
        self.calls = 0
        self._listener = listener

    def accept(self) -> Any:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self._listener.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)


async def test_a_fault_in_accepting_surfaces() -> None:
    """A bug in the loop is not swallowed."""
    engine, listener = HeldEngine(), listening()
    failing: Any = FailingListener(listener, TypeError("a bug"))
    with socket.create_connection(listener.getsockname()), pytest.raises(ExceptionGroup) as caught:
        await serve_intake(engine, failing, Settings(), trio.Event())
    assert caught.group_contains(TypeError)


@pytest.mark.parametrize("where", ["submit", "answer"])
async def test_a_fault_of_one_connection_ends_that_one(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged in one line; the others do not notice."""
    async with serving() as served, served.connect() as healthy:
        async with served.connect() as sender:
            if where == "submit":
                served.engine.submit = None  # type: ignore[assignment, method-assign]
                await sender.send(post())
            else:
                await sender.send(post())
                submission = await served.engine.next()
                submission.entries.clear()
                accept(submission)
            await sender.ended()
        assert len(caplog.records) == 1
        assert "Traceback" not in caplog.text
        await healthy.send(get("/healthz"))
        assert (await healthy.answer()).status == 200


# --- Stopping ---


async def test_stopping_finishes_what_is_under_way() -> None:
    """Idle ones are closed, answers say that they are the last, and nobody new is taken."""
    async with (
        serving() as served, served.connect() as idle, served.connect() as waiting, served.connect() as sending,
    ):  # fmt: skip
        await waiting.send(post() + post())
        submissions = [await served.engine.next(), await served.engine.next()]
        await sending.send(post()[:-1])
        await wait_all_tasks_blocked()
        served.stop.set()
        await idle.ended()
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(*served.address)
        for submission in submissions:
            accept(submission)
        assert "connection" not in (await waiting.answer()).headers
        assert (await waiting.answer()).headers["connection"] == "close"
        await waiting.ended()
        await sending.send(post()[-1:])
        accept(await served.engine.next())
        assert (await sending.answer()).headers["connection"] == "close"
        await sending.ended()
        await served.returned.wait()


async def test_what_came_before_the_stop_is_answered() -> None:
    """Also what only the kernel has accepted and read so far."""
    async with serving() as served:
        served.engine.at_once = True
        with socket.create_connection(served.address) as peer:
            peer.sendall(post())
            served.stop.set()
            await served.returned.wait()
            assert peer.recv(65_536).startswith(OK)


async def test_who_yields_answers_each_connection_once_more() -> None:
    """Idle ones are not closed under a request that is on its way, and hear in its answer that it was the last."""
    async with (
        serving() as served, served.connect() as used, served.connect() as fresh, served.connect() as waiting,
        served.connect() as sending,
    ):  # fmt: skip
        served.engine.at_once = True
        await used.send(post())
        assert "connection" not in (await used.answer()).headers
        await sending.send(post()[:-1])
        served.engine.at_once = False
        await waiting.send(post())
        submission = await served.engine.next()
        await wait_all_tasks_blocked()
        served.yielding.set()
        await wait_all_tasks_blocked()
        accept(submission)
        assert (await waiting.answer()).headers["connection"] == "close"
        await waiting.ended()
        served.engine.at_once = True
        for sender, last in ((used, post()), (fresh, post()), (sending, post()[-1:])):
            assert not served.returned.is_set()
            await sender.send(last)
            assert (await sender.answer()).headers["connection"] == "close"
            await sender.ended()
        await served.returned.wait()


async def test_who_yields_leaves_new_connections_to_its_successor() -> None:
    """Also those that the kernel has queued already: they are neither answered here nor reset."""
    async with serving() as served:
        with served.intake._listener.dup() as successors, socket.create_connection(served.address) as queued:
            queued.sendall(post())
            served.yielding.set()
            await served.returned.wait()
            with socket.create_connection(served.address) as late:
                accepted = [successors.accept() for _ in range(2)]
                assert [address for _, address in accepted] == [queued.getsockname(), late.getsockname()]
                assert accepted[0][0].recv(65_536) == post()
                for peer, _ in accepted:
                    peer.close()
    assert served.engine.taken == 0


async def test_who_yields_waits_for_idle_connections_until_the_stop() -> None:
    """What has come by then is answered."""
    async with serving() as served, served.connect() as idle, served.connect() as sender:
        served.engine.at_once = True
        await wait_all_tasks_blocked()
        served.yielding.set()
        await wait_all_tasks_blocked()
        await sender.send(post())
        served.stop.set()
        assert (await sender.answer()).headers["connection"] == "close"
        await idle.ended()
        await served.returned.wait()


async def test_stopping_does_not_wait_for_ever() -> None:
    """After `drain_seconds` it returns, whatever is open."""
    async with serving(drain_seconds=1) as served, served.connect() as sender:
        await sender.send(post())
        await served.engine.next()
        served.stop.set()
        await served.returned.wait()
        await sender.ended()


async def test_serve_intake_serves_and_returns() -> None:
    """The listener's door."""
    engine, listener, stop = HeldEngine(), listening(), trio.Event()
    engine.at_once = True
    address = listener.getsockname()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_intake, engine, listener, Settings(), stop)
            async with await trio.open_tcp_stream(*address) as stream:
                await stream.send_all(post())
                assert (await stream.receive_some()).startswith(OK)
                stop.set()
    assert listener.fileno() == -1
