"""What a soak leaves behind: one JSON file, and the table that is made of it.

Owns the words and units. Pure data: knows no system and no sender.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.table import Table

from bench.results import Machine

WINDOW_SECONDS_MAX: Final = 300.0  # of the first and the last window: five minutes, or half of a shorter soak
EVENTS: Final = "events"
# Gauges that every sample has, as far as their store answered. (Megabytes are of 10^6 bytes.)
REDIS_USED, REDIS_MAX = "Redis used MB", "Redis maxmemory MB"
TABLES, INDEXES, LOG, DATABASE = "tables MB", "indexes MB", "WAL MB", "database MB"
CHECKPOINTS, VACUUMS, ANALYZES = "checkpoints", "autovacuums", "autoanalyzes"
OTHERS = "other processes, cores"  # of the machine, the hypervisor's part included: what the soak did not get


class Sample(msgspec.Struct, frozen=True):
    """A few seconds of the load: what was answered in them, and how things stood at their end."""

    at_seconds: float  # of their end, since the start of the load
    seconds: float
    accepted: int
    duplicate: int
    rejected: int
    refused: int  # answered 503 or `retry`, or not answered
    reasons: dict[str, int]  # of what was rejected or refused, in events
    requests: int
    p50_ms: float
    p99_ms: float
    cores: dict[str, float]  # in use, by role: engine, redis, postgres, sender
    memory_mb: dict[str, float]  # resident, by role; pages that processes share count once
    gauges: dict[str, float]  # see above
    metrics: dict[str, float]  # of the engine, but for the buckets of its histograms


class Restart(msgspec.Struct, frozen=True):
    """One loss of Redis, or a stop and a start, under a light load of fresh ids over all campaigns.

    Seconds count from `back`: Redis answers again, or the engine is launched. None: not within the time that was given.
    """

    kind: str
    campaigns: int
    back_seconds: float  # from the kill, or from the engine's end, until then
    listening_seconds: float | None  # of a stop and a start: until it listens
    first_seconds: float | None  # until the first campaign takes events again
    half_seconds: float | None
    all_seconds: float | None
    never: int  # campaigns that had not, when it was given up
    # Of each of the engine's counters that tells of look-ups or late events: a second, in the first and the second
    # minute after `back`; and before, under the same light load.
    look_ups: dict[str, tuple[float, float, float]]


class Soak(msgspec.Struct, frozen=True):
    """One call."""

    format: int
    commit: str
    changed: bool
    started_at: str  # RFC 3339
    machine: Machine
    versions: dict[str, str]
    options: dict[str, str]  # as on the command line
    history_rows: int
    history_seconds: float
    samples: list[Sample]
    restarts: list[Restart]
    rows: int  # committed, less the history
    audit_clean: bool
    audit_said: str
    audit_seconds: float

    def total(self, what: str) -> int:
        """Events of all samples: accepted, duplicate, rejected or refused."""
        return sum(getattr(sample, what) for sample in self.samples)

    @property
    def reasons(self) -> Counter[str]:
        """Of all samples."""
        return sum((Counter(sample.reasons) for sample in self.samples), Counter())

    @property
    def sound(self) -> bool:
        """Whether the books are right, and every event that was accepted is a row."""
        return self.audit_clean and self.rows >= self.total("accepted")


FORMAT: Final = 1


def write_soak(soak: Soak, path: Path) -> None:
    """As indented JSON, whole or not at all."""
    half = path.with_suffix(".part")
    half.write_bytes(msgspec.json.format(msgspec.json.encode(soak), indent=1))
    half.rename(path)


# --- The table -------------------------------------------------------------------------------------------------


class Window(msgspec.Struct, frozen=True):
    """A part of the load."""

    samples: Sequence[Sample]

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return sum(sample.seconds for sample in self.samples)

    def rate(self, what: str) -> float:
        """Events a second."""
        return sum(getattr(sample, what) for sample in self.samples) / self.seconds if self.seconds else 0.0

    def mean(self, value: Callable[[Sample], float | None]) -> float | None:
        """Of what the samples have."""
        found = [each for each in map(value, self.samples) if each is not None]
        return statistics.fmean(found) if found else None


def windows(samples: Sequence[Sample]) -> tuple[Window, Window]:
    """The first and the last five minutes; of a load that is shorter than ten, its halves."""
    if not samples:
        return Window([]), Window([])
    whole = samples[-1].at_seconds
    width = min(WINDOW_SECONDS_MAX, whole / 2)
    first = [sample for sample in samples if sample.at_seconds <= width + sample.seconds / 2]
    last = [sample for sample in samples if sample.at_seconds > whole - width + sample.seconds / 2]
    return Window(first), Window(last or samples[-1:])


def _gauge(name: str) -> Callable[[Sample], float | None]:
    return lambda sample: sample.gauges.get(name)


def _memory(role: str) -> Callable[[Sample], float | None]:
    return lambda sample: sample.memory_mb.get(role)


def _cores(role: str) -> Callable[[Sample], float | None]:
    return lambda sample: sample.cores.get(role)


_LINES: Final[Sequence[tuple[str, Callable[[Sample], float | None], int]]] = (
    ("p50 ms (mean of samples)", lambda sample: sample.p50_ms, 1),
    ("p99 ms", lambda sample: sample.p99_ms, 1),
    *((f"{role}, cores", _cores(role), 2) for role in ("engine", "redis", "postgres", "sender")),
    (OTHERS, _gauge(OTHERS), 2),
    *((f"{role}, resident MB", _memory(role), 0) for role in ("engine", "redis", "postgres", "sender")),
    *((name, _gauge(name), 0) for name in (REDIS_USED, TABLES, INDEXES, LOG, CHECKPOINTS, VACUUMS, ANALYZES)),
)


def load_table(soak: Soak) -> Table:
    """The first window against the last one, and how things stood at the start and at the end."""
    first, last = windows(soak.samples)
    table = Table(
        "", title=f"{soak.total('accepted'):,} events accepted, {soak.total('rejected'):,} rejected,"
        f" {soak.total('refused'):,} refused", title_justify="left", title_style="bold",
    )  # fmt: skip
    for column in ("at the start", f"first {first.seconds:.0f} s", f"last {last.seconds:.0f} s", "at the end", "ratio"):
        table.add_column(column, justify="right")
    for what in ("accepted", "rejected", "refused"):
        rates = first.rate(what), last.rate(what)
        table.add_row(f"{what}, events/s", "", f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", "", _ratio(*rates))
    for name, value, digits in _LINES:
        ends = value(soak.samples[0]), value(soak.samples[-1])
        means = first.mean(value), last.mean(value)
        cells = (_number(each, digits) for each in (ends[0], *means, ends[1]))
        table.add_row(name, *cells, _ratio(*means))
    return table


def reasons_told(soak: Soak) -> str:
    """Of what was not accepted, the most frequent first."""
    return "; ".join(f"{reason} {count:,}" for reason, count in soak.reasons.most_common()) or "none"


def restart_table(restarts: Sequence[Restart]) -> Table:
    """How long each took, in seconds."""
    table = Table("", title="Seconds until campaigns take events again", title_justify="left", title_style="bold")
    for column in ("campaigns", "away for", "listening", "first", "half", "all", "never"):
        table.add_column(column, justify="right")
    for each in restarts:
        times = each.back_seconds, each.listening_seconds, each.first_seconds, each.half_seconds, each.all_seconds
        table.add_row(each.kind, f"{each.campaigns:,}", *(_number(seconds, 2) for seconds in times), f"{each.never:,}")
    return table


def look_up_table(restarts: Sequence[Restart]) -> Table:
    """What the engine's counters say of look-ups."""
    table = Table("", title="Look-ups, a second", title_justify="left", title_style="bold")
    for column in ("counter", "before", "first minute", "second minute"):
        table.add_column(column, justify="left" if column == "counter" else "right")
    for each in restarts:
        for counter, rates in each.look_ups.items():
            table.add_row(each.kind, counter, *(_number(rate, 1) for rate in rates))
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _ratio(first: float | None, last: float | None) -> str:
    return f"{last / first:.2f}" if first and last is not None else "-"
