"""Which identity days events can have: that of an event lies within the accepted past of its receipt, or ahead of it.

Owns what follows from that for what was received in a span of time, or reserved on a spend day. Pure; whoever asks
Postgres for events names their days, so that it costs what those days cost, whatever lies before them.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Final, NamedTuple

from config.settings import Settings
from engine.model import DAY_US, SECOND_US

_HOUR_US: Final = 3_600 * SECOND_US
# A date begins 14 hours before it does in UTC at the earliest, and ends 12 hours after it at the latest.
_EAST_US: Final = 14 * _HOUR_US
_WEST_US: Final = 12 * _HOUR_US
# A reservation comes later than the receipt by a request's deadline at most, and the spend day moves on by the clock of
# another engine: 5 minutes and twice 10 are the most that settings allow.
_SLACK_US: Final = _HOUR_US


class Accepted(NamedTuple):
    """How far before its receipt, and after it, an event's own time may be."""

    past_us: int
    ahead_us: int

    @classmethod
    def of(cls, settings: Settings) -> Accepted:
        """As the settings have it."""
        return cls(settings.occurred_past_seconds * SECOND_US, settings.occurred_ahead_seconds * SECOND_US)

    def days_of_receipt(self, start_us: int, end_us: int) -> range:
        """Identity days of what was received from start up to end (not included)."""
        return range((start_us - self.past_us) // DAY_US, (end_us - 1 + self.ahead_us) // DAY_US + 1)

    def days_of_spend_day(self, day: int) -> range:
        """Identity days of what was reserved on that day, in whatever zone."""
        start_us, end_us = day * DAY_US - _EAST_US - _SLACK_US, (day + 1) * DAY_US + _WEST_US + _SLACK_US
        return self.days_of_receipt(start_us, end_us)


_LIMITS: Final = {each.name: each.metadata["high"] for each in fields(Settings) if "high" in each.metadata}
# What any engine may have accepted, whatever its settings are or were: where an event that is missed is counted twice,
# or not counted for a cap.
EVER_ACCEPTED: Final = Accepted(
    _LIMITS["occurred_past_seconds"] * SECOND_US, _LIMITS["occurred_ahead_seconds"] * SECOND_US
)
