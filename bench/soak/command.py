"""The command `headrace-bench soak`: a fresh engine on its defaults, full rate for minutes, samples, audit, one file.

Owns the arguments, the order of it all, and the folder of what is left behind.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import psycopg
from rich.console import Console

from bench.bodies import TEMPLATE_EVENTS, make_templates
from bench.history import BYTES_A_ROW, EVENTS_A_USER, History, Laid, lay_history, span_of
from bench.machine import commit, machine, versions
from bench.scenario import Scenario
from bench.serving import Serving, serving
from bench.soak.drawing import soak_plot
from bench.soak.record import (
    FORMAT,
    REDIS_USED,
    Restart,
    Sample,
    Soak,
    load_table,
    look_up_table,
    reasons_told,
    restart_table,
    write_soak,
)
from bench.soak.restart import AGAIN_SECONDS_MAX, KINDS, asking, restarted
from bench.soak.steady import OWN_USER, Job
from bench.soak.watch import Watch, watched
from bench.stand import campaign_ids, copy_campaigns, create_first_campaign

FOLDER: Final = Path("build/soak")
SEED: Final = 19
TOLD_EVERY_SECONDS: Final = 30.0
EVENTS_A_SECOND_MAX: Final = 130_000  # on two cores, and 170 bytes of disk an event
EVENT_BYTES: Final = 170
LOG_BYTES: Final = 6 << 30  # of Postgres: half as much again as `max_wal_size`
VOID_STATUS: Final = 1


class Audited(NamedTuple):
    """What `headrace audit` came to."""

    clean: bool
    said: str
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command."""
    parser.add_argument("--minutes", type=float, default=20.0, help="of load (20); 0: none, only what follows it")
    parser.add_argument("--campaigns", type=int, default=100, help="(100)")
    parser.add_argument("--exponent", type=float, default=0.0, help="0: campaigns alike (0); 1: Zipf")
    parser.add_argument("--ids", choices=("v7", "v4"), default="v7", help="versions of UUID (v7)")
    parser.add_argument("--capped", action="store_true", help="with a frequency cap of --cap")
    parser.add_argument("--cap", type=int, default=10, help="impressions a user and day (10)")
    parser.add_argument(
        "--users-a-day", type=int, default=0, metavar="USERS",
        help=f"of all campaigns, each of one campaign; {TEMPLATE_EVENTS:,} at least (every event has its own)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=1_000, help="events a request (1,000)")
    parser.add_argument("--connections", type=int, default=32, help="(32)")
    parser.add_argument("--redis-memory-mb", type=int, metavar="MB", help="in place of the engine's default")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="of the engine; again")
    parser.add_argument(
        "--history", action="append", default=[], metavar="ROWS/TIME",
        help="events laid in before: 10m/10min, 50m/365d, 10m/today; again for more",
    )  # fmt: skip
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="a sample (5)")
    parser.add_argument(
        "--restart-at-end", action="append", default=[], choices=KINDS, metavar="KIND",
        help=f"after the load: {', '.join(KINDS)}; again for more",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="keep the data folder")


def run(options: argparse.Namespace, console: Console) -> int:
    """All of it; exit status 0 if the books are right. Raises `ServingFailed` and `ValueError`."""
    _check(options)
    started = datetime.now(UTC)
    with serving(**_settings(options)) as engine:
        engine.keep = options.keep
        if options.keep:
            console.print(f"data     {engine.environment['HEADRACE_DATA']}", markup=False)
        soak = _soak(options, engine, started, console)
        engine.stop()
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{started:%Y%m%d-%H%M%S}-{soak.commit[:12] or 'no-commit'}.json"
    write_soak(soak, path)
    _show(soak, path, console)
    return 0 if soak.sound else VOID_STATUS


def _check(options: argparse.Namespace) -> None:
    if options.batch < 2:
        raise ValueError("--batch must be at least 2: a soak sends batches")
    if options.users_a_day and not options.users_a_day >= TEMPLATE_EVENTS:
        raise ValueError(f"--users-a-day must be at least {TEMPLATE_EVENTS:,}")
    if options.users_a_day and not options.capped:
        raise ValueError("--users-a-day needs --capped: without a cap nobody counts users")
    now = datetime.now(UTC)
    rows = sum(span_of(text, now).rows for text in options.history)
    needed = rows * BYTES_A_ROW + int(60 * options.minutes * EVENTS_A_SECOND_MAX) * EVENT_BYTES + LOG_BYTES
    if (free := shutil.disk_usage(tempfile.gettempdir()).free) < needed:
        raise ValueError(f"this needs up to {needed >> 30} GB of disk, and {free >> 30} GB are free")


def _settings(options: argparse.Namespace) -> dict[str, str]:
    settings: dict[str, str] = {}
    for text in options.setting:
        name, equals, value = text.partition("=")
        if not equals or not name.startswith("HEADRACE_"):
            raise ValueError(f"{text!r} is no setting: it must be HEADRACE_…=VALUE")
        settings[name] = value
    if options.redis_memory_mb:
        settings["HEADRACE_REDIS_MEMORY_MB"] = str(options.redis_memory_mb)
    return settings


