"""`headrace-bench profile`: where each microsecond of an event goes, stage by stage and process by process.

Owns the stages, which code belongs to each, the loads and the table. A sample of the engine (bench/profiled.py) belongs
to the stage of the innermost code that has one, so what a library does for a stage is the stage's; trio is a stage of
its own. Shares of samples are multiplied with the engine's CPU as the suite counts it.
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
COLD_SECONDS: Final = 10.0  # of 10,000 campaigns: until all of them are live
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
TRIO: Final = "trio"
REST: Final = "the rest"
STAGES: Final = (SOCKETS, HTTP, DECODE, ROUTE, ADMIT, REDIS, ENCODE, POSTGRES, ANSWER, TRIO, REST)

# By function, else by file, else by folder.
STAGE_OF: Final[dict[str, str]] = {
    "api/intake_connection.py:Connection._send": SOCKETS,
    "api/intake_connection.py:Connection.on_readable": SOCKETS,
    "api/intake_connection.py:_encode": ANSWER,
    "api/codec.py:event_answer": ANSWER,
    "api/codec.py:batch_answer": ANSWER,
    "api/codec.py:_stored_answer": ANSWER,
    "api/codec.py:_time_text": ANSWER,
    "api/codec.py:_uuid_text": ANSWER,
    "api/codec.py": DECODE,
    "api/encodings.py": DECODE,
    "api/": HTTP,
    "engine/redis/": REDIS,
    "engine/postgres/copy.py": ENCODE,
    "engine/postgres/": POSTGRES,
    "engine/flusher.py": POSTGRES,
    "engine/engine.py": ROUTE,
    "engine/arrival.py": ROUTE,
    "engine/model.py": ROUTE,
    "engine/clock.py": ROUTE,
    "engine/registry.py": ROUTE,
    "engine/mailbox.py": ROUTE,
    "engine/metrics.py": REST,
    "engine/": ADMIT,
}
_TRIO: Final = "/trio/"

Frame = tuple[str, str]  # a file and a qualified name


def stage_of(frames: Sequence[Frame], root: Path) -> str:
    """The stage of one sample, whose frames go from the inside out, in the engine whose checkout is at `root`."""
    for path, name in frames:
        if _TRIO in path:
            return TRIO
        if path.startswith(f"{root}/"):
            file = path.removeprefix(f"{root}/")
            for key in (f"{file}:{name}", file, *(f"{folder}/" for folder in Path(file).parents)):
                if key in STAGE_OF:
                    return STAGE_OF[key]
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


def experiments(checkout: str, seconds: float) -> Iterator[Experiment]:
    """Single events and batches, over few and many campaigns."""
    known, system = scenarios(), replace(HEADRACE, command=("bench.profiled", *HEADRACE.command), checkout=checkout)
    for name, scenario, batch, connections, warm in (
        ("single events, 1 campaign", "one", 1, 256, WARM_SECONDS),
        ("the same, 100 campaigns", "even", 1, 256, WARM_SECONDS),
        ("batches of 1,000, 100 campaigns", "even", 1_000, 32, WARM_SECONDS),
        ("the same, 10,000 campaigns", "many", 1_000, 32, COLD_SECONDS),
    ):
        yield Experiment(name, system, known[scenario], batch, [Load(connections, warm), Load(connections, seconds)])


def profile(experiment: Experiment, round_: int) -> tuple[Run, dict[str, float]]:
    """A run, audited like any other, and its CPU in us an event: by stage, then of the other processes.

    Raises `StandFailed`, and `ValueError` if there is no sample.
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
        shares = read_shares(samples, Path(system.checkout or HERE), begun, ended)
    us = {use.role: 1e6 * use.cpu_seconds / step.events for use in step.uses}
    stages = {stage: share * us["engine"] for stage, share in shares.items()}
    return run, stages | {"all of the engine": us["engine"], "Redis": us["redis"], "Postgres": us["postgres"]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line."""
    parser.add_argument("--checkout", type=Path, default=HERE, help="folder of another one (this one)")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--seconds", type=float, default=8.0, help="a run, after its warm-up (8)")


def run(options: argparse.Namespace, console: Console) -> int:
    """Measure and tell; status 1 if a run was void. Raises `StandFailed` and `ValueError`."""
    found: dict[str, list[dict[str, float]]] = {}
    void = False
    for round_ in range(options.rounds):
        for experiment in experiments(str(options.checkout.resolve()), options.seconds):
            made, us = profile(experiment, round_)
            console.print(run_told(made), markup=False)
            found.setdefault(experiment.name, []).append(us)
            void |= made.void
    console.print(_table(found))
    return int(void)


def _table(found: dict[str, list[dict[str, float]]]) -> Table:
    table = Table("CPU in us an event", title="Medians over rounds", title_justify="left", title_style="bold")
    for name in found:
        table.add_column(name, justify="right")
    for line in next(iter(found.values()))[0]:
        medians = [statistics.median(us[line] for us in rounds) for rounds in found.values()]
        table.add_row(line, *(f"{median:.2f}" for median in medians))
    return table
