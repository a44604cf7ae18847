"""Locust as a child process: started headless against a running engine, always ended, and held against the database.

Owns the process and what its figures are compared with. Knows nothing of locust itself, which lives in an environment
of its own (`make locust-setup`): see `bench.locustfile`. From the command line it is `make locust`.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import psycopg

from bench.results import LocustRun
from bench.scenario import Scenario
from bench.stand import HEADRACE, Stand, StandFailed, open_stand

ROOT: Final = Path(__file__).resolve().parents[1]
LOCUST: Final = ROOT / ".venv-locust" / "bin" / "locust"
SPARE_SECONDS: Final = 120.0  # to start, to make the campaigns, and to wait for the last answers
LOG_LINES: Final = 20


class LocustFailed(Exception):
    """Locust is not there, or did not end well; the message says what to do, or has the end of its output."""


@dataclass(frozen=True, slots=True)
class Swarm:
    """What is asked of locust."""

    users: int
    seconds: float
    processes: int = 1
    classes: Sequence[str] = ()  # of bench/locustfile.py; none: the mix of all
    batch: int = 100
    campaigns: int = 10
    rate: float | None = None  # events a second, of all senders together; None: closed loop


class Told(msgspec.Struct, frozen=True):
    """What locust writes with `--events-json`."""

    seconds: float
    requests: int
    failures: int
    offered: int
    accepted: int
    duplicate: int
    rejected: int
    refused: int
    rate: float | None
    offered_per_second: float
    achieved_per_second: float
    p50_ms: float
    p99_ms: float


def run_locust(stand: Stand, swarm: Swarm, *, shown: bool = False) -> LocustRun:
    """Run it against a stand that stays up, and compare. `shown`: with locust's tables. Raises `LocustFailed`."""
    before = _count_rows(stand.stores.db_url)
    told = drive(stand.api, stand.events, swarm, shown=shown)
    rows = _count_rows(stand.stores.db_url) - before
    return LocustRun(
        classes=list(swarm.classes), users=swarm.users, processes=swarm.processes, **msgspec.structs.asdict(told),
        rows=rows, audit_clean=_audit(stand.stores.db_url, stand.stores.redis_url, shown),
    )  # fmt: skip


def drive(api: str, intake: str, swarm: Swarm, *, shown: bool = False) -> Told:
    """Run it against any address. When this returns, no process of it is left. Raises `LocustFailed`."""
    if not LOCUST.exists():
        raise LocustFailed(f"locust is not installed in {LOCUST.parents[1].name}: make locust-setup")
    with tempfile.TemporaryDirectory(prefix="headrace-locust-") as folder:
        counts, log = Path(folder, "events.json"), Path(folder, "log")
        with log.open("w") as output:
            process = subprocess.Popen(
                _command(api, intake, swarm, counts), cwd=ROOT, env=_environment(), stdin=subprocess.DEVNULL,
                stdout=None if shown else output, stderr=None if shown else subprocess.STDOUT,
                start_new_session=True,  # a group of its own, workers included: it can be ended as a whole
            )  # fmt: skip
        try:
            status = process.wait(timeout=swarm.seconds + SPARE_SECONDS)
        except subprocess.TimeoutExpired:
            raise LocustFailed(_ending(log, "locust did not end in time")) from None
        finally:
            _end(process)
        if status != 0 or not counts.exists():
            raise LocustFailed(_ending(log, f"locust ended with status {status}"))
        return msgspec.json.decode(counts.read_bytes(), type=Told)


