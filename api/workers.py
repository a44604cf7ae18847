"""Several serving processes under one supervisor.

Owns how many there are, their restarts and their common end. The supervisor holds the embedded stores and both
addresses, and serves nothing itself: the kernel spreads connections over the workers' own sockets. The workers
are symmetric and share no state; what they agree on is in the stores.

A crashed worker is started again, `HEADRACE_RESTARTS_MAX` times within `HEADRACE_RESTART_WINDOW_SECONDS`; then
everything stops, because a fault that comes back at once is not cured by restarts. A worker whose supervisor
died sees the end of its standard input, and drains.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from typing import Final

import trio
from prometheus_client.multiprocess import mark_process_dead

from api.serve import DRAIN_SLACK_SECONDS, Listeners, bind
from config.settings import Settings, variable
from engine.embedded import Stores

WORK: Final = (sys.executable, "-c", "import sys; from api.serve import work; sys.exit(work())")
PAUSE_SECONDS: Final = 0.25  # before the first restart; doubled for each further one of the window

_log = logging.getLogger("headrace")


async def supervise(settings: Settings, stores: Stores, stop: trio.Event, command: Sequence[str] = WORK) -> int:
    """Run `settings.workers` workers until `stop`; the exit status: 0 if all of them drained.

    Prints the addresses once all are ready. Raises `SettingsError` when an address can't be had.
    """
    bind(settings, shared=False).close()  # would fail if another Headrace shared these addresses among its workers
    with (
        closing(bind(settings, shared=True)) as listeners,  # they never listen: they only keep the addresses
        tempfile.TemporaryDirectory(prefix="headrace-metrics-") as metrics,
    ):
        workers = Workers(command, _environment(settings, stores, listeners, metrics), settings, metrics, stop)
        await workers.run(listeners)
    return 1 if workers.failed else 0


def _environment(settings: Settings, stores: Stores, listeners: Listeners, metrics: str) -> dict[str, str]:
    """What a worker is told: every setting, the stores and the real addresses, and where metrics meet."""
    resolved = replace(
        settings,
        db_url=stores.db_url,
        redis_url=stores.redis_url,
        api=listeners.api_address,
        intake=listeners.intake_address,
    )
    told = {variable(setting.name): str(getattr(resolved, setting.name)) for setting in fields(resolved)}
    return {**os.environ, **told, "PROMETHEUS_MULTIPROC_DIR": metrics}


class Workers:
    """The worker processes of one supervisor."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], settings: Settings, metrics: str, stop: trio.Event
    ) -> None:
        self.failed = False
        self._command = command
        self._environment = environment
        self._settings = settings
        self._metrics = metrics
        self._stop = stop
        self._restarts: deque[float] = deque()

    async def run(self, listeners: Listeners) -> None:
        """Start all, announce the addresses once all are ready, keep all running until `stop`, end all."""
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as starting:
                for _ in range(self._settings.workers):
                    starting.start_soon(nursery.start, self._keep_one)
            if not self._stop.is_set():
                listeners.announce()

    async def _keep_one(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One worker, started again when it crashes. Started means: its first process is ready, or has failed."""
        if not await self._one(task_status) and not self._stop.is_set():
            self._give_up("a worker could not start")
        while not self._stop.is_set():
            if not self._may_restart():
                window = f"{self._settings.restart_window_seconds:g} s"
                self._give_up(f"workers crashed more than {self._settings.restarts_max} times within {window}")
                return
            with trio.move_on_after(PAUSE_SECONDS * 2 ** len(self._restarts)):
                await self._stop.wait()
                return
            await self._one(trio.TASK_STATUS_IGNORED)

    def _give_up(self, why: str) -> None:
        _log.error("%s: stopping", why)
        self.failed = True
        self._stop.set()

    def _may_restart(self) -> bool:
        """Count one more restart, unless that is too many for the window."""
        now = trio.current_time()
        while self._restarts and self._restarts[0] <= now - self._settings.restart_window_seconds:
            self._restarts.popleft()
        if len(self._restarts) >= self._settings.restarts_max:
            return False
        self._restarts.append(now)
        return True

    async def _one(self, task_status: trio.TaskStatus[None]) -> bool:
        """One worker process, from its start to its end. Returns whether it was ever ready."""
        process = await trio.lowlevel.open_process(
            list(self._command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment,
            start_new_session=True,  # the terminal's Ctrl-C is for us, and we pass it on
        )  # fmt: skip
        assert process.stdin is not None  # its lifeline: open as long as we live
        assert process.stdout is not None
        ready = False
        try:
            async with process.stdin, process.stdout, trio.open_nursery() as nursery:
                nursery.start_soon(self._end_on_stop, process)
                ready = bool(await process.stdout.receive_some(16))
                if ready:
                    task_status.started()
                await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._bury(process)
        if not ready:
            task_status.started()
        asked = self._stop.is_set()
        if process.returncode != 0 or not asked:
            _log.error("worker %d ended with status %d", process.pid, process.returncode)
        if process.returncode != 0 and asked and ready:
            self.failed = True  # it was asked to drain, and did not
        return ready

    async def _end_on_stop(self, process: trio.Process) -> None:
        """On `stop`, ask the worker to drain, and end it when that takes longer than it may."""
        await self._stop.wait()
        process.send_signal(signal.SIGTERM)
        await trio.sleep(self._settings.drain_seconds + 2 * DRAIN_SLACK_SECONDS)
        _log.error("worker %d does not drain: killing it", process.pid)
        process.kill()

    def _bury(self, process: trio.Process) -> None:
        """Nothing of a worker outlives us, and its gauges don't outlive it."""
        if process.returncode is None:
            process.kill()
        mark_process_dead(process.pid, self._metrics)  # type: ignore[no-untyped-call]
