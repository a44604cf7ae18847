"""The plot of a soak, as an SVG that a Markdown page can show: panels above each other, over the same time.

Owns its panels, lines and scales. Pure. It stands still and needs no script: for zoom and hover, the page of a result
has plotly (bench/plots.py), whose colours these are.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bench.plots import PALETTE
from bench.soak import record
from bench.soak.record import Sample, Soak

WIDTH: Final = 900
PANEL: Final = 190  # pixels of height, with title and gap
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 40, 26
TICKS: Final = 4

_Value = Callable[[Sample], float | None]


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its name and points (x, y); a point that nobody knows is left out."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over the same time, with a title that has their unit."""

    title: str
    lines: Sequence[Line]


def soak_plot(soak: Soak) -> str:
    """The SVG, whole."""
    return draw(list(panels(soak.samples)), "minutes")


def panels(samples: Sequence[Sample]) -> Iterator[Panel]:
    """Rates, latencies, memory, and the size of the store."""

    def line(name: str, value: _Value) -> Line:
        known = [(sample.at_seconds / 60, value(sample)) for sample in samples]
        return Line(name, [(x, y) for x, y in known if y is not None])

    def rate(what: str) -> _Value:
        return lambda sample: getattr(sample, what) / sample.seconds if sample.seconds else None

    def memory(role: str) -> _Value:
        return lambda sample: sample.memory_mb.get(role)

    def gigabytes(gauge: str) -> _Value:
        return lambda sample: None if (found := sample.gauges.get(gauge)) is None else found / 1e3

    answers = ["accepted", *(what for what in ("rejected", "refused") if any(getattr(s, what) for s in samples))]
    yield Panel("events/s", [line(what, rate(what)) for what in answers])
    yield Panel("latency of a batch, ms", [
        line("p50", lambda sample: sample.p50_ms), line("p99", lambda sample: sample.p99_ms),
    ])  # fmt: skip
    yield Panel("memory, MB", [
        *(line(f"{role}, resident", memory(role)) for role in ("engine", "redis", "postgres", "sender")),
        line("Redis, used", lambda sample: sample.gauges.get(record.REDIS_USED)),
    ])  # fmt: skip
    yield Panel("the store, GB", [
        line("tables", gigabytes(record.TABLES)), line("indexes", gigabytes(record.INDEXES)),
        line("WAL", gigabytes(record.LOG)),
    ])  # fmt: skip


def draw(shown: Sequence[Panel], unit: str) -> str:
    """Panels of the same width and the same span of x."""
    widest = max((x for panel in shown for line in panel.lines for x, _ in line.points), default=1.0) or 1.0
    height = PANEL * len(shown) + BOTTOM
    font = 'font-family="sans-serif" font-size="12" fill="#333"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {font}>',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for number, panel in enumerate(shown):
        parts += _panel(panel, number * PANEL, widest)
    bottom = height - BOTTOM
    for tick in ticks(widest):
        x = LEFT + tick / widest * (WIDTH - LEFT - RIGHT)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{bottom + 25}" text-anchor="end">{html.escape(unit)}</text></svg>')
    return "\n".join(parts) + "\n"


def _panel(panel: Panel, top: int, widest: float) -> Iterator[str]:
    highest = max((y for line in panel.lines for _, y in line.points), default=1.0) or 1.0
    marks = ticks(highest)
    highest = max(highest, marks[-1])
    low, high = top + PANEL - 8, top + TOP
    yield f'<text x="{LEFT}" y="{top + 16}" font-weight="bold">{html.escape(panel.title)}</text>'
    for mark in marks:
        y = low - mark / highest * (low - high)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{mark:,g}</text>'
    legend = float(LEFT)
    for at, line in enumerate(panel.lines):
        colour = PALETTE[at % len(PALETTE)]
        points = " ".join(
            f"{LEFT + x / widest * (WIDTH - LEFT - RIGHT):.1f},{low - y / highest * (low - high):.1f}"
            for x, y in line.points
        )
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        yield f'<text x="{legend:.0f}" y="{top + 32}" fill="{colour}">{html.escape(line.name)}</text>'
        legend += 7.0 * len(line.name) + 18


def ticks(highest: float) -> list[float]:
    """Round numbers from 0 to `highest`, some four of them."""
    step = 10.0 ** math.floor(math.log10(highest / TICKS))
    step = next(step * times for times in (1, 2, 5, 10) if highest / (step * times) <= TICKS + 1)
    return [round(step * number, 10) for number in range(int(highest / step + 1e-9) + 1)]
