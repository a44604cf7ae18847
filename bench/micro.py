"""`python -m bench.micro BEFORE [AFTER]`: the micro benchmarks of two checkouts in turn, and the comparison.

Owns processes, their order, and what is made of their samples. What is measured is in micro_work.py, and it is this
checkout's for both sides: only engine, api and config are those of the checkout that is measured.

Why the figures hold still:

- They are CPU, not time.
- Within a round the two sides take turns sample by sample (a b, b a, …), a few milliseconds each, so that whatever the
  machine does besides meets both. A round keeps the turn whose ratio is the median of all its turns: that of two
  samples a few milliseconds apart is steadier than any figure of each side by itself.
- A process may be faster or slower than its twin for all its life (where its memory lies, how it hashes). So each round
  has two new processes; it gives both the same hash seed, another one each round.
- Two sets of stores go to the other side every round, with a fresh database and an emptied Redis.

To see that it can be trusted on a machine, compare a clone with itself ten times: there is no difference. Then add
`sum(range(len(body) // 100))` to `_read_array` in the clone's api/codec.py, which is a twentieth of what it costs to
decode a batch: `--only "decode, batch"` finds it slower. Beside other load that takes more `--rounds`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psycopg
import redis
from rich.console import Console

from bench.compare import INCOMPARABLE, Incomparable, compare, show, status
from bench.machine import commit, machine
from bench.micro_work import IN_MEMORY, MICROS
from bench.results import FORMAT, Micro, Result, write_result
from config.settings import Settings
from engine.embedded import Stores, open_stores

ROUNDS: Final = 40
# Turns of a round, odd so that one of them is the median. Single samples differ by a fifth on a busy machine.
TURNS: Final = 51
TURNS_OF_STORES: Final = 9  # each of them takes ten times as long
SUITE: Final = "micros"
HERE: Final = Path(__file__).resolve().parents[1]
_NO_STORES: Final = Stores("", "")
# `bench` is bound to this checkout before the other one comes first; -P keeps the working folder out.
_START: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); import bench; sys.path[0] = sys.argv[2];"
    " from bench.micro_work import main; main(*sys.argv[2:])"
)


class MicroFailed(Exception):
    """A checkout can't be measured; the message has the end of what its process said."""


@dataclass(slots=True)
class Samples:
    """Of one checkout. `missing`: micros that it can't do, and why."""

    checkout: Path
    of: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class Worker:
    """A process that does the work of one checkout when asked."""

    def __init__(self, checkout: Path, names: Sequence[str], stores: Stores, seed: int, log: Path) -> None:
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(HERE), str(checkout), json.dumps(names),
                 stores.db_url, stores.redis_url, str(seed)],
                env={**os.environ, "PYTHONHASHSEED": str(1 + seed)}, cwd=checkout,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                start_new_session=True,  # the terminal's Ctrl-C is for us, and we end it
            )  # fmt: skip

    def ready(self) -> dict[str, str]:
        """Wait until it is; the micros that it can't do, and why."""
        missing: dict[str, str] = json.loads(self._line())
        return missing

    def ask(self, name: str) -> float:
        """One sample."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is told by the answer that does not come
            self._process.stdin.write(f"{name}\n")
            self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise MicroFailed("\n".join(self._log.read_text(errors="replace").splitlines()[-10:]))
        return line

    def end(self) -> None:
        """However it stands: when this returns, it is no more."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # a question that nobody read
                    stream.close()


# --- Rounds -------------------------------------------------------------------------------------------------


def run_micros(rounds: int = ROUNDS, names: Sequence[str] = tuple(MICROS), checkout: Path = HERE) -> list[Micro]:
    """The micros of one checkout, for a result of the suite. Raises `MicroFailed`."""
    (only,) = measure([checkout], rounds, names)
    if only.missing:
        raise MicroFailed("\n".join(f"{name}: {why}" for name, why in only.missing.items()))
    return [Micro(name, samples) for name, samples in only.of.items()]


def micro_pair(
    checkout_a: Path, checkout_b: Path, rounds: int = ROUNDS, names: Sequence[str] = tuple(MICROS)
) -> tuple[Result, Result]:
    """Two checkouts in turn. Raises `MicroFailed`."""
    started_at, started = datetime.now(UTC).isoformat(timespec="microseconds"), time.monotonic()
    sides = measure([checkout_a, checkout_b], rounds, names)
    seconds = time.monotonic() - started
    for side in sides:
        for name, why in side.missing.items():
            print(f"{side.checkout} can't do {name}: {why}", file=sys.stderr)
    a, b = (
        Result(
            FORMAT, *commit(side.checkout), started_at, seconds, machine(), {}, SUITE, [],
            [Micro(name, samples) for name, samples in side.of.items()],
        )
        for side in sides
    )  # fmt: skip
    return a, b


