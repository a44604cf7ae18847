"""What locust's users share: the campaigns, the events and the counts; and the way of the counts out of every process.

Owns the options, the start and end of a test, the way from the workers to the master, and what the summary, the web
page and the file show. Must not import trio, nor what imports it: what is pure is in `bench.locust_events`.

The load has campaigns of its own, made at its start: it never spends the budget of campaigns that were there before.
"""

from __future__ import annotations

import json
import logging
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import gevent
from flask import request
from locust import events
from locust.runners import MasterRunner, WorkerRunner

from bench.locust_events import Summary, Tally, campaign_fields, new_events

API: Final = "http://127.0.0.1:8000"
JSON: Final = {"Content-Type": "application/json"}
STOP_SECONDS: Final = "15"  # a request that is cut off leaves events of which nobody knows what became
FINISH_SECONDS: Final = 5.0  # for the last word of the workers, beyond that
POLL_SECONDS: Final = 0.05
logger = logging.getLogger(__name__)


class Load:
    """What the users of this process share, and what they have heard. In the master: what all have heard."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.campaign_ids: list[int] = []
        self.events: Iterator[bytes] = iter(())
        self.share: float | None = 0.0  # events a second of one sender; 0: as many as it can; None: not known yet
        self.started = 0.0
        self.stopped: float | None = None
        self.finished: set[str] = set()  # workers that have said all

    def begin(self, options: Any) -> None:
        """Forget the test before, and start the clock."""
        self.tally = Tally()
        self.finished = set()
        self.campaign_ids = list(options.campaign_ids)
        self.share = None if options.rate else 0.0
        if self.campaign_ids:
            self.events = new_events(self.campaign_ids, options.users_seen, lambda: time.time_ns() // 1_000)
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self.tally.take()
        self.started, self.stopped = time.monotonic(), None

    def summary(self, environment: Any) -> Summary:
        """As it stands."""
        total = environment.runner.stats.total
        seconds = (self.stopped or time.monotonic()) - self.started if self.started else 0.0
        return Summary(
            Tally(**vars(self.tally)), seconds, environment.parsed_options.rate, total.num_requests, total.num_failures,
            float(total.get_response_time_percentile(0.5) or 0), float(total.get_response_time_percentile(0.99) or 0),
        )  # fmt: skip


load = Load()


# --- options, and one test after the other ----------------------------------------------------------------------


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """On the command line, and, but for the file, on the web page."""
    # Not in a group: locust's page shows only what was added to the parser itself.
    parser.add_argument("--intake", default="", help="address that events go to (that of --host)")
    parser.add_argument("--batch", type=int, default=100, help="events a request of Batch, Lines and Gzip (100)")
    parser.add_argument("--campaigns", type=int, default=10, help="campaigns that are made and get the events (10)")
    parser.add_argument("--users-seen", type=int, default=50_000, help="different user ids in the events (50000)")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="events a second of all senders together; 0: no limit (0)"
    )
    parser.add_argument("--events-json", default="", include_in_web_ui=False, help="file for the event counts, as JSON")
    parser.set_defaults(stop_timeout=STOP_SECONDS, campaign_ids=[])


@events.init.add_listener
def set_up(environment: Any, runner: Any, web_ui: Any, **_: Any) -> None:
    """Connect the events of this process: master, worker, or both in one."""
    if isinstance(runner, WorkerRunner):
        _set_up_worker(environment, runner)
        return
    environment.events.test_start.add_listener(_begin)
    environment.events.spawning_complete.add_listener(lambda **_: _tell_pace(environment))
    environment.events.reset_stats.add_listener(load.restart)
    environment.events.test_stop.add_listener(_stop_clock)
    environment.events.quit.add_listener(lambda **_: _conclude(environment))
    if isinstance(runner, MasterRunner):
        environment.events.worker_report.add_listener(_hear_worker)
        runner.register_message("finished", _hear_last)
        environment.events.test_stopping.add_listener(_finish_workers)
    if web_ui is not None:
        _show(environment, web_ui)


def _begin(environment: Any, **_: Any) -> None:
    """Make the campaigns; workers get their ids with the options."""
    options = environment.parsed_options
    address = environment.host or API
    try:
        options.campaign_ids = [_create(address, number) for number in range(options.campaigns)]
    except (OSError, ValueError, KeyError) as error:
        logger.error("No campaign could be made at %s, so there is nothing to do: %s", address, error)
        options.campaign_ids = []
        environment.process_exit_code = 1
        gevent.spawn(environment.runner.quit if options.headless else environment.runner.stop)
    load.begin(options)


def _create(address: str, number: int) -> int:
    body = json.dumps(campaign_fields(number)).encode()
    asked = urllib.request.Request(f"{address}/campaigns/", body, JSON)  # noqa: S310 - the address is the caller's
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=30) as answer:
        return int(json.load(answer)["id"])


def _tell_pace(environment: Any) -> None:
    """All users are there: each sender's share of the rate is known, and its clock starts."""
    options, runner = environment.parsed_options, environment.runner
    if not options.rate:
        return
    senders = [each.__name__ for each in environment.user_classes if getattr(each, "sends_events", False)]
    count = sum(runner.target_user_classes_count.get(name, 0) for name in senders)
    first = load.share is None
    load.share = options.rate / count if count else None
    if first:
        load.restart()
    if isinstance(runner, MasterRunner):
        runner.send_message("pace", {"share": load.share})


