"""The serving program: stores, engine and both listeners, put together in one process.

Owns the order of start and stop, the addresses and the exit status; `api/signals.py` has the signals. With more than
one worker, `api/workers.py` runs `work` in each process. Knows no request and no store's protocol.

Stopping is the other way round: accept nothing more, finish what was accepted, drain the engine, stop the
embedded stores if nobody else uses them. The engine stands around the listeners, not inside the application:
quart-trio would put a deadline on it.

A worker that hears SIGHUP has a successor, which holds the same listening sockets. It yields: it accepts nothing
more, and stops when its connections have ended, or have been idle for a quarter of `HEADRACE_DRAIN_SECONDS`.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any, Final

import trio

from api.signals import Hangups, StopSignals
from config.settings import Settings, SettingsError, load_settings, parse_address
from engine.embedded import StartInterrupted, Stores, open_stores
from engine.embedded.keeper import keep
from engine.errors import EngineError

BACKLOG: Final = 1024  # connections that the kernel holds while we are busy: a burst of all senders of a cluster
# New objects more than freed ones before the youngest are looked at (a batch makes no more), and how often the older.
COLLECTOR_THRESHOLDS: Final = (10_000, 20, 20)
LIFE_SECONDS: Final = 1.0  # how often a worker says that it lives: a thirtieth of the silence that ends it
DRAIN_SLACK_SECONDS: Final = 5  # closing stores and files, after the drain
_OUT_OF_MEMORY: Final = b"no memory left for a thread's start: whoever waits for it would wait for ever; ending\n"

_log = logging.getLogger("headrace")


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then drain. The exit status: 0 after a clean stop, 1 with the reason logged."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.unraisablehook = end_without_memory
    status = 1
    with StopSignals() as signals:
        try:
            with open_stores(settings, signals.heard) as stores:
                if settings.workers > 1:
                    from api.workers import supervise  # here, because it imports this module

                    program = partial(supervise, settings, stores)
                else:
                    program = partial(_serve_alone, settings, stores)
                status = trio.run(_until_signal, partial(_keep_stores, settings, stores, program), signals)
        except* StartInterrupted:
            _log.info("%s: stopped before anything was served", signals.name)
            status = 0
        except* (EngineError, SettingsError) as group:
            for error in _leaves(group):
                _log.error("%s", error)
    return status


def work(api: int, intake: int) -> int:
    """One of several workers, with the descriptors of its listening sockets.

    Settings and stores come by the environment, and standard input is the lifeline. Says "ready" and "drained" on
    standard output.
    Yields on SIGHUP. Drains on SIGTERM, and when the lifeline ends because the supervisor died.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s %(name)s[{os.getpid()}]: %(message)s",
    )
    sys.unraisablehook = end_without_memory
    status = 1
    with StopSignals() as signals:
        try:
            settings = load_settings()
            stores = Stores(settings.db_url, settings.redis_url)
            with closing(inherit(settings, api, intake)) as listeners:
                status = trio.run(_until_signal, partial(_serve_as_worker, settings, stores, listeners), signals)
        except* (EngineError, SettingsError) as group:
            for error in _leaves(group):
                _log.error("%s", error)
    return status


def end_without_memory(unraisable: sys.UnraisableHookArgs) -> None:
    """`sys.unraisablehook`: end the process, with status 1, if memory ran out where nobody can be told of it.

    A thread that could not start is such a place, and its caller would wait for ever. Nothing acknowledged is lost
    by the end, and whoever supervises us starts us again. Allocates as little as can be.
    """
    if issubclass(unraisable.exc_type, MemoryError):
        os.write(2, _OUT_OF_MEMORY)
        os._exit(1)
    sys.__unraisablehook__(unraisable)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The single errors of a group of groups."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


# --- Addresses ---


