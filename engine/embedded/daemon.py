"""One embedded store as a process: started once, found again, stopped by the last who uses it.

Owns locks, signals and waiting. Knows neither Postgres nor Redis.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from engine.embedded.home import Home, as_user
from engine.errors import EngineError

START_SECONDS: Final = 120.0  # Postgres replays up to 4 GB of log after a crash: at most a minute, twice
STOP_SECONDS: Final = 60.0  # a fast shutdown writes 512 MB of buffers
POLL_SECONDS: Final = 0.02

Stopping = Callable[[], bool]  # whether the program is to stop, and waits for no start any more

_log = logging.getLogger(__name__)


class StartInterrupted(EngineError):
    """The program is to stop: its stores are not waited for any more. One that was started may be starting still."""


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def lock_file(path: Path) -> IO[str]:
    """A file to lock, made if it is missing. Nobody else may open it: who can read a file can lock it."""
    return open(path, "a", opener=_private)


@contextmanager
def only_one(data: Path, stopping: Stopping | None = None) -> Iterator[None]:
    """Starts and stops of all engines on this data folder, one after the other.

    Raises `StartInterrupted` when `stopping` says so before it is our turn: another engine's start may take minutes.
    """
    with lock_file(data / "start.lock") as file:
        if stopping is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            while not locked(file):
                _pause(stopping)
        yield


def _pause(stopping: Stopping) -> None:
    if stopping():
        raise StartInterrupted("stopped while the embedded stores were starting")
    time.sleep(POLL_SECONDS)


def locked(file: IO[str]) -> bool:
    """Whether the file could be locked for us alone, at once."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_alive(home: Home, name: str) -> bool:
    """Whether any process of this store lives: the kernel knows, and tells it in microseconds."""
    with lock_file(home.path / f"{name}.lock") as file:
        return not locked(file)


def log_file(home: Home, name: str) -> Path:
    """What a store says, since its last start. The run before is in `<name>.log.1`."""
    return home.path / f"{name}.log"


def start_daemon(
    home: Home, name: str, command: list[str], left_over: list[Path], answers: Callable[[], bool], stopping: Stopping
) -> None:
    """Start a store unless it is alive, and wait until it answers. `left_over` files of a dead one are removed.

    Raises `EngineError` when it can't start, and `StartInterrupted` when it is not waited for any more.
    """
    log = log_file(home, name)
    deadline = time.monotonic() + START_SECONDS
    launched = False
    while not answers():
        with lock_file(home.path / f"{name}.lock") as lock:
            if locked(lock):  # nobody is alive
                if launched:
                    raise EngineError(f"the embedded {name} could not start. The end of {log}:\n{_tail(log)}")
                for path in left_over:
                    path.unlink(missing_ok=True)
                if log.exists():
                    log.replace(log.with_suffix(".log.1"))  # the last run's log is kept, and no older one
                _detach(home, command, log, lock.fileno())
                launched = True
        if time.monotonic() > deadline:
            raise EngineError(f"the embedded {name} is running, but gives no answer. See {log}.")
        _pause(stopping)


def _detach(home: Home, command: list[str], log: Path, lock: int) -> None:
    """Run a program in a session of its own, as nobody's child, so that it outlives us."""
    environment = {"PATH": os.defpath, "LC_ALL": "C"}
    with open(log, "ab", opener=_private) as output:
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", *command],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(lock,), cwd="/", env=environment,
            check=True, **as_user(home.account),
        )  # fmt: skip


def stop_daemon(home: Home, name: str, path: Path, signals: tuple[signal.Signals, signal.Signals]) -> None:
    """Stop the store that listens on `path`: ask it, and after `STOP_SECONDS` force it."""
    try:
        pid = _awaited_listener(home, name, path)
        if pid is None:
            return
        for sign in signals:
            os.kill(pid, sign)
            deadline = time.monotonic() + STOP_SECONDS
            while time.monotonic() < deadline:
                if not is_alive(home, name):
                    return
                time.sleep(POLL_SECONDS)
    except OSError as error:
        _log.error("the embedded %s can't be stopped: %s", name, error)
    else:
        _log.error("the embedded %s (process %d) does not stop", name, pid)


def _awaited_listener(home: Home, name: str, path: Path) -> int | None:
    """The process to stop, None if none is alive. One whose start was interrupted may not listen yet."""
    deadline = time.monotonic() + STOP_SECONDS
    while is_alive(home, name):
        try:
            return _listener(path)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)
    return None


def _listener(path: Path) -> int:
    """The process that listens on a unix socket. Raises `OSError` if none does, or none that we can see."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        if sys.platform == "darwin":
            pid = int(client.getsockopt(0, 2))  # SOL_LOCAL, LOCAL_PEERPID
        else:
            pid = int(struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
    if pid <= 0:
        raise ProcessLookupError(f"whoever listens on {path} runs in another container")
    return pid


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
