"""One engine process under fault: its proxies to both stores, its clocks, its life.

Owns the process, its addresses, and what of it nobody asked for: an end that no fault caused, an exception in its log.
Knows no load and no checker.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import trio

from bench.proxy import Proxy, open_proxy
from tests.e2e.program import environment
from tests.faults.load import client_of
from tests.faults.process import CLOCK, run, write_clock
from tests.faults.servers import PostgresServer, RedisServer, is_frozen
from tests.faults.waiting import within

START_SECONDS = 60.0
_RECORD = re.compile(r"^(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,)", re.MULTILINE)  # where one begins in a log
_EXCEPTION = re.compile(r"Traceback|its actor failed|RuntimeWarning")
_TOLD_MAX = 3_000
# Engines are forked from a process that has imported everything: a start costs a tenth of what it did.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.faults.process", "tests.faults.forked"])
# Short times, so that many seeds fit into an hour; the order between them is that of the defaults.
QUICK = {
    "HEADRACE_HEARTBEAT_SECONDS": "0.25",
    "HEADRACE_ENGINE_DEAD_SECONDS": "1.0",
    "HEADRACE_LEDGER_TIMEOUT_SECONDS": "1.0",
    "HEADRACE_FLUSH_TIMEOUT_SECONDS": "1.5",
    "HEADRACE_QUERY_TIMEOUT_SECONDS": "1.5",
    "HEADRACE_REQUEST_DEADLINE_SECONDS": "2.5",
    "HEADRACE_DRAIN_SECONDS": "5",
    "HEADRACE_OUTAGE_QUIET_SECONDS": "0.1",  # a seed ends when engines are ready: nobody is to wait for that alone
}


class EngineProcess:
    """Started, ended and started again; each start may have other settings."""

    def __init__(self, name: str, folder: Path, redis: Proxy, postgres: Proxy, settings: Mapping[str, str]) -> None:
        self.name = name
        self.redis = redis
        self.postgres = postgres
        self.settings = dict(settings)
        self.log = folder / f"{name}.log"
        self.log.touch()
        self.intake = ""
        self.api = ""
        self.process: multiprocessing.context.ForkServerProcess | None = None
        self._clock = folder / f"{name}.clock"
        self._said = folder / f"{name}.out"
        self._caused = True  # whether a fault ends this process, or has looked at its end itself
        self._ends: list[str] = []
        self._is_special = False
        self._log_read = 0
        self._off_seconds = 0.0
        self.tell_clock: Callable[[str, float], None] = lambda name, seconds: None
        self.move_clock()

    @property
    def alive(self) -> bool:
        """Whether its process runs, be it frozen."""
        return self.process is not None and self.process.is_alive()

    @property
    def frozen(self) -> bool:
        """Whether its process has stopped on a signal."""
        return self.alive and is_frozen(self.pid)

    @property
    def listeners(self) -> list[str]:
        """Where a sender may send, while it runs: mostly its intake, sometimes its api."""
        return [url for url in (self.intake, self.intake, self.api) if url]

    @property
    def pid(self) -> int:
        """Its process, be it alive or not."""
        assert self.process is not None
        assert self.process.pid is not None
        return self.process.pid

    def launch(self, **settings: str) -> None:
        """Start the process, without waiting for it. `settings` by variable."""
        env = {
            "DB_URL": f"postgresql://headrace@127.0.0.1:{self.postgres.port}/postgres",
            "REDIS_URL": f"redis://127.0.0.1:{self.redis.port}",
            "HEADRACE_API": "127.0.0.1:0",
            "HEADRACE_INTAKE": "127.0.0.1:0",
            CLOCK: str(self._clock),
            **self.settings,
            **settings,
        }
        self._said.write_text("")
        self._is_special = bool(settings)
        self._caused = "=kill" in settings.get("HEADRACE_FAILPOINT", "")
        self.process = _FORKS.Process(target=run, args=(environment(env), str(self._said), str(self.log)), daemon=True)
        self.process.start()

    async def addresses(self) -> bool:
        """Wait for its two addresses; False when it ended instead."""
        while self.alive:
            found = re.findall(r"(http://[\d.]+:\d+)\n", self._said.read_text())
            if len(found) == 2:
                self.api, self.intake = found
                return True
            await trio.sleep(0.02)
        return False

    async def start(self) -> None:
        """Start it unless it runs, and wait until it is ready; what dies while starting is started again."""
        with within(START_SECONDS, f"engine {self.name} is ready"):
            while not await self.ready():
                if not self.alive:
                    await self._note_end()
                    self.launch()
                    await self.addresses()
                await trio.sleep(0.05)

    async def drop_specials(self) -> None:
        """Kill it if it was started with settings of its own: the next start is as usual."""
        if self._is_special:
            await self.kill()

    async def ready(self) -> bool:
        """Whether `/readyz` says so."""
        if not self.alive:
            return False
        try:
            async with client_of(5) as client:
                return (await client.get(f"{self.api}/readyz")).status_code == 200
        except httpx.HTTPError:
            return False

    def send_signal(self, sign: signal.Signals) -> None:
        """Send it a signal."""
        if self.alive:
            self._caused |= sign in (signal.SIGKILL, signal.SIGTERM)
            with suppress(ProcessLookupError):  # (its parent has heard of its end before us)
                os.kill(self.pid, sign)

    async def ended(self, seconds: float = START_SECONDS) -> int:
        """Wait for its end, which is no surprise from now on; the exit status."""
        assert self.process is not None
        process = self.process
        with within(seconds, f"engine {self.name} ends"):
            await trio.lowlevel.wait_readable(process.sentinel)
        process.join()
        self._caused = True
        self.intake = self.api = ""
        assert process.exitcode is not None
        return process.exitcode

    async def kill(self) -> None:
        """Kill -9, whatever state it is in."""
        self.send_signal(signal.SIGKILL)
        await self._note_end()

    async def _note_end(self) -> None:
        """Wait for its end; one that nobody caused is a surprise."""
        if self.process is not None:
            caused = self._caused
            status = await self.ended()
            if not caused:
                self._ends.append(f"engine {self.name} ended by itself, with status {status}")

    def new_log(self) -> str:
        """What its log says since surprises were taken."""
        with open(self.log, "rb") as log:
            log.seek(self._log_read)
            return log.read().decode(errors="replace")

    async def take_surprises(self, *, may_end: bool = False, excuse: str = "") -> list[str]:
        """Ends and exceptions since the last call, but for ends that are allowed and records that match `excuse`."""
        if not self.alive:
            await self._note_end()
        text = self.new_log()
        self._log_read = self.log.stat().st_size
        told = [] if may_end else self._ends
        self._ends = []
        for record in _RECORD.split(text):
            if _EXCEPTION.search(record) and not (excuse and re.search(excuse, record)):
                told.append(f"engine {self.name} logged: {_shortened(record)}")
        return told

    def move_clock(
        self, own_seconds: float = 0.0, compared_seconds: float = 0.0, even_seconds: float | None = None
    ) -> None:
        """Move its clocks (see process.py), at once. The even one, if not told, goes along with the whole world."""
        # (How far off it was is told, too: the engine follows a little later.)
        self.tell_clock(self.name, self._off_seconds)
        self.tell_clock(self.name, own_seconds)
        self._off_seconds = own_seconds
        even_seconds = own_seconds - compared_seconds if even_seconds is None else even_seconds
        write_clock(
            self._clock, *(int(seconds * 1_000_000) for seconds in (own_seconds, compared_seconds, even_seconds))
        )

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request to its api. Raises `httpx.HTTPError`."""
        async with client_of(10) as client:
            return await client.request(method, f"{self.api}{path}", **options)


def _shortened(record: str) -> str:
    """Beginning and end of a long record: the cause is in one of them."""
    half = _TOLD_MAX // 2
    return record if len(record) <= _TOLD_MAX else f"{record[:half]}\n[...]\n{record[-half:]}"


@asynccontextmanager
async def open_engine_process(
    name: str, folder: Path, redis: RedisServer, postgres: PostgresServer, settings: Mapping[str, str]
) -> AsyncIterator[EngineProcess]:
    """An engine behind proxies of its own, not yet started; killed at the end."""
    async with AsyncExitStack() as stack:
        to_redis = await stack.enter_async_context(open_proxy(redis.port))
        to_postgres = await stack.enter_async_context(open_proxy(postgres.port))
        engine = EngineProcess(name, folder, to_redis, to_postgres, settings)
        try:
            yield engine
        finally:
            with trio.CancelScope(shield=True):
                await engine.kill()
