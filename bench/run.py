"""One run: a system under a scenario on fresh stores, step after step, audited at its end.

Owns the order of it all, and makes figures of what the sender and the samplers bring. Knows no suite.
"""

from __future__ import annotations

import subprocess
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final

import msgspec

from bench.bodies import Template, make_templates
from bench.check import audit_run
from bench.injection import Injecting, Injection
from bench.programs import program
from bench.readers import Readers
from bench.replay import read_log, templates_of, times_of
from bench.results import Audit, Command, Fault, Latency, Run, Slice, Step, Wait
from bench.sampling import Sampler, StoreWatch
from bench.scenario import Scenario
from bench.sender import ACCEPTED, DUPLICATE, REJECTED, START, Job, Sent
from bench.stand import Stand, StandFailed, System, open_stand

SAMPLE_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Load:
    """What one step asks for. `rate` is events a second, in an open loop; None: closed."""

    connections: int
    seconds: float
    rate: float | None = None
    flooded: bool = False  # beside the experiment's flood


@dataclass(frozen=True, slots=True)
class Flood:
    """A sender beside the load's, in a closed loop, which sends again at once whatever the answer.

    Its campaigns are the stand's first ones; the load gets the others.
    """

    scenario: Scenario
    batch: int
    connections: int


@dataclass(frozen=True, slots=True)
class Experiment:
    """A run to be made. The last load is what it is about; those before it warm up."""

    name: str
    system: System
    scenario: Scenario
    batch: int
    loads: Sequence[Load]
    audited: bool = True
    injection: Injection | None = None  # a fault during the last load
    flood: Flood | None = None  # beside those loads that say so


@dataclass(slots=True)
class Underway:
    """A run while it is made."""

    stand: Stand
    experiment: Experiment
    templates: list[Template]
    own: int  # so many of them are the load's, the others the flood's
    times: array[float] = field(default_factory=lambda: array("d"))  # when a replay plans each request
    sent: list[Sent] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    fault: Fault | None = None

    def step(self, load: Load, injection: Injection | None = None) -> Step:
        """Send one load, and look on; with an injection, until the system is well again.

        A flood has a step of its own, before the load's.
        """
        jobs = [self._job(load), *([self._flood_job(load.seconds)] if load.flooded else [])]
        readers = Readers(self.stand, self.experiment.scenario.report_readers)
        with (
            StoreWatch(self.stand.stores.db_url, self.stand.stores.redis_url) as watch,
            readers,
            ExitStack() as senders,
        ):
            processes = [senders.enter_context(_sender(job)) for job in jobs]
            started, *_ = map(_read_start, processes)
            sampler = Sampler({**self.stand.roots, "sender": [process.pid for process in processes]})
            injecting = Injecting(injection, self.stand, started, load.seconds) if injection else None
            with injecting or nullcontext():
                end_at = started + load.seconds
                while True:  # once at least: a step may be shorter than a look at a busy machine
                    time.sleep(min(SAMPLE_SECONDS, max(0.0, end_at - time.monotonic())))
                    sampler.look()
                    watch.look()
                    if time.monotonic() >= end_at or processes[0].poll() is not None:
                        break
                sent, *flooded = map(_read, processes)
            self.commands, self.waits = watch.commands(), watch.waits()
        for each in flooded:
            self._keep_flood(each, load, sampler)
        self.sent.append(sent)
        batch, replayed = self.experiment.batch, bool(self.times)
        self.steps.append(make_step(load, batch, sent, sampler, replayed=replayed, reports=readers.reports))
        if injecting is not None:
            self.fault = injecting.told(self.steps[-1])
            self.stand.wait_ready()
        return self.steps[-1]

    def _job(self, load: Load) -> Job:
        host, port = self.stand.host
        return Job(
            host, port, self.templates[: self.own], load.connections, load.seconds,
            load.rate and load.rate / self.experiment.batch, self.experiment.scenario.burst_seconds,
            sum(len(sent.outcomes) for sent in self.sent), self.times.tobytes(),
        )  # fmt: skip

    def _flood_job(self, seconds: float) -> Job:
        host, port = self.stand.host
        flood = self.experiment.flood
        assert flood is not None, "the load is to be flooded, and the experiment has no flood"
        return Job(host, port, self.templates[self.own :], flood.connections, seconds, None, 0.0, 0)

    def _keep_flood(self, sent: Sent, load: Load, sampler: Sampler) -> None:
        flood = self.experiment.flood
        assert flood is not None
        numbers = array("i", (self.own + number for number in array("i", sent.templates)))
        self.sent.append(msgspec.structs.replace(sent, templates=numbers.tobytes()))
        of_flood = Load(flood.connections, load.seconds)
        self.steps.append(make_step(of_flood, flood.batch, sent, sampler))


def make_run(experiment: Experiment, round_: int, seed: int) -> Run:
    """From nothing to a result. Raises `StandFailed`."""
    with open_run(experiment, seed) as underway:
        for load in experiment.loads[:-1]:
            underway.step(load)
        underway.step(experiment.loads[-1], experiment.injection)
        return finish(underway, round_, seed)


