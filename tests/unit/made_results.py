"""Results of the bench that nobody measured: for whatever reads results."""

from __future__ import annotations

from typing import Any

import msgspec

from bench.results import (
    FORMAT,
    Audit,
    Fault,
    Latency,
    Machine,
    Micro,
    Result,
    Run,
    Sample,
    Slice,
    Step,
    Use,
)

NASTY = "<script>alert('&')</script> | [red]x[/]"
_CLEAN = Audit(0, 0, 0, 0, 0, 0, 0, acknowledged=1_000, unknown=0, unknown_committed=0, seconds=0.1)
_VOID = msgspec.structs.replace(_CLEAN, lost=1, examples=[f"lost: {NASTY}"])


def make_step(rate: float = 1_000.0, *, p99_ms: float = 20.0, offered: float | None = None, **more: Any) -> Step:
    """A second of `rate` events a second, a microsecond of CPU a role for each."""
    roles = ("engine", "redis", "postgres", "sender")
    step = Step(
        loop="closed" if offered is None else "open", connections=8, batch=100, offered_events_per_second=offered,
        seconds=1.0, requests=10, events=int(rate), accepted=int(rate), duplicate=0, rejected=0, refused=0,
        sent_bytes=int(100 * rate), received_bytes=int(20 * rate),
        latency=Latency(p99_ms / 4, p99_ms / 2, p99_ms, p99_ms, p99_ms),
        slices=[Slice(at / 4, int(rate / 4), 0, p99_ms / 4, p99_ms) for at in range(4)],
        uses=[Use(role, 1, rate / 1e6, 50.0) for role in roles],
        samples=[Sample(at / 4, dict.fromkeys(roles, 0.25), dict.fromkeys(roles, 50.0)) for at in range(1, 5)],
        sender_was_limit=False,
    )  # fmt: skip
    return msgspec.structs.replace(step, **more)


def make_run(experiment: str, system: str = "headrace", *steps: Step, void: bool = False, **more: Any) -> Run:
    """Clean, unless it is to be void."""
    run = Run(experiment, system, "even", 0, 7, {}, list(steps or [make_step()]), _VOID if void else _CLEAN)
    return msgspec.structs.replace(run, **more)


def make_result(*runs: Run, **more: Any) -> Result:
    """Of these runs."""
    machine = Machine("A Processor", 2, 24.0, "Linux 6")
    result = Result(
        FORMAT, "0123456789abcdef", False, "2026-01-02T03:04:05Z", 60.0, machine, {"Python": "3.11"}, "quick",
        list(runs),
    )  # fmt: skip
    return msgspec.structs.replace(result, **more)


def full_result() -> Result:
    """One of everything."""
    steps = [make_step(rate, offered=rate, p99_ms=p99) for rate, p99 in ((500.0, 9.0), (900.0, 30.0), (1_500.0, 80.0))]
    return make_result(
        make_run("batches of 100"),
        make_run("batches of 100", "headrace", make_step(2_000.0), round=1),
        make_run("batches of 100", "batcher", make_step(500.0)),
        make_run("batches of 100", "raw COPY", make_step(6_000.0), audit=None),
        make_run("batches of 10", "headrace", make_step(300.0, batch=10)),
        make_run("one campaign", scenario="one"),
        make_run("two processes", settings={"HEADRACE_WORKERS": "2"}),
        make_run("batches of 100, rate ladder", "headrace", *steps),
        make_run("batches of 100, rate ladder", "batcher", *steps[:2]),
        make_run(NASTY, NASTY, void=True),
        make_run("chaos: Redis is killed", fault=Fault("Redis is killed", 0.25, 0.5, 0.25)),
        make_run("chaos: Postgres stalls", fault=Fault("Postgres stalls", 0.25, 0.5, None)),
        micros=[Micro("decode", [1.5, 1.0, 2.0]), Micro("flush", [9.0])],
    )
