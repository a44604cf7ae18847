"""What is to be recovered from, at the end of a soak: Redis killed, Redis emptied, or the engine stopped and started.

Owns how each is done, and how long campaigns are away. The load meanwhile is a light one of its own (bench/soak/probe).
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec
import redis

from bench.programs import program
from bench.sampling import store_pids
from bench.serving import ServingFailed, address_held
from bench.soak.probe import SEEN, Job
from bench.soak.record import Restart
from bench.soak.watch import Watch

KINDS: Final = ("kill-redis", "empty-redis", "stop-start")
AGAIN_SECONDS_MAX: Final = 600.0  # then it is given up
BEFORE_SECONDS: Final = 10.0  # of light load, before it happens
MINUTE: Final = 60.0  # in which look-ups are counted, twice
_LOOK_SECONDS: Final = 0.02
_STEP_SECONDS: Final = 1.0
_TELLING: Final = re.compile(r"look|late|behind")  # counters of look-ups and late events, whatever they are called
_COUNTERS: Final = re.compile(r"_(total|count)(\{.*\})?$")


class Asking:
    """The light load while it runs. `seen`: campaigns that have accepted an event since the last mark, and when."""

    def __init__(self, process: subprocess.Popen[bytes], campaigns: int) -> None:
        self.campaigns = campaigns
        self.seen: dict[int, float] = {}
        self._marks = 0
        self._process = process
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                seen = SEEN.decode(line)
                if seen.mark == self._marks:  # else it was told before the mark
                    self.seen[seen.campaign] = seen.at

    def end(self) -> None:
        """Stop asking, and wait for the last answers."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=MINUTE)
        self._thread.join()

    def mark(self) -> None:
        """From here on every campaign is to be seen anew."""
        assert self._process.stdin is not None
        self._marks += 1
        self.seen = {}
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def wait(self, seconds: float) -> bool:
        """Until all campaigns are seen, or so long. Raises `ServingFailed` when the probe has ended."""
        end_at = time.monotonic() + seconds
        while len(self.seen) < self.campaigns and time.monotonic() < end_at:
            if self._process.poll() is not None:
                raise ServingFailed("the probing load failed; what it said is above")
            time.sleep(_LOOK_SECONDS)
        return len(self.seen) == self.campaigns


@contextmanager
def asking(host: str, port: int, campaigns: Sequence[int]) -> Iterator[Asking]:
    """A light load of fresh ids over all campaigns, for as long as the block lasts."""
    job = msgspec.json.encode(Job(host, port, list(campaigns))) + b"\n"
    with program("bench.soak.probe", job, more=True) as process:
        asked = Asking(process, len(campaigns))
        yield asked
        asked.end()


def restarted(watch: Watch, asked: Asking, kind: str, *, minute: float = MINUTE) -> Restart:
    """Make it happen, and wait until all campaigns take events again, and for two minutes from when it was over."""
    watch.metrics()
    before = _rates(watch, time.monotonic() + BEFORE_SECONDS * minute / MINUTE)
    begun, back, listening = _DONE[kind](watch, asked)
    minutes = [_rates(watch, back + number * minute) for number in (1, 2)]
    asked.wait(max(0.0, back + AGAIN_SECONDS_MAX - time.monotonic()))
    seconds = sorted(at - back for at in asked.seen.values())
    names = sorted(set(before) | set(minutes[0]) | set(minutes[1]))
    return Restart(
        kind=kind, campaigns=asked.campaigns, back_seconds=round(back - begun, 3),
        listening_seconds=None if listening is None else round(listening - back, 3),
        first_seconds=reached(seconds, 1), half_seconds=reached(seconds, -(-asked.campaigns // 2)),
        all_seconds=reached(seconds, asked.campaigns), never=asked.campaigns - len(seconds),
        look_ups={name: tuple(each.get(name, 0.0) for each in (before, *minutes)) for name in names},  # type: ignore[misc]
    )  # fmt: skip


def reached(seconds: Sequence[float], campaigns: int) -> float | None:
    """When so many campaigns had been seen; `seconds` of each, in order."""
    return round(max(0.0, seconds[campaigns - 1]), 3) if len(seconds) >= campaigns else None


def rises(readings: Sequence[dict[str, float]]) -> dict[str, float]:
    """How much each counter of look-ups or late events has risen. One that fell has begun anew, with its process."""
    risen: dict[str, float] = {}
    known = [reading for reading in readings if reading]
    for earlier, later in itertools.pairwise(known):
        for name, value in later.items():
            if _TELLING.search(name) and _COUNTERS.search(name):
                last = earlier.get(name, 0.0)
                risen[name] = risen.get(name, 0.0) + (value - last if value >= last else value)
    return risen


def _rates(watch: Watch, until: float) -> dict[str, float]:
    """Of the counters of look-ups, a second, from now on."""
    started, readings = time.monotonic(), [watch.metrics()]
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(_STEP_SECONDS, left))
        readings.append(watch.metrics())
    seconds = time.monotonic() - started
    return {name: rise / seconds for name, rise in rises(readings).items()} if seconds > 0 else {}


# --- What happens -----------------------------------------------------------------------------------------------

# When it began, when it was over, and when the engine listened, if it was started.
Times = tuple[float, float, float | None]


def _kill_redis(watch: Watch, asked: Asking) -> Times:
    """Kill -9; the program that keeps it starts it again."""
    begun = time.monotonic()
    (pid,) = _pids(watch)["redis"]
    os.kill(pid, signal.SIGKILL)
    _until(lambda: not _answers(watch))
    asked.mark()
    _until(lambda: _answers(watch))
    back = time.monotonic()
    watch.roots["redis"] += _pids(watch)["redis"]
    return begun, back, None


def _empty_redis(watch: Watch, asked: Asking) -> Times:
    begun = time.monotonic()
    with redis.Redis.from_url(watch.stores.redis_url) as client:
        client.flushall(asynchronous=True)
    back = time.monotonic()
    asked.mark()
    return begun, back, None


def _stop_start(watch: Watch, asked: Asking) -> Times:
    """SIGTERM, which stops the embedded stores, too; Redis keeps nothing of what it knew."""
    watch.engine.stop()
    begun = time.monotonic()
    with address_held(watch.engine.api), address_held(watch.engine.intake):
        asked.mark()
        back = time.monotonic()
        watch.engine.launch()
        listening = time.monotonic()
    watch.roots["engine"].append(watch.engine.process.pid)
    for role, pids in _pids(watch).items():
        watch.roots[role] += pids
    return begun, back, listening


_DONE: Final[dict[str, Callable[[Watch, Asking], Times]]] = dict(
    zip(KINDS, (_kill_redis, _empty_redis, _stop_start), strict=True)
)


def _pids(watch: Watch) -> dict[str, list[int]]:
    return store_pids(watch.stores.db_url, watch.stores.redis_url)


def _answers(watch: Watch) -> bool:
    try:
        with redis.Redis.from_url(watch.stores.redis_url, socket_timeout=1.0) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def _until(look: Callable[[], bool]) -> None:
    end_at = time.monotonic() + MINUTE
    while not look():
        if time.monotonic() > end_at:
            raise ServingFailed("Redis does not end, or does not come back")
        time.sleep(_LOOK_SECONDS / 4)
