"""`make demo`: a real engine, a large generated load, and what came of it, to the micro.

Owns the campaigns of the demo and what must tie at the end. Without URLs it starts an engine on fresh embedded
stores, and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from api.feed import Outgoing
from api.progress import print_complaints, print_summary, show_progress
from api.sender import Options, Sender, Tally, open_client
from bench.generate import Mix, take, zipf_weights
from bench.serving import ServingFailed, serving
from engine.model import PricingModel, cost_per_event, decimal_text

BATCH_EVENTS: Final = 1_000
CONCURRENCY: Final = 8
SINGLES: Final = 200
AMPLE: Final = 1_000_000_000  # units of currency: a budget that never bites
SEED: Final = 2026


CAP: Final = 2
BILLABLE_SHARE: Final = {
    PricingModel.CPM: 1 - Mix.clicks_share - Mix.conversions_share,
    PricingModel.CPC: Mix.clicks_share,
    PricingModel.CPA: Mix.conversions_share,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A campaign of the demo. `limit` says what bites, at about half of the events that it gets."""

    name: str
    model: PricingModel
    unit_price_micros: int
    limit: str = ""


PLANS: Final = (
    Plan("cpm ample", PricingModel.CPM, 1_234_500),
    Plan("cpm total", PricingModel.CPM, 2_000_000, "total"),
    Plan("cpm daily", PricingModel.CPM, 10_000_000, "daily"),
    Plan("cpm cap", PricingModel.CPM, 5_000_000, "cap"),
    Plan("cpm even", PricingModel.CPM, 3_000_000, "even"),
    Plan("cpc ample", PricingModel.CPC, 250_000),
    Plan("cpc total", PricingModel.CPC, 330_000, "total"),
    Plan("cpc daily", PricingModel.CPC, 1_000_000, "daily"),
    Plan("cpa ample", PricingModel.CPA, 5_000_000),
    Plan("cpa total", PricingModel.CPA, 12_500_000, "total"),
    Plan("cpa daily", PricingModel.CPA, 8_000_000, "daily"),
)


INTERRUPTED: Final = "interrupted"


