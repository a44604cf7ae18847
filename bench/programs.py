"""A program of the bench as a child process that is given its job on standard input, and tells on standard output.

Owns its start and its end. Knows nothing of what the job says.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def program(module: str, job: bytes, *, more: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module`, told its job; it is killed when the block ends. `more`: its standard input stays open."""
    process = subprocess.Popen(
        [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    try:
        process.stdin.write(job)
        if more:
            process.stdin.flush()
        else:
            process.stdin.close()
        yield process
    finally:
        process.kill()
        process.wait()
