"""Programs of the suite that are not a load and its figures: what a standing engine costs, and a table that is full.

Owns the order of what they do. What they measure are `measures` of a run; but the full table is compared by ordinary
steps.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Final

import httpx
import msgspec

from bench.filling import empty_events, fill_events
from bench.results import Run
from bench.run import Experiment, Load, Underway, finish, open_run
from bench.scenario import scenarios
from bench.stand import HEADRACE, Stand, StandFailed, copy_campaigns, open_stand
from bench.targets import IDLE_BYTES, KNOWN_BYTES, READY_SECONDS

SETTLE_SECONDS: Final = 3.0  # until an engine that nobody asks has tidied up
USED_ROWS: Final = 2_000_000  # a gigabyte of log
VISIT_SECONDS: Final = 2.0
VISIT_SECONDS_MAX: Final = 120.0
VISIT_RATE: Final = 2_000.0  # events a second, each of another campaign


def visit(experiment: Experiment, live: int, round_: int) -> Run:
    """Memory of idle live campaigns: a few are visited first, so that code, buffers and arenas are there, then `live`.

    Every visit is one event. What is there is counted by the engine's own metrics.
    """
    with open_run(experiment, seed=round_) as underway:
        first = _visited(underway, live // 10)
        before_mb = _settled_mb(underway.stand)
        last = _visited(underway, first + live)
        after_mb = _settled_mb(underway.stand)
        run = finish(underway, round_, seed=round_)
    return msgspec.structs.replace(run, steps=[], measures={IDLE_BYTES: (after_mb - before_mb) * 1e6 / (last - first)})


def _visited(underway: Underway, wanted: int) -> int:
    """Visit until so many are live; how many are."""
    end_at = time.monotonic() + VISIT_SECONDS_MAX
    while (live := _actors(underway.stand)) < wanted:
        if time.monotonic() > end_at:
            raise StandFailed(f"of {wanted:,} campaigns only {live:,} are live after {VISIT_SECONDS_MAX:.0f} s")
        underway.step(Load(4, VISIT_SECONDS, rate=VISIT_RATE))
    return live


def _actors(stand: Stand) -> int:
    text = httpx.get(f"{stand.api}/metrics", trust_env=False).text
    found = re.search(r"^headrace_actors(?:\{.*\})? ([\d.e+]+)$", text, re.MULTILINE)
    if found is None:
        raise StandFailed("the engine does not tell how many campaigns are live")
    return int(float(found[1]))


def _settled_mb(stand: Stand) -> float:
    time.sleep(SETTLE_SECONDS)
    return stand.memory_mb()


def start(name: str, known: int, round_: int) -> Run:
    """Start an engine on stores that are up, with a hundred campaigns in them and with `known` of them."""
    scenario = scenarios()["even"]
    with open_stand(HEADRACE, scenario) as stand:
        stand.restart()
        few_mb = _settled_mb(stand)
        copy_campaigns(stand.stores.db_url, known - scenario.campaigns)
        seconds = stand.restart()
        many_mb = _settled_mb(stand)
        stand.stop()
    measures = {READY_SECONDS: seconds, KNOWN_BYTES: (many_mb - few_mb) * 1e6 / (known - scenario.campaigns)}
    return Run(name, HEADRACE.name, scenario.name, round_, round_, {}, [], audit=None, measures=measures)


def fill_and_compare(filled: Experiment, empty: Experiment, rows: int, rounds: int) -> Iterator[Run]:
    """The same load on a table of `rows` rows and on an empty one, in turn. Each is audited once, at the end.

    Both have stores of their own, equally long; the empty one's have written log that can be used again, too.
    """
    warm, load = filled.loads
    with open_run(empty, seed=0) as small, open_run(filled, seed=0) as large:
        fill_events(small.stand.stores.db_url, min(rows, USED_ROWS))
        empty_events(small.stand.stores.db_url)
        fill_events(large.stand.stores.db_url, rows)
        for each in (small, large):
            each.step(warm)  # their Redis holds every campaign from here on, and knows what is committed
        for round_ in range(rounds):
            for each in (large, small) if round_ % 2 == 0 else (small, large):
                each.step(warm)
                each.step(load)
        wholes = [finish(each, 0, seed=0) for each in (large, small)]
    for round_ in range(rounds):
        for whole in wholes:
            yield msgspec.structs.replace(whole, round=round_, steps=whole.steps[1 + 2 * round_ : 3 + 2 * round_])
