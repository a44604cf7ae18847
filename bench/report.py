"""docs/benchmarks.md, written from a result: how to measure, how to read it, and what this machine's result says.

Owns the page's fixed words. All figures, the machine and the versions are the result's; what it lacks is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Final

from bench.results import P99_MS_MAX, Result
from bench.summary import (
    ROLES,
    Row,
    commit_told,
    fault_runs,
    ladder_rows,
    machine_told,
    rate_held,
    ratios,
    rows,
    versions_told,
    void_told,
)
from bench.table import audit_told, cost, number, times
from bench.targets import COLUMNS
from bench.targets import lines as target_lines

HEAD: Final = """\
# Benchmarks

This page is written by the bench from a result file; nobody edits it. Ratios come first, since they travel: both parts
of each were measured on the same machine, in the same result, in turn. Absolute figures don't.
"""

HOW_TO_RUN: Final = """\
## How to run it

```
make bench                            the quick suite: the main experiments, peers, ceilings, micro benchmarks
make bench-full                       everything: all scenarios, rate ladders, faults, the soak
headrace-bench targets                the table of targets, each figure in paired runs (an hour)
headrace-bench compare BEFORE AFTER   two result files: each figure with its spread, and what is beyond noise
headrace-bench micro                  the stages of an event, each by itself
headrace-bench profile [BEFORE]       where each microsecond of an event goes under load, by stage and process
headrace-bench page RESULT            one HTML file with the plots; it needs no network
headrace-bench chaos                  load, and a fault in the middle of it
headrace-bench soak                   full rate for minutes; then, if asked to, a restart or a loss of Redis
python -m bench.pair BEFORE [AFTER]   two checkouts under the same loads, in turn: for a change of a few percent
```

Every run has fresh stores (embedded Postgres and Redis, with the settings of `config/`), and is audited at its end:
each answer is compared with the rows. A run in which an event was lost, counted twice, invented, or let through beyond
a budget or a cap is **void**: it is shown as such, and takes part in no ratio.
"""

HOW_TO_READ: Final = """\
## How to read it

- **events/s**: events that got a verdict (accepted, duplicate or rejected) within the step. Events refused with 503 or
  `retry` do not count.
- **p50, p99**: of all answers, in milliseconds. In a closed loop they follow from the number of connections; in an open
  loop (offered rates) they count from the planned time of sending, so waiting behind a stall counts, too.
- **CPU**: microseconds of all processes of a role, divided by events. A peer's own processes stand under `engine`.
- **The sender was the limit**: the system could have done more; the figure is a lower bound.
- **Peers** do the same work on the same stores: validate, dedup, hold caps and budgets, answer 200 for what is
  committed. *row at a time*: the design that Headrace replaces. *batcher*: one background batcher over the same Lua
  functions and COPY. *postgres alone*: one function call a batch, without Redis.
- **Ceilings** do a part of the work: *raw COPY* only stores, *lua alone* only reserves, *uvicorn constant* and *intake
  constant* only answer. A ratio to a ceiling is the part of the possible that is left with all work done.
- Each figure is the median of its rounds. Differences of less than the spread of rounds are noise.
"""

TARGETS_TOLD: Final = """\
`headrace-bench targets`: each figure is a median over rounds, beside its lowest and highest round; a ratio is taken
within a round, whose runs are made in turn, and against several peers it is taken to the best of them in that round.
*Met*: `aim`, `yes` (at least), or `no`. Single events are told for one campaign, which the targets were calibrated on,
and for a hundred. A refusal's time counts from when its request was really sent."""

LIMITS: Final = """\
## What it can't show

- **Loopback**: no network, no loss, no TLS, no distance between engine and stores.
- **One machine**: the sender, the system and both stores share its cores; with few of them, whatever the sender takes,
  the system lacks. Engine processes beyond the cores can't show what they are for.
- **Embedded stores**: one Postgres and one Redis as they are started here; no replicas, no managed service, no pooler.
- **This disk**: a commit waits for an fsync of this one; on another, small batches and single events differ most.
- **Short runs**: seconds to minutes. Tables and indexes are small, checkpoints and autovacuum hardly begin; the soak
  shows a little of it.
- **Made-up load**: users, campaigns and repeats are drawn from simple distributions. Replay a log of
  yours where it counts.
- **Other tenants of the machine**: rounds are run in turn, so that they meet all systems alike, but nobody sees them.
"""


