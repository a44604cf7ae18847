"""The engine process of the fault harness: `headrace serve`, under clocks that a fault can move.

Two clocks: the machine's, and the one that is compared with Postgres's. Moving both is a machine whose clock is
wrong; moving only the first is the whole world on another day, which Postgres can't be brought to.
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
from engine.postgres.store import open_store
from tests.faults.parent import end_with_parent

_MOVED = struct.Struct("<qq")  # microseconds: the machine's clock, the compared clock
CLOCK = "FAULTS_CLOCK"


def write_clock(path: Path, own_us: int, compared_us: int) -> None:
    """Move the clocks of the process that reads this file, at once."""
    mode = "r+b" if path.exists() else "wb"
    with open(path, mode) as file:
        file.write(_MOVED.pack(own_us, compared_us))


class MovedClock:
    """The machine's clock and what a fault adds to it."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 UTC, as the machine says."""
        return time.time_ns() // 1_000 + int(_MOVED.unpack_from(self._memory)[0])

    def compared_us(self) -> int:
        """The same, as it is compared with Postgres's."""
        return time.time_ns() // 1_000 + int(_MOVED.unpack_from(self._memory)[1])


def _serve() -> int:
    with (
        open(os.environ[CLOCK], "rb") as file,
        mmap.mmap(file.fileno(), _MOVED.size, access=mmap.ACCESS_READ) as memory,
    ):
        clock = MovedClock(memory)
        with (
            patch("engine.clock.machine_us", clock.now_us),
            patch("engine.runtime.open_store", partial(open_store, now_us=clock.compared_us)),
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
