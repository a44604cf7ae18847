"""Locust users for Headrace: senders of events, readers of reports, editors of campaigns, and the mix of them all.

    .venv-locust/bin/locust -f bench/locustfile.py --host http://127.0.0.1:8000 --intake http://127.0.0.1:8001

Owns what the users do; docs/load.md shows how it is run. Must not import trio, nor what imports it (`import locust`
patches the process with gevent). What the users share, and the options, are in `bench.locust_load`.
"""

from __future__ import annotations

import gzip
import random
import time
from collections.abc import Mapping
from itertools import islice
from typing import ClassVar, Final

import gevent
from locust import FastHttpUser, between, constant_throughput, task
from locust.exception import StopUser

from bench.locust_events import Tally, an_edit, campaign_fields, judge_batch, judge_single
from bench.locust_load import API, JSON, POLL_SECONDS, load

PAUSE_SECONDS: Final = 0.5
NDJSON: Final = {"Content-Type": "application/x-ndjson"}


class Visitor(FastHttpUser):
    """A user of the api."""

    abstract = True
    host = API
    network_timeout = 30.0  # three times the deadline of a request

    def on_start(self) -> None:
        """Without campaigns there is nothing to do; the log says why."""
        if not load.campaign_ids:
            raise StopUser


class Sender(Visitor):
    """Sends events to the intake, and counts what it hears. Waits for each answer before it sends again."""

    abstract = True
    sends_events = True
    headers: ClassVar[Mapping[str, str]] = JSON
    path = "/events/batch"
    title = ""

    def size(self) -> int:
        """Events a request."""
        return max(1, int(self.environment.parsed_options.batch))

    def body(self, made: list[bytes]) -> bytes:
        """As it is sent."""
        return b"[" + b",".join(made) + b"]"

    def judge(self, made: int, status: int, body: bytes) -> tuple[Tally, str]:
        """What the answer comes to."""
        return judge_batch(made, status, body)

    def wait_time(self) -> float:
        """In step with the rate that was asked for, as far as answers come in time."""
        if load.share is None:
            return POLL_SECONDS
        return float(constant_throughput(load.share / self.size())(self)) if load.share else 0.0

    @task
    def send(self) -> None:
        """One request."""
        if load.share is None:
            return
        gevent.sleep(0)  # whom locust ends as it wakes is ended here, not with a request under way
        made = list(islice(load.events, self.size()))
        heard, complaint = Tally(offered=len(made), refused=len(made)), ""
        address = self.environment.parsed_options.intake or self.host
        try:
            with self.client.post(
                f"{address}{self.path}",
                data=self.body(made),
                headers=self.headers,
                name=self.title,
                catch_response=True,
            ) as response:
                heard, complaint = self.judge(len(made), response.status_code, response.content or b"")
                if complaint:
                    response.failure(complaint)
                else:
                    response.success()
        finally:
            load.tally.add(vars(heard))


class Single(Sender):
    """One event a request."""

    weight = 8
    path = "/events/"
    title = "one event"

    def size(self) -> int:
        """One."""
        return 1

    def body(self, made: list[bytes]) -> bytes:
        """The event."""
        return made[0]

    def judge(self, made: int, status: int, body: bytes) -> tuple[Tally, str]:
        """By status and code."""
        assert made == 1
        return judge_single(status, body)


class Batch(Sender):
    """A JSON array of --batch events."""

    weight = 3
    title = "JSON array"


class Lines(Sender):
    """The same as NDJSON: an event a line."""

    weight = 1
    title = "NDJSON"
    headers: ClassVar[Mapping[str, str]] = NDJSON

    def body(self, made: list[bytes]) -> bytes:
        """Lines."""
        return b"\n".join(made)


class Gzip(Lines):
    """The same as gzip-encoded NDJSON."""

    weight = 1
    title = "NDJSON, gzip"
    headers: ClassVar[Mapping[str, str]] = {**NDJSON, "Content-Encoding": "gzip"}

    def body(self, made: list[bytes]) -> bytes:
        """Compressed quickly: the sender is the slow one."""
        return gzip.compress(super().body(made), compresslevel=1)


class Reader(Visitor):
    """Reads reports and campaigns."""

    weight = 2
    wait_time = between(0.1, 1.0)

    @task(6)
    def report(self) -> None:
        """All that a campaign delivered."""
        self.client.get(f"/report/campaign/{random.choice(load.campaign_ids)}", name="report")

    @task(3)
    def report_of_a_day(self) -> None:
        """Of today."""
        day = time.strftime("%Y-%m-%d", time.gmtime())
        self.client.get(f"/report/campaign/{random.choice(load.campaign_ids)}?start={day}", name="report of a day")

    @task(2)
    def campaign(self) -> None:
        """One campaign, with what it has spent."""
        self.client.get(f"/campaigns/{random.choice(load.campaign_ids)}", name="campaign")

    @task(1)
    def page(self) -> None:
        """The first page of campaigns."""
        self.client.get("/campaigns/?limit=50", name="page of campaigns")


class Editor(Visitor):
    """Creates campaigns, and changes those under load: price, budgets, cap, pause."""

    weight = 1
    wait_time = between(0.5, 2.0)

    @task(6)
    def edit(self) -> None:
        """Price, budget or cap."""
        self._change(random.choice(load.campaign_ids), an_edit(), "change a campaign")

    @task(2)
    def pause(self) -> None:
        """For a moment, in which its events are rejected."""
        campaign_id = random.choice(load.campaign_ids)
        self._change(campaign_id, {"active": False}, "pause a campaign")
        gevent.sleep(PAUSE_SECONDS)
        self._change(campaign_id, {"active": True}, "resume a campaign")

    @task(1)
    def create(self) -> None:
        """One more, which gets no events."""
        self.client.post("/campaigns/", json=campaign_fields(0), name="create a campaign")

    def _change(self, campaign_id: int, changes: Mapping[str, object], title: str) -> None:
        self.client.patch(f"/campaigns/{campaign_id}", json=changes, name=title)
