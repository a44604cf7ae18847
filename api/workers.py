"""Several serving processes under one supervisor.

Owns how many there are, their restarts and their common end. The supervisor holds the embedded stores and the
listening sockets, and serves nothing itself: each slot has a pair of sockets of its own (SO_REUSEPORT), and the
kernel spreads connections over the slots. The workers are symmetric and share no state; what they agree on is in
the stores.

A slot's sockets outlive its worker, because the kernel resets what it has queued in one that is closed. So a crashed
worker's connections wait for the next one, and a roll refuses nobody: the new worker accepts from the same sockets
before the old one stops. At the end the supervisor lets go of them first, so that nobody waits for what never comes.

A worker that crashed after it had been ready is started again, for ever: a peer may be the cause, and the other workers
serve. The pauses grow, and a calm minute makes them short again. Workers that never get ready are another matter: more
than `HEADRACE_RESTARTS_MAX` of them within `HEADRACE_RESTART_WINDOW_SECONDS`, while no other worker serves, and
everything stops, because a fault of our own is not cured by restarts. A worker that says nothing for
`HEADRACE_WORKER_SILENT_SECONDS` is killed. One whose supervisor died sees the end of its standard input, and drains.

A roll puts a new worker in each slot, one slot after the other, so there is never more than one process more than
asked for. It goes on only when the new worker serves and the old one has ended.
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
from contextlib import ExitStack, closing
from dataclasses import fields, replace
from typing import Final

import trio
from prometheus_client.multiprocess import mark_process_dead

from api.serve import DRAIN_SLACK_SECONDS, Listeners, bind
from api.signals import Hangups
from config.settings import Settings, variable
from engine.embedded import Stores

WORK: Final = (
    sys.executable, "-c", "import sys; from api.serve import work; sys.exit(work(int(sys.argv[1]), int(sys.argv[2])))",
)  # fmt: skip
PAUSE_SECONDS: Final = 0.25  # before the first restart of a slot; doubled for each further one
PAUSE_SECONDS_MAX: Final = 10.0  # a peer that crashes a worker at each start costs it a tenth to a fifth of its time
CALM_SECONDS: Final = 60.0  # served for so long, a worker's crash is the first again: six times the longest pause
LOOK_SECONDS: Final = 1.0  # how often a worker says that it lives (`api.serve`), and its silence is counted
START_SECONDS_MAX: Final = 60.0  # of a new worker in a roll: some two, and ten times that on a machine that is busy

_log = logging.getLogger("headrace")


async def supervise(
    settings: Settings, stores: Stores, stop: trio.Event, hangups: Hangups, command: Sequence[str] = WORK
) -> int:
    """Run `settings.workers` workers until `stop`; the exit status: 0 if all of them drained. Rolls at each hang-up.

    Prints the addresses once all are ready. Raises `SettingsError` when an address can't be had. The command gets the
    descriptors of its two listening sockets as arguments.
    """
    bind(settings, shared=False).close()  # would fail if another Headrace shared these addresses among its workers
    with ExitStack() as held:
        first = bind(settings, shared=True)
        resolved = replace(
            settings,
            db_url=stores.db_url,
            redis_url=stores.redis_url,
            api=first.api_address,
            intake=first.intake_address,
        )
        slots = [Slot(held.enter_context(closing(first)))]
        while len(slots) < settings.workers:
            slots.append(Slot(held.enter_context(closing(bind(resolved, shared=True)))))
        metrics = held.enter_context(tempfile.TemporaryDirectory(prefix="headrace-metrics-"))
        workers = Workers(command, _environment(resolved, metrics), settings, metrics, stop, slots)
        await workers.run(hangups)
    return 1 if workers.failed else 0


def _environment(settings: Settings, metrics: str) -> dict[str, str]:
    """What a worker is told: every setting, the stores and the real addresses, and where metrics meet."""
    told = {variable(setting.name): str(getattr(settings, setting.name)) for setting in fields(settings)}
    return {**os.environ, **told, "PROMETHEUS_MULTIPROC_DIR": metrics}


def pause_seconds(crashes: int) -> float:
    """How long to wait before a slot's next worker starts, after so many crashes before this one."""
    return float(min(PAUSE_SECONDS_MAX, PAUSE_SECONDS * 2 ** min(crashes, 10)))


class Worker:
    """One process, and how far it is."""

    def __init__(self) -> None:
        self.pid: int | None = None  # None: it could not even be made
        self.ready = False
        self.drained = False  # it has said so; what is left is to exit
        self.settled = trio.Event()  # it is ready, or has ended
        self.ended = trio.Event()
        self.replaced = trio.Event()  # set to ask for its end: another one serves its slot
        self.given_up = trio.Event()  # set to ask for its end: it takes too long to start
        self.ready_at = 0.0
        self.status: int | None = None

    @property
    def serves(self) -> bool:
        """Whether it is ready, and not over."""
        return self.ready and not self.ended.is_set()


