"""Who used what while a step ran: CPU and memory by role, from /proc; what Redis and Postgres say of themselves.

Owns the reading, and the words of it. A role is a set of process trees: the engine's (or a peer's), the sender's, and
those of the two stores. CPU of children that have ended counts with their parent, that of a root that has ended with
its role. The lists of roots may grow while a step runs: chaos mode starts again what it has killed.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import psycopg
import redis

from bench.results import Command, Sample, Use, Wait

_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MB: Final = 1e6
APPLICATION: Final = "headrace-bench"  # our own sessions in Postgres
# What Postgres waits for when it has nothing to do, or that another wait explains already.
_IDLE_WAITS: Final = frozenset({"ClientRead"})


def children() -> dict[int, list[int]]:
    """Of every process that there is now. One reading of /proc costs milliseconds: take one for many trees."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # it has just ended
            found.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    return found


def tree(root: int, below: Mapping[int, Sequence[int]]) -> set[int]:
    """A process and all below it, as far as they live."""
    found: set[int] = set()
    waiting = [root] if Path(f"/proc/{root}").exists() else []
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += below.get(pid, [])
    return found


def cpu_seconds(pids: set[int]) -> float:
    """User and system time of these, their ended children included."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
    return ticks / _TICK


def memory_mb(pids: set[int]) -> float:
    """Private pages of all, and the largest shared part once: Postgres's backends all map the same buffers."""
    private = shared_most = 0
    for pid in pids:
        try:
            _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
        except (OSError, ValueError):
            continue
        private += resident - shared
        shared_most = max(shared_most, shared)
    return (private + shared_most) * _PAGE / _MB


class Sampler:
    """Call `look` now and then while a step runs; `uses` and `samples` tell afterwards."""

    def __init__(self, roles: Mapping[str, Sequence[int]]) -> None:
        self._roles = roles
        self._started = self._last_at = time.monotonic()
        self._used: dict[int, float] = {}  # by root
        below = children()
        self._first = self._last = {role: self._take(roots, below)[1] for role, roots in roles.items()}
        self._memory_mb: dict[str, float] = dict.fromkeys(roles, 0.0)
        self._processes: dict[str, int] = dict.fromkeys(roles, 0)
        self.samples: list[Sample] = []

    def look(self) -> None:
        """One sample."""
        now = time.monotonic()
        below = children()
        trees, used = {}, {}
        for role, roots in self._roles.items():
            trees[role], used[role] = self._take(roots, below)
        memory = {role: memory_mb(pids) for role, pids in trees.items()}
        elapsed = now - self._last_at
        cores = {role: (used[role] - self._last[role]) / elapsed for role in trees} if elapsed else {}
        self.samples.append(Sample(round(now - self._started, 3), _rounded(cores), _rounded(memory)))
        self._last, self._last_at = used, now
        for role, pids in trees.items():
            self._memory_mb[role] = max(self._memory_mb[role], memory[role])
            self._processes[role] = max(self._processes[role], len(pids))

    def _take(self, roots: Sequence[int], below: Mapping[int, Sequence[int]]) -> tuple[set[int], float]:
        """All processes of a role, and the CPU that they have used; what a root had used stays when it has ended."""
        known, all_pids = set(roots), set[int]()  # (another thread may add a root meanwhile)
        for root in known:
            pids = tree(root, below)
            self._used[root] = max(cpu_seconds(pids), self._used.get(root, 0.0))
            all_pids |= pids
        return all_pids, sum(self._used[root] for root in known)

    def uses(self) -> list[Use]:
        """From the first look to the last one."""
        return [
            Use(role, self._processes[role], round(self._last[role] - self._first[role], 3), self._memory_mb[role])
            for role in self._roles
        ]


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


class StoreWatch:
    """What the stores say of themselves from here on: `look` asks Postgres what its backends wait for."""

    def __init__(self, db_url: str, redis_url: str) -> None:
        self._db_url = db_url
        self._postgres = self._connect()
        self._redis = redis.Redis.from_url(redis_url)
        self._redis.config_resetstat()
        self._seen: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._postgres.close()
        self._redis.close()

    def look(self) -> None:
        """One look at every busy backend; none while Postgres is away (chaos mode)."""
        try:
            if self._postgres.closed:
                self._postgres = self._connect()
            rows = self._postgres.execute(
                "SELECT coalesce(wait_event, 'CPU') FROM pg_stat_activity"
                " WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchall()
        except psycopg.OperationalError:
            self._postgres.close()
            return
        self._seen.update(event for (event,) in rows if event not in _IDLE_WAITS)

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self._db_url, autocommit=True, application_name=APPLICATION)

    def waits(self) -> list[Wait]:
        """The most frequent first."""
        looks = self._seen.total()
        return [Wait(event, round(count / looks, 3)) for event, count in self._seen.most_common()]

    def commands(self) -> list[Command]:
        """What Redis was asked, the costliest first."""
        stats = self._redis.info("commandstats")
        rows = [
            Command(name.removeprefix("cmdstat_"), stat["calls"], stat["usec_per_call"]) for name, stat in stats.items()
        ]
        return sorted(rows, key=lambda row: -row.calls * row.us_a_call)


def store_pids(db_url: str, redis_url: str) -> dict[str, list[int]]:
    """The roots of both stores' process trees."""
    with psycopg.connect(db_url) as connection:
        (data,) = connection.execute("SHOW data_directory").fetchone() or ("",)
    postmaster = int((Path(data) / "postmaster.pid").read_text().split()[0])
    with redis.Redis.from_url(redis_url) as client:
        return {"postgres": [postmaster], "redis": [int(client.info("server")["process_id"])]}
