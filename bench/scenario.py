"""Scenarios: what a load is made of, read from `scenarios.toml`; and the campaigns that it needs.

Owns their words. Pure: knows no sender, no store and no system.
"""

from __future__ import annotations

import random
import tomllib
from importlib.resources import files

import msgspec

from bench.generate import zipf_weights
from engine.model import Micros, NewCampaign, PricingModel

COST_MICROS = 1_000  # an impression at a CPM of 1.00
AMPLE_MICROS = 10**15  # a budget that no run reaches; below 2^53


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A load. The first campaign gets most where an exponent (0: all alike; 1: Zipf's law) or `hot_share` says so."""

    about: str
    name: str = ""
    campaigns: int = 100
    campaign_exponent: float = 0.0
    hot_share: float = 0.0
    in_turn: bool = False  # each campaign once before any comes again
    users: int = 0  # 0: every event has a user of its own
    cap: int = 10  # 0: none
    room_events: int = 0  # impressions that a campaign's budget has room for; 0: more than can be sent
    clicks_share: float = 0.1
    repeats_share: float = 0.0
    bad_share: float = 0.0
    burst_seconds: float = 0.0  # load for so long, nothing for as long
    report_readers: int = 0
    replay: bool = False  # of a log, in its order; and the shares above are the log's own
    log: str = ""  # its file, JSON lines; empty: one is generated
    speed: float = 0.0  # times its own pace; 0: as fast as it goes

    def plan(self) -> NewCampaign:
        """What each of its campaigns is."""
        budget = Micros(self.room_events * COST_MICROS or AMPLE_MICROS)
        return NewCampaign(
            name=self.name,
            pricing_model=PricingModel.CPM,
            unit_price_micros=Micros(1_000 * COST_MICROS),
            total_budget_micros=budget,
            daily_budget_micros=budget,
            freq_cap_impressions_per_day=self.cap or None,
        )

    def draw_campaigns(self, rng: random.Random, count: int) -> list[int]:
        """Positions of campaigns, one an event."""
        if self.in_turn:
            return [at % self.campaigns for at in range(count)]
        if self.hot_share:
            return [0 if rng.random() < self.hot_share else rng.randrange(self.campaigns) for _ in range(count)]
        weights = zipf_weights(self.campaigns, self.campaign_exponent)
        return rng.choices(range(self.campaigns), cum_weights=weights, k=count)


def scenarios() -> dict[str, Scenario]:
    """All of the file, by name. Raises `msgspec.ValidationError` with the place of what is wrong."""
    read = tomllib.loads(files("bench").joinpath("scenarios.toml").read_text())
    return {name: msgspec.convert({**fields, "name": name}, Scenario) for name, fields in read.items()}
