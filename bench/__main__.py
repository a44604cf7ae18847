"""The command line: `headrace-bench run | targets | scenario | chaos | compare | micro | profile | soak | page | docs`.

Owns the arguments, the files and the exit status: 0 all well; 1 a run was void, or something is slower; 2 wrong usage,
or something did not start; 130 interrupted, and then nothing that was started is left.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console

from bench import compare, micro, profile
from bench.chaos import FAULTS, SECONDS, chaos_experiments
from bench.locust_run import LocustFailed
from bench.machine import commit, machine, versions
from bench.page import html_page
from bench.report import benchmarks_page
from bench.results import FORMAT, LocustRun, Micro, Result, Run, read_result, write_result
from bench.run import Experiment, Load
from bench.scenario import scenarios
from bench.serving import ServingFailed
from bench.soak import command as soak
from bench.stand import HEADRACE, StandFailed, open_stores_with
from bench.suite import FOR_TARGETS, FULL, QUICK, Item, Swarming, item_of, items, target_items
from bench.summary import run_told
from bench.systems import workers
from bench.table import show_result

FOLDER: Final = Path("build/bench")
DOCS: Final = Path("docs/benchmarks.md")
VOID_STATUS: Final = 1
FAILED_STATUS: Final = 2
INTERRUPTED_STATUS: Final = 130

FILE_COLUMNS: Final = 180  # of a table that goes to a file: the 80 that are assumed there would break every word
_console: Final = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else FILE_COLUMNS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    options = _parser().parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        _console.print("interrupted; everything that was started has been ended")
        return INTERRUPTED_STATUS
    except (StandFailed, ServingFailed, LocustFailed, micro.MicroFailed, ValueError) as failed:
        _console.print(f"headrace-bench: {failed}", style="bold red", markup=False)
        return FAILED_STATUS
    return status


def _interrupt(number: int, frame: object) -> None:
    """End in order, once: what has been started is being stopped meanwhile, and must not be left half way."""
    del number, frame
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headrace-bench", description="Audited measurements of Headrace.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="the suite; leaves JSON, table and page in build/bench")
    run.add_argument("--full", action="store_true", help="five rounds of longer steps, every fault, a soak: an hour")
    run.add_argument("--only", default="", metavar="TEXT", help="only experiments whose name contains this")
    run.add_argument("--system", default="", metavar="TEXT", help="only systems whose name contains this")
    run.add_argument("--rounds", type=int, default=0, help="in place of the form's")
    run.add_argument("--seconds", type=float, default=0.0, help="a step, in place of the form's")
    run.set_defaults(run=_run)
    targets = commands.add_parser("targets", help="the table of targets, each figure in paired runs: an hour in whole")
    targets.add_argument("--rounds", type=int, default=FOR_TARGETS.rounds, help=f"({FOR_TARGETS.rounds})")
    targets.add_argument("--only", default="", metavar="TEXT", help="only experiments whose name contains this")
    targets.add_argument("--seconds", type=float, default=FOR_TARGETS.seconds, help="a step (5)")
    targets.add_argument(
        "--cold", type=float, default=FOR_TARGETS.cold_seconds, help="warm-up of 10,000 campaigns (10)"
    )
    targets.add_argument("--rows", type=int, default=FOR_TARGETS.rows, help="of the full events table (50 million)")
    targets.set_defaults(run=_targets)
    one = commands.add_parser("scenario", help="one scenario, as long and as large as you like")
    one.add_argument("name", choices=sorted(scenarios()))
    one.add_argument("--batch", type=int, default=100, help="events a request (100)")
    one.add_argument("--connections", type=int, default=32, help="(32)")
    one.add_argument("--seconds", type=float, default=10.0, help="(10)")
    one.add_argument("--rate", type=float, help="events a second, in an open loop; without: closed")
    one.add_argument("--workers", type=int, default=1, help="engine processes (1)")
    one.add_argument("--log", default="", metavar="FILE", help="for replay: JSON lines")
    one.add_argument("--speed", type=float, default=0.0, help="for replay: times the log's pace; 0: as fast as it goes")
    one.set_defaults(run=_scenario)
    chaos = commands.add_parser(
        "chaos",
        help="a scenario with a fault in the middle of its load",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="faults:\n" + "\n".join(f"  {name:<28}{each.inject.__doc__}" for name, each in FAULTS.items()),
    )
    chaos.add_argument("scenario", choices=sorted(scenarios()), metavar="SCENARIO", help="of bench/scenarios.toml")
    chaos.add_argument("--fault", action="append", choices=sorted(FAULTS), metavar="NAME", help="again for more (all)")
    chaos.add_argument("--seconds", type=float, default=SECONDS, help=f"of load ({SECONDS:.0f})")
    chaos.set_defaults(run=_chaos)
    comparing = commands.add_parser("compare", help="two results, figure by figure; status 1: something is slower")
    compare.add_arguments(comparing)
    comparing.set_defaults(run=compare.run)
    pair = commands.add_parser("micro", help="two checkouts, stage by stage, in turn; status 1: something is slower")
    micro.add_arguments(pair)
    pair.set_defaults(run=micro.run)
    profiling = commands.add_parser("profile", help="where each microsecond of an event goes, by stage and process")
    profile.add_arguments(profiling)
    profiling.set_defaults(run=lambda options: profile.run(options, _console))
    soaking = commands.add_parser(
        "soak", help="full rate for minutes on the defaults; leaves JSON and plot in build/soak"
    )
    soak.add_arguments(soaking)
    soaking.set_defaults(run=lambda options: soak.run(options, _console))
    page = commands.add_parser("page", help="the page of a result, written beside it")
    page.add_argument("result", type=Path)
    page.set_defaults(run=lambda options: _show(read_result(options.result), options.result))
    docs = commands.add_parser("docs", help=f"write {DOCS} from a result")
    docs.add_argument("result", type=Path)
    docs.add_argument("--targets", type=Path, metavar="RESULT", help="of `headrace-bench targets`, for its table")
    docs.set_defaults(run=_docs)
    return parser


# --- Measuring -------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    form = FULL if options.full else QUICK
    form = replace(form, rounds=options.rounds or form.rounds, seconds=options.seconds or form.seconds)
    chosen = _chosen(items(form), options.only, options.system)
    whole = not (options.only or options.system)
    return _measure(form.name, chosen, form.micro_rounds if whole else 0, form.swarm if whole else None)


def _targets(options: argparse.Namespace) -> int:
    form = replace(
        FOR_TARGETS, rounds=options.rounds, seconds=options.seconds, cold_seconds=options.cold, rows=options.rows
    )
    return _measure(form.name, _chosen(target_items(form), options.only))


def _chosen(every: Iterable[Item], experiment: str, system: str = "") -> list[Item]:
    chosen = [item for item in every if experiment in item.experiment and system in item.system]
    if not chosen:
        raise ValueError("no experiment has such a name")
    return chosen


def _scenario(options: argparse.Namespace) -> int:
    scenario = msgspec.structs.replace(scenarios()[options.name], log=options.log, speed=options.speed)
    load = Load(options.connections, options.seconds, options.rate)
    warm = [] if scenario.replay else [replace(load, seconds=1.0)]
    system = workers(options.workers) if options.workers > 1 else HEADRACE
    experiment = Experiment(f"scenario {scenario.name}", system, scenario, options.batch, [*warm, load])
    return _measure("scenario", [item_of(experiment)])


def _chaos(options: argparse.Namespace) -> int:
    faults = options.fault or tuple(FAULTS)
    return _measure(
        "chaos", list(map(item_of, chaos_experiments(scenarios()[options.scenario], faults, options.seconds)))
    )


def _measure(suite: str, chosen: Sequence[Item], micro_rounds: int = 0, swarming: Swarming | None = None) -> int:
    """Make the runs, tell each, and leave the result."""
    started, clock = datetime.now(UTC), time.monotonic()
    runs: list[Run] = []
    for item in chosen:
        for run in item.make(item.round):
            runs.append(run)
            _console.print(f"{time.monotonic() - clock:5.0f} s  {run_told(run)}", markup=False)
    locusts: list[LocustRun] = []
    if swarming is not None:
        locusts.append(swarming())
        _console.print(f"{time.monotonic() - clock:5.0f} s  {_locust_told(locusts[-1])}", markup=False)
    micros: list[Micro] = micro.run_micros(micro_rounds) if micro_rounds else []
    with open_stores_with(scenarios()["one"]) as stores:
        with_what = versions(stores)
    found, changed = commit()
    result = Result(
        format=FORMAT, commit=found, changed=changed, started_at=started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - clock, 1), machine=machine(), versions=with_what, suite=suite, runs=runs,
        micros=micros, locusts=locusts,
    )  # fmt: skip
    path = FOLDER / f"{started:%Y%m%d-%H%M%S}-{suite}-{found[:12] or 'no-commit'}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_result(result, path)
    _show(result, path)
    sound = not any(run.void for run in runs) and all(locust.agrees for locust in locusts)
    return 0 if sound else VOID_STATUS


def _locust_told(run: LocustRun) -> str:
    agrees = "rows agree" if run.agrees else "VOID: rows don't agree"
    return (
        f"locust, {run.users} users: {run.requests:,} requests, {run.offered_per_second:,.0f} events/s offered,"
        f" {run.achieved_per_second:,.0f} achieved, p50 {run.p50_ms:.0f} ms, p99 {run.p99_ms:.0f} ms, {agrees}"
    )


# --- Showing ---------------------------------------------------------------------------------------------------


def _show(result: Result, path: Path) -> int:
    """The table, and the page beside the file."""
    page = path.with_suffix(".html")
    page.write_text(html_page(result))
    show_result(result, _console)
    _console.print(f"result  {path}\npage    {page}", markup=False)
    return 0


def _docs(options: argparse.Namespace) -> int:
    targets = read_result(options.targets) if options.targets else None
    DOCS.write_text(benchmarks_page(read_result(options.result), targets))
    _console.print(f"written  {DOCS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
