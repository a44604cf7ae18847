"""`python -m tests.faults`: the fault matrix, several worlds at once, each fault with many seeds.

Owns the order of work, the table and the exit status: 0 when no promise was broken, 1 otherwise. Each worker has a
world of its own, in which it runs fault after fault, one seed after the other.
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import trio

from tests.e2e.program import headrace
from tests.faults import of_clients, of_clocks, of_engines, of_locks, of_networks, of_postgres, of_redis, pairs
from tests.faults.checker import Findings
from tests.faults.parent import end_with_parent, stop_as_if_interrupted
from tests.faults.waiting import explain
from tests.faults.world import Fault, World, open_world

FAULTS = {
    fault.name: fault
    for module in (of_engines, of_redis, of_postgres, of_locks, of_networks, of_clocks, of_clients, pairs)
    for fault in module.FAULTS
}
INTERRUPTED = 130
SEED_SECONDS = 150.0  # a seed that takes longer hangs
HISTORY_SECONDS = 20.0  # more, for each million of rows that are laid in first
COLUMNS = (
    "acknowledged", "lost", "double", "phantom", "denied", "twice", "unfounded", "mispriced", "misdated",
    "overspend_micros", "over_cap", "unbalanced", "unmet", "indeterminate", "committed",
)  # fmt: skip


@dataclass
class Result:
    """All seeds of one fault."""

    name: str
    seeds: int = 0
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0))
    recoveries: list[float] = field(default_factory=list)
    remembering: list[float] = field(default_factory=list)  # recoveries of those that began with a history
    others: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def add(self, seed: int, findings: Findings, *, history: bool) -> None:
        """Count one seed."""
        self.seeds += 1
        for column in COLUMNS:
            self.sums[column] += int(getattr(findings, column))
        (self.remembering if history else self.recoveries).append(findings.recovery_seconds)
        self.others.append(findings.others_seconds)
        self.complaints += [f"seed {seed}: {example}" for example in findings.examples]

    def row(self, *, history: bool) -> str:
        """One line of the table, in Markdown."""
        sums = [f"{self.sums[column]:,}" for column in COLUMNS]
        waits = [*_spread(self.recoveries), *(_spread(self.remembering) if history else ())]
        cells = [self.name, str(self.seeds), *sums, *waits, f"{max(self.others, default=0.0):.2f}"]
        return f"| {' | '.join(cells)} |"


def _spread(seconds: Sequence[float]) -> list[str]:
    """Median and worst."""
    return [f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}"] if seconds else ["-", "-"]


def header(*, history: bool) -> str:
    """The first two lines of the table."""
    names = [
        "fault",
        "seeds",
        *(column.replace("_", " ") for column in COLUMNS),
        "recovery median s",
        "worst s",
        *(["with a history: median s", "worst s"] if history else []),
        "innocent's slowest s",
    ]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


async def run_fault(world: World, fault: Fault, seeds: Iterable[int], result: Result, keep: Path | None) -> None:
    """Seed after seed, and an audit at the end. Stops at the first broken promise or surprise."""
    for seed in seeds:
        try:
            with trio.fail_after(SEED_SECONDS + HISTORY_SECONDS * world.history_rows / 1e6):
                findings = await world.seed(fault, seed)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is told, with the logs kept
            result.complaints.append(f"seed {seed}: {explain(error)}")
            result.complaints += await world.surprises(fault)
        else:
            result.add(seed, findings, history=world.history_rows > 0)
        if result.complaints:
            _keep(world, fault, seed, keep)
            return
    await world.mend()
    await _audit(world, result)


async def _audit(world: World, result: Result) -> None:
    """The engine's own audit, by another way of adding up."""
    await trio.sleep(0.5)  # the last commits are told to Redis
    audit = await trio.to_thread.run_sync(lambda: headrace("audit", env=world.stores()))
    if audit.returncode != 0:
        result.complaints.append(f"audit: {audit.stdout}{audit.stderr}")


def _keep(world: World, fault: Fault, seed: int, keep: Path | None) -> None:
    """Copy journal and logs, for whoever looks for the cause."""
    if keep is None:
        return
    target = keep / f"{fault.name.replace(' ', '_').replace(':', '').replace('/', '_')}-{seed}"
    target.mkdir(parents=True, exist_ok=True)
    for path in [*world.folder.glob("*.log"), world.folder / f"{seed}.jsonl"]:
        if path.exists():
            (target / path.name).write_bytes(path.read_bytes())