def _stop_clock(**_: Any) -> None:
    load.stopped = time.monotonic()


def _conclude(environment: Any) -> None:
    """The summary, after everything else."""
    summary = load.summary(environment)
    print(summary, flush=True)
    if environment.parsed_options.events_json:
        Path(environment.parsed_options.events_json).write_text(json.dumps(summary.figures(), indent=1) + "\n")


# --- several processes --------------------------------------------------------------------------------------------


def _set_up_worker(environment: Any, runner: Any) -> None:
    """Counts go to the master with every report, and once more when the last user has its answer."""

    def begin(**_: Any) -> None:
        load.begin(environment.parsed_options)

    def report(data: dict[str, Any], **_: Any) -> None:
        data["events"] = load.tally.take()

    def take_pace(msg: Any, **_: Any) -> None:
        load.share = msg.data["share"]

    def finish(**_: Any) -> None:
        runner.stop()
        environment.stop_timeout = 0.0  # else locust sleeps as long before this worker may be used again
        runner.send_message("finished", load.tally.take())

    environment.events.test_start.add_listener(begin)
    environment.events.report_to_master.add_listener(report)
    environment.events.quitting.add_listener(finish)
    runner.register_message("pace", take_pace)
    runner.register_message("finish", finish, concurrent=True)


def _hear_worker(data: Mapping[str, Any], **_: Any) -> None:
    load.tally.add(data.get("events", {}))


def _hear_last(msg: Any, **_: Any) -> None:
    load.tally.add(msg.data)
    load.finished.add(msg.node_id)


def _finish_workers(environment: Any, **_: Any) -> None:
    """Wait until every worker has stopped its users and told their counts.

    Locust gives workers half a second for that, in which requests under way may have no answer yet.
    """
    runner = environment.runner
    latest = time.monotonic() + float(environment.stop_timeout) + FINISH_SECONDS
    runner.send_message("finish")
    while {worker.id for worker in runner.clients.all} - load.finished:
        if time.monotonic() > latest:
            logger.error("Not every worker told its last counts: the events below are too few.")
            break
        gevent.sleep(POLL_SECONDS)


# --- the web page -------------------------------------------------------------------------------------------------


def _show(environment: Any, web_ui: Any) -> None:
    """A tab with the event counts, which locust's page asks for with its own; and `/events.json`."""
    columns = [{"key": "what", "title": "Events"}, {"key": "events", "title": "Count"}]
    web_ui.template_args |= {
        "extended_tabs": [{"title": "Events", "key": "events"}],
        "extended_tables": [{"key": "events", "structure": columns}],
    }

    @web_ui.app.after_request
    def add_events(response: Any) -> Any:
        if request.path.endswith("/stats/requests") and response.is_json:
            extended = [{"key": "events", "data": load.summary(environment).rows()}]
            response.set_data(json.dumps({**response.json, "extended_stats": extended}))
        return response

    @web_ui.app.route("/events.json")
    @web_ui.auth_required_if_enabled
    def as_json() -> Any:
        return load.summary(environment).figures()
