"""Sending events until each has its final verdict: batches, retries, and the count of what came of them.

Owns how a sender should behave towards Headrace. Each event has an id of its own, so whatever is not answered may be
sent again: at worst it is a duplicate. Knows no file and no terminal.

What an answer means for a batch:

| answer | then |
|---|---|
| 200 | all are settled but those with the status `retry`, which go again |
| 408, 425, 429, 5xx, no answer | the whole batch goes again |
| 400, 413 | halved; a single event that still gets it is invalid |
| any other, or a 200 that is not Headrace's | sending makes no sense: stop, and say so |
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import httpx
import msgspec
import trio

from api.feed import Outgoing

PAUSE_FIRST_SECONDS: Final = 0.1
PAUSE_SECONDS_MAX: Final = 30.0  # also for what a Retry-After asks: a sender looks again at least twice a minute
DOUBLINGS_MAX: Final = 10  # of the pause: far beyond its bound
CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 30.0  # the server answers within its own deadline, 10 s by default
COMPLAINTS_MAX: Final = 10  # kept of a run: whoever has more has one cause, not a thousand
GZIP_LEVEL: Final = 1  # the fastest: JSON of events shrinks to a fifth even so

_TRY_AGAIN: Final = frozenset({408, 425, 429})
_SPLIT: Final = frozenset({400, 413})

Batch = Sequence[Outgoing]


class _Result(msgspec.Struct):
    """One event of a batch that is not accepted."""

    index: int
    status: str
    reason: str | None = None
    detail: str | None = None


class _BatchAnswer(msgspec.Struct):
    received: int
    results: list[_Result]


class _Problem(msgspec.Struct):
    detail: str = ""


_ANSWER: Final = msgspec.json.Decoder(_BatchAnswer)
_PROBLEM: Final = msgspec.json.Decoder(_Problem)


@dataclass(frozen=True, slots=True)
class Options:
    """How to send. `concurrency` is requests at once, `deadline_seconds` the time for all of it."""

    concurrency: int = 4
    gzip: bool = True
    deadline_seconds: float | None = None


@dataclass(slots=True)
class Tally:
    """What came of the events so far. `read` counts those that were to be sent, `unreadable` lines are not among them.

    `resent` counts events that were sent once more, `repeated_requests` requests that brought no verdicts. `trouble`
    is why the last request has to be repeated, `failure` why sending makes no sense.
    """

    read: int = 0
    bytes_read: int = 0
    unreadable: int = 0
    accepted: int = 0
    duplicate: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    resent: int = 0
    repeated_requests: int = 0
    finished: bool = False
    interrupted: bool = False
    trouble: str | None = None
    failure: str | None = None
    complaints: list[tuple[int, str]] = field(default_factory=list)

    @property
    def settled(self) -> int:
        """Events with a final verdict."""
        return self.accepted + self.duplicate + self.rejected.total()

    @property
    def open(self) -> int:
        """Events without one."""
        return self.read - self.settled

    @property
    def status(self) -> int:
        """The exit status: 0 all final and none invalid; 1 some invalid, unreadable or given up; 130 interrupted."""
        if self.interrupted:
            return 130
        sound = self.finished and not (self.open or self.unreadable or self.rejected["invalid"])
        return 0 if sound else 1

    def skip(self, line: int, why: str) -> None:
        """A line that can't be sent."""
        self.unreadable += 1
        self._complain(line, why)

    def reject(self, event: Outgoing, reason: str, detail: str | None) -> None:
        """A final refusal."""
        self.rejected[reason] += 1
        if reason == "invalid":
            self._complain(event.line, detail or reason)

    def _complain(self, line: int, why: str) -> None:
        if len(self.complaints) < COMPLAINTS_MAX:
            self.complaints.append((line, why))


@dataclass(frozen=True, slots=True)
class _Again:
    """What of a batch is to be sent again, in which parts, and when."""

    parts: list[Batch]
    pause: bool = True
    advanced: bool = False  # something was settled: the server is well
    retry_after_seconds: float = 0.0


_NOTHING: Final = _Again([], advanced=True)


class SendingImpossible(Exception):
    """The other side is no Headrace, or wants what we can't give."""


def open_client(url: str, options: Options) -> httpx.AsyncClient:
    """A client with as many keep-alive connections as requests at once. Raises `httpx.InvalidURL`."""
    limits = httpx.Limits(
        max_connections=options.concurrency, max_keepalive_connections=options.concurrency, keepalive_expiry=30.0
    )
    return httpx.AsyncClient(
        base_url=url, limits=limits, timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    )


