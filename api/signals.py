"""What SIGTERM, SIGINT and SIGHUP mean to a serving program, from its first line to its last.

Owns the handlers of this process. While stores start and stop, no trio runs, and a handler that raised would break
off just what must not be broken off: so a stop is noted, and everything that waits asks `StopSignals.heard`.
Knows neither stores nor listeners.

Who sends a signal to a process group under `make` sends it twice (make passes SIGTERM on), and so do a service
manager and a person together. Signals within `SAME_STOP_SECONDS` of the first are therefore the same stop.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Final, Self

import trio

# What passes a signal on does so within milliseconds; a person looks before a second one.
SAME_STOP_SECONDS: Final = 2.0
_ENDING: Final = "a second signal to stop: ending at once; embedded stores that run are found again"
_NO_HANGUP: Final = "SIGHUP: nothing is done, because the program starts or stops"
_STOPS: Final = (signal.SIGTERM, signal.SIGINT)

Hangups = trio.MemoryReceiveChannel[None]  # one item for each SIGHUP that was heard

_log = logging.getLogger("headrace")


class Terminal:
    """The terminal that the program was started from, if any.

    When it goes, everybody on it gets SIGHUP, and expects the end; unless SIGHUP was ignored at start, as by `nohup`.
    """

    def __init__(self) -> None:
        self._ends_us = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and _has_terminal()

    @property
    def gone(self) -> bool:
        """Whether it is the reason for a SIGHUP."""
        return self._ends_us and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


class StopSignals:
    """The handlers of one process, while the block runs; at its end the process ends, and hears no stop any more.

    `stop` is set at the first signal to stop, once `attach` was called. A hang-up is passed on then, too: one may wait,
    and stands for all later ones.
    """

    def __init__(self) -> None:
        self.stop = trio.Event()
        self._first: signal.Signals | None = None  # the signal to stop that came first
        self._first_at = 0.0
        self._token: trio.lowlevel.TrioToken | None = None
        self._hangups: trio.MemorySendChannel[None] | None = None
        self._terminal = Terminal()

    def __enter__(self) -> Self:
        for number in (*_STOPS, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # (A Python that ends gives signals their default back, unless they are ignored: the same stop would kill it.)
        for number in (*_STOPS, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def heard(self) -> bool:
        """Whether the program is to stop."""
        return self._first is not None

    @property
    def name(self) -> str:
        """The signal that stops it."""
        assert self._first is not None
        return self._first.name

    def attach(self, hangups: trio.MemorySendChannel[None]) -> None:
        """From now on trio runs: `stop` is set by signals, also by one that came before, and hang-ups are passed on."""
        self._token, self._hangups = trio.lowlevel.current_trio_token(), hangups
        if self.heard():
            self._stop()

    def detach(self) -> None:
        """Trio ends; whoever waits from now on asks `heard`."""
        self._token = self._hangups = None

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        """Python calls this between two steps of whatever the main thread does."""
        if number == signal.SIGHUP and not self._terminal.gone:
            if not self._in_trio(self._hang_up):
                _write(_NO_HANGUP)
        elif self._first is None:
            self._first, self._first_at = signal.Signals(number), time.monotonic()
            self._in_trio(self._stop)
        elif number in _STOPS and time.monotonic() - self._first_at > SAME_STOP_SECONDS:
            _write(_ENDING)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            os._exit(128 + number)  # (the first process of a container is not killed by default)

    def _in_trio(self, act: Callable[[], None]) -> bool:
        """Let trio's thread do this soon. Whether trio runs."""
        if self._token is None:
            return False
        try:
            self._token.run_sync_soon(act, idempotent=True)
        except trio.RunFinishedError:
            return False
        return True

    def _stop(self) -> None:
        if not self.stop.is_set():
            _log.info("%s: draining", self.name)
            self.stop.set()

    def _hang_up(self) -> None:
        if self.stop.is_set():
            _log.warning("%s", _NO_HANGUP)
        elif self._hangups is not None:
            with suppress(trio.WouldBlock, trio.BrokenResourceError):
                self._hangups.send_nowait(None)


def _write(line: str) -> None:
    """Past the log: the handler may have interrupted it."""
    with suppress(OSError):
        os.write(2, line.encode() + b"\n")
