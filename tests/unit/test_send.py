"""Sending: what is sent again, what is final, and how it ends."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from io import FileIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from rich.console import Console

from api.__main__ import main
from api.feed import Feed, Outgoing
from api.progress import print_complaints, print_summary, progress_line, show_progress
from api.send import read_batches, read_url
from api.sender import PAUSE_SECONDS_MAX, Options, Sender, Tally, pause_seconds

Events = list[dict[str, Any]]
Handler = Callable[[Events], httpx.Response]


def answer(events: Events, verdicts: dict[int, str] | None = None, retry_after: int | None = None) -> httpx.Response:
    """Headrace's answer to a batch: "status" or "status/reason" of those that are not accepted, by their number."""
    results = []
    for index, event in enumerate(events):
        verdict = (verdicts or {}).get(event["n"])
        if verdict is not None:
            status, _, reason = verdict.partition("/")
            results.append({"index": index, "event_id": None, "status": status, "reason": reason or None})
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return httpx.Response(200, json={"received": len(events), "results": results}, headers=headers)


class Server:
    """Answers requests one after the other as it was told; then accepts everything."""

    def __init__(self, *handlers: Handler) -> None:
        self.handlers = list(handlers)
        self.requests: list[list[int]] = []
        self.sizes: list[int] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        """One request."""
        body = await request.aread()
        self.sizes.append(len(body))
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        events = [json.loads(line) for line in body.splitlines()]
        self.requests.append([event["n"] for event in events])
        return self.handlers.pop(0)(events) if self.handlers else answer(events)

    async def take(self, *batches: Sequence[int], **options: Any) -> Tally:
        """Send batches of numbered events, over one connection unless told otherwise."""
        tally = Tally()

        async def feed() -> AsyncGenerator[list[Outgoing], None]:
            for batch in batches:
                tally.read += len(batch)
                yield [Outgoing(number, b'{"n":%d}' % number) for number in batch]

        chosen = Options(**{"concurrency": 1, **options})
        async with (
            httpx.AsyncClient(transport=httpx.MockTransport(self), base_url="http://stub") as client,
            aclosing(feed()) as events,
        ):
            await Sender(client, chosen, tally).run(events)
        return tally


def status(code: int, **headers: str) -> Handler:
    """A handler that answers with a problem."""
    return lambda _: httpx.Response(code, json={"detail": "too bad"}, headers=headers)


def broken(_: Events) -> httpx.Response:
    """A connection that is cut."""
    raise httpx.ReadError("cut")


def slow(_: Events) -> httpx.Response:
    """No answer in time."""
    raise httpx.ReadTimeout("slow")


async def test_every_event_is_counted_by_its_verdict() -> None:
    """Duplicates and refusals are final, and no failure."""
    server = Server(lambda events: answer(events, {1: "duplicate", 2: "rejected/paced", 3: "rejected/total_budget"}))
    tally = await server.take(range(5), range(5, 7))
    assert (tally.accepted, tally.duplicate, dict(tally.rejected)) == (4, 1, {"paced": 1, "total_budget": 1})
    assert (tally.open, tally.resent, tally.status) == (0, 0, 0)
    assert server.requests == [[0, 1, 2, 3, 4], [5, 6]]


async def test_only_the_retry_ones_of_a_batch_go_again(autojump_clock: trio.testing.MockClock) -> None:
    """Until each is settled."""
    server = Server(
        lambda events: answer(events, {1: "retry/in_flight", 3: "retry/overloaded"}, 1),
        lambda events: answer(events, {1: "duplicate", 3: "retry/overloaded"}, 1),
    )
    tally = await server.take(range(5))
    assert server.requests == [[0, 1, 2, 3, 4], [1, 3], [3]]
    assert (tally.accepted, tally.duplicate, tally.resent, tally.status) == (4, 1, 3, 0)


@pytest.mark.parametrize("handler", [status(503), status(429), status(502), status(408), broken, slow])
async def test_a_batch_without_verdicts_goes_again(handler: Handler, autojump_clock: trio.testing.MockClock) -> None:
    """With the same ids, so it is safe."""
    server = Server(handler, handler)
    tally = await server.take(range(3))
    assert server.requests == [[0, 1, 2]] * 3
    assert (tally.accepted, tally.repeated_requests, tally.status) == (3, 2, 0)


async def test_retry_after_is_honoured_up_to_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    """A sender waits as long as it is asked to, but not for an hour."""
    for asked, low, high in ((7, 7, 8), (3_600, PAUSE_SECONDS_MAX, PAUSE_SECONDS_MAX * 1.1)):
        started = trio.current_time()
        await Server(status(503, **{"Retry-After": str(asked)})).take([1])
        assert low <= trio.current_time() - started <= high


def test_pauses_grow_and_are_bounded() -> None:
    """And are spread."""
    for failures in (1, 5, 50, 5_000):
        pauses = [pause_seconds(failures, 0.0) for _ in range(20)]
        assert len(set(pauses)) > 1
        assert max(pauses) <= min(0.1 * 2**failures if failures < 50 else PAUSE_SECONDS_MAX, PAUSE_SECONDS_MAX)