def _soak(options: argparse.Namespace, engine: Serving, started: datetime, console: Console) -> Soak:
    stores = engine.stores()
    scenario = _scenario(options)
    create_first_campaign(engine.api, scenario)
    copy_campaigns(stores.db_url, options.campaigns - 1)
    laid = _lay_history(options, stores.db_url, console)
    watch = Watch(engine, stores)
    try:
        samples = list(_load(options, engine, watch, scenario, console)) if options.minutes else []
        restarts = list(_restarts(options, engine, watch, console))
    finally:
        watch.close()
    console.print("headrace audit")
    audited = _audit(engine)
    found, changed = commit()
    told = {name: str(value) for name, value in vars(options).items() if name != "run"}
    return Soak(
        format=FORMAT, commit=found, changed=changed, started_at=started.isoformat(timespec="seconds"),
        machine=machine(), versions=versions(stores), options=told, history_rows=laid.rows,
        history_seconds=laid.seconds, samples=samples, restarts=restarts, rows=_rows(stores.db_url) - laid.rows,
        audit_clean=audited.clean, audit_said=audited.said, audit_seconds=audited.seconds,
    )  # fmt: skip


def _scenario(options: argparse.Namespace) -> Scenario:
    return Scenario(
        about="", name="soak", campaigns=options.campaigns, campaign_exponent=options.exponent,
        cap=options.cap if options.capped else 0,
    )  # fmt: skip


def _lay_history(options: argparse.Namespace, db_url: str, console: Console) -> Laid:
    if not options.history:
        return Laid(0, 0, 0.0, 0)
    now = datetime.now(UTC)
    often = min(EVENTS_A_USER, options.cap) if options.capped else EVENTS_A_USER
    spans = [span_of(text, now) for text in options.history]
    laid = lay_history(db_url, History(spans, options.exponent, options.ids, often))
    console.print(f"history  {laid.rows:,} events on {laid.days} days, laid in within {laid.seconds:.0f} s")
    return laid


def _load(
    options: argparse.Namespace, engine: Serving, watch: Watch, scenario: Scenario, console: Console
) -> Iterator[Sample]:
    """The samples of the load, some of them told."""
    address = urlsplit(engine.intake)
    templates = make_templates(
        scenario, options.batch, campaign_ids(watch.stores.db_url), seed=SEED, host=address.netloc
    )
    assert OWN_USER in templates[0].request
    places = len(templates) * options.batch
    job = Job(
        host=address.hostname or "", port=address.port or 0, templates=[template.request for template in templates],
        batch=options.batch, connections=options.connections, seconds=60 * options.minutes, ids=options.ids,
        groups=options.users_a_day // places,
    )  # fmt: skip
    told_at = 0.0
    for sample in watched(watch, job, options.every):
        yield sample
        if sample.at_seconds >= told_at:
            told_at = sample.at_seconds + TOLD_EVERY_SECONDS - options.every / 2
            console.print(sample_told(sample), markup=False)


def sample_told(sample: Sample) -> str:
    """One line."""
    memory = ", ".join(f"{role} {mb:,.0f}" for role, mb in sample.memory_mb.items())
    refused = f", refused {sample.refused / sample.seconds:,.0f}/s" if sample.refused else ""
    return (
        f"{sample.at_seconds:5.0f} s  {sample.accepted / sample.seconds:,.0f} events/s accepted{refused},"
        f" p50 {sample.p50_ms:.0f} ms, p99 {sample.p99_ms:.0f} ms; MB: {memory},"
        f" Redis used {sample.gauges.get(REDIS_USED, 0.0):,.0f}"
    )


def _restarts(options: argparse.Namespace, engine: Serving, watch: Watch, console: Console) -> Iterator[Restart]:
    if not options.restart_at_end:
        return
    address = urlsplit(engine.intake)
    campaigns = campaign_ids(watch.stores.db_url)
    with asking(address.hostname or "", address.port or 0, campaigns) as asked:
        begun = time.monotonic()
        whole = asked.wait(AGAIN_SECONDS_MAX)
        taken = f"{len(asked.seen):,} of {len(campaigns):,} campaigns take events"
        console.print(f"light load: {taken} after {time.monotonic() - begun:.2f} s{'' if whole else ', no more do'}")
        for kind in options.restart_at_end:
            console.print(f"{kind} …")
            yield restarted(watch, asked, kind)


def _audit(engine: Serving) -> Audited:
    """Run `headrace audit` as an operator would, beside the idle engine. It changes nothing."""
    started = time.monotonic()
    told = subprocess.run(
        [sys.executable, "-m", "api", "audit", "--no-halt"], env=engine.environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    said = (told.stdout + told.stderr).strip()[-4_000:]
    return Audited(told.returncode == 0, said, round(time.monotonic() - started, 1))


def _rows(db_url: str) -> int:
    """Committed events, by the rollups: an audit that is clean says that they are what the events are."""
    with psycopg.connect(db_url) as connection:
        row = connection.execute("SELECT sum(impressions + clicks + conversions)::bigint FROM rollup").fetchone()
    assert row is not None
    return int(row[0] or 0)


def _show(soak: Soak, path: Path, console: Console) -> None:
    if soak.samples:
        console.print(load_table(soak))
        console.print(f"not accepted: {reasons_told(soak)}", markup=False)
        plot = path.with_suffix(".svg")
        plot.write_text(soak_plot(soak))
        console.print(f"plot     {plot}", markup=False)
    if soak.restarts:
        console.print(restart_table(soak.restarts))
        console.print(look_up_table(soak.restarts))
    verdict = "clean" if soak.audit_clean else f"NOT CLEAN:\n{soak.audit_said}"
    lost = "" if soak.rows >= soak.total("accepted") else f"; LOST: {soak.total('accepted') - soak.rows:,} events"
    console.print(f"audit    {verdict}, {soak.rows:,} rows, {soak.audit_seconds:.0f} s{lost}", markup=False)
    console.print(f"result   {path}", markup=False)