@dataclass(frozen=True, slots=True)
class Listeners:
    """Both addresses, bound; they listen once a process serves."""

    api: socket.socket
    intake: socket.socket
    api_address: str  # the real ones, also where port 0 was asked for
    intake_address: str

    def announce(self) -> None:
        """Print the real addresses: two lines."""
        _say(f"api     http://{self.api_address}\nintake  http://{self.intake_address}")

    def close(self) -> None:
        """Give both addresses back."""
        self.api.close()
        self.intake.close()

    def listen(self) -> None:
        """Let connections come. Raises `SettingsError` when another program was faster."""
        for name, text, listener in (
            ("HEADRACE_API", self.api_address, self.api),
            ("HEADRACE_INTAKE", self.intake_address, self.intake),
        ):
            try:
                listener.listen(BACKLOG)
            except OSError as error:
                raise SettingsError(f"{name} is {text!r}, and can't be listened on: {error.strerror}") from error


def bind(settings: Settings, *, shared: bool) -> Listeners:
    """Bind both addresses; `shared` with other processes of ours. Raises `SettingsError` when one can't be had."""
    api = _bind("HEADRACE_API", settings.api, shared=shared)
    try:
        intake = _bind("HEADRACE_INTAKE", settings.intake, shared=shared)
    except SettingsError:
        api.close()
        raise
    return Listeners(api, intake, _address_of(api), _address_of(intake))


def inherit(settings: Settings, api: int, intake: int) -> Listeners:
    """The sockets that the supervisor has bound to these addresses. Whether they listen already is all the same."""
    listeners = Listeners(socket.socket(fileno=api), socket.socket(fileno=intake), settings.api, settings.intake)
    listeners.api.setblocking(False)
    listeners.intake.setblocking(False)
    return listeners


def _bind(name: str, text: str, *, shared: bool) -> socket.socket:
    host, port = parse_address(name, text)
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        if listener:
            listener.close()
        raise SettingsError(f"{name} is {text!r}, and can't be listened on: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _address_of(listener: socket.socket) -> str:
    """The real host:port of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _say(text: str) -> None:
    """To whoever waits for us to be ready."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# --- One serving process ---


async def _until_signal(program: Callable[[trio.Event, Hangups], Awaitable[int]], signals: StopSignals) -> int:
    """Run a program that ends when its event is set, which SIGTERM and SIGINT do, and that hears of each SIGHUP."""
    heard, hangups = trio.open_memory_channel[None](1)
    signals.attach(heard)
    try:
        return 0 if signals.heard() else await program(signals.stop, hangups)
    finally:
        signals.detach()


async def _keep_stores(
    settings: Settings, stores: Stores, program: Callable[[trio.Event, Hangups], Awaitable[int]], *heard: Any
) -> int:
    """Run a program, and start its embedded stores again when they die: also while it drains, which needs them."""
    async with trio.open_nursery() as nursery:
        for store in stores.embedded:
            nursery.start_soon(keep, store, settings)
        status = await program(*heard)
        nursery.cancel_scope.cancel()
    return status


async def _serve_alone(settings: Settings, stores: Stores, stop: trio.Event, hangups: Hangups) -> int:
    with closing(bind(settings, shared=False)) as listeners:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_explain_hangups, hangups)
            await serve(settings, stores, listeners, stop, listeners.announce)
            nursery.cancel_scope.cancel()
    return 0


async def _serve_as_worker(
    settings: Settings, stores: Stores, listeners: Listeners, stop: trio.Event, hangups: Hangups
) -> int:
    yielding = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_at_end_of_input, stop)
        nursery.start_soon(_yield_on_hangup, hangups, settings, yielding, stop)
        nursery.start_soon(_yield_at_stop, stop, yielding)
        ready = partial(_tell_ready, nursery)
        await serve(settings, stores, listeners, stop, ready, yielding)
        with suppress(OSError):  # the supervisor may be gone
            _say("drained")
        nursery.cancel_scope.cancel()
    return 0


