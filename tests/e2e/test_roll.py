"""A restart of all workers, one by one, under load: nobody is refused, and nothing is lost."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.e2e.program import Program, impression, running
from tests.e2e.test_survival import stored_ids

# What stays idle is closed after a quarter of it: the client of the tests keeps its connections.
ROLLING = {"HEADRACE_WORKERS": "2", "HEADRACE_DRAIN_SECONDS": "3"}


class Sender(threading.Thread):
    """Posts one event after the other, and repeats none: what went wrong once is found in `failures`."""

    def __init__(self, url: str, campaign: int, *, keeps: bool, pause: float, stop: threading.Event) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.failures: list[str] = []
        self.connections = 0
        self._address = urlsplit(url).netloc
        self._campaign = campaign
        self._keeps = keeps
        self._pause = pause
        self._stop_asked = stop

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop_asked.wait(self._pause):
            event = impression(self._campaign, self.name)
            self.sent.append(event["event_id"])
            if connection is None:
                connection = http.client.HTTPConnection(self._address, timeout=30)
                self.connections += 1
            try:
                connection.request("POST", "/events/", json.dumps(event), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {body!r}")
                ended = answer.will_close
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                ended = True
            if ended or not self._keeps:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()


@contextmanager
def senders(program: Program, campaign: int) -> Iterator[list[Sender]]:
    """At each listener: new connections, one that is kept busy, and some that are idle most of the time."""
    stop = threading.Event()
    ways = [(False, 0.002), (False, 0.005), (True, 0.005), (True, 0.05), (True, 0.3)]
    threads = [
        Sender(url, campaign, keeps=keeps, pause=pause, stop=stop) for url in program.listeners for keeps, pause in ways
    ]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def workers_of(program: Program) -> set[int]:
    """Process ids of the children, whichever thread has started them."""
    threads = Path(f"/proc/{program.process.pid}/task").iterdir()
    return {int(pid) for thread in threads for pid in (thread / "children").read_text().split()}


def test_a_roll_under_load_refuses_nobody_and_loses_nothing(env: dict[str, str]) -> None:
    """Each request of each sender is answered 200, without a retry; every worker is new."""
    with running({**env, **ROLLING}) as program:
        campaign, before = program.create()["id"], workers_of(program)
        with senders(program, campaign) as threads:
            program.wait_for(lambda: all(len(thread.sent) > 3 for thread in threads))
            program.process.send_signal(signal.SIGHUP)
            program.wait_for(lambda: "restarted: all 2 workers are new" in program.log.read_text())
            counts = [len(thread.sent) for thread in threads]
            program.wait_for(lambda: all(len(t.sent) > count for t, count in zip(threads, counts, strict=True)))
        assert [failure for thread in threads for failure in thread.failures] == []
        assert len(workers_of(program)) == 2
        assert not workers_of(program) & before
        sent = {event_id for thread in threads for event_id in thread.sent}
        assert set(stored_ids(env["DB_URL"])) == sent
        assert program.report(campaign)["impressions"] == len(sent)
        program.audit()
        assert program.stop() == 0, program.log.read_text()
        assert "ERROR" not in program.log.read_text()
