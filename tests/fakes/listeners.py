"""Both listeners over one fake engine, on real sockets; and what a client reads from one."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import orjson
import trio

from api.app import create_app
from api.intake import serve_intake
from api.listener import serve_api
from config.settings import Settings
from engine import Event, Invalid, Submission
from tests.fakes.engine import FakeEngine

__all__ = ["LISTENERS", "CountingEngine", "Listener", "Told", "listening", "read_answer"]

Listener = Literal["api", "intake"]
LISTENERS: tuple[Listener, ...] = ("api", "intake")


class CountingEngine(FakeEngine):
    """The fake engine, which accepts every event; `taken` is how many."""

    taken = 0

    def submit(
        self,
        events: Sequence[Event | Invalid],
        answer: Callable[[Submission], None],
        *,
        idempotency_key: str | None = None,
    ) -> Submission:
        """As the fake engine, whose other door leads here, too."""
        submission = super().submit(events, answer, idempotency_key=idempotency_key)
        self.taken += len(submission.entries) - len(submission.verdicts)
        return submission


@asynccontextmanager
async def listening(which: Listener, settings: Settings) -> AsyncIterator[tuple[CountingEngine, tuple[str, int]]]:
    """A listener over an engine of its own, and its address."""
    engine, stop = CountingEngine(settings), trio.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        address = listener.getsockname()
        async with trio.open_nursery() as nursery:
            if which == "api":
                await nursery.start(partial(serve_api, create_app(engine), listener, settings, stop))
            else:
                nursery.start_soon(serve_intake, engine, listener, settings, stop)
            yield engine, address
            nursery.cancel_scope.cancel()


class Told(NamedTuple):
    """An answer. `body` is None where there is none to be, as after HEAD."""

    status: int
    headers: dict[str, str]
    body: bytes | None

    @property
    def json(self) -> Any:
        """The body, as JSON."""
        return orjson.loads(self.body or b"")

    @property
    def counted(self) -> int:
        """How many events it says are accepted."""
        if self.status != 200 or not self.body or self.headers["content-type"] != "application/json":
            return 0
        told = self.json
        return int(told.get("accepted", told.get("status") == "accepted"))


def read_answer(arrived: bytes, *, bare: bool = False) -> tuple[Told | None, bytes]:
    """The first whole answer, or None; and what is left. Raises `ValueError` for what is none."""
    head, end, rest = arrived.partition(b"\r\n\r\n")
    if not end:
        return None, arrived
    line, *lines = head.split(b"\r\n")
    version, status, *_ = line.split(b" ", 2)
    if version != b"HTTP/1.1" or not status.isdigit():
        raise ValueError(f"no answer: {line!r}")
    headers = {
        name.decode().lower(): text.strip().decode() for name, _, text in (each.partition(b":") for each in lines)
    }
    if bare or status.startswith(b"1"):
        return Told(int(status), headers, None), rest
    size = int(headers["content-length"])
    if len(rest) < size:
        return None, arrived
    return Told(int(status), headers, rest[:size]), rest[size:]