def benchmarks_page(result: Result, targets: Result | None = None) -> str:
    """The whole page. `targets`: a result of its own, if the table of targets was made by another call."""
    parts = [HEAD, *_measured(result, targets or result), HOW_TO_RUN, HOW_TO_READ, LIMITS]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _measured(result: Result, targets: Result) -> Iterator[str]:
    yield _where(result)
    if notices := void_told(result) + (void_told(targets) if targets is not result else []):
        yield "**Void runs**, left out of all ratios:\n\n" + "\n".join(f"- VOID: {_cell(each)}" for each in notices)
    for title, told, table in (
        (
            "Targets",
            TARGETS_TOLD + ("" if targets is result else f"\n\n{_where(targets)}"),
            _table("|".join(COLUMNS), [list(map(_cell, line)) for line in target_lines(targets)]),
        ),
        (
            "Headrace divided by the others",
            "Throughput above 1, latency and CPU below 1 are in Headrace's favour. Of a ladder: the highest rate held.",
            _ratios(result),
        ),
        ("Experiments", "Medians over rounds.", _experiments(result)),
        (
            "Rates held",
            f"The highest offered rate with p99 below {P99_MS_MAX:.0f} ms, done as offered, nothing refused.",
            _ladders(result),
        ),
        ("The cost of an event, by process", "Microseconds of CPU an event; cores in use by all.", _by_process(result)),
        ("The cost of an event, by stage", "Microseconds an event, each stage by itself.", _by_stage(result)),
        (
            "Through a fault",
            "Recovered: seconds from the end of the fault until throughput was nine tenths of what it was before.",
            _faults(result),
        ),
    ):
        if table:
            yield f"## {title}\n\n{told}\n\n{table}"


def _where(result: Result) -> str:
    return (
        f"Measured with the {_cell(result.suite)} suite on commit {_cell(commit_told(result))}, "
        f"{result.started_at[:10]}, on {_cell(machine_told(result))}; {_cell(versions_told(result))}."
    )


def _cell(text: str) -> str:
    """Text that ends no cell and starts no tag."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _table(columns: str, lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """`columns` are divided by bars; the first `left` of them hold text. Empty, if there are no lines."""
    if not lines:
        return ""
    names = columns.split("|")
    rule = ["---" if at < left else "---:" for at in range(len(names))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (names, rule, *lines))


def _ratios(result: Result) -> str:
    lines = [
        [
            _cell(ratio.experiment), _cell(ratio.other) + (" (ceiling)" if ratio.is_ceiling else ""),
            times(ratio.throughput), times(ratio.p99), times(ratio.cpu),
        ]
        for ratio in ratios(result)
    ]  # fmt: skip
    return _table("experiment|divided by|throughput|p99|CPU an event", lines, left=2)


def _experiments(result: Result) -> str:
    lines = [
        [
            _cell(row.experiment), _cell(row.system), number(row.events_per_second), number(row.p50_ms, 1),
            number(row.p99_ms, 1), f"{row.refused_share:.1%}", number(row.memory_mb("engine")), _audit(row),
        ]
        for row in rows(result)
    ]  # fmt: skip
    return _table("experiment|system|events/s|p50 ms|p99 ms|refused|engine MB|audit", lines, left=2)


def _audit(row: Row) -> str:
    told = audit_told(row) + ("; the sender was the limit" if row.sender_was_limit else "")
    return _cell(told)


def _ladders(result: Result) -> str:
    lines = [
        [_cell(row.experiment), _cell(row.system), number(rate_held(row)), _cell(audit_told(row))]
        for row in ladder_rows(result)
    ]
    return _table("experiment|system|events/s|audit", lines, left=2)


def _by_process(result: Result) -> str:
    lines = [
        [
            _cell(row.experiment), _cell(row.system), *(cost(row, role) for role in ROLES),
            number(row.cores_of_system + row.cores("sender"), 2),
        ]
        for row in rows(result)
    ]  # fmt: skip
    return _table(f"experiment|system|{'|'.join(ROLES)}|cores", lines, left=2)


def _by_stage(result: Result) -> str:
    lines = [
        [_cell(micro.name), *(number(part(micro.us_an_event), 2) for part in (statistics.median, min, max))]
        for micro in result.micros
        if micro.us_an_event
    ]
    return _table("stage|median|least|most", lines)


def _faults(result: Result) -> str:
    lines = []
    for run in fault_runs(result):
        fault = run.fault
        assert fault is not None
        recovered = "not within the step" if fault.recovered_seconds is None else number(fault.recovered_seconds, 1)
        lines.append([
            _cell(fault.name), _cell(run.system), number(fault.over_seconds - fault.at_seconds, 1), recovered,
            number(run.steps[-1].refused), _audit(Row(run.experiment, run.system, [run])),
        ])  # fmt: skip
    return _table("fault|system|lasted s|recovered after s|refused|audit", lines, left=2)
