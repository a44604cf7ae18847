"""What the page plots: each plot as plain data for plotly.js, with the words that say what it shows.

Owns which plots there are, their axes, units and colours. Knows no HTML: `bench/page.py` puts them on a page. Texts go
through `_text`, since plotly reads tags in them. Colours serve on light and dark ground; lines and text of the ground
are the page's matter.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.results import OURS, P99_MS_MAX, Result, Run, Step, ladder
from bench.summary import (
    ROLES,
    Ratio,
    Row,
    Scaling,
    by_batch,
    by_campaigns,
    by_processes,
    fault_runs,
    ladder_rows,
    rate_held,
    ratios,
    rows,
)  # fmt: skip

Json = dict[str, Any]

PALETTE: Final = ("#3b82d6", "#e0702d", "#1f9e77", "#9b6dd6", "#c99a00", "#d3508f", "#4aa3b5", "#8a8f98")
ROLE_COLOURS: Final = dict(zip(ROLES, ("#3b82d6", "#d3508f", "#1f9e77", "#8a8f98"), strict=True))
WRAP: Final = 24  # characters of a label beside a bar: a phone has room for no more
BAR_PIXELS: Final = 26
FARTHEST: Final = 10  # times the median: what is longer would leave the others no room
FRAME_PIXELS: Final = 150  # title, axis and legend around bars


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot. `caption` says what it shows, its unit, and which run."""

    title: str
    caption: str
    data: list[Json]
    layout: Json
    height: int = 360


@dataclass(frozen=True, slots=True)
class Section:
    """Plots under one heading; a group is folded until somebody opens it."""

    title: str
    plots: list[Plot]
    groups: list[Group]


@dataclass(frozen=True, slots=True)
class Group:
    """Plots of one run."""

    title: str
    plots: list[Plot]


def sections(result: Result) -> list[Section]:
    """In the order of the page; those with nothing to show are left out."""
    over_time = [
        Group(_name(row.experiment, row.system, row.void), list(_over_time(row.shown))) for row in rows(result)
    ]
    every = [
        Section("Headrace against the others", list(_ratios(result)), []),
        Section("Throughput against latency", list(_ladders(result)), []),
        Section("The cost of an event", list(_costs(result)), []),
        Section("Throughput against size", list(_scaling(result)), []),
        Section("Through a fault", [_fault(run) for run in fault_runs(result)], []),
        Section("Over time, run by run", [], [group for group in over_time if group.plots]),
    ]
    return [section for section in every if section.plots or section.groups]


def told(run: Run, step: Step) -> str:
    """Which run, and under what load."""
    load = "closed loop" if step.loop == "closed" else f"{step.offered_events_per_second or 0:,.0f} events/s offered"
    batch = "single events" if step.batch == 1 else f"batches of {step.batch:,}"
    settings = "".join(f", {name}={value}" for name, value in run.settings.items())
    void = " VOID: its audit found what must not be." if run.void else ""
    which = f"{run.experiment}, {run.system}{settings}: round {run.round}, seed {run.seed}"
    return f"{which}, {step.connections} connections, {batch}, {load}, {step.seconds:.0f} s.{void}"


def _text(text: str) -> str:
    return html.escape(text, quote=False)


def _name(experiment: str, system: str, void: bool) -> str:
    return f"{experiment}, {system}{' (VOID)' if void else ''}"