async def test_a_batch_that_is_too_large_is_halved() -> None:
    """Down to the one event that can't be taken; it is invalid, and named."""

    def at_most_one_of_these(events: Events) -> httpx.Response:
        numbers = {event["n"] for event in events}
        return status(413)(events) if len(events) > 2 or 5 in numbers else answer(events)

    server = Server(*[at_most_one_of_these] * 20)
    tally = await server.take(range(8))
    assert (tally.accepted, dict(tally.rejected), tally.status) == (7, {"invalid": 1}, 1)
    assert tally.complaints == [(5, "too bad")]


@pytest.mark.parametrize(
    "handler",
    [
        status(404),
        status(401),
        lambda _: httpx.Response(200, text="hello"),
        lambda _: httpx.Response(200, json={"received": 1, "results": []}),
        lambda _: httpx.Response(200, json={"received": 2, "results": [{"index": 2, "status": "retry"}]}),
    ],
)
async def test_what_is_no_headrace_ends_it(handler: Handler) -> None:
    """Trying again would not help, and counting would lie."""
    tally = await Server(handler).take([1, 2], [3, 4])
    assert tally.failure is not None
    assert (tally.accepted, tally.finished, tally.status) == (0, False, 1)


async def test_invalid_events_make_the_status_1() -> None:
    """And are named by their line."""
    tally = await Server(lambda events: answer(events, {2: "rejected/invalid"})).take([1, 2])
    assert (tally.accepted, tally.status, tally.complaints) == (1, 1, [(2, "invalid")])


async def test_at_the_deadline_it_gives_up(autojump_clock: trio.testing.MockClock) -> None:
    """What has no verdict is counted as such."""
    server = Server(lambda events: answer(events, {1: "retry/unavailable"}), *[status(503)] * 1_000)
    tally = await server.take([1, 2], [3], deadline_seconds=100)
    assert (tally.accepted, tally.open, tally.finished, tally.status) == (1, 2, False, 1)


async def test_requests_are_sent_at_once_but_not_more_than_asked_for(autojump_clock: trio.testing.MockClock) -> None:
    """One connection each."""
    under_way = most = 0

    class Busy(Server):
        async def __call__(self, request: httpx.Request) -> httpx.Response:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await trio.sleep(1)
            under_way -= 1
            return await super().__call__(request)

    tally = await Busy().take(*[[number] for number in range(10)], concurrency=3)
    assert (tally.accepted, most) == (10, 3)


async def test_bodies_are_compressed_if_wanted() -> None:
    """Much smaller."""
    packed, plain = Server(), Server()
    await packed.take(range(1_000))
    await plain.take(range(1_000), gzip=False)
    assert packed.requests == plain.requests
    assert packed.sizes[0] < plain.sizes[0] / 2


# --- Reading a file ---


async def batches_of(file: FileIO, tally: Tally, size: int) -> list[list[int]]:
    """The lines of each batch of a file."""
    batches = read_batches(file, Feed(), tally, size, now_us=lambda: 0)
    return [[event.line for event in batch] async for batch in batches]


async def test_a_file_is_read_in_batches(tmp_path: Path) -> None:
    """Lines that are no objects are counted, and named by their number."""
    path = tmp_path / "events.ndjson"
    path.write_text('{"a":1}\n{"a":2}\nnonsense\n\n{"a":5}\n[]')
    tally = Tally()
    with FileIO(path) as file:
        assert await batches_of(file, tally, 2) == [[1, 2], [5]]
    assert (tally.read, tally.unreadable, tally.bytes_read) == (3, 2, path.stat().st_size)
    assert [line for line, _ in tally.complaints] == [3, 6]


async def test_what_a_slow_pipe_brings_is_sent_at_once() -> None:
    """A batch does not wait for more than has come."""
    reading, writing = os.pipe()
    with FileIO(reading) as file:
        batches = read_batches(file, Feed(), Tally(), 100, now_us=lambda: 0)
        for count in (2, 1):
            os.write(writing, b'{"a":1}\n' * count)
            assert len(await anext(batches)) == count
        os.close(writing)
        assert [batch async for batch in batches] == []


# --- The program ---