class Slot:
    """The place of one worker: its sockets, and the process that serves them. `changing` is held by who changes it."""

    def __init__(self, listeners: Listeners) -> None:
        self.listeners = listeners
        self.worker = Worker()
        self.changing = trio.Lock()
        self.crashes = 0  # since the last calm minute


class Workers:
    """The worker processes of one supervisor."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        settings: Settings,
        metrics: str,
        stop: trio.Event,
        slots: Sequence[Slot],
    ) -> None:
        self.failed = False
        self._command = command
        self._environment = environment
        self._settings = settings
        self._metrics = metrics
        self._stop = stop
        self._slots = slots
        self._failures: deque[float] = deque()
        self._nursery: trio.Nursery  # of all processes: each is waited for

    async def run(self, hangups: Hangups) -> None:
        """Start all, announce the addresses once all are ready, keep all running until `stop`, end all."""
        async with trio.open_nursery() as self._nursery:
            async with trio.open_nursery() as starting:
                for slot in self._slots:
                    starting.start_soon(self._open, slot)
            if not self._stop.is_set():
                self._slots[0].listeners.announce()
            async with trio.open_nursery() as rolling:
                rolling.start_soon(self._roll_at_hangups, hangups)
                await self._stop.wait()
                rolling.cancel_scope.cancel()
            for slot in self._slots:
                slot.listeners.close()

    def _start(self, slot: Slot) -> Worker:
        """A new process for this slot, whose task no cancelled caller takes along."""
        worker = Worker()
        self._nursery.start_soon(self._run_one, worker, slot)
        return worker

    def _give_up(self, why: str) -> None:
        _log.error("%s: stopping", why)
        self.failed = True
        self._stop.set()

    # --- a slot -----------------------------------------------------------------------------------------------

    async def _open(self, slot: Slot) -> None:
        """Start the first worker of a slot, and keep it. Returns when that one is ready, or has failed."""
        slot.worker = self._start(slot)
        await slot.worker.settled.wait()
        if slot.worker.ready or self._stop.is_set():
            self._nursery.start_soon(self._keep, slot)
        else:
            self._give_up(f"a worker could not start (status {slot.worker.status})")

    async def _keep(self, slot: Slot) -> None:
        """Start the worker of a slot again when it crashes."""
        while not self._stop.is_set():
            worker = slot.worker
            await worker.ended.wait()
            async with slot.changing:
                if slot.worker is worker and not self._stop.is_set():
                    await self._restart(slot)

    async def _restart(self, slot: Slot) -> None:
        worker, now = slot.worker, trio.current_time()
        if worker.ready and now - worker.ready_at >= CALM_SECONDS:
            slot.crashes = 0
        if not worker.ready and not self._may_fail_again(now):
            window = f"{self._settings.restart_window_seconds:g} s"
            self._give_up(f"workers could not start more than {self._settings.restarts_max} times within {window}")
            return
        pause = pause_seconds(slot.crashes)
        slot.crashes += 1
        served = f"after {now - worker.ready_at:.1f} s of service" if worker.ready else "before it was ready"
        _log.error(
            "worker %s ended by itself %s, with status %s: another one starts in %g s",
            worker.pid, served, worker.status, pause,
        )  # fmt: skip
        with trio.move_on_after(pause):
            await self._stop.wait()
            return
        slot.worker = self._start(slot)  # the lock is not held while it starts: a roll may replace one that hangs

    def _may_fail_again(self, now: float) -> bool:
        """Count one more worker that did not get ready, unless that is too many for the window, and nobody serves."""
        while self._failures and self._failures[0] <= now - self._settings.restart_window_seconds:
            self._failures.popleft()
        if len(self._failures) >= self._settings.restarts_max and not any(slot.worker.serves for slot in self._slots):
            return False
        self._failures.append(now)
        return True

    # --- a roll -----------------------------------------------------------------------------------------------

    async def _roll_at_hangups(self, hangups: Hangups) -> None:
        """One roll for each hang-up; those that come during a roll make one more together.

        Not none: what they are to bring (a new version) may have come after the first slot's turn. Not one each: the
        first of them brings all that was there when the last one came.
        """
        async for _ in hangups:
            _log.info("SIGHUP: a new process for each of %d workers, one after the other", len(self._slots))
            for number, slot in enumerate(self._slots):
                trouble = await self._roll(slot)
                if trouble:
                    _log.error(
                        "%s: the restart stops here, after %d of %d workers; the others go on as they are",
                        trouble, number, len(self._slots),
                    )  # fmt: skip
                    break
            else:
                _log.info("restarted: all %d workers are new", len(self._slots))

    async def _roll(self, slot: Slot) -> str | None:
        """A new worker for this slot, and the end of the old one. What is wrong, if the new one does not serve."""
        async with slot.changing:
            old, new = slot.worker, self._start(slot)
            with trio.move_on_after(START_SECONDS_MAX):
                await new.settled.wait()
            if not new.settled.is_set():
                new.given_up.set()
                await new.ended.wait()
                return f"a new worker was not ready within {START_SECONDS_MAX:g} s"
            if new.ended.is_set():
                return f"a new worker could not start (status {new.status})"
            slot.worker = new
        old.replaced.set()
        await old.ended.wait()
        if slot.worker is not new or new.ended.is_set():
            return f"the new worker {new.pid} has crashed"
        _log.info("worker %d has taken the place of worker %d", new.pid, old.pid)
        return None

    # --- a process --------------------------------------------------------------------------------------------

    async def _run_one(self, worker: Worker, slot: Slot) -> None:
        """One worker process, from its start to its end."""
        sockets = (slot.listeners.api.fileno(), slot.listeners.intake.fileno())
        try:
            if self._stop.is_set():
                return
            process = await trio.lowlevel.open_process(
                [*self._command, *map(str, sockets)], pass_fds=sockets,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment,
                start_new_session=True,  # the terminal's Ctrl-C is for us, and we pass it on
            )  # fmt: skip
        except OSError as error:
            _log.error("no worker can be started: %s", error)  # out of processes, memory or descriptors
        else:
            await self._attend(process, worker)
        finally:
            worker.settled.set()
            worker.ended.set()

    async def _attend(self, process: trio.Process, worker: Worker) -> None:
        assert process.stdin is not None  # its lifeline: open as long as we live
        assert process.stdout is not None
        worker.pid = process.pid
        try:
            async with process.stdin, process.stdout, trio.open_nursery() as nursery:
                nursery.start_soon(self._end_at, self._stop, process, signal.SIGTERM)
                nursery.start_soon(self._end_at, worker.given_up, process, signal.SIGTERM)
                nursery.start_soon(self._end_at, worker.replaced, process, signal.SIGHUP)
                said = await process.stdout.receive_some(16)
                if said:
                    worker.ready, worker.ready_at = True, trio.current_time()
                    worker.settled.set()
                    said = await self._listen(process, process.stdout, worker, bytes(said))
                worker.drained = said.endswith(b"drained\n")
                await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._bury(process)
        # (A Python that ends hears no signals any more: a stop that meets a replaced worker then is no failure.)
        worker.status = process.returncode
        drained = process.returncode == 0 or (worker.drained and process.returncode == -signal.SIGTERM)
        if not drained and worker.ready and self._is_asked(worker):
            _log.error("worker %d was asked to end, and ended with status %d", process.pid, process.returncode)
            self.failed = self.failed or self._stop.is_set()  # it was to drain, and did not

    def _is_asked(self, worker: Worker) -> bool:
        """Whether it is to end: then its silence and its end have other bounds."""
        return any(event.is_set() for event in (self._stop, worker.given_up, worker.replaced))

    async def _listen(
        self, process: trio.Process, stream: trio.abc.ReceiveStream, worker: Worker, said: bytes
    ) -> bytes:
        """Hear what a worker says until its end, and kill it when it is silent for too long. Its last words.

        Its silence is counted in our own waits: when we are frozen ourselves, or the whole machine, none of it counts.
        """
        silent_seconds, killed = 0.0, False
        while True:
            with trio.move_on_after(LOOK_SECONDS):
                part = await stream.receive_some(4_096)
                if not part:
                    return said
                said, silent_seconds = (said + part)[-16:], 0.0
                continue
            silent_seconds += LOOK_SECONDS
            if silent_seconds >= self._settings.worker_silent_seconds and not killed and not self._is_asked(worker):
                _log.error("worker %d is frozen: silent for %g s; killing it", process.pid, silent_seconds)
                killed = True
                process.kill()

    async def _end_at(self, event: trio.Event, process: trio.Process, number: signal.Signals) -> None:
        """At this event, ask the worker to drain, and end it when that takes longer than it may."""
        await event.wait()
        process.send_signal(number)
        await trio.sleep(self._settings.drain_seconds + 2 * DRAIN_SLACK_SECONDS)
        _log.error("worker %d does not drain: killing it", process.pid)
        process.kill()

    def _bury(self, process: trio.Process) -> None:
        """Nothing of a worker outlives us, and its gauges don't outlive it."""
        if process.returncode is None:
            process.kill()
        mark_process_dead(process.pid, self._metrics)  # type: ignore[no-untyped-call]