async def work(options: argparse.Namespace) -> None:
    """Run faults whose names come on standard input, each answered by one line; a world serves while it is sound."""
    seeds = range(options.first, options.first + options.seeds)
    name = sys.stdin.readline().strip()
    while name:
        settings = FAULTS[name].settings
        async with open_world(settings) as world:
            sound = True
            while sound and name and FAULTS[name].settings == settings:
                result = Result(name)
                await run_fault(world, FAULTS[name], seeds, result, options.keep)
                sound = not result.complaints
                if sound and options.history:
                    await run_with_history(FAULTS[name], seeds, result, options)
                sys.stdout.write(json.dumps(asdict(result)) + "\n")
                sys.stdout.flush()
                name = (await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)).strip()


async def run_with_history(fault: Fault, seeds: Iterable[int], result: Result, options: argparse.Namespace) -> None:
    """The same seeds, each in a world of its own that begins with a history: of the last minutes, so not for two."""
    for seed in seeds:
        async with open_world(fault.settings, int(options.history * 1_000_000)) as world:
            await run_fault(world, fault, [seed], result, options.keep)
        if result.complaints:
            return


def run_all(names: Sequence[str], arguments: Sequence[str], jobs: int) -> Iterator[Result]:
    """So many workers at once, each with a world of its own; results as they come. None outlives this block."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    results: queue.SimpleQueue[Result | None] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)
    command = [sys.executable, "-m", "tests.faults", "--worker", *arguments]
    workers: list[subprocess.Popen[str]] = []

    def drive() -> None:
        try:
            while not waiting.empty():
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
                    workers.append(worker)
                    _feed(worker, waiting, results)
        finally:
            results.put(None)  # whatever it was: nobody waits for this driver any more

    drivers = [threading.Thread(target=drive, daemon=True) for _ in range(jobs)]
    for driver in drivers:
        driver.start()
    try:
        for _ in drivers:
            while (result := results.get()) is not None:
                yield result
    finally:
        with suppress(queue.Empty):
            while True:
                waiting.get_nowait()  # no driver starts another worker
        for worker in workers:
            worker.terminate()
        for driver in drivers:
            driver.join()


def _feed(
    worker: subprocess.Popen[str], waiting: queue.SimpleQueue[str], results: queue.SimpleQueue[Result | None]
) -> None:
    """Give a worker one name after the other, until there is none or it has ended."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    with suppress(queue.Empty):
        while True:
            name = waiting.get_nowait()
            with suppress(BrokenPipeError):  # it has ended, which the next line tells
                worker.stdin.write(name + "\n")
                worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                results.put(Result(name, complaints=["the worker ended"]))
                break
            results.put(Result(**json.loads(line)))
    with suppress(BrokenPipeError):
        worker.stdin.close()


def report(results: list[Result], seconds: float) -> int:
    """The closing lines; the exit status."""
    seeds = sum(result.seeds for result in results)
    sums = {column: sum(result.sums[column] for result in results) for column in COLUMNS}
    broken = [result.name for result in results if result.complaints]
    print(f"\n{len(results)} faults, {seeds:,} runs in {seconds / 60:.0f} min: " + ", ".join(
        f"{column.replace('_', ' ')} {count:,}" for column, count in sums.items()
    ))  # fmt: skip
    if broken:
        print(f"BROKEN: {', '.join(broken)}")
    return 1 if broken else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="The fault matrix.")
    parser.add_argument("--seeds", type=int, default=20, help="seeds a fault (20)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--jobs", type=int, default=4, help="worlds at once (4)")
    parser.add_argument("--only", default="", help="only faults whose name holds this text")
    parser.add_argument("--keep", type=Path, help="folder for journals and logs of what went wrong")
    parser.add_argument(
        "--history", type=float, default=0.0, metavar="MILLIONS",
        help="run each seed a second time, after so many million rows of the last ten minutes over 100 campaigns",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="list the faults")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; 130 when it was told to stop, with nothing left behind."""
    options = _arguments(argv)
    stop_as_if_interrupted()
    try:
        return _run(options, sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        return INTERRUPTED


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    if options.worker:
        end_with_parent(signal.SIGTERM)
        trio.run(work, options)
        return 0
    names = [name for name in FAULTS if options.only in name]
    if not names:
        print(f"no fault's name holds {options.only!r}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(names))
        return 0
    started = time.monotonic()
    results: list[Result] = []
    history = options.history > 0
    print(header(history=history), flush=True)
    for result in run_all(names, arguments, options.jobs):
        results.append(result)
        print(result.row(history=history), flush=True)
        for complaint in result.complaints[:5]:
            print(f"    {complaint}", flush=True)
    return report(results, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
