"""The page of a result: one HTML file that needs no network, with everything that the result has.

Owns what is put into `page.html`. The template escapes whatever a result says; plotly.js goes in whole, and the page's
own policy forbids it to load anything. What is plotted is `bench/plots.py`'s matter.
"""

from __future__ import annotations

from importlib.resources import files

import msgspec
from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from bench.plots import Json, Plot, Section, sections
from bench.results import Result
from bench.summary import commit_told, machine_told, ratios, rows, versions_told, void_told
from bench.table import audit_told, cost, number, times
from bench.targets import COLUMNS, lines


def html_page(result: Result) -> str:
    """Whole, some 5 MB: nearly all of it is plotly.js."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "times": times, "audit": audit_told, "cost": cost}
    template = environment.from_string(files("bench").joinpath("page.html").read_text())
    plots: list[Json] = []
    shown = [_shown(section, plots) for section in sections(result)]
    return template.render(
        result=result,
        commit=commit_told(result),
        minutes=number(result.seconds / 60),
        machine=machine_told(result),
        versions=versions_told(result),
        notices=void_told(result),
        targets=list(lines(result)),
        target_columns=COLUMNS,
        ratios=ratios(result),
        rows=rows(result),
        sections=shown,
        plots=_json(plots),
        plotly=get_plotlyjs(),
    )


def _shown(section: Section, plots: list[Json]) -> Json:
    groups = [
        {"title": group.title, "plots": [_placed(plot, plots) for plot in group.plots]} for group in section.groups
    ]
    return {"title": section.title, "plots": [_placed(plot, plots) for plot in section.plots], "groups": groups}


def _placed(plot: Plot, plots: list[Json]) -> Json:
    """Its data go to the others', and what is left says where they are."""
    plots.append({"data": plot.data, "layout": plot.layout})
    return {"title": plot.title, "caption": plot.caption, "height": plot.height, "at": len(plots) - 1}


def _json(plots: list[Json]) -> str:
    """Nothing in it can end the script that it stands in."""
    return msgspec.json.encode(plots).decode().replace("<", "\\u003c")
