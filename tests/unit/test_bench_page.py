"""The page, the terminal's tables and docs/benchmarks.md, from results that nobody measured."""

from __future__ import annotations

import html
import io
import re
from html.parser import HTMLParser

import msgspec
import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console

from bench.page import html_page
from bench.plots import sections
from bench.report import benchmarks_page
from bench.results import LocustRun, Result
from bench.table import show_result, times
from bench.targets import BATCHES, SUITE
from tests.unit.made_results import NASTY, full_result, make_result, make_run, make_step

PARTS = [
    make_result(),
    make_result(make_run("even")),
    make_result(make_run("even", "batcher", audit=None)),
    make_result(make_run("even", "headrace", make_step(0.0, slices=[], samples=[], uses=[]))),
    make_result(make_run("even", steps=[])),
    msgspec.structs.replace(full_result(), micros=[]),
    msgspec.structs.replace(full_result(), runs=[]),
]


class Reader(HTMLParser):
    """Keeps every tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def own_part(page: str) -> str:
    """Without the library."""
    library = get_plotlyjs()
    assert library in page
    return page.replace(library, "")


def in_terminal(result: Result) -> str:
    """What the tables print."""
    out = io.StringIO()
    show_result(result, Console(file=out, width=400))
    return out.getvalue()


def test_the_page_loads_nothing() -> None:
    """No tag refers to anything, nothing of ours names an address, and its policy forbids the library to."""
    page = html_page(full_result())
    for tag, attributes in Reader(page).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not attributes.keys() & {"src", "href", "srcset", "action", "data"}, tag
    assert not re.search(r"https?:|//\w+\.\w|url\(|@import", own_part(page))
    policy = next(attributes["content"] for _, attributes in Reader(page).tags if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_the_page_holds_every_experiment_and_system() -> None:
    """And every micro benchmark, with a caption for every plot."""
    page = own_part(html_page(full_result()))
    for run in full_result().runs:
        assert html.escape(run.experiment).replace("&#x27;", "&#39;") in page
        assert html.escape(run.system).replace("&#x27;", "&#39;") in page
    for section in sections(full_result()):
        for plot in [*section.plots, *(plot for group in section.groups for plot in group.plots)]:
            assert plot.caption
            assert html.escape(plot.title).replace("&#x27;", "&#39;") in page
    assert {section.title for section in sections(full_result())} >= {"Through a fault", "The cost of an event"}


def test_a_void_run_is_marked_everywhere() -> None:
    """With what was found."""
    result = make_result(make_run("even", void=True))
    for told in (own_part(html_page(result)), in_terminal(result), benchmarks_page(result)):
        assert "VOID" in told
        assert "lost: " in told
    assert "VOID" not in own_part(html_page(make_result(make_run("even")))).replace("VOID, left out of all", "")


def test_text_of_a_result_is_text() -> None:
    """No name or example becomes a tag, an end of the script, a style of the terminal or a cell."""
    result = msgspec.structs.replace(full_result(), commit=NASTY, suite=NASTY, versions={NASTY: NASTY})
    page = own_part(html_page(result))
    assert "<script>alert" not in page
    assert sum(tag == "script" for tag, _ in Reader(page).tags) == 3
    assert "[red]x[/]" in in_terminal(result)
    assert "<script" not in benchmarks_page(result)
    nasty = [line for line in benchmarks_page(result).splitlines() if line.startswith("| &lt;")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in nasty] == [9, 8]  # eight columns, and seven


def test_plots_get_escaped_text() -> None:
    """Plotly reads tags in names and labels."""
    result = make_result(make_run(NASTY), make_run(NASTY, NASTY))
    for section in sections(result):
        for plot in section.plots:
            assert b"<script" not in msgspec.json.encode([plot.data, plot.layout])


@pytest.mark.parametrize("result", PARTS)
def test_what_a_result_lacks_is_left_out(result: Result) -> None:
    """Of the page, the tables and the document."""
    assert "Headrace bench" in own_part(html_page(result))
    assert "What it can't show" in benchmarks_page(result)
    in_terminal(result)
    titles = {section.title for section in sections(result)}
    assert ("By stage" in {plot.title for section in sections(result) for plot in section.plots}) == bool(result.micros)
    assert ("Through a fault" in titles) == any(run.fault for run in result.runs)


def test_the_document_has_ratios_before_figures() -> None:
    """And the machine, the versions and the limits of it all."""
    page = benchmarks_page(full_result())
    order = [
        "A Processor, 2 cores", "Python 3.11", "## Headrace divided by the others", "## Experiments",
        "## Through a fault", "## How to run it", "## What it can't show",
    ]  # fmt: skip
    assert [page.index(each) for each in order] == sorted(page.index(each) for each in order)
    assert "| batches of 100 | batcher | 3.00 | 1.00 |" in page


def test_the_terminal_has_a_row_for_each_system_and_the_ratios() -> None:
    """And the faults."""
    told = in_terminal(full_result())
    for each in ("batches of 100", "raw COPY (a ceiling)", "not within the step", "900", "3.00"):
        assert each in told


def test_the_page_has_what_locust_was_told() -> None:
    """And that it is void, where rows and answers differ."""
    run = LocustRun(
        [], 20, 2, 10.0, 5_000, 3, 9_000, 8_765, 100, 50, 85, None, 900.0, 880.0, 12.0, 99.0, rows=8_765,
        audit_clean=True,
    )  # fmt: skip
    page = own_part(html_page(make_result(locusts=[run])))
    assert "Load with locust" in page
    assert "8,765" in page
    assert "VOID" not in page.split("Load with locust")[1]
    page = own_part(html_page(make_result(locusts=[msgspec.structs.replace(run, rows=1)])))
    assert "VOID" in page.split("Load with locust")[1]


def test_the_page_has_the_table_of_targets() -> None:
    """Where the result was made for it."""
    result = make_result(make_run(BATCHES), suite=SUITE)
    assert "10,000 campaigns, Zipf" in own_part(html_page(result))
    assert "10,000 campaigns, Zipf" in in_terminal(result)
    assert "10,000 campaigns, Zipf" not in own_part(html_page(make_result(make_run(BATCHES))))


def test_a_ratio_is_told_to_three_figures() -> None:
    """Whatever its size."""
    assert [times(value) for value in (1234.4, 123.4, 12.34, 1.234, 0.1234, None)] == [
        "1,234", "123", "12.3", "1.23", "0.123", "-",
    ]  # fmt: skip
