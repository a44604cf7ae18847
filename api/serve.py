"""The serving program: stores, engine and both listeners, put together in one process.

Owns the order of start and stop, the addresses, signals and the exit status. With more than one worker,
`api/workers.py` runs `work` in each process. Knows no request and no store's protocol.

Stopping is the other way round: accept nothing more, finish what was accepted, drain the engine, stop the
embedded stores if nobody else uses them. The engine stands around the listeners, not inside the application:
quart-trio would put a deadline on it.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Final

import hypercorn.trio
import trio
from hypercorn.config import Config

from config.settings import Settings, SettingsError, load_settings, parse_address
from engine.embedded import Stores, open_stores
from engine.errors import EngineError

BACKLOG: Final = 1024  # connections that the kernel holds while we are busy: a burst of all senders of a cluster
REQUESTS_A_CONNECTION_MAX: Final = 2**53  # no limit: senders keep their connections, and hypercorn wants a number
# New objects more than freed ones before the youngest are looked at (a batch makes no more), and how often the older.
COLLECTOR_THRESHOLDS: Final = (10_000, 20, 20)
DRAIN_SLACK_SECONDS: Final = 5  # closing stores and files, after the drain
_OUT_OF_MEMORY: Final = b"no memory left for a thread's start: whoever waits for it would wait for ever; ending\n"

_log = logging.getLogger("headrace")


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then drain. The exit status: 0 after a clean stop, 1 with the reason logged."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.unraisablehook = end_without_memory
    status = 1
    try:
        with open_stores(settings) as stores:
            if settings.workers > 1:
                from api.workers import supervise  # here, because it imports this module

                program = partial(supervise, settings, stores)
            else:
                program = partial(_serve_alone, settings, stores)
            status = trio.run(_until_signal, program)
    except* (EngineError, SettingsError) as group:
        for error in _leaves(group):
            _log.error("%s", error)
    except* KeyboardInterrupt:
        status = 130
    return status


def work() -> int:
    """One of several workers: settings and stores come by the environment, and standard input is the lifeline.

    Says "ready" on standard output. Drains on SIGTERM, and when the lifeline ends because the supervisor died.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s %(name)s[{os.getpid()}]: %(message)s",
    )
    sys.unraisablehook = end_without_memory
    status = 1
    try:
        settings = load_settings()
        stores = Stores(settings.db_url, settings.redis_url)
        status = trio.run(_until_signal, partial(_serve_as_worker, settings, stores))
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
    """Both addresses, bound but not yet listening."""

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


async def _until_signal(program: Callable[[trio.Event], Awaitable[int]]) -> int:
    """Run a program that ends when its event is set, which SIGTERM and SIGINT do."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signal, stop)
        status = await program(stop)
        nursery.cancel_scope.cancel()
    return status


async def _serve_alone(settings: Settings, stores: Stores, stop: trio.Event) -> int:
    with closing(bind(settings, shared=False)) as listeners:
        await serve(settings, stores, listeners, stop, listeners.announce)
    return 0


async def _serve_as_worker(settings: Settings, stores: Stores, stop: trio.Event) -> int:
    with closing(bind(settings, shared=True)) as listeners:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_at_end_of_input, stop)
            await serve(settings, stores, listeners, stop, lambda: _say("ready"))
            nursery.cancel_scope.cancel()
    return 0


async def serve(
    settings: Settings, stores: Stores, listeners: Listeners, stop: trio.Event, ready: Callable[[], None]
) -> None:
    """Run an engine and both listeners until `stop`; then finish what was accepted. Calls `ready` once it serves.

    Raises `EngineError` when the engine can't start on these stores.
    """
    # Imported here: a supervisor needs none of it.
    from api.app import create_app
    from api.intake import serve_intake
    from engine.runtime import open_engine

    async with open_engine(settings, db_url=stores.db_url, redis_url=stores.redis_url) as engine:
        listeners.listen()
        config = _hypercorn_config(settings, listeners.api)
        serve_api = partial(hypercorn.trio.serve, create_app(engine), config, shutdown_trigger=stop.wait, mode="asgi")
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_api)
                nursery.start_soon(serve_intake, engine, listeners.intake, settings, stop)
                _spare_the_collector()
                ready()
                await stop.wait()
                # Requests under way get half of the time, and the engine the other half.
                nursery.cancel_scope.deadline = trio.current_time() + settings.drain_seconds / 2
                _end_within(settings.drain_seconds)
        finally:
            _end_within(settings.drain_seconds / 2)  # also when the engine has failed, and nobody asked us to stop
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


def _hypercorn_config(settings: Settings, listener: socket.socket) -> Config:
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]  # hypercorn takes it over, and closes it
    config.backlog = BACKLOG
    config.alpn_protocols = ["http/1.1"]
    config.keep_alive_max_requests = REQUESTS_A_CONNECTION_MAX
    config.keep_alive_timeout = settings.idle_timeout_seconds  # also bounds the wait for a whole head
    config.read_timeout = None  # would run while a handler waits, too; the application bounds the body
    config.h11_max_incomplete_size = settings.header_bytes_max
    config.graceful_timeout = settings.drain_seconds / 2
    config.include_server_header = False
    config.errorlog = logging.getLogger("hypercorn")
    config.errorlog.setLevel(logging.WARNING)
    return config


# --- When to stop ---


async def _stop_on_signal(stop: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Set `stop` at the first SIGTERM or SIGINT. A second one has its usual effect: the end, at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            _log.info("%s: draining", signal.Signals(number).name)
            break
    stop.set()


async def _stop_at_end_of_input(stop: trio.Event) -> None:
    """Set `stop` when the supervisor's end of our standard input is closed: it has died."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as lifeline:
        while await lifeline.receive_some(64):
            pass
    if not stop.is_set():
        _log.warning("the supervisor is gone: draining")
        stop.set()
