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
- Unix sockets only, in a folder that only the stores' user may enter. Postgres lets in the engine's user only.

Postgres refuses to run as root. Then both stores run as the user `headrace` if there is one, else `nobody`.
Files that root writes never lie in a folder which that user may change.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from config.settings import Settings
from engine.embedded import postgres, redis
from engine.embedded.daemon import lock_file, locked, only_one
from engine.embedded.home import make_data_folder, open_home

__all__ = ["Stores", "open_stores"]


@dataclass(frozen=True, slots=True)
class Stores:
    """Where the stores are."""

    db_url: str
    redis_url: str


@contextmanager
def open_stores(settings: Settings) -> Iterator[Stores]:
    """The stores that the settings name; those without a URL are started, or found again, in `HEADRACE_DATA`.

    Blocks while they start (a second; up to two minutes after a crash). On leaving, the stores stop if nobody
    else uses them. Raises `EngineError` with what to do about it.
    """
    if settings.db_url and settings.redis_url:
        yield Stores(settings.db_url, settings.redis_url)
        return
    data = make_data_folder(settings.data_path)
    with only_one(data):
        home = open_home(data)
        used = lock_file(home.path / "used.lock")
        fcntl.flock(used, fcntl.LOCK_SH)
    with used:
        try:
            with only_one(data):
                db_url = settings.db_url or postgres.start(home)
                redis_url = settings.redis_url or redis.start(home, settings.redis_memory_mb)
            yield Stores(db_url, redis_url)
        finally:
            with only_one(data):
                if locked(used):
                    redis.stop(home)
                    postgres.stop(home)
