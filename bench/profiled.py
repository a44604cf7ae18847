"""`python …/bench/profiled.py api serve`: a program of ours, in whatever checkout we are, and where its CPU goes.

Owns the timer and the file that `PROFILE` names: at the program's end it holds every sample, a line of JSON each.
Knows nothing of what the program does, and imports nothing of ours: an older checkout has other modules.

The kernel counts the CPU of the process, so what waits is not sampled, and nobody has to stop it for a look. How far
that goes: Linux looks at such timers at its ticks (250 a second here); CPython hears of it at the next call, loop or
return from C, so straight-line code counts for what comes after it, and CPU of other threads for what this one does.
Stages are told well by that, single functions are not. Each sample wakes trio, too: some 2 % of the CPU.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

PROFILE: Final = "BENCH_PROFILE"  # in the environment: the file's path
INTERVAL_SECONDS: Final = 0.001  # more often than the kernel looks
DEPTH_MAX: Final = 30  # frames of a sample, from the inside; our own code is among them

_samples: Final[list[tuple[float, list[CodeType]]]] = []


def sample(number: int, frame: FrameType | None) -> None:
    """Where we are, from the inside out."""
    del number
    codes: list[CodeType] = []
    while frame is not None and len(codes) < DEPTH_MAX:
        codes.append(frame.f_code)
        frame = frame.f_back
    _samples.append((time.monotonic(), codes))


def write(path: Path) -> None:
    """All samples: seconds of the monotonic clock, and pairs of a file and a qualified name."""
    signal.setitimer(signal.ITIMER_PROF, 0)
    with path.open("w") as file:
        for at, codes in _samples:
            file.write(json.dumps([at, [(code.co_filename, code.co_qualname) for code in codes]]) + "\n")


def main(module: str, *arguments: str) -> None:
    """Run that module as `python -m` does, from the working folder."""
    sys.argv, sys.path[0] = [module, *arguments], str(Path.cwd())
    atexit.register(write, Path(os.environ[PROFILE]))
    signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL_SECONDS, INTERVAL_SECONDS)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
