"""How adapters open connections: what the system is told of the other side's silence."""

from __future__ import annotations

import socket

from engine.opening import KEEPALIVE_COUNT, KEEPALIVE_IDLE_SECONDS, KEEPALIVE_INTERVAL_SECONDS, keep_alive


def test_a_side_that_vanishes_is_found_out_on_tcp() -> None:
    """The system asks after some seconds of silence, and gives up after a few more."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        keep_alive(client)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name, seconds in (
            ("TCP_KEEPIDLE", KEEPALIVE_IDLE_SECONDS),
            ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_SECONDS),
            ("TCP_KEEPCNT", KEEPALIVE_COUNT),
        ):
            if hasattr(socket, name):
                assert client.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == seconds


def test_a_unix_socket_is_left_as_it_is() -> None:
    """Its other side can't vanish without a word."""
    one, other = socket.socketpair()
    with one, other:
        keep_alive(one)
        assert not one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
