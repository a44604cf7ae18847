"""What chaos mode puts between a system and its stores: a proxy for each, in a thread of their own.

Owns the thread, the sockets and the URLs that lead through them. What a proxy can do to the bytes is in bench/proxy.py.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

import trio

from bench.proxy import Proxy
from engine.embedded import Stores
from engine.embedded.home import SOCKET_NAME

BACKLOG: Final = 64


class Wires:
    """`stores` has the URLs for whoever is to be disturbed."""

    def __init__(self, stores: Stores, folder: Path) -> None:
        real_postgres = Path(parse_qs(urlsplit(stores.db_url).query)["host"][0]) / SOCKET_NAME
        real_redis = Path(unquote(urlsplit(stores.redis_url).path))
        redis_path = folder / "redis.sock"
        self.stores = Stores(
            urlsplit(stores.db_url)._replace(query=f"host={quote(str(folder), safe='')}").geturl(),
            f"unix://{quote(str(redis_path))}",
        )
        self._proxies = [
            (Proxy(real_postgres), _listener(folder / SOCKET_NAME)),
            (Proxy(real_redis), _listener(redis_path)),
        ]
        self._ready: Future[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = Future()

    def each(self, change: Callable[[Proxy], object]) -> None:
        """Do this to both proxies, and return when it is done."""

        def change_all() -> None:
            for proxy, _ in self._proxies:
                change(proxy)

        token, _ = self._ready.result()
        trio.from_thread.run_sync(change_all, trio_token=token)

    async def serve(self) -> None:
        """Relay until `stop`."""
        async with trio.open_nursery() as nursery:
            for proxy, listener in self._proxies:
                listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
                nursery.start_soon(trio.serve_listeners, proxy.relay, listeners)
            self._ready.set_result((trio.lowlevel.current_trio_token(), nursery.cancel_scope))

    def stop(self) -> None:
        """End all of it."""
        token, scope = self._ready.result()
        with suppress(trio.RunFinishedError):  # it has failed by itself, which `open_wires` tells
            trio.from_thread.run_sync(scope.cancel, trio_token=token)


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(BACKLOG)
    return listener


@contextmanager
def open_wires(stores: Stores, folder: Path) -> Iterator[Wires]:
    """Proxies in this new folder, until the block ends. Its path must be short: it holds unix sockets."""
    folder.mkdir(mode=0o700)
    wires = Wires(stores, folder)
    with ThreadPoolExecutor(1) as executor:
        relayed = executor.submit(trio.run, wires.serve)
        try:
            yield wires
        finally:
            wires.stop()
        relayed.result()