class Stub:
    """A real server of one process: answers batches on a socket, in a thread of its own."""

    def __init__(self, verdicts: dict[int, str] | None = None) -> None:
        import http.server
        import threading

        self.events: Events = []
        stub = self

        class Handle(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                events = [json.loads(line) for line in body.splitlines()]
                stub.events += events
                told = answer(events, verdicts).content
                self.send_response(200)
                self.send_header("content-length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            def log_message(self, *_: object) -> None:
                """Silent."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handle)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        """End it."""
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def stub() -> Any:
    """A server that calls event 2 invalid and event 3 a duplicate."""
    stub = Stub({2: "rejected/invalid", 3: "duplicate"})
    yield stub
    stub.close()


def numbered(path: Path, *numbers: int) -> str:
    """A file of events."""
    path.write_text("".join(f'{{"n":{number},"campaign_id":1}}\n' for number in numbers))
    return str(path)


def test_send_exits_0_when_all_is_final(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids are made, campaigns renamed, and the summary says what came of it."""
    file = numbered(tmp_path / "events", 1, 3, 4)
    assert main(["send", file, "--url", stub.url, "--campaign", "1=7"]) == 0
    assert sorted(event["n"] for event in stub.events) == [1, 3, 4]
    assert {event["campaign_id"] for event in stub.events} == {7}
    assert len({event["event_id"] for event in stub.events}) == 3
    output = capsys.readouterr().out
    assert "accepted" in output
    assert "duplicate" in output
    assert "3 events in" in output


@pytest.mark.parametrize("lines", ['{"n":1}\n{"n":2}\n', '{"n":1}\n{"n":'])
def test_send_exits_1_when_an_event_is_invalid_or_unreadable(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str
) -> None:
    """Quiet or not, the line is named on standard error."""
    (tmp_path / "events").write_text(lines)
    assert main(["send", str(tmp_path / "events"), "--url", stub.url, "--quiet", "--no-gzip"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("line 2: ")


def test_send_reads_standard_input(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a minus for a name."""
    with Path(numbered(tmp_path / "events", *range(10, 20))).open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(["send", "-", "--url", stub.url.removeprefix("http://"), "--batch", "3", "--concurrency", "2"]) == 0
    assert len(stub.events) == 10


def test_an_empty_file_is_sent_at_once(tmp_path: Path) -> None:
    """Nobody is asked."""
    assert main(["send", numbered(tmp_path / "events"), "--url", "http://127.0.0.1:1"]) == 0


def test_ctrl_c_ends_with_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 130, and no traceback."""
    file = numbered(tmp_path / "events", 1, 2)

    async def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    trio_run = trio.run

    def run_and_interrupt(program: Any, *arguments: Any) -> Any:
        async def both() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(program, *arguments)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await interrupt()

        return trio_run(both)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio, "run", run_and_interrupt)
        assert main(["send", file, "--url", "http://127.0.0.1:1"]) == 130
    told = capsys.readouterr()
    assert "no verdict yet" in told.out
    assert "interrupted" in told.err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice"),
        (["send"], "FILE"),
        (["send", "-", "--batch", "0"], "whole number"),
        (["send", "-", "--concurrency", "many"], "whole number"),
        (["send", "-", "--deadline", "-1"], "above 0"),
        (["send", "-", "--campaign", "7"], "OLD=NEW"),
        (["send", "-", "--campaign", "7=x"], "OLD=NEW"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With a sentence about it."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert what in capsys.readouterr().err


def test_a_missing_file_and_a_wrong_url_are_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is sent."""
    assert main(["send", str(tmp_path / "none"), "--url", "http://127.0.0.1:1"]) == 2
    assert "none" in capsys.readouterr().err
    assert main(["send", "-", "--url", "ftp://127.0.0.1"]) == 2
    assert "--url" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--url"):
        read_url("http://127.0.0.1:none")


@pytest.mark.parametrize("command", [["serve"], ["audit"], ["send", "-"]])
def test_a_wrong_setting_is_one_line_and_status_2(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the command."""
    monkeypatch.setenv("HEADRACE_WORKERS", "0")
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("headrace: HEADRACE_WORKERS is 0")


# --- What is shown ---


async def test_without_a_terminal_progress_is_a_line_now_and_then(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """No bar, no control characters."""
    tally = Tally(read=2_000, accepted=1_500, duplicate=3, trouble="503: [red]tired[/red]")
    with trio.move_on_after(11):
        await show_progress(tally, Console(width=200), total=None, position=lambda: 0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0] == "1,503 events, 301/s, 1,500 accepted, 3 duplicate; trying again: 503: [red]tired[/red]"


async def test_on_a_terminal_progress_is_a_bar(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what is done of the whole."""
    console = Console(width=200, force_terminal=True)
    with trio.move_on_after(1):
        await show_progress(Tally(accepted=7), console, total=10, position=lambda: 5)
    assert "50%" in capsys.readouterr().out


def test_the_summary_shows_every_verdict_and_what_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Reasons apart from each other."""
    tally = Tally(read=12, accepted=5, unreadable=1, resent=4)
    tally.rejected.update({"paced": 2, "daily_budget": 3})
    print_summary(tally, 2.0, Console(width=100))
    print_complaints(tally, Console(width=100))
    output = capsys.readouterr().out
    for part in ("paced", "daily_budget", "no JSON object", "no verdict yet", "10 events in 2.0 s, 5 events/s",
                 "4 sent again", "gave up"):  # fmt: skip
        assert part in output
    assert progress_line(Tally(), 0.0) == "0 events, 0/s, 0 accepted"
