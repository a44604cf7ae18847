"""The api listener: Hypercorn's connections behind an accept loop of our own.

Owns when it accepts, when a connection is told that it ends, and Hypercorn's settings. Knows of the application only
that it is ASGI. Hypercorn's own `serve` stops accepting and closes every idle connection in one breath, also those
that were accepted a moment ago and whose request is on its way: those senders would see a reset.
"""

from __future__ import annotations

import logging
import socket
from functools import partial
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import wrap_app

from config.settings import Settings

__all__ = ["serve_api"]

REQUESTS_A_CONNECTION_MAX: Final = 2**53  # no limit: senders keep their connections, and hypercorn wants a number


async def serve_api(
    app: ASGIFramework,
    listener: socket.socket,
    settings: Settings,
    stop: trio.Event,
    yielding: trio.Event | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop`, then close the listener and what is idle, finish what is under way, and return.

    With `yielding` set before, a successor accepts from the same listener, which is closed here only. Connections that
    are idle may send one more request until `stop`, and this returns as soon as there are none. Whoever sets `stop`
    sees that `yielding` is set, too.
    """
    config, context = _hypercorn_config(settings), WorkerContext(max_requests=None)
    served, state = wrap_app(app, config.wsgi_max_body_size, "asgi"), dict[str, Any]()
    lifespan = Lifespan(served, config, state)
    handle = partial(TCPServer, served, config, context, ConnectionState(state))
    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
    async with trio.open_nursery() as nursery:
        await nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        nursery.start_soon(_close_idle, stop, context)
        async with trio.open_nursery() as connections, trio.open_nursery() as accepting:
            accepting.start_soon(partial(trio.serve_listeners, handle, listeners, handler_nursery=connections))
            task_status.started()
            await (stop if yielding is None else yielding).wait()
            config.keep_alive_max_requests = 0  # every answer from now on says that it is the last
            accepting.cancel_scope.cancel()
        await lifespan.wait_for_shutdown()
        nursery.cancel_scope.cancel()


async def _close_idle(stop: trio.Event, context: WorkerContext) -> None:
    """At `stop`, let Hypercorn close the connections that are idle, and each other one after its answer."""
    await stop.wait()
    await context.terminated.set()


def _hypercorn_config(settings: Settings) -> Config:
    config = Config()
    config.alpn_protocols = ["http/1.1"]
    config.keep_alive_max_requests = REQUESTS_A_CONNECTION_MAX
    config.keep_alive_timeout = settings.idle_timeout_seconds  # also bounds the wait for a whole head
    config.read_timeout = None  # would run while a handler waits, too; the application bounds the body
    config.h11_max_incomplete_size = settings.header_bytes_max
    config.include_server_header = False
    config.errorlog = logging.getLogger("hypercorn")
    config.errorlog.setLevel(logging.WARNING)
    return config