def _tell_ready(nursery: trio.Nursery) -> None:
    """Tell the supervisor that we serve, and from now on that we live."""
    _say("ready")
    nursery.start_soon(_tell_life)


async def _tell_life() -> None:
    """Say every second that this loop turns: who is silent is taken for frozen, and killed.

    Never waits: a supervisor that is frozen itself reads nothing, and finds a pipe full of it when it wakes.
    """
    os.set_blocking(sys.stdout.fileno(), False)
    while True:
        with suppress(OSError):  # the pipe is full, or the supervisor gone
            os.write(sys.stdout.fileno(), b"alive\n")
        await trio.sleep(LIFE_SECONDS)


async def serve(
    settings: Settings,
    stores: Stores,
    listeners: Listeners,
    stop: trio.Event,
    ready: Callable[[], None],
    yielding: trio.Event | None = None,
) -> None:
    """Run an engine and both listeners until `stop`; then finish what was accepted. Calls `ready` once it serves.

    `yielding` is set when a successor accepts, and at `stop` at the latest. Raises `EngineError` when the engine can't
    start on these stores.
    """
    # Imported here: a supervisor needs none of it.
    from api.app import create_app
    from api.descriptors import allow_connections
    from api.intake import serve_intake
    from api.listener import serve_api
    from engine.runtime import FAILED_DRAIN_SECONDS, open_engine

    settings = replace(settings, connections_max=allow_connections(settings.connections_max))
    async with open_engine(settings, db_url=stores.db_url, redis_url=stores.redis_url) as engine:
        listeners.listen()
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_api, create_app(engine), listeners.api, settings, stop, yielding)
                nursery.start_soon(serve_intake, engine, listeners.intake, settings, stop, yielding)
                _spare_the_collector()
                ready()
                await (stop if yielding is None else yielding).wait()
                # Requests under way get half of the time, and the engine the other half.
                nursery.cancel_scope.deadline = trio.current_time() + settings.drain_seconds / 2
                _end_within(settings.drain_seconds)
        except BaseException:
            # A listener or the engine has failed: half of a process serves nobody, and is not replaced as long as it
            # lives. (An error that finds its way here has ended both listeners.)
            _end_within(FAILED_DRAIN_SECONDS)
            raise
        _end_within(settings.drain_seconds / 2)
    signal.alarm(0)


def _spare_the_collector() -> None:
    """Let the garbage collector leave alone what was imported, and look at the young less often.

    What an event leaves behind is freed by its last reference; circles are rare (an exception and its frame).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def _end_within(seconds: float) -> None:
    """Let the kernel end us if a drain hangs (a peer that never reads, a loop that is broken).

    Nothing acknowledged is lost by that, and the stores are found again.
    """
    signal.alarm(ceil(seconds) + DRAIN_SLACK_SECONDS)


# --- When to stop, and when to yield ---


async def _explain_hangups(hangups: Hangups) -> None:
    """Tell whoever wants a new process that there is nobody to start it."""
    async for _ in hangups:
        _log.warning("SIGHUP: nothing is done: a restart without a gap needs HEADRACE_WORKERS of 2 or more")


async def _yield_on_hangup(hangups: Hangups, settings: Settings, yielding: trio.Event, stop: trio.Event) -> None:
    """A successor has our listening sockets. Connections that stay idle don't hold us up for ever."""
    await hangups.receive()
    _log.info("SIGHUP: draining, a new worker accepts connections")
    yielding.set()
    await trio.sleep(settings.drain_seconds / 4)  # then requests under way have as long again
    stop.set()


async def _yield_at_stop(stop: trio.Event, yielding: trio.Event) -> None:
    await stop.wait()
    yielding.set()


async def _stop_at_end_of_input(stop: trio.Event) -> None:
    """Set `stop` when the supervisor's end of our standard input is closed: it has died."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as lifeline:
        while await lifeline.receive_some(64):
            pass
    if not stop.is_set():
        _log.warning("the supervisor is gone: draining")
        stop.set()
