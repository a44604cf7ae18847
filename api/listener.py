"""The api listener: Quart-Trio on Hypercorn, on the connections that the intake has, too.

Owns the order of a connection's requests (one at a time: a later one may rely on what an earlier one did), the room
for their bodies, and the application's life. Knows of the application only that it is ASGI.

Hypercorn's own listener is not used: there a fault that a peer causes ends the process, and a second reading of HTTP
stands beside the intake's. Here a peer's bytes meet `intake_reader` only.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from dataclasses import replace
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.typing import ASGIFramework
from hypercorn.utils import wrap_app

from api.connections import Connections
from api.errors import problem
from api.faults import in_one_line
from api.framework import Framework
from api.intake_connection import Connection, Exchange
from api.intake_reader import Request
from config.settings import Settings

__all__ = ["serve_api"]

# One is answered, and one that has come meanwhile waits: so the end of a connection is noticed while it is answered,
# and no third body is held for the sender.
WAITING_MAX: Final = 2
_OVERLOADED: Final = problem(503, "overloaded", "too many bodies are arriving at once", retry_after_seconds=1)
_log = logging.getLogger("headrace.api")

_Queue = deque[tuple[Exchange, Request]]


async def serve_api(
    app: ASGIFramework,
    listener: socket.socket,
    settings: Settings,
    stop: trio.Event,
    yielding: trio.Event | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """See `Connections.run`. The application starts up before, and shuts down after."""
    config = _hypercorn_config()
    served, state = wrap_app(app, config.wsgi_max_body_size, "asgi"), dict[str, Any]()
    lifespan = Lifespan(served, config, state)
    async with trio.open_nursery() as nursery:
        await nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        task_status.started()
        await Api(Framework(served, config, state), listener, settings).run(stop, yielding)
        await lifespan.wait_for_shutdown()
        nursery.cancel_scope.cancel()


class Api(Connections):
    """The api's listener: each whole request goes to the application."""

    def __init__(self, framework: Framework, listener: socket.socket, settings: Settings) -> None:
        super().__init__(listener, replace(settings, pipelined_requests_max=WAITING_MAX), _log)
        self._framework = framework
        self._queues: dict[Connection, _Queue] = {}  # of connections with requests under way

    def handle(self, exchange: Exchange, request: Request) -> None:
        """Answer it when those before it are answered."""
        if self.body_bytes > self.settings.intake_bytes_max:
            exchange.finish(_OVERLOADED)
            return
        self.body_bytes += len(request.body)  # until it is answered
        queue = self._queues.get(exchange.connection)
        if queue is None:
            queue = self._queues[exchange.connection] = deque()
            self._nursery.start_soon(self._answer_all, exchange.connection, queue)
        queue.append((exchange, request))

    async def _answer_all(self, connection: Connection, queue: _Queue) -> None:
        while queue:
            exchange, request = queue[0]
            try:
                if not connection.closed:
                    await self._framework.answer(exchange, request, self.date)
            except* Exception as faults:  # noqa: BLE001 - boundary: a fault of one request ends its connection
                _log.error("a request failed, and its connection is closed: %s", in_one_line(faults))
                connection.close()
            finally:
                queue.popleft()
                self.body_bytes -= len(request.body)
        del self._queues[connection]


def _hypercorn_config() -> Config:
    config = Config()
    config.errorlog = logging.getLogger("hypercorn")
    config.errorlog.setLevel(logging.WARNING)
    return config
