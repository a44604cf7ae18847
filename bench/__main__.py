"""The command line: `headrace-bench run | scenario | compare | micro | chaos | page | docs`.

Owns the arguments, the files and the exit status: 0 all well; 1 a run was void, or a figure slower; 2 wrong usage, or
something did not start; 130 interrupted, and then nothing that was started is left.
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
from typing import Any, Final

import msgspec
from rich.console import Console

from bench.machine import commit, machine, versions
from bench.results import FORMAT, Micro, Result, Run, write_result
from bench.run import Experiment, Load
from bench.scenario import scenarios
from bench.stand import HEADRACE, StandFailed, open_stores_with
from bench.suite import FULL, QUICK, Item, items, made
from bench.systems import workers

FOLDER: Final = Path("build/bench")
VOID_STATUS: Final = 1
FAILED_STATUS: Final = 2
INTERRUPTED_STATUS: Final = 130

_console: Final = Console(highlight=False, soft_wrap=True)


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
    except (StandFailed, ValueError) as failed:
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
    run = commands.add_parser("run", help="the suite; leaves JSON, table and page")
    run.add_argument("--full", action="store_true", help="five rounds of longer steps, and a soak: an hour and a half")
    run.add_argument("--only", default="", metavar="TEXT", help="only experiments whose name contains this")
    run.add_argument("--system", default="", metavar="TEXT", help="only systems whose name contains this")
    run.add_argument("--rounds", type=int, default=0, help="in place of the form's")
    run.set_defaults(run=_run)
    one = commands.add_parser("scenario", help="one scenario, as long and as large as you like")
    one.add_argument("name", choices=sorted(scenarios()))
    one.add_argument("--batch", type=int, default=100, help="events a request (100)")
    one.add_argument("--connections", type=int, default=32)
    one.add_argument("--seconds", type=float, default=10.0)
    one.add_argument("--rate", type=float, help="events a second, in an open loop; without: closed")
    one.add_argument("--workers", type=int, default=1, help="engine processes (1)")
    one.add_argument("--log", default="", metavar="FILE", help="for replay: JSON lines")
    one.add_argument(
        "--speed", type=float, default=0.0, help="for replay: times the log's own pace; 0: as fast as it goes"
    )
    one.set_defaults(run=_scenario)
    return parser


# --- run, scenario ---------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    form = FULL if options.full else QUICK
    if options.rounds:
        form = replace(form, rounds=options.rounds)
    chosen = [item for item in items(form) if options.only in item.experiment and options.system in item.system]
    if not chosen:
        raise ValueError("no experiment has such a name")
    return _measure(form.name, chosen)


def _scenario(options: argparse.Namespace) -> int:
    scenario = msgspec.structs.replace(scenarios()[options.name], log=options.log, speed=options.speed)
    load = Load(options.connections, options.seconds, options.rate)
    warm = [] if scenario.replay else [replace(load, seconds=1.0)]
    system = workers(options.workers) if options.workers > 1 else HEADRACE
    experiment = Experiment(f"scenario {scenario.name}", system, scenario, options.batch, [*warm, load])
    return _measure("scenario", [Item(experiment.name, HEADRACE.name, 0, made(experiment))])


def _measure(suite: str, chosen: Sequence[Item], micros: Iterable[Micro] = ()) -> int:
    """Make the runs, tell each, and leave the result."""
    started = datetime.now(UTC)
    clock = time.monotonic()
    runs: list[Run] = []
    for item in chosen:
        runs.append(item.make(item.round))
        _console.print(_told(runs[-1], time.monotonic() - clock), markup=False)
    with open_stores_with(scenarios()["one"]) as stores:
        with_what = versions(stores)
    changed: dict[str, Any] = dict(zip(("commit", "changed"), commit(), strict=True))
    result = Result(
        format=FORMAT, started_at=started.isoformat(timespec="seconds"), seconds=round(time.monotonic() - clock, 1),
        machine=machine(), versions=with_what, suite=suite, runs=runs, micros=list(micros), **changed,
    )  # fmt: skip
    leave(result, FOLDER / f"{started:%Y%m%d-%H%M%S}-{suite}-{result.commit or 'no-commit'}.json")
    return VOID_STATUS if any(run.void for run in runs) else 0


def _told(run: Run, seconds: float) -> str:
    step = run.steps[-1]
    audit = "no audit" if run.audit is None else "audit clean" if run.audit.clean else f"VOID: {run.audit.examples}"
    limit = ", the sender was the limit" if step.sender_was_limit else ""
    refused = f", {step.refused:,} refused" if step.refused else ""
    return (
        f"{seconds:5.0f} s  {run.experiment}, {run.system}: {step.events_per_second:,.0f} events/s,"
        f" p50 {step.latency.p50_ms:.1f} ms, p99 {step.latency.p99_ms:.1f} ms{refused}, {audit}{limit}"
    )


def leave(result: Result, path: Path) -> None:
    """Write the file and the page beside it, and print the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_result(result, path)
    _console.print(f"result  {path}")


if __name__ == "__main__":
    sys.exit(main())