@dataclass(slots=True)
class Demo:
    """One demo against a running engine."""

    api: httpx.Client
    intake: str
    events: int
    console: Console
    faults: list[str] = field(default_factory=list)

    def run(self) -> None:
        """All but the audit. What doesn't tie is in `faults`."""
        campaigns = [self._create(fields) for fields in plans(self.events)]
        self.console.print(f"{len(campaigns)} campaigns, {self.events:,} generated events (seed {SEED})")
        tally = Tally()
        started = time.monotonic()
        trio.run(self._load, [campaign["id"] for campaign in campaigns], tally)
        print_summary(tally, time.monotonic() - started, self.console)
        if tally.failure or tally.open:
            print_complaints(tally, self.console)
        counted = sum(self._report(campaigns))
        self.faults += faults(self.events, tally, counted)
        latency = f"{self._median_latency_ms(campaigns[0]['id']):.1f} ms"
        self.console.print(f"one idle connection, {SINGLES} events one after the other: {latency} at the median")

    async def _load(self, campaigns: Sequence[int], tally: Tally) -> None:
        """Send the generated events, with a progress bar."""
        options = Options(concurrency=CONCURRENCY, gzip=False)  # on one machine, compressing gains nothing
        async with open_client(self.intake, options) as client, trio.open_nursery() as nursery:
            nursery.start_soon(_show, tally, self.events)
            async with aclosing(_batches(self.events, campaigns, tally)) as batches:
                await Sender(client, options, tally).run(batches)
            nursery.cancel_scope.cancel()

    def _create(self, fields: Mapping[str, object]) -> dict[str, Any]:
        answer = self.api.post("/campaigns/", json=fields)
        answer.raise_for_status()
        return dict(answer.json())

    def _report(self, campaigns: Sequence[Mapping[str, Any]]) -> Iterator[int]:
        """Print what each campaign delivered; the events of each."""
        table = Table("campaign")
        for column in ("limit", "impressions", "clicks", "conversions", "spend"):
            table.add_column(column, justify="right")
        for campaign in campaigns:
            answer = self.api.get(f"/report/campaign/{campaign['id']}")
            answer.raise_for_status()
            report = answer.json()
            counts = [report[name] for name in ("impressions", "clicks", "conversions")]
            cells = [f"{count:,}" for count in counts]
            table.add_row(campaign["name"], _limit(campaign), *cells, report["spend"])
            yield sum(counts)
        self.console.print(table)

    def _median_latency_ms(self, campaign: int) -> float:
        """Of single events, one after the other on one connection.

        Plain `http.client`, so that little of it is the client's own.
        """
        connection = http.client.HTTPConnection(urlsplit(self.intake).netloc, timeout=30)
        latencies: list[float] = []
        statuses: set[int] = set()
        for number in range(SINGLES):
            event = {"campaign_id": campaign, "user_id": f"single-{number}", "event_type": "impression"}
            body = json.dumps({**event, "event_id": str(uuid.uuid4())})
            started = time.perf_counter()
            connection.request("POST", "/events/", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            latencies.append((time.perf_counter() - started) * 1_000)
            statuses.add(answer.status)
        connection.close()
        if statuses != {200}:
            self.faults.append(f"single events were answered {sorted(statuses)}")
        return statistics.median(latencies)


def plans(events: int) -> Iterator[dict[str, object]]:
    """The campaigns' fields. A limit is half of what the campaign's share of the events would spend."""
    weights = zipf_weights(len(PLANS), Mix.campaign_exponent)
    shares = [(weight - before) / weights[-1] for before, weight in pairwise([0.0, *weights])]
    for plan, share in zip(PLANS, shares, strict=True):
        billable = events * share * BILLABLE_SHARE[plan.model]
        half = decimal_text(max(1, int(billable / 2)) * cost_per_event(plan.model, plan.unit_price_micros))
        yield {
            "name": plan.name,
            "pricing_model": plan.model,
            "unit_price": decimal_text(plan.unit_price_micros),
            "total_budget": half if plan.limit == "total" else AMPLE,
            "daily_budget": half if plan.limit in ("daily", "even") else AMPLE,
            "freq_cap_impressions_per_day": CAP if plan.limit == "cap" else None,
            "pacing": "even" if plan.limit == "even" else "asap",
        }


def faults(events: int, tally: Tally, counted: int) -> list[str]:
    """What doesn't tie. `counted` are the events of all reports."""
    found = []
    if tally.settled != events or tally.open or tally.failure:
        found.append(f"{events:,} events were sent, and {tally.settled:,} have a verdict")
    # What was committed but not answered is a duplicate when it is sent again; else the sums are equal.
    most = tally.accepted + (tally.duplicate if tally.resent or tally.repeated_requests else 0)
    if not tally.accepted <= counted <= most:
        found.append(f"{tally.accepted:,} events were accepted, and reports have {counted:,}")
    return found


async def _batches(events: int, campaigns: Sequence[int], tally: Tally) -> AsyncGenerator[list[Outgoing], None]:
    load = enumerate(take(events, Mix(campaigns), seed=SEED, start_us=time.time_ns() // 1_000), 1)
    while batch := [Outgoing(number, body) for number, body in islice(load, BATCH_EVENTS)]:
        tally.read += len(batch)
        yield batch


async def _show(tally: Tally, events: int) -> None:
    await show_progress(tally, Console(stderr=True, highlight=False), total=events, position=lambda: tally.settled)


def _limit(campaign: Mapping[str, Any]) -> str:
    """Its limit, as far as it may bite."""
    cap = campaign["freq_cap_impressions_per_day"]
    budgets = [campaign[f"{name}_budget"] for name in ("total", "daily")]
    return f"{cap} a user" if cap is not None else next((each for each in budgets if each != f"{AMPLE}.000000"), "")


def _audit(environment: Mapping[str, str], console: Console) -> int:
    """Run `headrace audit` as an operator would; its exit status."""
    console.print("headrace audit", style="bold")
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-m", "api", "audit"], env=dict(environment), check=False).returncode


def _run_on_own_engine(events: int, console: Console) -> list[str]:
    console.print("starting headrace serve on fresh embedded stores")
    with serving() as engine:
        found = _run(engine.api, engine.intake, events, console)
        if _audit(engine.environment, console) != 0:
            found.append("the audit found a difference")
        engine.stop()
        console.print("SIGTERM: drained, exit status 0")
    return found


def _run_elsewhere(api: str, intake: str, events: int, console: Console) -> list[str]:
    """Against an engine that runs already. Its stores are audited if our own settings name them."""
    found = _run(api, intake, events, console)
    if not (os.environ.get("DB_URL") and os.environ.get("REDIS_URL")):
        console.print("not audited: DB_URL and REDIS_URL don't name the engine's stores")
    elif _audit(os.environ, console) != 0:
        found.append("the audit found a difference")
    return found


def _run(api: str, intake: str, events: int, console: Console) -> list[str]:
    with httpx.Client(base_url=api, timeout=60, trust_env=False) as client:
        demo = Demo(client, intake, events, console)
        demo.run()
    return demo.faults


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; exit status 0 if everything ties."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument("--events", type=int, default=200_000, help="how many (200000)")
    parser.add_argument("--api", help="base URL of the api of a running engine")
    parser.add_argument("--intake", help="base URL of its intake")
    arguments = parser.parse_args(argv)
    if bool(arguments.api) != bool(arguments.intake) or arguments.events < 1:
        parser.error("--api and --intake belong together, and --events must be above 0")
    console = Console(highlight=False)
    found = [INTERRUPTED]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: nothing of ours is left
    try:
        if arguments.api:
            found = _run_elsewhere(arguments.api, arguments.intake, arguments.events, console)
        else:
            found = _run_on_own_engine(arguments.events, console)
    except* (ServingFailed, httpx.HTTPError, OSError) as group:
        found = [str(error) or type(error).__name__ for error in group.exceptions]
    except* KeyboardInterrupt:  # in a group, if it came while events were sent
        pass
    for fault in found:
        console.print(Text(fault), style="bold red", soft_wrap=True)
    return 130 if found == [INTERRUPTED] else int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
