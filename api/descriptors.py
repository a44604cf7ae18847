"""How many connections the process's file descriptors allow, beside what the engine needs.

Owns that arithmetic, and raises the soft limit to what the settings ask for. Knows no socket.
"""

from __future__ import annotations

import logging
import resource
from typing import Final

__all__ = ["allow_connections", "connections_that_fit", "lingering_max"]

LISTENERS: Final = 2  # each may be full while the other is
# Stores (8 queries, 2 flushes, Redis, a listening connection: some 20), listening sockets, selectors, logs, and what
# a reconnection or a recovery opens beside them.
KEPT: Final = 96
LINGERING_MIN: Final = 8
LINGERING_MAX: Final = (
    256  # connections that wait until their senders have heard the last answer: some milliseconds each
)
_log = logging.getLogger("headrace")


def lingering_max(connections_max: int) -> int:
    """Connections that end, and are kept for a moment, beside those that a listener of so many serves."""
    return max(LINGERING_MIN, min(LINGERING_MAX, connections_max // 4))


def connections_that_fit(connections_max: int, descriptors: int) -> int:
    """Connections of one listener, if the process may have so many descriptors.

    At least one: a listener that serves nobody helps nobody.
    """
    share = (descriptors - KEPT) // LISTENERS
    return max(1, min(connections_max, share - max(LINGERING_MIN, min(LINGERING_MAX, share // 5))))


def allow_connections(connections_max: int) -> int:
    """Raise the soft limit as far as they need it and the hard limit lets us; the connections of one listener."""
    wanted = KEPT + LISTENERS * (connections_max + lingering_max(connections_max))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections_max
    fitting = connections_that_fit(connections_max, soft)
    if fitting < connections_max:
        _log.warning(
            "this process may have %d files: each listener serves %d connections, not the %d of "
            "HEADRACE_CONNECTIONS_MAX; for more, raise the limit (ulimit -n)", soft, fitting, connections_max,
        )  # fmt: skip
    return fitting
