"""The terminal's tables of a result: its experiments, ladders and faults, and Headrace's ratios to the other systems.

Owns their columns. Knows no file and runs nothing.
"""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.results import OURS, Result
from bench.summary import Ratio, Row, fault_runs, ladder_rows, rate_held, ratios, rows
from bench.targets import COLUMNS, Met
from bench.targets import lines as target_lines

NONE: Final = "-"


def show_result(result: Result, console: Console) -> None:
    """All that the result has; what it lacks is left out."""
    if reached := list(target_lines(result)):
        console.print(_targets(reached))
    if found := rows(result):
        console.print(_experiments(found))
    if climbed := ladder_rows(result):
        console.print(_ladders(climbed))
    if fault_runs(result):
        console.print(_faults(result))
    if compared := ratios(result):
        console.print(_ratios(compared))
    if result.micros:
        console.print(_micros(result))


def _targets(reached: list[list[str]]) -> Table:
    first, *between, last = COLUMNS
    table = _table("Targets: medians over rounds; ratios are taken within a round", first, *between, told=last)
    for line in reached:
        table.add_row(*map(escape, line), style="red" if line[-1].startswith(Met.NO) else "")
    return table


def number(value: float | None, digits: int = 0) -> str:
    """With commas; nothing known is a dash."""
    return NONE if value is None else f"{value:,.{digits}f}"


def times(value: float | None) -> str:
    """A ratio, to three figures: 1,234 or 12.3 or 0.123."""
    if value is None:
        return NONE
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def cost(row: Row, role: str) -> str:
    """Microseconds of CPU an event, where there was an event."""
    return number(row.cpu_us(role) if row.events_per_second else None, 1)


def audit_told(row: Row) -> str:
    """Clean, void with what was found, or that nobody looked."""
    if row.void_rounds:
        rounds = "" if row.void else f" {row.void_rounds} of {len(row.runs)} rounds, left out"
        return f"VOID{rounds}: " + "; ".join(row.examples[:3])
    return "clean" if row.audited else "none"


def _table(title: str, first: str, *columns: str, told: str = "") -> Table:
    table = Table(first, title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    if told:
        table.add_column(told, overflow="fold")
    return table


def _experiments(found: list[Row]) -> Table:
    table = _table(
        "Median over rounds; CPU in us an event", "experiment, system", "events/s", "p50 ms", "p99 ms",
        "engine CPU", "redis CPU", "postgres CPU", "cores", "engine MB", "refused", told="audit",
    )  # fmt: skip
    last = ""
    for row in found:
        if row.experiment != last:
            table.add_section()
            table.add_row(f"[bold]{escape(row.experiment)}[/]")
            last = row.experiment
        limit = " (the sender was the limit)" if row.sender_was_limit else ""
        table.add_row(
            f"  {escape(row.system)}",
            number(row.events_per_second),
            number(row.p50_ms, 1),
            number(row.p99_ms, 1),
            *(cost(row, role) for role in ("engine", "redis", "postgres")),
            number(row.cores_of_system, 2),
            number(row.memory_mb("engine")),
            f"{row.refused_share:.1%}" if row.refused_share else "0",
            escape(audit_told(row) + limit),
            style="red" if row.void else "",
        )
    return table


def _ladders(climbed: list[Row]) -> Table:
    table = _table("Rising rates: the highest with p99 < 50 ms", "experiment", "system", "events/s", told="audit")
    for row in climbed:
        table.add_row(escape(row.experiment), escape(row.system), number(rate_held(row)), escape(audit_told(row)))
    return table


def _faults(result: Result) -> Table:
    table = _table("Faults", "fault", "from s", "to s", "recovered after s", "refused", told="audit")
    for run in fault_runs(result):
        assert run.fault is not None
        fault = run.fault
        recovered = "not within the step" if fault.recovered_seconds is None else number(fault.recovered_seconds, 1)
        system = "" if run.system == OURS else f" ({run.system})"
        table.add_row(
            escape(fault.name + system), number(fault.at_seconds, 1), number(fault.over_seconds, 1), recovered,
            number(run.steps[-1].refused), escape(audit_told(Row(run.experiment, run.system, [run]))),
            style="red" if run.void else "",
        )  # fmt: skip
    return table


def _ratios(compared: list[Ratio]) -> Table:
    table = _table(
        "Headrace divided by the other system, in this result",
        "experiment",
        "other",
        "throughput",
        "p99",
        "CPU an event",
    )
    for ratio in compared:
        other = f"{ratio.other} (a ceiling)" if ratio.is_ceiling else ratio.other
        cells = (times(value) for value in (ratio.throughput, ratio.p99, ratio.cpu))
        table.add_row(escape(ratio.experiment), escape(other), *cells)
    return table


def _micros(result: Result) -> Table:
    table = _table("Micro benchmarks", "stage", "us an event (median)", "from", "to")
    for micro in result.micros:
        if micro.us_an_event:
            ordered = sorted(micro.us_an_event)
            middle = ordered[len(ordered) // 2]
            table.add_row(escape(micro.name), *(number(value, 2) for value in (middle, ordered[0], ordered[-1])))
    return table
