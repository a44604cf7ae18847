"""Mutants of what keeps a peer, or one bad worker, from ending all others."""

from __future__ import annotations

from tests.mutants.engine import one

WORKERS = "api/workers.py"
TEST = "tests/integration/test_workers.py"

MUTANTS = [
    one(
        "a-peer-ends-no-supervisor",
        "Workers that served and crashed are started again, however often.",
        WORKERS,
        "        if not worker.ready and not self._may_fail_again(now):",
        "        if not self._may_fail_again(now):",
        f"{TEST}::test_workers_that_all_served_and_crashed_are_started_again_for_ever",
    ),
    one(
        "who-serves-is-not-stopped",
        "A worker that can't start ends no other.",
        WORKERS,
        " and not any(slot.worker.serves for slot in self._slots):",
        ":",
        f"{TEST}::test_a_worker_that_gets_not_ready_ends_nobody_who_serves",
    ),
    one(
        "one-stop-is-one-stop",
        "A signal that make passes on does not cut the drain, and leaves no store behind.",
        "api/signals.py",
        "self._first_at > SAME_STOP_SECONDS",
        "self._first_at > 0",
        "tests/e2e/test_stops.py::test_two_sigterms_80_ms_apart_are_one_stop",
    ),
    one(
        "a-slot-that-crashes-waits",
        "A worker that crashes at each start leaves the machine to the others.",
        WORKERS,
        "PAUSE_SECONDS * 2 ** min(crashes, 10)",
        "PAUSE_SECONDS",
        f"{TEST}::test_pauses_before_restarts_grow_up_to_a_bound",
    ),
]
