"""`headrace-bench profile`: where each microsecond of an event goes, stage by stage and process by process.

Owns the stages, which code belongs to each, the loads and the table. A sample of the engine (bench/profiled.py) belongs
to the stage of the innermost code that has one, so what a library does for a stage is the stage's. Shares of samples
are multiplied with the engine's CPU as the suite counts it. Two checkouts take turns, as in bench/pair.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Final

from rich.console import Console
from rich.table import Table

from bench.profiled import PROFILE
from bench.results import Run
from bench.run import Experiment, Load, finish, open_run
from bench.scenario import scenarios
from bench.stand import HEADRACE
from bench.summary import run_told

WARM_SECONDS: Final = 2.0
COLD_SECONDS: Final = 10.0  # of 10,000 campaigns, until all of them are live
HERE: Final = Path(__file__).resolve().parents[1]

SOCKETS: Final = "sockets of senders"
HTTP: Final = "HTTP"
DECODE: Final = "decode"
ROUTE: Final = "arrive and route"
ADMIT: Final = "admit and settle"
REDIS: Final = "Redis client"
ENCODE: Final = "encode rows"
POSTGRES: Final = "Postgres client"
ANSWER: Final = "answer"
METRICS: Final = "metrics"
TRIO: Final = "trio"
REST: Final = "the rest"
STAGES: Final = (SOCKETS, HTTP, DECODE, ROUTE, ADMIT, REDIS, ENCODE, POSTGRES, ANSWER, METRICS, TRIO, REST)

# By function, else by file, else by folder.
STAGE_OF: Final[dict[str, str]] = {
    "api/intake_connection.py:Connection._send": SOCKETS,
    "api/intake_connection.py:Connection.on_readable": SOCKETS,
    "api/response.py": ANSWER,
    "api/codec.py:event_answer": ANSWER,
    "api/codec.py:batch_answer": ANSWER,
    "api/codec.py:_stored_answer": ANSWER,
    "api/codec.py:_time_text": ANSWER,
    "api/codec.py:_uuid_text": ANSWER,
    "api/codec.py": DECODE,
    "api/encodings.py": DECODE,
    "api/bad_events.py": DECODE,
    "api/bodies.py": DECODE,
    "api/elements.py": DECODE,
    "api/slicing.py": DECODE,
    "api/": HTTP,
    "engine/redis/": REDIS,
    "engine/postgres/copy.py": ENCODE,
    "engine/postgres/": POSTGRES,
    "engine/flusher.py": POSTGRES,
    "engine/engine.py": ROUTE,
    "engine/arrival.py": ROUTE,
    "engine/instants.py": ROUTE,
    "engine/model.py": ROUTE,
    "engine/clock.py": ROUTE,
    "engine/registry.py": ROUTE,
    "engine/mailbox.py": ROUTE,
    "engine/metrics.py": METRICS,
    "engine/submission.py:Entry.as_stored": ANSWER,
    "engine/": ADMIT,
}
_STAGE_OF_LIBRARY: Final = {
    "/site-packages/trio/": TRIO,
    "/site-packages/prometheus_client/": METRICS,
    "/site-packages/asyncpg/": POSTGRES,  # all but the flush, and the loop that it needs
    "/site-packages/trio_asyncio/": POSTGRES,
    "/asyncio/": POSTGRES,
}

Frame = tuple[str, str]  # a file and a qualified name


def stage_of(frames: Sequence[Frame], root: Path) -> str:
    """The stage of one sample, whose frames go from the inside out, in the engine whose checkout is at `root`."""
    for path, name in frames:
        file = path.removeprefix(f"{root}/")
        if file != path:
            for key in (f"{file}:{name}", file, *(f"{folder}/" for folder in Path(file).parents)):
                if key in STAGE_OF:
                    return STAGE_OF[key]
        for library, stage in _STAGE_OF_LIBRARY.items():
            if library in file:
                return stage
    return REST


def read_shares(samples: Path, root: Path, begun: float, ended: float) -> dict[str, float]:
    """The part of each stage in the samples between two times of the monotonic clock. Raises `ValueError` for none."""
    found = Counter[str]()
    for line in samples.read_text().splitlines():
        at, frames = json.loads(line)
        if begun <= at <= ended:
            found[stage_of(frames, root)] += 1
    if not found:
        raise ValueError("no sample was taken: the load was too short, or this system has no ITIMER_PROF")
    return {stage: found[stage] / found.total() for stage in STAGES}


def experiments(checkout: Path, seconds: float) -> Iterator[Experiment]:
    """Single events and batches, over few and many campaigns."""
    runner = (str(HERE / "bench/profiled.py"),)
    known, system = scenarios(), replace(HEADRACE, checkout=str(checkout), runner=runner)
    for name, scenario, batch, connections, warm in (
        ("single events, 1 campaign", "one", 1, 256, WARM_SECONDS),
        ("single events, 100 campaigns", "even", 1, 256, WARM_SECONDS),
        ("batches of 1,000, 100 campaigns", "even", 1_000, 32, WARM_SECONDS),
        ("batches of 1,000, 10,000 campaigns", "many", 1_000, 32, COLD_SECONDS),
    ):
        yield Experiment(name, system, known[scenario], batch, [Load(connections, warm), Load(connections, seconds)])


def profile(experiment: Experiment, round_: int) -> tuple[Run, dict[str, float]]:
    """A run, audited like any other, and its CPU in us an event: by stage, then of the other processes.

    Raises `StandFailed`, and `ValueError` if there is no event or no sample.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-profile-") as folder:
        samples = Path(folder) / "samples"
        system = replace(experiment.system, settings={PROFILE: str(samples)})
        with open_run(replace(experiment, system=system), seed=round_) as underway:
            *warm, load = experiment.loads
            for each in warm:
                underway.step(each)
            begun = monotonic()
            step = underway.step(load)
            ended = monotonic()
            run = finish(underway, round_, seed=round_)
        shares = read_shares(samples, Path(system.checkout), begun, ended)
    engine, redis, postgres = (step.cpu_us(role) for role in ("engine", "redis", "postgres"))
    stages = {stage: share * engine for stage, share in shares.items()}
    others = {"all of the engine": engine, "Redis": redis, "Postgres": postgres}
    return run, stages | others | {"events/s": step.events_per_second}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line."""
    parser.add_argument(
        "before", type=Path, nargs="?", help="folder of another checkout, measured in turn with this one"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only loads whose name contains this")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--seconds", type=float, default=8.0, help="a run, after its warm-up (8)")


def run(options: argparse.Namespace, console: Console) -> int:
    """Measure and tell; status 1 if a run was void. Raises `StandFailed` and `ValueError`."""
    checkouts = [HERE] if options.before is None else [options.before.resolve(), HERE]
    for checkout in checkouts:
        if not (checkout / "api/__main__.py").exists():
            raise ValueError(f"{checkout} is no checkout of Headrace")
    found: dict[str, list[list[dict[str, float]]]] = {}  # of each load: of each checkout, its rounds
    void = 0
    for round_ in range(options.rounds):
        for at, checkout in list(enumerate(checkouts))[:: -1 if round_ % 2 else 1]:
            for experiment in experiments(checkout, options.seconds):
                if options.only not in experiment.name:
                    continue
                made, us = profile(experiment, round_)
                console.print(f"{checkout}: {run_told(made)}", markup=False)
                rounds = found.setdefault(experiment.name, [[] for _ in checkouts])
                void += made.void
                if not made.void:  # which tells nothing
                    rounds[at].append(us)
    found = {name: rounds for name, rounds in found.items() if all(rounds)}
    if not found:
        raise ValueError("there is no load of that name, or no round of it that was sound")
    console.print(_table(found))
    return int(void > 0)


def _table(found: dict[str, list[list[dict[str, float]]]]) -> Table:
    told = "CPU in us an event: medians over rounds, before → now where there are two"
    table = Table("stage", title=told, title_justify="left", title_style="bold")
    for name in found:
        table.add_column(name, justify="right")
    for line in next(iter(found.values()))[0][0]:
        table.add_row(line, *(_cell(line, checkouts) for checkouts in found.values()))
    return table


def _cell(line: str, checkouts: Sequence[Sequence[dict[str, float]]]) -> str:
    medians = [statistics.median(us[line] for us in rounds) for rounds in checkouts]
    return " → ".join(f"{median:,.0f}" if median >= 1_000 else f"{median:.1f}" for median in medians)