def _label(text: str) -> str:
    """Wrapped at words."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= WRAP:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(map(_text, lines))


def _colours(systems: Sequence[str]) -> dict[str, str]:
    """Headrace has the first one always."""
    ordered = [OURS, *(system for system in dict.fromkeys(systems) if system != OURS)]
    return {system: PALETTE[at % len(PALETTE)] for at, system in enumerate(ordered)}


def _axes(x: str, y: str, **more: Any) -> Json:
    layout: Json = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, "rangemode": "tozero"}}
    for axis, fields in more.items():
        if axis in layout:
            layout[axis] |= fields
        else:
            layout[axis] = fields
    return layout


def _line(name: str, x: Sequence[float], y: Sequence[float], colour: str, **more: Any) -> Json:
    line = {"color": colour, "width": 2, **more.pop("line", {})}
    return {"type": "scatter", "mode": "lines", "name": _text(name), "x": list(x), "y": list(y), "line": line, **more}


def _bars_height(count: int, bars: int) -> int:
    return FRAME_PIXELS + count * max(BAR_PIXELS * bars, 2 * BAR_PIXELS)


# --- Against the others -------------------------------------------------------------------------------------


def _ratios(result: Result) -> Iterator[Plot]:
    found = ratios(result)
    for title, kind, better in (
        ("Throughput, as a ratio", "throughput", "right of 1, Headrace does more"),
        ("p99 latency, as a ratio", "p99", "left of 1, Headrace is faster"),
        ("CPU an event, as a ratio", "cpu", "left of 1, Headrace takes less"),
    ):
        have = [ratio for ratio in found if getattr(ratio, kind) is not None]
        if have:
            yield _ratio_plot(title, kind, better, have)


def _ratio_plot(title: str, kind: str, better: str, found: Sequence[Ratio]) -> Plot:
    others = list(dict.fromkeys(ratio.other for ratio in found))
    colours = _colours(others)
    experiments = list(dict.fromkeys(ratio.experiment for ratio in found))[::-1]
    data: list[Json] = []
    for other in others:
        mine = [ratio for ratio in found if ratio.other == other]
        values = [getattr(ratio, kind) for ratio in mine]
        name = f"{other} (ceiling)" if mine[0].is_ceiling else other
        data.append({
            "type": "scatter", "mode": "markers", "name": _text(name),
            "x": values, "y": [_label(ratio.experiment) for ratio in mine], "cliponaxis": False,
            "marker": {"color": colours[other], "size": 11, "symbol": "diamond" if mine[0].is_ceiling else "circle"},
        })  # fmt: skip
    layout = _axes(
        "ratio (logarithmic)",
        "",
        xaxis={"type": "log", "dtick": "D2"},
        yaxis={"type": "category", "categoryorder": "array", "categoryarray": [_label(name) for name in experiments]},
        shapes=[_upright(1)],
    )
    caption = (
        f"Headrace's median divided by that of each other system under the same experiment of this result, without "
        f"unit; {better}. Ceilings do only a part of the work. Void runs are left out."
    )
    return Plot(title, caption, data, layout, _bars_height(len(experiments), 2))


def _ladders(result: Result) -> Iterator[Plot]:
    climbed = ladder_rows(result)
    colours = _colours([row.system for row in climbed])
    for experiment in dict.fromkeys(row.experiment for row in climbed):
        data: list[Json] = []
        held: list[str] = []
        mine = [row for row in climbed if row.experiment == experiment]
        for row in mine:
            steps = ladder(row.shown)
            x = [step.offered_events_per_second or 0.0 for step in steps]
            names = [f"{step.events_per_second:,.0f} achieved" for step in steps]
            void = " (VOID)" if row.void else ""
            for part, dash in (("p99", "solid"), ("p50", "dot")):
                y = [getattr(step.latency, f"{part}_ms") for step in steps]
                data.append(_line(
                    f"{row.system}{void}, {part}", x, y, colours[row.system], mode="lines+markers", text=names,
                    line={"dash": dash},
                ))  # fmt: skip
            rate = rate_held(row)
            held.append(f"{row.system}{void}: {'none' if rate is None else f'{rate:,.0f} events/s'}")
        layout = _axes(
            "events/s offered", "ms (logarithmic)", yaxis={"type": "log", "dtick": "D2", "rangemode": "normal"},
            shapes=[_limit_line()],
        )  # fmt: skip
        caption = (
            f"Each point is a step at an offered rate; latency in milliseconds from the planned time of sending. "
            f"Highest rate held with p99 below {P99_MS_MAX:.0f} ms (dotted line): {'; '.join(held)}. "
            f"{told(mine[0].shown, ladder(mine[0].shown)[0])}"
        )
        yield Plot(experiment, caption, data, layout, 420)


def _upright(x: float) -> Json:
    line = {"dash": "dot", "width": 1}
    return {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x, "line": line}


def _limit_line() -> Json:
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": P99_MS_MAX, "y1": P99_MS_MAX,
        "line": {"dash": "dot", "width": 1},
    }  # fmt: skip


# --- Costs and sizes ----------------------------------------------------------------------------------------


def _costs(result: Result) -> Iterator[Plot]:
    micros = [micro for micro in result.micros if micro.us_an_event][::-1]
    if micros:
        middles = [statistics.median(micro.us_an_event) for micro in micros]
        data: list[Json] = [{
            "type": "bar", "orientation": "h", "y": [_label(micro.name) for micro in micros], "x": middles,
            "text": [f"{value:.2f}" for value in middles], "textposition": "auto", "textangle": 0,
            "insidetextanchor": "start", "marker": {"color": PALETTE[0]}, "showlegend": False, "error_x": {
                "type": "data", "symmetric": False, "thickness": 1.2,
                "array": [max(micro.us_an_event) - middle for micro, middle in zip(micros, middles, strict=True)],
                "arrayminus": [middle - min(micro.us_an_event) for micro, middle in zip(micros, middles, strict=True)],
            },
        }]  # fmt: skip
        caption = (
            "Micro benchmarks, each stage by itself, in microseconds an event: median, least and most of the rounds."
        )
        yield Plot("By stage", caption, data, _axes("us an event", ""), _bars_height(len(micros), 1))
    for title, single in (("By process, batches", False), ("By process, single events", True)):
        found = [row for row in rows(result) if (row.shown.steps[-1].batch == 1) is single and row.events_per_second]
        if found:
            yield _by_process(title, found[::-1])


def _by_process(title: str, found: Sequence[Row]) -> Plot:
    labels = [_label(_name(row.experiment, row.system, row.void)) for row in found]
    data: list[Json] = [
        {
            "type": "bar", "orientation": "h", "name": role, "y": labels, "x": [row.cpu_us(role) for row in found],
            "marker": {"color": ROLE_COLOURS[role]},
        }
        for role in ROLES
    ]  # fmt: skip
    totals = [sum(row.cpu_us(role) for role in ROLES) for row in found]
    widest = max(total for total in totals if total <= FARTHEST * statistics.median(totals))
    data.append({
        "type": "scatter", "mode": "text", "showlegend": False, "hoverinfo": "skip", "y": labels,
        "x": [min(total, widest) for total in totals], "text": [f" {total:,.1f}" for total in totals],
        "textposition": "middle right",
    })  # fmt: skip
    caption = (
        "CPU of all processes of each role, in microseconds an event with a verdict: medians, and their sum. "
        "A bar that is far longer than most is cut off. Of a peer, “engine” is the peer itself. Where events are few, "
        "each bears more of what idling costs."
    )
    xaxis = {"range": [0, 1.2 * widest]}
    layout = _axes("us of CPU an event", "", barmode="stack", legend={"traceorder": "normal"}, xaxis=xaxis)
    return Plot(title, caption, data, layout, _bars_height(len(found), 2))


def _scaling(result: Result) -> Iterator[Plot]:
    for title, unit, found in (
        ("Batch size", "events a request", by_batch(result)),
        ("Number of campaigns", "campaigns", by_campaigns(result)),
        ("Engine processes", "engine processes", by_processes(result)),
    ):
        if found:
            yield _scaling_plot(title, unit, found)


def _scaling_plot(title: str, unit: str, found: Sequence[Scaling]) -> Plot:
    data = [
        _line(
            f"{scaling.system}, {scaling.fixed}", [x for x, _ in scaling.points], [y for _, y in scaling.points],
            PALETTE[at % len(PALETTE)], mode="lines+markers",
        )
        for at, scaling in enumerate(found)
    ]  # fmt: skip
    ticks = sorted({x for scaling in found for x, _ in scaling.points})
    axis = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,}" for tick in ticks]}
    caption = (
        f"Events a second with a verdict, against {unit} (logarithmic): median of the rounds, closed loop. Connections "
        "may differ from point to point: the table names them. Void runs are left out."
    )
    return Plot(title, caption, data, _axes(unit, "events/s", xaxis=axis))


# --- Over time ----------------------------------------------------------------------------------------------


def _over_time(run: Run) -> Iterator[Plot]:
    step = run.steps[-1]
    which = told(run, step)
    answered = [each for each in step.slices if each.events or each.refused]
    if answered:
        at = [each.at_seconds for each in answered]
        data = [
            _line("p50", at, [each.p50_ms for each in answered], PALETTE[0]),
            _line("p99", at, [each.p99_ms for each in answered], PALETTE[1]),
        ]
        yield Plot(
            "Latency over time", f"Milliseconds, of the answers of each quarter of a second. {which}", data,
            _axes("s", "ms"), 300,
        )  # fmt: skip
        yield Plot("Throughput over time", f"Events a second. {which}", _throughput(step), _axes("s", "events/s"), 300)
    for title, unit, kind in (("CPU over time", "cores", "cores"), ("Memory over time", "MB", "memory_mb")):
        seen = [sample for sample in step.samples if getattr(sample, kind)]
        if seen:
            stack = {"stackgroup": "all", "line": {"width": 1}} if kind == "cores" else {}
            data = [
                _line(
                    role, [sample.at_seconds for sample in seen],
                    [getattr(sample, kind).get(role, 0.0) for sample in seen], ROLE_COLOURS[role], **stack,
                )
                for role in ROLES
            ]  # fmt: skip
            what = "Cores in use by role, on top of each other." if stack else "Resident MB by role; shared pages once."
            yield Plot(title, f"{what} {which}", data, _axes("s", unit), 300)


def _throughput(step: Step) -> list[Json]:
    """Events with a verdict, and refused ones where there are any."""
    at = [each.at_seconds for each in step.slices]
    width = at[1] - at[0] if len(at) > 1 else step.seconds
    data = [_line("with a verdict", at, [each.events / width for each in step.slices], PALETTE[0])]
    if any(each.refused for each in step.slices):
        data.append(_line("refused", at, [each.refused / width for each in step.slices], PALETTE[1]))
    return data


def _fault(run: Run) -> Plot:
    """The span of the fault is shaded."""
    assert run.fault is not None
    fault, step = run.fault, run.steps[-1]
    shapes: list[Json] = [{
        "type": "rect", "yref": "paper", "y0": 0, "y1": 1, "x0": fault.at_seconds, "x1": fault.over_seconds,
        "fillcolor": "#d33", "opacity": 0.16, "line": {"width": 0}, "layer": "below",
    }]  # fmt: skip
    recovered = "It had not recovered when the step ended."
    if fault.recovered_seconds is not None:
        back = fault.over_seconds + fault.recovered_seconds
        shapes.append(_upright(back))
        recovered = f"Throughput was nine tenths of before after {fault.recovered_seconds:.1f} s (dotted line)."
    audit = (
        "not audited" if run.audit is None else "VOID: " + "; ".join(run.audit.examples) if run.void else "audit clean"
    )
    caption = (
        f"Events a second; the fault lasts from {fault.at_seconds:.1f} to {fault.over_seconds:.1f} s (shaded). "
        f"{recovered} {step.refused:,} events refused, {audit}. {told(run, step)}"
    )
    title = fault.name if run.system == OURS else f"{fault.name}, {run.system}"
    return Plot(title, caption, _throughput(step), _axes("s", "events/s", shapes=shapes), 320)