def measure(checkouts: Sequence[Path], rounds: int, names: Sequence[str]) -> list[Samples]:
    """Samples of each checkout, one a round. What one of them can't do is left out of all, and told."""
    sides = [Samples(checkout.resolve()) for checkout in checkouts]
    with tempfile.TemporaryDirectory(prefix="headrace-micro-") as folder, ExitStack() as stack:
        Path(folder).chmod(0o711)  # the user whom root runs the stores as must get through
        stores = [
            _NO_STORES if set(names) <= set(IN_MEMORY) else stack.enter_context(_stores(Path(folder) / str(number)))
            for number in range(len(sides))
        ]
        for round_ in range(rounds):
            turned = stores if round_ % 2 == 0 else stores[::-1]
            _round(sides, round_, names, turned, Path(folder))
    return sides


@contextmanager
def _stores(folder: Path) -> Iterator[Stores]:
    with open_stores(Settings(data=str(folder), db_url="", redis_url="")) as stores:
        yield stores


def _round(sides: Sequence[Samples], round_: int, names: Sequence[str], stores: Sequence[Stores], folder: Path) -> None:
    """New processes, and a sample of each micro."""
    with ExitStack() as stack:
        workers: list[Worker] = []
        for side, each in zip(sides, stores, strict=True):
            fresh = stack.enter_context(_fresh(each))
            workers.append(Worker(side.checkout, names, fresh, round_, folder / f"{len(workers)}.log"))
            stack.callback(workers[-1].end)
        try:
            for side, worker in zip(sides, workers, strict=True):
                side.missing |= worker.ready()
            able = [name for name in names if not any(name in side.missing for side in sides)]
            for name in able:
                found = _in_turn(workers, name, round_)
                for side, sample in zip(sides, found, strict=True):
                    side.of.setdefault(name, []).append(sample)
        except MicroFailed as failed:
            checkouts = " or ".join(str(side.checkout) for side in sides)
            raise MicroFailed(f"round {round_} of {checkouts} failed; the end of its log:\n{failed}") from None


def _in_turn(workers: Sequence[Worker], name: str, round_: int) -> Sequence[float]:
    """Samples a b, b a, …, and of them the median turn; who was first in the round before is second in this one."""
    turns: list[list[float]] = []
    order = list(range(len(workers)))
    for number in range(TURNS if name in IN_MEMORY else TURNS_OF_STORES):
        turn = [0.0 for _ in workers]
        for at in order if (number + round_) % 2 == 0 else reversed(order):
            turn[at] = workers[at].ask(name)
        turns.append(turn)
    return median_turn(turns)


def median_turn(turns: Sequence[Sequence[float]]) -> Sequence[float]:
    """The turn whose ratio, last to first, is the median; of a single side, the median sample."""
    by_ratio = sorted(turns, key=lambda turn: turn[-1] / turn[0] if len(turn) > 1 else turn[0])
    return by_ratio[len(by_ratio) // 2]


@contextmanager
def _fresh(stores: Stores) -> Iterator[Stores]:
    """A database of its own, and an empty Redis."""
    if stores is _NO_STORES:
        yield stores
        return
    with redis.Redis.from_url(stores.redis_url) as client:
        client.flushall()
        client.function_flush("SYNC")
    name = f"micro_{uuid.uuid4().hex}"
    with psycopg.connect(stores.db_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    try:
        yield Stores(urlsplit(stores.db_url)._replace(path=f"/{name}").geturl(), stores.redis_url)
    finally:
        with psycopg.connect(stores.db_url, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


# --- The command --------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line."""
    parser.add_argument("before", type=Path, help="folder of a checkout")
    parser.add_argument("after", type=Path, nargs="?", default=HERE, help="another one (this one)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"two new processes each ({ROUNDS})")
    parser.add_argument("--only", default="", help="micros whose names hold this; `memory`: those without a store")
    parser.add_argument("--into", type=Path, help="folder for the two results, before.json and after.json")


def chosen(only: str) -> list[str]:
    """Names of micros. Raises `MicroFailed` when there are none."""
    names = [name for name in MICROS if name in IN_MEMORY or only != "memory"]
    if only and only != "memory":
        names = [name for name in MICROS if only in name]
    if not names:
        raise MicroFailed(f"no micro has {only!r} in its name; there are: {', '.join(MICROS)}")
    return names


def run(options: argparse.Namespace) -> int:
    """Measure both, compare and tell. Status 1: something is slower; 2: no comparison."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        results = micro_pair(options.before, options.after, options.rounds, chosen(options.only))
        if options.into is not None:
            options.into.mkdir(parents=True, exist_ok=True)
            for name, result in zip(("before", "after"), results, strict=True):
                write_result(result, options.into / f"{name}.json")
        compared = compare(*results)
    except (MicroFailed, Incomparable) as failed:
        console.print(str(failed), style="bold red")
        return INCOMPARABLE
    show(*results, compared, console)
    return status(compared)
