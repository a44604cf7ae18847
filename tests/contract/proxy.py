"""A relay in front of Postgres that can swallow what the server says, as a bad network does."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import trio

COMMITTED = b"COMMIT\0"  # the command tag, as it stands in the server's message


class Proxy:
    """Relays until `swallow` is seen in what the server says; from then on it says nothing, or hangs up."""

    def __init__(self, db_url: str, folder: str) -> None:
        parts = urlsplit(db_url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self._target = f"{query['host']}/.s.PGSQL.{query.get('port', '5432')}"
        self.path = f"{folder}/.s.PGSQL.5432"
        self.url = parts._replace(query=urlencode({**query, "host": folder, "port": "5432"})).geturl()
        self.swallow: bytes | None = None
        self.hang_up = True
        self.swallowed = trio.Event()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept connections until cancelled."""
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(self.path)
        listening.listen()
        task_status.started()
        await trio.serve_listeners(self._relay, [trio.SocketListener(listening)])

    async def _relay(self, client: trio.SocketStream) -> None:
        server = await trio.open_unix_socket(self._target)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._forward, client, server, nursery.cancel_scope)
            await self._answer(server, client)
            nursery.cancel_scope.cancel()

    async def _forward(self, client: trio.SocketStream, server: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            async for data in client:
                await server.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

    async def _answer(self, server: trio.SocketStream, client: trio.SocketStream) -> None:
        try:
            async for data in server:
                if self.swallow is not None and self.swallow in data:
                    self.swallowed.set()
                    if self.hang_up:
                        return
                    await trio.sleep_forever()
                await client.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


@asynccontextmanager
async def open_proxy(db_url: str) -> AsyncIterator[Proxy]:
    """A proxy before the Postgres of this URL (a unix socket)."""
    with tempfile.TemporaryDirectory(prefix="hr-proxy-") as folder:
        async with trio.open_nursery() as nursery:
            proxy = Proxy(db_url, str(Path(folder)))
            await nursery.start(proxy.serve)
            yield proxy
            nursery.cancel_scope.cancel()
