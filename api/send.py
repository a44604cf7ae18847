"""`headrace send`: events from a file or standard input to a listener, until each has a final verdict.

Owns the file, the terminal, Ctrl-C and the exit status: 0 every event has a final verdict and none was invalid;
1 some were invalid or unreadable, or had no verdict when it ended; 2 wrong usage; 130 interrupted. A refusal (budget,
cap, pacing, an unknown campaign) is a final verdict and no failure of sending.

Events without an `event_id` get one here, which makes retries within this run safe, but not a second run.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
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
    url = command.url if "://" in command.url else f"http://{command.url}"
    tally = Tally()
    started = time.monotonic()
    try:
        client = open_client(url, command.options)
        with _open(command.file) as file:
            trio.run(_send, command, client, file, tally)
    except (OSError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        complaints.print(Text(f"headrace send: {error}"), soft_wrap=True)
        return USAGE_STATUS
    if not command.quiet:
        print_summary(tally, time.monotonic() - started, Console(highlight=False))
    print_complaints(tally, complaints)
    return tally.status


async def read_batches(file: trio.Path, feed: Feed) -> None:
    """Placeholder."""
