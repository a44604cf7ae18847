"""Query strings: each parameter known, once, and readable, or a problem that names every fault.

Owns what numbers and instants look like in a URL. Knows no framework. An unknown parameter is refused: a report
that ignores half of the question is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn
from urllib.parse import parse_qsl

from api.errors import Answer, BadRequest, problem
from engine import Fault
from engine.instants import NotAnInstant, instant_us

__all__ = ["instant", "read_query", "refuse_query", "unknown_parameters", "whole_number", "wrong_parameters"]

NAME_CHARACTERS_MAX: Final = 64  # of an unknown parameter, in the answer
DIGITS_MAX: Final = 19  # of 2**63 - 1
FAULTS_MAX: Final = 20  # that are named: a head has room for thousands of parameters

_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
# A plus sign in a query string means a space, so a zone of "+01:00" that nobody escaped arrives as " 01:00".
_LOST_PLUS: Final = re.compile(r" (?=\d\d:\d\d$)")


def read_query(given: Mapping[str, Sequence[str]], readers: Mapping[str, Callable[[str], int]]) -> dict[str, int]:
    """The parameters that were given, by name. Raises `BadRequest` (422) with every fault."""
    values: dict[str, int] = {}
    faults: list[Fault] = []
    for name, texts in given.items():
        read = readers.get(name)
        if read is None:
            allowed = f"allowed here: {', '.join(readers)}" if readers else "this call has none"
            faults.append(Fault(name[:NAME_CHARACTERS_MAX], f"no such parameter; {allowed}"))
        elif len(texts) > 1:
            faults.append(Fault(name, "given more than once"))
        else:
            try:
                values[name] = read(texts[0])
            except ValueError as wrong:
                faults.append(Fault(name, str(wrong)))
    if faults:
        refuse_query(faults)
    return values


def unknown_parameters(query: bytes) -> list[Fault]:
    """The parameters of a call that has none."""
    if not query:
        return []
    names = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    return [Fault(name[:NAME_CHARACTERS_MAX], "no such parameter; this call has none") for name in names]


def refuse_query(faults: Sequence[Fault]) -> NoReturn:
    """Raise `BadRequest` (422) that names these parameters."""
    raise BadRequest(wrong_parameters(faults))


def wrong_parameters(faults: Sequence[Fault]) -> Answer:
    """The answer that names these parameters, of a query or a head."""
    named = faults[:FAULTS_MAX]
    detail = "; ".join(f"{fault.field}: {fault.message}" for fault in named)
    if len(faults) > len(named):
        detail += f"; and {len(faults) - len(named)} more"
    return problem(422, "invalid_parameter", detail, errors=named)


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A reader of whole numbers within these bounds."""

    def read(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX and low <= int(text) <= high:
            return int(text)
        raise ValueError(f"must be a whole number from {low} to {high}")

    return read


def instant(text: str) -> int:
    """Microseconds since the epoch of an RFC 3339 time, or of a date's midnight in UTC."""
    try:
        if _DATE.fullmatch(text):
            return instant_us(f"{text}T00:00:00Z")
        return instant_us(_LOST_PLUS.sub("+", text))
    except NotAnInstant as wrong:
        raise ValueError(f"{wrong}, or a date, which is its midnight in UTC") from None
