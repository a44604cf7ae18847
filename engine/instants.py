"""Instants as RFC 3339 writes them, to microseconds: the one form in which events and reports are asked for a time.

Owns what is refused that other readers of dates let pass: a zone without its colon, and decimals beyond microseconds,
which would be lost. Pure, but for a memory of the seconds that were read last.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from engine.model import us_from_datetime

__all__ = ["NOT_AN_INSTANT", "NotAnInstant", "instant_us"]

NOT_AN_INSTANT: Final = "must be an RFC 3339 time with its zone and at most 6 decimals, such as 2026-01-31T12:00:00Z"

_INSTANT: Final = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(\.\d{1,6})?([Zz]|[+-]\d\d:[0-5]\d)", re.ASCII)

# Events are mostly of the last few seconds, with six decimals and in UTC. Such a time is three look-ups: what is read
# for each of them would be the largest part of its arrival. A second has its point with it, the last digits their Z.
_SECONDS_MAX: Final = 1_024
_seconds: Final[dict[str, int]] = {}
_MILLIS: Final = {f"{number:03}": 1_000 * number for number in range(1_000)}
_MICROS_Z: Final = {f"{number:03}Z": number for number in range(1_000)}


class NotAnInstant(ValueError):
    """A text is no time; the message says what it must be."""


def instant_us(text: str) -> int:
    """Microseconds since the epoch. Raises `NotAnInstant` with what it must be."""
    try:
        return _seconds[text[:20]] + _MILLIS[text[20:23]] + _MICROS_Z[text[23:]]
    except KeyError:
        return _read(text)


def _read(text: str) -> int:
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise NotAnInstant(NOT_AN_INSTANT)
    second, decimals, zone = match.groups(default="")
    try:
        second_us = us_from_datetime(datetime.fromisoformat(f"{second}{zone}".upper()).astimezone(UTC))
    except (ValueError, OverflowError):  # no such day or hour, or in UTC none of the years 1 to 9999
        raise NotAnInstant(NOT_AN_INSTANT) from None
    if decimals and zone == "Z":
        if len(_seconds) >= _SECONDS_MAX:
            _seconds.clear()
        _seconds[f"{second}."] = second_us
    return second_us + int(decimals[1:].ljust(6, "0"))
