"""Ports that nobody else is given: a range of its own for each process, outside those that the kernel hands out.

A server under fault is started again on its port. A port of the kernel's range could meanwhile be the near end of
somebody's outgoing connection, and a port that was merely free a moment ago another world's.
"""

from __future__ import annotations

import socket
from functools import cache
from itertools import count
from pathlib import Path

_BLOCK = 64  # the first port of a block is its claim; the others are given away
_FIRST = 20_000
_LAST = 65_535
_HANDED_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
_NUMBERS = count(1)


def own_port() -> int:
    """A port of this process's range that nobody listens on."""
    for _ in range(_BLOCK - 1):
        port = _claim()[1] + next(_NUMBERS) % (_BLOCK - 1) + 1
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if _binds(probe, port):
                return port
    raise AssertionError("every port of this process's range is in use")


@cache
def _claim() -> tuple[socket.socket, int]:
    """The first block that nobody has: a bound socket is given back by the kernel, however we end."""
    low, high = _handed_out()
    for start in range(_FIRST, _LAST - _BLOCK, _BLOCK):
        if start + _BLOCK <= low or start > high:
            claim = socket.socket()
            if _binds(claim, start):
                return claim, start
            claim.close()
    raise AssertionError(f"no free range of ports outside {low} to {high}")


def _handed_out() -> tuple[int, int]:
    try:
        low, high = _HANDED_OUT.read_text().split()
    except OSError:
        return 49_152, _LAST  # what other systems hand out
    return int(low), int(high)


def _binds(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
