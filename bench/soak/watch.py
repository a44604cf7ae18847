"""A look at everything every few seconds: processes, both stores, and the engine's own metrics.

Owns the questions. What does not answer (it may be killed just now) has no gauges in that sample.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import psycopg
import redis

from bench.programs import program
from bench.run import percentile
from bench.sampling import APPLICATION, Sampler, store_pids
from bench.serving import Serving, ServingFailed
from bench.soak import record
from bench.soak.record import Sample
from bench.soak.steady import TICKS, Job, Tick
from engine.embedded import Stores

METRICS_SECONDS: Final = 5.0
_SERIES: Final = re.compile(r"^(headrace_\S+?)(\{.*\})? ([-+\d.eE]+)$", re.MULTILINE)
_MB: Final = 1e6

_SIZES: Final = """
SELECT pg_database_size(current_database()) / 1e6,
       (SELECT sum(pg_table_size(oid)) FROM pg_class WHERE relkind IN ('r', 'm') AND relnamespace = spaces.oid) / 1e6,
       (SELECT sum(pg_indexes_size(oid)) FROM pg_class WHERE relkind IN ('r', 'm') AND relnamespace = spaces.oid) / 1e6,
       (SELECT sum(size) FROM pg_ls_waldir()) / 1e6,
       (SELECT num_timed + num_requested FROM pg_stat_checkpointer),
       (SELECT sum(autovacuum_count) FROM pg_stat_all_tables),
       (SELECT sum(autoanalyze_count) FROM pg_stat_all_tables)
  FROM pg_namespace AS spaces WHERE nspname = 'public'
"""
_NAMES: Final = (
    record.DATABASE, record.TABLES, record.INDEXES, record.LOG, record.CHECKPOINTS, record.VACUUMS, record.ANALYZES,
)  # fmt: skip


class Watch:
    """Looks at one engine and its embedded stores. `roots` are of process trees, by role; they may grow."""

    def __init__(self, engine: Serving, stores: Stores) -> None:
        self.engine = engine
        self.stores = stores
        self.roots: dict[str, list[int]] = {
            "engine": [engine.process.pid], **store_pids(stores.db_url, stores.redis_url), "sender": []
        }  # fmt: skip
        self._redis = redis.Redis.from_url(stores.redis_url, socket_timeout=METRICS_SECONDS)
        self._postgres: psycopg.Connection[Any] | None = None

    def close(self) -> None:
        """The connections."""
        self._redis.close()
        if self._postgres is not None:
            self._postgres.close()

    def gauges(self) -> dict[str, float]:
        """What the stores say of themselves."""
        return {**self._of_redis(), **self._of_postgres()}

    def metrics(self) -> dict[str, float]:
        """What the engine counts: every series, but for buckets and times of creation."""
        try:
            text = httpx.get(f"{self.engine.api}/metrics", trust_env=False, timeout=METRICS_SECONDS).text
        except httpx.HTTPError:
            return {}
        return series_of(text)

    def _of_redis(self) -> dict[str, float]:
        try:
            memory = self._redis.info("memory")
        except (redis.RedisError, OSError):
            return {}
        return {record.REDIS_USED: memory["used_memory"] / _MB, record.REDIS_MAX: memory["maxmemory"] / _MB}

    def _of_postgres(self) -> dict[str, float]:
        try:
            if self._postgres is None or self._postgres.closed:
                url = self.stores.db_url
                self._postgres = psycopg.connect(url, autocommit=True, application_name=APPLICATION)
            row = self._postgres.execute(_SIZES).fetchone()
        except psycopg.OperationalError:
            if self._postgres is not None:
                self._postgres.close()
            return {}
        assert row is not None
        return dict(zip(_NAMES, map(float, row), strict=True))


def series_of(text: str) -> dict[str, float]:
    """Of Prometheus's text form; what is below one name stands by itself, with its labels."""
    return {
        name + (labels or ""): float(value)
        for name, labels, value in _SERIES.findall(text)
        if not name.endswith(("_bucket", "_created"))
    }


class Machine:
    """The CPU of the whole machine: `busy` gives the cores in use since the last call."""

    def __init__(self) -> None:
        self._last = time.monotonic(), _busy_seconds()

    def busy(self) -> float:
        """In cores."""
        now, seconds = time.monotonic(), _busy_seconds()
        (last_at, last_seconds), self._last = self._last, (now, seconds)
        return (seconds - last_seconds) / (now - last_at)


def _busy_seconds() -> float:
    """Of all processors since the start, what the hypervisor gave to others included."""
    user, nice, system, _idle, _wait, *more = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(more)) / os.sysconf("SC_CLK_TCK")


class Ticks:
    """What the sender tells, gathered by a thread: `take` gives what came since the last time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._lock = threading.Lock()
        self._ticks: list[Tick] = []
        self._thread = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._thread.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                with self._lock:
                    self._ticks.append(TICKS.decode(line))

    def take(self) -> list[Tick]:
        """In order."""
        with self._lock:
            taken, self._ticks = self._ticks, []
        return taken

    def join(self) -> None:
        """Wait until the sender has told all."""
        self._thread.join()


def sample_of(
    ticks: Sequence[Tick], before: float, looked: tuple[dict[str, float], dict[str, float]],
    gauges: dict[str, float], metrics: dict[str, float],
) -> Sample:  # fmt: skip
    """Some seconds of the load, from `before` on. `looked` are cores and memory by role."""
    latencies = sorted(latency for tick in ticks for latency in tick.latencies_ms)
    counted = {
        what: sum(getattr(tick, what) for tick in ticks) for what in ("accepted", "duplicate", "rejected", "refused")
    }
    return Sample(
        at_seconds=ticks[-1].at_seconds, seconds=round(ticks[-1].at_seconds - before, 3), **counted,
        reasons=dict(sum((Counter(tick.reasons) for tick in ticks), Counter())), requests=len(latencies),
        p50_ms=percentile(latencies, 0.5), p99_ms=percentile(latencies, 0.99), cores=looked[0], memory_mb=looked[1],
        gauges=gauges, metrics=metrics,
    )  # fmt: skip


def watched(watch: Watch, job: Job, every_seconds: float) -> Iterator[Sample]:
    """Run a load, and yield a sample every few seconds. Raises `ServingFailed` if the sender or the engine ends."""
    with program("bench.soak.steady", msgspec.msgpack.encode(job)) as process:
        watch.roots["sender"] = [process.pid]
        sampler, whole, ticks, before = Sampler(watch.roots), Machine(), Ticks(process), 0.0
        running = True
        while running:
            due = time.monotonic() + every_seconds
            while running and time.monotonic() < due:
                time.sleep(0.1)
                running = process.poll() is None
            if watch.engine.process.poll() is not None:
                raise ServingFailed(f"the engine ended with status {watch.engine.process.returncode} under the load")
            if running or not sampler.samples:
                sampler.look()
            else:
                ticks.join()  # its last words; the look before is of when it lived
            if taken := ticks.take():
                look = sampler.samples[-1]
                others = max(0.0, whole.busy() - sum(look.cores.values()))
                gauges = {**watch.gauges(), record.OTHERS: others}
                sample = sample_of(taken, before, (look.cores, look.memory_mb), gauges, watch.metrics())
                before = sample.at_seconds
                yield sample
        if process.returncode != 0:
            raise ServingFailed("the sender failed; what it said is above")
