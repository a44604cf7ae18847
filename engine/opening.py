"""How an adapter opens a connection that trio then awaits, and finds out that it was left.

Owns the thread in which a client library looks names up and shakes hands, as a blocking call. Knows no store.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


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