@contextmanager
def open_run(experiment: Experiment, seed: int) -> Iterator[Underway]:
    """Stores, system and requests, for whoever chooses the steps as they go."""
    wired = experiment.injection is not None and experiment.injection.wired
    with open_stand(experiment.system, experiment.scenario, wired=wired) as stand:
        host = "{}:{}".format(*stand.host)
        scenario, batch = experiment.scenario, experiment.batch
        if scenario.replay:
            log = read_log(scenario, seed=seed)
            times = times_of(log, batch, scenario.speed) if scenario.speed else []
            templates = templates_of(log, batch, stand.campaign_ids, host)
            yield Underway(stand, experiment, templates, len(templates), array("d", times))
            return
        flood, ids = experiment.flood, stand.campaign_ids
        first = flood.scenario.campaigns if flood else 0
        rest = msgspec.structs.replace(scenario, campaigns=len(ids) - first)
        templates = make_templates(rest, batch, ids[first:], seed=seed, host=host)
        own = len(templates)
        if flood:
            templates += make_templates(flood.scenario, flood.batch, ids[:first], seed=seed, host=host, first=own)
        yield Underway(stand, experiment, templates, own)


def finish(underway: Underway, round_: int, seed: int) -> Run:
    """Stop the system, audit, and put it all together."""
    experiment, stand = underway.experiment, underway.stand
    stand.stop()
    audit = _audit(underway) if experiment.audited else None
    return Run(
        experiment=experiment.name, system=stand.system.name, scenario=experiment.scenario.name, round=round_,
        seed=seed, settings=dict(stand.system.settings), steps=underway.steps, audit=audit,
        commands=underway.commands, waits=underway.waits, fault=underway.fault,
    )  # fmt: skip


def _audit(underway: Underway) -> Audit:
    stores = underway.stand.stores
    audit = audit_run(stores.db_url, underway.templates, underway.sent)
    if underway.stand.system.is_engine:
        # Its own audit besides, which knows rollups and Redis.
        own = subprocess.run(
            [sys.executable, "-m", "api", "audit"], cwd=underway.stand.system.checkout or None,
            env={"DB_URL": stores.db_url, "REDIS_URL": stores.redis_url}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if own.returncode != 0:
            told = (own.stdout + own.stderr).strip().splitlines()[-1:]
            audit = msgspec.structs.replace(
                audit, unbalanced=audit.unbalanced + 1, examples=[*audit.examples, f"headrace audit: {told}"]
            )
    return audit


@contextmanager
def _sender(job: Job) -> Iterator[subprocess.Popen[bytes]]:
    with program("bench.sender", msgspec.msgpack.encode(job)) as process:
        assert process.stdout is not None
        with process.stdout:
            yield process


def _read_start(process: subprocess.Popen[bytes]) -> float:
    assert process.stdout is not None
    told = process.stdout.read(START.size)
    if len(told) < START.size:
        raise StandFailed("the sender could not start; what it said is above")
    return float(START.unpack(told)[0])


def _read(process: subprocess.Popen[bytes]) -> Sent:
    assert process.stdout is not None
    told = process.stdout.read()
    if not told:
        raise StandFailed("the sender failed; what it said is above")
    return msgspec.msgpack.decode(told, type=Sent)


# --- figures ------------------------------------------------------------------------------------------------


def make_step(
    load: Load, batch: int, sent: Sent, sampler: Sampler, *, replayed: bool = False, reports: int = 0
) -> Step:
    """What a step comes to."""
    finished, latencies, services = (array("d", sent.finished), array("d", sent.latencies), array("d", sent.services))
    events, refused = array("i", sent.answered_events), array("i", sent.refused_events)
    refusals = [seconds for seconds, count in zip(services, refused, strict=True) if count == batch]
    # What is answered after the end was asked for within it, but throughput counts what was done within it.
    within = sum(count for at, count in zip(finished, events, strict=True) if at <= sent.seconds)
    return Step(
        loop="closed" if load.rate is None and not replayed else "open",
        connections=load.connections, batch=batch, offered_events_per_second=load.rate, seconds=sent.seconds,
        requests=len(finished), events=within, accepted=sent.counts.get(ACCEPTED, 0),
        duplicate=sent.counts.get(DUPLICATE, 0), rejected=sent.counts.get(REJECTED, 0),
        refused=sum(refused) + sent.given_up * batch, sent_bytes=sent.sent_bytes, received_bytes=sent.received_bytes,
        latency=_latency(latencies), slices=list(_slices(finished, latencies, events, refused)), uses=sampler.uses(),
        samples=sampler.samples, sender_was_limit=sent.was_limit, reports=reports,
        refusal=_latency(refusals) if refusals else None,
    )  # fmt: skip


def percentile(ordered: Sequence[float], part: float) -> float:
    """The nearest rank: the smallest value that `part` of all are not above. 0 where there is none."""
    return ordered[min(len(ordered) - 1, max(0, int(part * len(ordered) + 0.999999) - 1))] if ordered else 0.0


def _latency(latencies: Sequence[float]) -> Latency:
    ordered = sorted(latencies)
    return Latency(*(round(1e3 * percentile(ordered, part), 3) for part in (0.5, 0.9, 0.99, 0.999, 1.0)))


def _slices(
    finished: Sequence[float], latencies: Sequence[float], events: Sequence[int], refused: Sequence[int]
) -> Iterator[Slice]:
    width = SAMPLE_SECONDS
    of: dict[int, list[int]] = {}
    for at, seconds in enumerate(finished):
        of.setdefault(int(seconds / width), []).append(at)
    for number in range(max(of, default=-1) + 1):
        answers = of.get(number, [])
        ordered = sorted(latencies[at] for at in answers)
        yield Slice(
            at_seconds=number * width, events=sum(events[at] for at in answers),
            refused=sum(refused[at] for at in answers), p50_ms=round(1e3 * percentile(ordered, 0.5), 3),
            p99_ms=round(1e3 * percentile(ordered, 0.99), 3),
        )  # fmt: skip
