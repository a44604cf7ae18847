"""`headrace send`: events from a file or standard input to a listener, until each has a final verdict.

Owns the file, the terminal, Ctrl-C and the exit status: 0 every event has a final verdict and none was invalid;
1 some were invalid or unreadable, or had no verdict when it ended; 2 wrong usage; 130 interrupted. A refusal (budget,
cap, pacing, an unknown campaign) is a final verdict and no failure of sending.

Events without an `event_id` get one here, which makes retries within this run safe, but not a second run.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from io import FileIO
from typing import Final

import httpx
import trio
from rich.console import Console
from rich.text import Text

from api.feed import CHUNK_BYTES, Feed, Lines, Outgoing, Unreadable
from api.progress import print_complaints, print_summary, show_progress
from api.sender import Options, Sender, Tally, open_client

USAGE_STATUS: Final = 2
STANDARD_INPUT: Final = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What was asked for on the command line."""

    file: str
    url: str
    batch_events_max: int = 1_000
    concurrency: int = 4
    rebase_time: bool = False
    renames: Mapping[str, int]
    gzip: bool = True
    quiet: bool = False
    deadline_seconds: float | None = None

    @property
    def options(self) -> Options:
        """The part that the sender needs."""
        return Options(self.concurrency, self.gzip, self.deadline_seconds)


def run(command: Command) -> int:
    """Send; the exit status."""
    complaints = Console(stderr=True, highlight=False)
    tally = Tally()
    started = time.monotonic()
    try:
        client = open_client(read_url(command.url), command.options)
        with _open(command.file) as file:
            trio.run(_send, command, client, file, tally)
    except (OSError, ValueError) as error:
        complaints.print(Text(f"headrace send: {error}"), soft_wrap=True)
        return USAGE_STATUS
    if not command.quiet:
        print_summary(tally, time.monotonic() - started, Console(highlight=False))
    print_complaints(tally, complaints)
    return tally.status


def read_url(text: str) -> str:
    """A listener's base URL; http:// may be left out. Raises `ValueError`."""
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
    except httpx.InvalidURL as error:
        raise ValueError(f"--url {text!r}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"--url {text!r}: it must be such as http://127.0.0.1:8001")
    return str(url)


async def read_batches(
    file: FileIO, feed: Feed, tally: Tally, batch_events_max: int, *, now_us: Callable[[], int]
) -> AsyncGenerator[list[Outgoing], None]:
    """The events of a file, ready to be sent.

    A batch is full, or holds what had come when the file (a pipe) had no more for the moment: what arrives slowly
    is sent at once.
    """
    lines = Lines()
    batch: list[Outgoing] = []
    more = True
    while more:
        # A read that waits for a pipe may be left behind: the program ends then.
        chunk = await trio.to_thread.run_sync(file.read, CHUNK_BYTES, abandon_on_cancel=True)
        more = bool(chunk)
        tally.bytes_read += len(chunk)
        for number, line in lines.feed(chunk) if chunk else lines.end():
            try:
                batch.append(Outgoing(number, feed.prepare(line, now_us())))
            except Unreadable as error:
                tally.skip(number, str(error))
                continue
            tally.read += 1
            if len(batch) == batch_events_max:
                yield batch
                batch = []
        if batch and len(chunk) < CHUNK_BYTES:
            yield batch
            batch = []


async def _send(command: Command, client: httpx.AsyncClient, file: FileIO, tally: Tally) -> None:
    feed = Feed(renames=command.renames, rebase_time=command.rebase_time)
    size = os.fstat(file.fileno()).st_size  # 0 for a pipe: how far we are can't be told then
    async with client, trio.open_nursery() as nursery:
        await nursery.start(_stop_on_interrupt, nursery.cancel_scope, tally)
        if not command.quiet:
            display = partial(show_progress, total=size or None, position=lambda: tally.bytes_read)
            nursery.start_soon(display, tally, Console(stderr=True, highlight=False))
        batches = read_batches(file, feed, tally, command.batch_events_max, now_us=_wall_us)
        async with aclosing(batches):
            await Sender(client, command.options, tally).run(batches)
        nursery.cancel_scope.cancel()


async def _stop_on_interrupt(
    scope: trio.CancelScope, tally: Tally, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Ctrl-C ends the sending, and the summary is still printed."""
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            tally.interrupted = True
            scope.cancel()


def _open(name: str) -> FileIO:
    """Unbuffered: a read of a pipe gives what is there, and no lock is held when a read is left behind."""
    return FileIO(sys.stdin.fileno(), closefd=False) if name == STANDARD_INPUT else FileIO(name)


def _wall_us() -> int:
    return time.time_ns() // 1_000
