"""The embedded stores: a real Postgres 18 and a real Redis, started when no URL is given.

Owns their folder, their processes and who may stop them. Knows nothing of what the engine keeps in them.

How it stays right when anything is killed at any moment:

- **Alive** is a lock, not a pid file: each store holds an inherited `flock` on `<name>.lock` for as long as any
  of its processes lives, and the kernel drops it after a crash. The process to signal is asked of the kernel,
  from the store's own socket: no number is read from a file, so one that was used again harms nobody.
- Stores run in sessions of their own and outlive the engine's kill -9 and the terminal's Ctrl-C. The next
  start finds them.
- **The last one out stops them**: every engine holds a shared lock while it uses them, and whoever ends cleanly
  as the last stops them. One lock makes starts and stops follow each other.
- A store that dies meanwhile is started again by the program that uses it (`keeper.py`).
- Unix sockets only, in a folder that only the stores' user may enter. Postgres lets in the engine's user only.

Postgres refuses to run as root. Then both stores run as the user `headrace` if there is one, else `nobody`.
Files that root writes never lie in a folder which that user may change.
"""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from config.settings import Settings
from engine.embedded import postgres, redis
from engine.embedded.daemon import StartInterrupted, Stopping, is_alive, lock_file, locked, log_file, only_one
from engine.embedded.home import Home, make_data_folder, open_home
from engine.errors import EngineError

__all__ = ["Embedded", "StartInterrupted", "Stores", "open_stores"]


@dataclass(frozen=True, slots=True)
class Embedded:
    """One embedded store, for as long as it is used."""

    name: str
    data: Path
    home: Home
    _start: Callable[[Stopping], str]

    @property
    def log(self) -> Path:
        """What it says. What it said before its last start is in `<name>.log.1`."""
        return log_file(self.home, self.name)

    def is_alive(self) -> bool:
        """Whether one of its processes lives."""
        return is_alive(self.home, self.name)

    def start(self, stopping: Stopping) -> str:
        """Start it, or find it again; its URL. Blocks. Raises `EngineError`."""
        try:
            return self._start(stopping)
        except (OSError, subprocess.SubprocessError) as error:  # no room on the disk, no process to be had
            raise EngineError(f"the embedded {self.name} could not be started: {error}") from error

    def start_again(self, stopping: Stopping) -> bool:
        """Start it after its death. False: another program on this data folder has. Blocks. Raises `EngineError`."""
        with only_one(self.data, stopping):
            found = self.is_alive()
            self.start(stopping)
        return not found


@dataclass(frozen=True, slots=True)
class Stores:
    """Where the stores are, and those of them that we keep."""

    db_url: str
    redis_url: str
    embedded: Sequence[Embedded] = field(default=(), compare=False)


@contextmanager
def open_stores(settings: Settings, stopping: Stopping = lambda: False) -> Iterator[Stores]:
    """The stores that the settings name; those without a URL are started, or found again, in `HEADRACE_DATA`.

    Blocks while they start (a second; up to two minutes after a crash) and no longer than until `stopping` says so:
    then it raises `StartInterrupted`. On leaving, the stores stop if nobody else uses them. Raises `EngineError` with
    what to do about it.
    """
    if settings.db_url and settings.redis_url:
        yield Stores(settings.db_url, settings.redis_url)
        return
    data = make_data_folder(settings.data_path)
    with only_one(data, stopping):
        home = open_home(data)
        used = lock_file(home.path / "used.lock")
        fcntl.flock(used, fcntl.LOCK_SH)
    own_postgres = Embedded("postgres", data, home, partial(postgres.start, home, settings.postgres_memory_mb))
    own_redis = Embedded("redis", data, home, partial(redis.start, home, settings.redis_memory_mb))
    with used:
        try:
            with only_one(data, stopping):
                db_url = settings.db_url or own_postgres.start(stopping)
                redis_url = settings.redis_url or own_redis.start(stopping)
            embedded = [own_postgres] * (not settings.db_url) + [own_redis] * (not settings.redis_url)
            yield Stores(db_url, redis_url, embedded)
        finally:
            with only_one(data):
                if locked(used):
                    redis.stop(home)
                    postgres.stop(home)
