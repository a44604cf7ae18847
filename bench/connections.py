"""Connections of a load generator to one address: one epoll serves all of them, one request is under way on each.

Owns sockets, and when an answer is whole. Knows nothing of what is asked and answered: who sends (bench/sender.py,
bench/steady.py, bench/probe.py) derives from `Connections`.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from typing import Final

ANSWER_BYTES: Final = 1 << 18
GRACE_SECONDS: Final = 12.0  # for answers, after the last request: more than a system lets a request wait
CONNECT_SECONDS: Final = 5.0
RECONNECT_SECONDS: Final = 0.05  # between attempts, while nobody listens


class Connection:
    """One connection: what it sends, what has arrived of the answer."""

    __slots__ = ("fd", "number", "planned", "received", "rest", "sent_at", "socket", "wanted")

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), CONNECT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.fd = self.socket.fileno()
        self.number = -1  # the request that is under way
        self.planned = self.sent_at = 0.0
        self.rest = memoryview(b"")
        self.received = b""
        self.wanted = 0  # bytes of the whole answer, once its head is here

    def send(self, request: bytes) -> bool:
        """Begin; False when the socket is full and the rest waits."""
        self.rest = memoryview(request)
        return self.send_rest()

    def send_rest(self) -> bool:
        """Go on; True when all of it is out."""
        while self.rest:
            try:
                self.rest = self.rest[self.socket.send(self.rest) :]
            except BlockingIOError:
                return False
        return True

    def receive(self) -> tuple[int, bytes] | None:
        """Status and body of the answer, once it is whole. Raises `ConnectionError` at the system's end."""
        try:
            piece = self.socket.recv(ANSWER_BYTES)
        except BlockingIOError:
            return None
        if not piece:
            raise ConnectionResetError("closed by the system")
        self.received = piece if not self.received else self.received + piece
        if not self.wanted:
            head = self.received.find(b"\r\n\r\n")
            if head < 0:
                return None
            self.wanted = head + 4 + content_length(self.received[:head])
        if len(self.received) < self.wanted:
            return None
        answer, self.received, self.wanted = self.received, b"", 0
        return int(answer[9:12]), answer[answer.find(b"\r\n\r\n") + 4 :]


def content_length(head: bytes) -> int:
    """Of an answer's head. Raises `ConnectionError` when it has none: such answers are not made for many."""
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        raise ConnectionResetError("an answer without Content-Length")
    end = lower.find(b"\r\n", at + 2)
    return int(lower[at + 17 : end if end > 0 else None])


class Connections:
    """As many as are wanted, as far as somebody listens. A subclass says what to do with an answer, and with none."""

    def __init__(self, host: str, port: int, wanted: int) -> None:
        self.epoll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.idle: deque[Connection] = deque()
        self.under_way = 0
        self._address = host, port
        self._wanted = wanted
        self._reconnect_at = 0.0

    def answered(self, connection: Connection, number: int, status: int, body: bytes) -> None:
        """The answer to request `number` is whole; the connection is idle again after this."""
        raise NotImplementedError

    def lost(self, connection: Connection, number: int) -> None:
        """No answer to request `number` will come, and nothing is known of it; the connection is gone."""
        raise NotImplementedError

    def connect_all(self) -> None:
        """Raises `OSError`."""
        while len(self.connections) < self._wanted:
            self._connect()

    def reconnect(self) -> None:
        """Make up for connections that were lost, as far as somebody listens."""
        now = time.monotonic()
        if len(self.connections) < self._wanted and now >= self._reconnect_at:
            try:
                self.connect_all()
            except OSError:
                self._reconnect_at = now + RECONNECT_SECONDS

    def send(self, connection: Connection, number: int, request: bytes, planned: float) -> None:
        """Send on a connection that is idle no more."""
        connection.number, connection.planned, connection.sent_at = number, planned, time.monotonic()
        self.under_way += 1
        try:
            if not connection.send(request):
                self.epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)
        except ConnectionError:
            self._lose(connection)

    def poll(self, seconds: float) -> None:
        """Wait so long for whatever comes, and take it."""
        for fd, what in self.epoll.poll(seconds):
            if (connection := self.connections.get(fd)) is None:
                continue  # a descriptor of the subclass
            try:
                if what & select.EPOLLOUT and connection.send_rest():
                    self.epoll.modify(fd, select.EPOLLIN)
                if what & ~select.EPOLLOUT:
                    answer = connection.receive()
                    if answer is not None:
                        self._take(connection, *answer)
            except ConnectionError:
                self._lose(connection)

    def wait_for_the_rest(self) -> None:
        """Take the answers to what is under way, as far as they come in time, and close all connections."""
        end = time.monotonic() + GRACE_SECONDS
        while self.under_way and time.monotonic() < end:
            self.poll(0.05)
        for connection in list(self.connections.values()):
            self._lose(connection)

    def _connect(self) -> None:
        connection = Connection(*self._address)
        self.connections[connection.fd] = connection
        self.epoll.register(connection.fd, select.EPOLLIN)
        self.idle.append(connection)

    def _take(self, connection: Connection, status: int, body: bytes) -> None:
        number, connection.number = connection.number, -1
        self.under_way -= 1
        self.answered(connection, number, status, body)
        self.idle.append(connection)

    def _lose(self, connection: Connection) -> None:
        number, connection.number = connection.number, -1
        del self.connections[connection.fd]
        connection.socket.close()
        if number < 0:
            self.idle.remove(connection)
        else:
            self.under_way -= 1
            self.lost(connection, number)