class Sender:
    """Sends batches over one client, and counts in `tally`."""

    def __init__(self, client: httpx.AsyncClient, options: Options, tally: Tally) -> None:
        self._client = client
        self._options = options
        self._tally = tally
        self._headers = {"content-type": "application/x-ndjson"}
        if options.gzip:
            self._headers["content-encoding"] = "gzip"

    async def run(self, batches: AsyncIterator[Batch]) -> None:
        """Send all of it. Ends early, with `tally.finished` false, at the deadline or when sending is impossible."""
        seconds = self._options.deadline_seconds
        with trio.move_on_after(float("inf") if seconds is None else seconds) as scope:
            async with trio.open_nursery() as nursery:
                # No room in between: a batch is read when a connection is free, so memory is bounded by both.
                outbox, inbox = trio.open_memory_channel[Batch](0)
                async with inbox, outbox:
                    for _ in range(self._options.concurrency):
                        nursery.start_soon(self._work, inbox.clone(), scope)
                    async for batch in batches:
                        await outbox.send(batch)
            self._tally.finished = self._tally.failure is None

    async def _work(self, inbox: trio.MemoryReceiveChannel[Batch], scope: trio.CancelScope) -> None:
        async with inbox:
            async for batch in inbox:
                try:
                    await self._deliver(batch)
                except SendingImpossible as error:
                    self._tally.failure = str(error)
                    scope.cancel()

    async def _deliver(self, batch: Batch) -> None:
        """Send a batch, and again what is left of it, until nothing is."""
        parts = [batch]
        failures = 0
        while parts:
            part = parts.pop()
            again = await self._attempt(part)
            failures = 0 if again.advanced else failures + 1
            if again.parts:
                parts += again.parts
                self._tally.resent += sum(map(len, again.parts))
                if again.pause:
                    await trio.sleep(pause_seconds(failures, again.retry_after_seconds))

    async def _attempt(self, batch: Batch) -> _Again:
        body = b"\n".join(event.body for event in batch)
        if self._options.gzip:
            body = _gzip(body)
        try:
            answer = await self._client.post("/events/batch", content=body, headers=self._headers)
        except (httpx.TransportError, httpx.DecodingError) as error:
            return self._repeat(batch, str(error) or type(error).__name__, 0.0)
        if answer.status_code == 200:
            return self._settle(batch, answer)
        if answer.status_code in _SPLIT:
            return self._split(batch, answer)
        if answer.status_code in _TRY_AGAIN or answer.status_code >= 500:
            return self._repeat(batch, f"{answer.status_code}: {_detail(answer)}", _retry_after_seconds(answer))
        raise SendingImpossible(f"{answer.request.url} answered {answer.status_code}: {_detail(answer)}")

    def _repeat(self, batch: Batch, trouble: str, retry_after_seconds: float) -> _Again:
        self._tally.repeated_requests += 1
        self._tally.trouble = trouble
        return _Again([batch], retry_after_seconds=retry_after_seconds)

    def _settle(self, batch: Batch, answer: httpx.Response) -> _Again:
        """Count the verdicts of a batch."""
        try:
            told = _ANSWER.decode(answer.content)
        except ValueError:
            told = _BatchAnswer(-1, [])
        indexes = {result.index for result in told.results}
        if told.received != len(batch) or len(indexes) != len(told.results) or not indexes <= set(range(len(batch))):
            raise SendingImpossible(f"{answer.request.url} answered 200, but not as Headrace does")
        self._tally.trouble = None
        self._tally.accepted += len(batch) - len(told.results)
        again: list[Outgoing] = []
        for result in told.results:
            event = batch[result.index]
            if result.status == "retry":
                again.append(event)
            elif result.status == "duplicate":
                self._tally.duplicate += 1
            else:
                self._tally.reject(event, result.reason or result.status, result.detail)
        if not again:
            return _NOTHING
        return _Again([again], advanced=len(again) < len(batch), retry_after_seconds=_retry_after_seconds(answer))

    def _split(self, batch: Batch, answer: httpx.Response) -> _Again:
        """Halve what the server can't take; of a single event, that is its verdict."""
        if len(batch) == 1:
            self._tally.reject(batch[0], "invalid", _detail(answer))
            return _NOTHING
        half = len(batch) // 2
        return _Again([batch[half:], batch[:half]], pause=False)


def pause_seconds(failures: int, retry_after_seconds: float) -> float:
    """How long to wait before sending again: growing, spread so that senders don't come all at once, and bounded.

    Never shorter than what the server asks for, up to the bound.
    """
    grown = PAUSE_FIRST_SECONDS * 2.0 ** min(failures, DOUBLINGS_MAX)
    spread = random.uniform(0.5, 1.0) * min(grown, PAUSE_SECONDS_MAX)
    asked = min(retry_after_seconds, PAUSE_SECONDS_MAX) * random.uniform(1.0, 1.1)
    return max(spread, asked)


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(GZIP_LEVEL, wbits=31)
    return packer.compress(body) + packer.flush()


def _retry_after_seconds(answer: httpx.Response) -> float:
    """What the server asks for; 0 if it asks for nothing, or for a date, which Headrace never does."""
    text: str = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _detail(answer: httpx.Response) -> str:
    """What a problem document says, or the standard phrase."""
    try:
        return _PROBLEM.decode(answer.content).detail or answer.reason_phrase
    except ValueError:
        return answer.reason_phrase
