"""The engine process of the fault harness: `headrace serve`, under clocks that a fault can move.

Three clocks: the machine's, the one that is compared with the stores', and the even one that nobody sets. Moving the
first two is a machine whose clock is wrong. Moving the first and the third is the whole world on another day, which the
stores can't be brought to. Moving only the first is a host that was set together with its stores.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from unittest.mock import patch

# What a start imports late: here, before the fork.
import api.app
import api.intake
import api.serve  # noqa: F401
from api.__main__ import main
from engine.clock import even_us
from engine.postgres.store import open_store
from engine.redis.ledger import open_ledger
from tests.faults.parent import end_with_parent

_MOVED = struct.Struct("<qqq")  # microseconds: the machine's clock, the compared one, the even one
CLOCK = "FAULTS_CLOCK"


def write_clock(path: Path, own_us: int, compared_us: int, even_us: int) -> None:
    """Move the clocks of the process that reads this file, at once."""
    mode = "r+b" if path.exists() else "wb"
    with open(path, mode) as file:
        file.write(_MOVED.pack(own_us, compared_us, even_us))


class MovedClock:
    """The machine's clock and what a fault adds to it."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 UTC, as the machine says."""
        return time.time_ns() // 1_000 + int(_MOVED.unpack_from(self._memory)[0])

    def compared_us(self) -> int:
        """The same, as it is compared with the stores'."""
        return time.time_ns() // 1_000 + int(_MOVED.unpack_from(self._memory)[1])

    def even_us(self) -> int:
        """The clock that nobody sets; it goes along with the whole world."""
        return even_us() + int(_MOVED.unpack_from(self._memory)[2])


def _serve() -> int:
    with (
        open(os.environ[CLOCK], "rb") as file,
        mmap.mmap(file.fileno(), _MOVED.size, access=mmap.ACCESS_READ) as memory,
    ):
        clock = MovedClock(memory)
        with (
            patch("engine.clock.machine_us", clock.now_us),
            patch("engine.clock.even_us", clock.even_us),
            patch("engine.runtime.open_store", partial(open_store, now_us=clock.compared_us)),
            patch("engine.runtime.open_ledger", partial(open_ledger, now_us=clock.compared_us)),
        ):
            return main(["serve"])


def run(environment: Mapping[str, str], said: str, log: str) -> None:
    """The whole life of a forked process."""
    end_with_parent()
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((sys.stdin, os.devnull), (sys.stdout, said), (sys.stderr, log)):
        with open(path, "r" if stream is sys.stdin else "a") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.exit(_serve())
