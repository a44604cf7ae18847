"""What a terminal shows while events are sent, and the summary afterwards.

Owns the display of a `Tally`: a live bar on a terminal, a plain line now and then elsewhere. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from api.sender import Tally

REFRESH_SECONDS: Final = 0.1
PLAIN_SECONDS: Final = 5.0  # a line in a log as often as that


async def show_progress(tally: Tally, console: Console, *, total: float | None, position: Callable[[], float]) -> None:
    """Show how it goes until cancelled. `position` of `total` is done; without a total the bar only moves."""
    started = trio.current_time()
    if not console.is_terminal:
        while True:
            await trio.sleep(PLAIN_SECONDS)
            console.print(Text(progress_line(tally, trio.current_time() - started)), soft_wrap=True)
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=total)
        while True:
            line = progress_line(tally, trio.current_time() - started)
            progress.update(task, completed=position(), description=line, refresh=True)
            await trio.sleep(REFRESH_SECONDS)


def progress_line(tally: Tally, seconds: float) -> str:
    """Events, rate and verdicts so far."""
    parts = [f"{tally.settled:,} events", f"{_rate(tally, seconds):,.0f}/s", f"{tally.accepted:,} accepted"]
    counts = {"duplicate": tally.duplicate, "rejected": tally.rejected.total(), "sent again": tally.resent}
    trouble = f"; trying again: {tally.trouble}" if tally.trouble else ""
    return ", ".join(parts + [f"{count:,} {name}" for name, count in counts.items() if count]) + trouble


def print_summary(tally: Tally, seconds: float, console: Console) -> None:
    """The table of verdicts, and a closing line with the rate."""
    table = Table("verdict", "reason")
    table.add_column("events", justify="right")
    for status, reason, count in _rows(tally):
        table.add_row(status, reason, f"{count:,}")
    console.print(table)
    rate = f"{tally.settled:,} events in {seconds:,.1f} s, {_rate(tally, seconds):,.0f} events/s"
    again = f"; {tally.resent:,} sent again" if tally.resent else ""
    console.print(rate + again, soft_wrap=True)


def print_complaints(tally: Tally, console: Console) -> None:
    """What was wrong with which lines, and why the end was no good one."""
    for line, why in sorted(tally.complaints):
        console.print(Text(f"line {line:,}: {why}"), soft_wrap=True)
    more = tally.unreadable + tally.rejected["invalid"] - len(tally.complaints)
    if more > 0:
        console.print(f"and {more:,} more lines that are no valid events", soft_wrap=True)
    if tally.failure:
        console.print(Text(tally.failure), soft_wrap=True)
    elif tally.interrupted:
        console.print("interrupted; what has no verdict may have been counted", soft_wrap=True)
    elif not tally.finished:
        why = f"; the last trouble was {tally.trouble}" if tally.trouble else ""
        console.print(Text(f"gave up at the deadline{why}"), soft_wrap=True)


def _rows(tally: Tally) -> list[tuple[str, str, int]]:
    rows = [("accepted", "", tally.accepted), ("duplicate", "", tally.duplicate)]
    rows += [("rejected", reason, count) for reason, count in sorted(tally.rejected.items()) if count]
    rows += [("not sent", "no JSON object", tally.unreadable)] if tally.unreadable else []
    rows += [("unknown", "no verdict yet", tally.open)] if tally.open else []
    return rows


def _rate(tally: Tally, seconds: float) -> float:
    return tally.settled / seconds if seconds > 0 else 0.0
