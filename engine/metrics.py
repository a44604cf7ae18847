"""What the engine counts and times, in Prometheus's terms.

Owns names and buckets. Knows nothing of how they are served. Everything is counted a batch at a time; what is counted
for each request waits in memory for `publish`, because Prometheus's own counting would cost a single event more than
its decoding.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Sequence
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from engine.model import Reason, Status
from engine.submission import Submission

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_EVENTS: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000)

events = Counter("headrace_events_total", "Events by verdict.", ["status", "reason"])
request_seconds = Histogram(
    "headrace_request_seconds", "From receipt of a request to its last verdict.", buckets=_SECONDS
)
request_events = Histogram("headrace_request_events", "Events of one request.", buckets=_EVENTS)
reserve_seconds = Histogram(
    "headrace_reserve_seconds", "One ledger round, from its first call to its last reply.", buckets=_SECONDS
)
reserve_events = Histogram("headrace_reserve_events", "Events of one ledger round.", buckets=_EVENTS)
flush_seconds = Histogram("headrace_flush_seconds", "One transaction: COPY, guard, COMMIT.", buckets=_SECONDS)
flush_events = Histogram("headrace_flush_events", "Events of one transaction.", buckets=_EVENTS)
flushes = Counter("headrace_flushes_total", "Transactions by outcome.", ["outcome"])
look_up_seconds = Histogram("headrace_look_up_seconds", "One look-up of ids in Postgres.", buckets=_SECONDS)
recovery_seconds = Histogram("headrace_recovery_seconds", "One recovery of a campaign.", buckets=_SECONDS)
recoveries = Counter("headrace_recoveries_total", "Recoveries by outcome.", ["outcome"])
actor_faults = Counter("headrace_actor_faults_total", "Actors that failed and were rebuilt.")
events_open = Gauge("headrace_events_open", "Events without a verdict.", multiprocess_mode="livesum")
requests_shed = Counter("headrace_requests_shed_total", "Requests refused unread: the engine was full.")
flush_queue_events = Gauge("headrace_flush_queue_events", "Events waiting for a flush.", multiprocess_mode="livesum")
actors = Gauge("headrace_actors", "Live campaigns.", multiprocess_mode="livesum")
campaigns_closed = Gauge(
    "headrace_campaigns_closed", "Campaigns that wait for their recovery.", multiprocess_mode="livesum"
)
differences = Counter("headrace_differences_total", "Contradictions that were found; each halts its campaign.")
# (The same campaign is halted for every process: of several, the one that knows of most.)
campaigns_halted = Gauge(
    "headrace_campaigns_halted", "Halted campaigns that this process has met.", multiprocess_mode="livemax"
)
leftovers = Counter("headrace_leftovers_total", "Idle campaigns of which Redis gave memory back.", ["done"])
# (A store that fails is the same for every process.)
outages = Gauge("headrace_outages", "What fails now so that events are refused.", multiprocess_mode="livemax")
# (One Redis, and one policy, for every process.)
redis_used_bytes = Gauge("headrace_redis_used_bytes", "Memory that Redis uses.", multiprocess_mode="livemostrecent")
dedup_bucket_seconds = Gauge(
    "headrace_dedup_bucket_seconds",
    "Age at which buckets of the dedup window close now.",
    multiprocess_mode="livemostrecent",
)
new_users_refused = Gauge(
    "headrace_new_users_refused",
    "1 while new users of campaigns with a cap are refused because Redis is nearly full, else 0.",
    multiprocess_mode="livemostrecent",
)
look_ups = Counter("headrace_look_ups_total", "Events that were looked up in Postgres.")
clock_offset_seconds = Gauge(
    "headrace_clock_offset_seconds", "Our clock less that of Postgres.", multiprocess_mode="livemostrecent"
)


class Tally:
    """What a histogram is to be told: so many observations in each of its buckets, and their sum."""

    def __init__(self, histogram: Histogram, bounds: Sequence[float]) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, amount: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    def publish(self) -> None:
        """Tell the histogram, which has no public way to be told of many at once."""
        counts, self._counts = self._counts, [0] * len(self._counts)
        for bucket, count in zip(self._histogram._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._histogram._sum.inc(self._sum)
        self._sum = 0.0


class _Requests:
    """What every finished request adds to."""

    def __init__(self) -> None:
        self.seconds = Tally(request_seconds, _SECONDS)
        self.events = Tally(request_events, _EVENTS)
        self.accepted = 0
        self.others: Counts[tuple[Status, Reason | None]] = Counts()


_requests: Final = _Requests()
_accepted: Final = events.labels("accepted", "")


def count_submission(submission: Submission, now_us: int) -> None:
    """Count one finished request and its events by verdict."""
    total = len(submission.entries)
    _requests.seconds.observe((now_us - submission.received_us) / 1_000_000)
    _requests.events.observe(total)
    _requests.accepted += total - len(submission.verdicts)
    for verdict, count in submission.verdict_counts():
        _requests.others[verdict.status, verdict.reason] += count


def publish() -> None:
    """Tell Prometheus of the requests that were counted since the last time."""
    _requests.seconds.publish()
    _requests.events.publish()
    accepted, _requests.accepted = _requests.accepted, 0
    others, _requests.others = _requests.others, Counts()
    _accepted.inc(accepted)
    for (status, reason), count in others.items():
        events.labels(status, reason or "").inc(count)
