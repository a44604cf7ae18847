"""Chaos mode: any scenario, with a fault in the middle of its load; throughput through it, recovery, and the audit.

Owns the faults. How a fault is timed is in bench/injection.py, and what it is done to in bench/stand.py. tests/faults
proves the promises with many more faults and seeds; this shows what a fault costs under full load, and audits it all
the same.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psycopg
import redis

from bench.injection import Injection, Pause
from bench.proxy import Flow, Proxy
from bench.run import Experiment, Load
from bench.sampling import APPLICATION, children, store_pids
from bench.scenario import Scenario
from bench.stand import HEADRACE, Stand, StandFailed
from bench.systems import workers

CONNECTIONS: Final = 32
BATCH: Final = 100
WARM_SECONDS: Final = 1.5
SECONDS: Final = 15.0
END_SECONDS_MAX: Final = 60.0  # of a process that was told to end
FROZEN_SECONDS: Final = 5.0
STALLED_SECONDS: Final = 2.0
CUT_SECONDS: Final = 1.0
SLOW_SECONDS: Final = 3.0
DELAY_SECONDS: Final = 0.02  # of every piece, each way


# --- The engine ------------------------------------------------------------------------------------------------


def engine_killed(stand: Stand, _: Pause) -> None:
    """Kill -9, and it is started again at once."""
    stand.kill()
    stand.relaunch()


def worker_killed(stand: Stand, _: Pause) -> None:
    """Kill -9 of one of two workers; their supervisor starts another one."""
    os.kill(children()[stand.process.pid][0], signal.SIGKILL)


def engine_frozen(stand: Stand, pause: Pause) -> None:
    """SIGSTOP, and SIGCONT five seconds later."""
    _freeze(stand.process.pid, pause)


def _freeze(pid: int, pause: Pause) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        pause(FROZEN_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)


# --- The stores ------------------------------------------------------------------------------------------------


def redis_killed(stand: Stand, _: Pause) -> None:
    """Kill -9, and it comes back empty."""
    _end(_root(stand, "redis"), signal.SIGKILL)
    stand.revive_stores()


def redis_emptied(stand: Stand, _: Pause) -> None:
    """FLUSHALL."""
    with redis.Redis.from_url(stand.stores.redis_url) as client:
        client.flushall()


def redis_frozen(stand: Stand, pause: Pause) -> None:
    """It says nothing for five seconds, and then does what it was told meanwhile."""
    _freeze(_root(stand, "redis"), pause)


def restarted(sign: signal.Signals, how: str) -> Callable[[Stand, Pause], None]:
    """Postgres: its main process gets a signal, and is started again."""

    def restart(stand: Stand, _: Pause) -> None:
        _end(_root(stand, "postgres"), sign)
        stand.revive_stores()

    restart.__doc__ = how
    return restart


def backend_killed(stand: Stand, _: Pause) -> None:
    """Kill -9 of one session of the engine: Postgres ends all others, and replays its log."""
    with psycopg.connect(stand.stores.db_url, autocommit=True, application_name=APPLICATION) as connection:
        found = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> %s"
            " ORDER BY state = 'active' DESC LIMIT 1",
            [APPLICATION],
        ).fetchone()
        if found is None:
            raise StandFailed("the engine has no session in Postgres")
        os.kill(found[0], signal.SIGKILL)
        with suppress(psycopg.OperationalError):  # it ends as all others do
            connection.execute("SELECT pg_sleep(%s)", [END_SECONDS_MAX])
            raise StandFailed("Postgres has not ended its other sessions")
    _wait_until(lambda: _takes_sessions(stand.stores.db_url), "Postgres takes sessions again")


def _root(stand: Stand, role: str) -> int:
    return store_pids(stand.stores.db_url, stand.stores.redis_url)[role][0]


def _end(pid: int, sign: signal.Signals) -> None:
    os.kill(pid, sign)
    _wait_until(lambda: _has_ended(pid), f"process {pid} ends")


def _has_ended(pid: int) -> bool:
    """A zombie has ended: whoever should bury it may never do so in a container."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _takes_sessions(db_url: str) -> bool:
    try:
        psycopg.connect(db_url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _wait_until(look: Callable[[], bool], what: str) -> None:
    end_at = time.monotonic() + END_SECONDS_MAX
    while not look():
        if time.monotonic() > end_at:
            raise StandFailed(f"did not happen within {END_SECONDS_MAX:.0f} s: {what}")
        time.sleep(0.02)


# --- The network -----------------------------------------------------------------------------------------------


def network_slow(stand: Stand, pause: Pause) -> None:
    """Every piece takes 20 ms each way between engine and stores, for three seconds."""

    def delay(proxy: Proxy) -> None:
        proxy.there.delay_seconds = proxy.back.delay_seconds = DELAY_SECONDS

    _disturb(stand, delay, SLOW_SECONDS, pause)


def network_cut(stand: Stand, pause: Pause) -> None:
    """All connections between engine and stores are cut, and for a second there are no new ones."""

    def cut(proxy: Proxy) -> None:
        proxy.refusing = True
        proxy.cut()

    _disturb(stand, cut, CUT_SECONDS, pause)


def network_stalled(stand: Stand, pause: Pause) -> None:
    """Bytes between engine and stores wait for two seconds, and are delivered then."""

    def stall(proxy: Proxy) -> None:
        proxy.there.flow = proxy.back.flow = Flow.STALL

    _disturb(stand, stall, STALLED_SECONDS, pause)


def _disturb(stand: Stand, change: Callable[[Proxy], None], seconds: float, pause: Pause) -> None:
    assert stand.wires is not None, "a fault of the network needs proxies"
    stand.wires.each(change)
    pause(seconds)
    stand.wires.each(Proxy.mend)


# --- Experiments -----------------------------------------------------------------------------------------------

WORKER_KILLED: Final = "worker-killed"
FAULTS: Final = {
    injection.name: injection
    for injection in (
        Injection("engine-killed", engine_killed),
        Injection(WORKER_KILLED, worker_killed),
        Injection("engine-frozen", engine_frozen),
        Injection("redis-killed", redis_killed),
        Injection("redis-emptied", redis_emptied),
        Injection("redis-frozen", redis_frozen),
        Injection("postgres-fast-restart", restarted(signal.SIGINT, "Sessions are ended, and it is started again.")),
        Injection("postgres-immediate-restart", restarted(signal.SIGQUIT, "It ends at once, and replays its log.")),
        Injection("postmaster-killed", restarted(signal.SIGKILL, "Kill -9, and it is started again.")),
        Injection("backend-killed", backend_killed),
        Injection("network-slow", network_slow, wired=True),
        Injection("network-cut", network_cut, wired=True),
        Injection("network-stalled", network_stalled, wired=True),
    )
}


def chaos_experiments(
    scenario: Scenario, faults: Sequence[str] = tuple(FAULTS), seconds: float = SECONDS
) -> Iterator[Experiment]:
    """One a fault, by its name in `FAULTS`: the fault begins when a third of the seconds has passed."""
    for name in faults:
        system = workers(2) if name == WORKER_KILLED else HEADRACE
        loads = [Load(CONNECTIONS, WARM_SECONDS), Load(CONNECTIONS, seconds)]
        yield Experiment(f"chaos {scenario.name}: {name}", system, scenario, BATCH, loads, injection=FAULTS[name])