def _command(api: str, intake: str, swarm: Swarm, counts: Path) -> list[str]:
    command = [
        str(LOCUST), "--locustfile", "bench/locustfile.py", "--headless", "--only-summary", "--exit-code-on-error", "0",
        "--host", api, "--intake", intake, "--users", str(swarm.users), "--spawn-rate", str(swarm.users),
        "--run-time", f"{max(1, round(swarm.seconds))}s", "--batch", str(swarm.batch),
        "--campaigns", str(swarm.campaigns), "--rate", str(swarm.rate or 0), "--events-json", str(counts),
    ]  # fmt: skip
    if swarm.processes > 1:
        port = str(_free_port())
        command += ["--processes", str(swarm.processes), "--master-bind-host", "127.0.0.1"]
        command += ["--master-bind-port", port, "--master-port", port]
    return [*command, *swarm.classes]


def _environment() -> dict[str, str]:
    """Ours, without options for locust that somebody has set."""
    return {name: text for name, text in os.environ.items() if not name.startswith("LOCUST_")}


def _free_port() -> int:
    """Master and workers must both know it beforehand."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Master and workers, however they stand."""
    with suppress(ProcessLookupError):  # none is left, as it should be
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ending(log: Path, what: str) -> str:
    lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if "/ERROR/" in line]  # its tables come after them
    return "\n".join([what, *(errors or lines)[-LOG_LINES:]])


def _count_rows(db_url: str) -> int:
    with psycopg.connect(db_url) as connection:
        row = connection.execute("SELECT count(*) FROM events").fetchone()
    assert row is not None
    return int(row[0])


def _audit(db_url: str, redis_url: str, shown: bool) -> bool:
    """Whether `headrace audit` finds no difference."""
    sys.stdout.flush()
    output = None if shown else subprocess.DEVNULL
    environment = {"PATH": os.environ.get("PATH", ""), "DB_URL": db_url, "REDIS_URL": redis_url}
    command = [sys.executable, "-m", "api", "audit", "--no-halt"]
    return subprocess.run(command, env=environment, stdout=output, stderr=output, check=False).returncode == 0


# --- the command line ---------------------------------------------------------------------------------------------


def _run_on_own_engine(swarm: Swarm) -> int:
    print("starting headrace serve on fresh embedded stores", flush=True)
    with open_stand(HEADRACE, Scenario(about="", name="locust", campaigns=1)) as stand:
        run = run_locust(stand, swarm, shown=True)
    print(f"accepted: {run.accepted:,} events; rows that were added: {run.rows:,}")
    if not run.agrees:
        print("These differ, or the audit found a difference.", file=sys.stderr)
    return int(not run.agrees)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.locust_run", description=__doc__)
    parser.add_argument("classes", nargs="*", metavar="CLASS", help="of bench/locustfile.py (the mix of all)")
    parser.add_argument("--users", type=int, default=20, help="users at once (20)")
    parser.add_argument("--seconds", type=float, default=10.0, help="(10)")
    parser.add_argument("--processes", type=int, default=1, help="of locust (1)")
    parser.add_argument("--batch", type=int, default=100, help="events a request of those that send batches (100)")
    parser.add_argument("--rate", type=float, help="events a second to offer (as many as the users manage)")
    parser.add_argument("--api", help="base URL of the api of a running engine (one of its own, on fresh stores)")
    parser.add_argument("--intake", help="base URL of its intake (that of the api)")
    arguments = parser.parse_args(argv)
    if arguments.users < 1 or arguments.processes < 1 or arguments.batch < 1 or arguments.seconds < 1:
        parser.error("--users, --processes, --batch and --seconds are at least 1")
    if arguments.intake and not arguments.api:
        parser.error("--intake needs --api")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; exit status 0 if everything agrees."""
    arguments = _arguments(argv)
    swarm = Swarm(
        users=arguments.users, seconds=arguments.seconds, processes=arguments.processes, classes=arguments.classes,
        batch=arguments.batch, rate=arguments.rate,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: nothing of ours is left
    try:
        if not arguments.api:
            return _run_on_own_engine(swarm)
        drive(arguments.api, arguments.intake or arguments.api, swarm, shown=True)
        print("not compared with its database: run `headrace audit` where its stores are")
    except (LocustFailed, StandFailed) as failed:
        print(failed, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
