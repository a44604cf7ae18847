"""The lean sender against a small server of the test: what it counts, and what it takes for unknown."""

from __future__ import annotations

import json
import socket
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.bodies import Template, make_templates
from bench.connections import content_length
from bench.scenario import Scenario
from bench.sender import ALL, NONE, UNKNOWN, Job, Sender, Sent


@contextmanager
def serving(*answers: bytes | None) -> Iterator[int]:
    """A server that gives these answers in turn, the last one for ever; None closes the connection. Its port."""
    left = list(answers)
    lock = threading.Lock()

    def answer() -> bytes | None:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as requests:
            while head := requests.readline():
                length = 0
                while (line := requests.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                assert head.startswith(b"POST ")
                requests.read(length)
                told = answer()
                if told is None:
                    return
                connection.sendall(told)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def answered(status: int, body: object) -> bytes:
    """An answer."""
    text = json.dumps(body, separators=(",", ":")).encode()
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(text), text)


def templates(batch: int) -> list[Template]:
    """Of a plain scenario."""
    return make_templates(Scenario(about="", campaigns=1), batch, [1], seed=1, host="h")


def send(port: int, batch: int = 1, *, rate: float | None = None, seconds: float = 0.3, burst: float = 0.0) -> Sent:
    """One step over two connections."""
    return Sender(Job("127.0.0.1", port, templates(batch), 2, seconds, rate, burst, 0)).run()


ACCEPTED = {"event_id": "x", "status": "accepted"}
DUPLICATE = {"event_id": "x", "status": "duplicate"}


def test_verdicts_of_single_events_are_told_apart() -> None:
    """Accepted, duplicate, refused for good; what is 503 is unknown."""
    capped, away = answered(429, {"code": "frequency_capped"}), answered(503, {"code": "unavailable"})
    with serving(answered(200, DUPLICATE), capped, away, answered(200, ACCEPTED)) as port:
        sent = send(port)
    assert sent.counts["d"] == sent.counts["r"] == 1
    assert sent.counts["a"] == len(sent.outcomes) - 3
    assert {verdict for _, _, verdict in sent.verdicts} == {"d", "r"}
    assert sent.outcomes.count(bytes([UNKNOWN])) == 1
    assert sum(array("i", sent.refused_events)) == 1


def test_a_batch_is_accepted_but_for_what_its_results_say() -> None:
    """Each at its place."""
    results = [{"index": 3, "status": "rejected"}, {"index": 5, "status": "retry"}, {"index": 6, "status": "duplicate"}]
    with serving(answered(200, {"received": 10, "results": results}), answered(200, {"results": []})) as port:
        sent = send(port, 10)
    assert sorted((at, verdict) for _, at, verdict in sent.verdicts) == [(3, "r"), (5, "u"), (6, "d")]
    assert set(sent.outcomes) == {ALL}
    assert sent.counts["a"] == 10 * len(sent.outcomes) - 3


def test_a_batch_that_was_not_read_has_nothing_accepted() -> None:
    """400: certain, and no matter of a retry."""
    with serving(answered(400, {}), answered(200, {"results": []})) as port:
        sent = send(port, 10)
    assert sent.outcomes.count(bytes([NONE])) == 1


def test_a_batch_that_is_refused_whole_is_unknown() -> None:
    """Its results are not even read."""
    with serving(answered(200, {"retry": 10, "results": "a thousand lines"}), answered(200, {"results": []})) as port:
        sent = send(port, 10)
    assert sent.outcomes.count(bytes([UNKNOWN])) == 1
    assert sum(array("i", sent.refused_events)) == 10


def test_a_service_does_not_count_waiting_for_a_connection() -> None:
    """The latency of an open loop does."""
    with serving(answered(200, ACCEPTED)) as port:
        sent = send(port, rate=1e6, seconds=0.2)
    latencies, services = array("d", sent.latencies), array("d", sent.services)
    assert all(service <= latency for service, latency in zip(services, latencies, strict=True))
    assert sum(services) < sum(latencies) / 2


def test_a_connection_that_is_cut_leaves_its_request_unknown_and_is_replaced() -> None:
    """And the load goes on."""
    with serving(answered(200, ACCEPTED), None, answered(200, ACCEPTED)) as port:
        sent = send(port)
    assert sent.outcomes.count(bytes([UNKNOWN])) == 1
    assert sent.statuses[0] == 1
    assert len(sent.outcomes) > 10


def test_an_open_loop_sends_what_it_planned() -> None:
    """No more, and no less, whatever the system could take."""
    with serving(answered(200, ACCEPTED)) as port:
        sent = send(port, rate=100, seconds=0.5)
    assert 45 <= len(sent.outcomes) + sent.given_up <= 51


def test_an_answer_without_a_length_is_refused() -> None:
    """It could not be told from the next one."""
    assert content_length(b"HTTP/1.1 200 OK\r\nCONTENT-LENGTH: 12\r\nx: y") == 12
    with pytest.raises(ConnectionError):
        content_length(b"HTTP/1.1 200 OK\r\nx: y")
