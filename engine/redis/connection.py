"""One connection to Redis on a socket of its own, awaited by trio: commands part by part, replies in their order.

Owns the socket and the certainty of each answer: what failed before a byte was sent did not run; after that only a
reply is certain. Knows nothing of what the commands mean. redis-py opens the connection, in a thread (it knows TLS,
users and databases); hiredis packs and parses. A thread for each round trip would wait for the interpreter's lock at
every turn (docs/performance.md).
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import hiredis
import redis
import trio
from redis.exceptions import RedisError

from engine.opening import keep_alive, open_in_thread, speaks
from engine.ports import NotRun, Unknown
from engine.redis.calls import Command

__all__ = ["Connection", "Part"]

Part = Sequence[Command]
Heard = Callable[[Part, list[Any]], None]  # a part, and a reply a command

# One read: the replies of a full round (5,000 letters, and 60 bytes a call) would fit into two.
_READ_BYTES: Final = 64 << 10
# How a connection fails.
_TROUBLE: Final = (trio.TooSlowError, RedisError, hiredis.HiredisError, OSError)
_pack: Final[Any] = hiredis.pack_command  # (its annotation knows tuples of one element only)
_parse_error: Final[Any] = redis.connection.DefaultParser.parse_error


class Connection:
    """One connection, opened on use and after any trouble. One exchange at a time."""

    def __init__(self, make: Callable[[], Any], timeout_seconds: float) -> None:
        """`make` gives a connection of redis-py, not yet connected."""
        self.timeout_seconds = timeout_seconds
        self._make = make
        self._opened: Any = None  # redis-py's object, which closes its socket when it is dropped
        self._socket: socket.socket
        self._replies: Any

    async def exchange(self, parts: Iterable[Part], heard: Heard) -> None:
        """Send part after part, and hand on each with what came back, in order, as soon as that is whole.

        A reply a command: what Redis said, be it an error; or `NotRun`, or `Unknown`. A part is asked for when the one
        before is sent; all of them are, whatever happens. Raises `Cancelled`, which closes the connection, and what
        `parts` and `heard` raise, as an `AssertionError` where it could be taken for trouble of the connection.
        """
        parts = iter(parts)
        owed: deque[Part] = deque()  # sent, and not all replies are here
        replies: list[Any] = []  # of the first of them
        whole = False
        try:
            with trio.fail_after(self.timeout_seconds):
                await self._ready()
                while (part := _next(parts)) is not None:
                    owed.append(part)
                    await self._send(b"".join(map(_pack, part)))
                    await trio.lowlevel.checkpoint()  # others get their turn, also where nothing is waited for
                    self._receive_at_once()
                    self._hand_on(owed, replies, heard)
                while owed:
                    await self._receive()
                    self._hand_on(owed, replies, heard)
            whole = True
        except _TROUBLE as error:
            detail = str(error) or ("it answers too slowly" if owed else "it does not answer")
            replies += [Unknown(f"Redis gave no answer: {detail}")] * (sum(map(len, owed)) - len(replies))
            for part in owed:
                heard(part, replies[: len(part)])
                del replies[: len(part)]
            for part in parts:
                heard(part, [NotRun(f"Redis can't be reached: {detail}")] * len(part))
        finally:
            if not whole:
                self.close()  # it may owe an answer, and nobody may read that as one of the next call

    def close(self) -> None:
        """Close it; the next exchange opens another."""
        if self._opened is not None:
            opened, self._opened = self._opened, None
            trio.lowlevel.notify_closing(self._socket)
            opened.disconnect()

    async def _ready(self) -> None:
        """The connection, opened again if Redis has left it meanwhile."""
        if self._opened is not None and speaks(self._socket.fileno()):
            self.close()
        if self._opened is None:
            self._opened = await open_in_thread(self._open, lambda opened: opened.disconnect())
            self._socket = self._opened._sock  # redis-py has no other way to hand it over
            self._socket.setblocking(False)
            keep_alive(self._socket)
            self._replies = hiredis.Reader(replyError=_parse_error)

    def _open(self) -> Any:
        opened = self._make()
        opened.connect()
        return opened

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await trio.lowlevel.wait_writable(self._socket)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._socket)

    def _hand_on(self, owed: deque[Part], replies: list[Any], heard: Heard) -> None:
        """Tell the replies of every part that has all of them."""
        while owed:
            while len(replies) < len(owed[0]) and (reply := self._replies.gets()) is not False:
                replies.append(reply)
            if len(replies) < len(owed[0]):
                return
            told = replies[:]
            replies.clear()
            with _not_ours():
                heard(owed.popleft(), told)

    async def _receive(self) -> None:
        """Some bytes more. Raises `OSError` at the end."""
        while True:
            try:
                return self._receive_some()
            except (BlockingIOError, ssl.SSLWantReadError):
                await trio.lowlevel.wait_readable(self._socket)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._socket)

    def _receive_at_once(self) -> None:
        """The bytes that are here, if any."""
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._receive_some()

    def _receive_some(self) -> None:
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionResetError("it has closed the connection")
        self._replies.feed(data)


def _next(parts: Iterator[Part]) -> Part | None:
    with _not_ours():
        return next(parts, None)


@contextmanager
def _not_ours() -> Iterator[None]:
    """An error of who asks, or is told, must not be taken for one of the connection."""
    try:
        yield
    except _TROUBLE as error:
        raise AssertionError("whoever asked for this exchange failed in its midst") from error
