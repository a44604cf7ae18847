"""A proxy between one engine and one store, over TCP or a unix socket, which can do what a bad network does.

Owns the bytes on their way: each direction flows, stalls (bytes wait, and are delivered when the stall ends, even if
their sender has hung up), vanishes (bytes are read and dropped, and so is their sender's end), or is delayed.
Connections can be cut, new ones refused, and the target exchanged. Knows no protocol, but can wait for a piece of text
that passes. Serves the bench and the fault harness.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum
from pathlib import Path

import trio

_PIECE_BYTES = 65_536


class Flow(Enum):
    """What happens to the bytes of one direction."""

    PASS = "pass"  # noqa: S105 - it is no password
    STALL = "stall"
    VANISH = "vanish"


class Direction:
    """One way through the proxy: towards the store, or back."""

    def __init__(self) -> None:
        self.delay_seconds = 0.0
        self.disturbed = 0  # pieces that did not go straight on, ever
        self._flow = Flow.PASS
        self._changed = trio.Event()
        self._watch: tuple[bytes, Callable[[], None]] | None = None

    @property
    def flow(self) -> Flow:
        """What happens now."""
        return self._flow

    @flow.setter
    def flow(self, flow: Flow) -> None:
        self._flow = flow
        self._changed.set()
        self._changed = trio.Event()

    def watch(self, text: bytes, seen: Callable[[], None]) -> None:
        """Call `seen` once, before the piece that holds `text` goes on; it may change the flow first."""
        self._watch = (text, seen)

    async def let_through(self, piece: bytes) -> bool:
        """Wait as this direction wants it; False when the piece has vanished."""
        if self._watch is not None and self._watch[0] in piece:
            (_, seen), self._watch = self._watch, None
            seen()
        self.disturbed += bool(self._flow is not Flow.PASS or self.delay_seconds)
        while self._flow is Flow.STALL:
            await self._changed.wait()
        if self.delay_seconds:
            await trio.sleep(self.delay_seconds)
        return self._flow is not Flow.VANISH

    async def let_end(self) -> None:
        """The sender has hung up: that vanishes like its bytes, until the direction is mended."""
        while self._flow is Flow.VANISH:
            await self._changed.wait()

    def mend(self) -> None:
        """As good as new."""
        self.delay_seconds = 0.0
        self._watch = None
        self.flow = Flow.PASS


class Proxy:
    """Relays to `target`: a port on loopback, or a unix socket. `open_proxy` and `bench/wires.py` open one."""

    def __init__(self, target: int | Path, port: int = 0) -> None:
        self.target = target
        self.port = port
        self.there = Direction()
        self.back = Direction()
        self.refusing = False
        self._relays: set[trio.CancelScope] = set()

    def cut(self) -> int:
        """End every connection now, and say how many those were; what is on its way is lost."""
        for relay in list(self._relays):
            relay.cancel()
        return len(self._relays)

    @property
    def disturbed(self) -> int:
        """Pieces that did not go straight on, ever: the proof that a fault has met somebody."""
        return self.there.disturbed + self.back.disturbed

    def black_hole(self) -> None:
        """Nothing comes through, and nobody is told."""
        self.there.flow = self.back.flow = Flow.VANISH

    def mend(self) -> None:
        """As good as new; connections that lost bytes are cut."""
        lossy = Flow.VANISH in (self.there.flow, self.back.flow)
        self.refusing = False
        self.there.mend()
        self.back.mend()
        if lossy:
            self.cut()

    async def relay(self, client: trio.SocketStream) -> None:
        """Serve one connection."""
        with trio.CancelScope() as scope:
            self._relays.add(scope)
            try:
                async with client:
                    if self.refusing:
                        return
                    try:
                        server = await self._connect()
                    except OSError:
                        return
                    async with server, trio.open_nursery() as nursery:
                        nursery.start_soon(self._back, server, client, nursery.cancel_scope)
                        await self._there(client, server)
                        nursery.cancel_scope.cancel()
            finally:
                self._relays.discard(scope)

    async def _connect(self) -> trio.SocketStream:
        if isinstance(self.target, int):
            return await trio.open_tcp_stream("127.0.0.1", self.target)
        return await trio.open_unix_socket(self.target)

    async def _there(self, client: trio.SocketStream, server: trio.SocketStream) -> None:
        try:
            while piece := await client.receive_some(_PIECE_BYTES):
                if await self.there.let_through(piece):
                    await server.send_all(piece)
            await self.there.let_end()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _back(self, server: trio.SocketStream, client: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            while piece := await server.receive_some(_PIECE_BYTES):
                if await self.back.let_through(piece):
                    await client.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        if self.there.flow is Flow.PASS:
            scope.cancel()
        elif self.back.flow is not Flow.VANISH:
            # What the stalled direction holds is delivered still; the client hears of the end, as over a network.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await client.send_eof()


@asynccontextmanager
async def open_proxy(target: int) -> AsyncIterator[Proxy]:
    """A proxy on a free loopback port, until the block ends."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = Proxy(target, listeners[0].socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy.relay, listeners)
        yield proxy
        nursery.cancel_scope.cancel()
