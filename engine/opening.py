"""How an adapter opens a connection that trio then awaits, and finds out that it was left.

Owns the thread in which a client library looks names up and shakes hands, as a blocking call, and how soon the system
finds out that the other side has vanished without a word. Knows no store.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Final, TypeVar

import trio

T = TypeVar("T")

# A side that has vanished (its machine is off, or the network has a hole) is found out within 11 s of silence, or when
# what was sent has waited for 10 s: about when a flush or a query without an answer is given up anyway. The system's
# own defaults are two hours and a quarter of one.
KEEPALIVE_IDLE_SECONDS: Final = 5
KEEPALIVE_INTERVAL_SECONDS: Final = 2
KEEPALIVE_COUNT: Final = 3
UNSENT_SECONDS: Final = 10


async def open_in_thread(open_: Callable[[], T], close: Callable[[T], object]) -> T:
    """What `open_` gives, and raises. Whoever is cancelled need not wait for it: what is opened then, is closed."""
    abandoned = False

    def run() -> T:
        opened = open_()
        if abandoned:  # nobody is left to close it
            close(opened)
        return opened

    try:
        return await trio.to_thread.run_sync(run, abandon_on_cancel=True)
    except trio.Cancelled:
        abandoned = True
        raise


def speaks(descriptor: int) -> bool:
    """Whether the server has said something unasked. On an idle connection that is most often its end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def keep_alive(sock: socket.socket) -> None:
    """Have the system find out that the other side has vanished; a unix socket needs no such thing."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (  # (not every platform has all of them)
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_SECONDS),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_SECONDS),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
        ("TCP_USER_TIMEOUT", UNSENT_SECONDS * 1_000),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
