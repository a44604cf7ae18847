"""Query strings: each parameter known, once, and readable, or a problem that names every fault.

Owns what numbers and instants look like in a URL. Knows no framework. An unknown parameter is refused: a report
that ignores half of the question is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from api.errors import BadRequest, problem
from engine import Fault
from engine.model import us_from_datetime

__all__ = ["instant", "read_query", "refuse_query", "whole_number"]

NAME_CHARACTERS_MAX: Final = 64  # of an unknown parameter, in the answer
DIGITS_MAX: Final = 19  # of 2**63 - 1

_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
# A plus sign in a query string means a space, so a zone of "+01:00" that nobody escaped arrives as " 01:00".
_INSTANT: Final = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d(?:\.\d{1,6})?)([Zz]|[+ -]\d\d:\d\d)", re.ASCII)
_NOT_AN_INSTANT: Final = (
    "must be an RFC 3339 time with its zone and at most 6 decimals, such as 2026-01-31T12:00:00Z, "
    "or a date, which is its midnight in UTC"
)


def read_query[T](
    given: Mapping[str, Sequence[str]], readers: Mapping[str, Callable[[str], T]]
) -> dict[str, T]: ...
