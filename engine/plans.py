"""What a campaign may be: fields as they were sent become a plan, or a list of everything that is wrong.

Owns which fields there are, what each may hold and which can be changed later. Pure; knows no HTTP and no store.
Every fault is named at once, each with its field, so nobody has to send a form five times.

Fields come as JSON has them: text, whole numbers, `Decimal` for any other number, booleans, None, or anything
nested. A `float` is no amount of money: its digits are lost already.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import StrEnum
from functools import cache, partial
from typing import Final, TypeVar

from engine.errors import Fault, InvalidCampaign
from engine.model import Campaign, Micros, NewCampaign, Pacing, PricingModel, cost_per_event, micros_from_decimal

__all__ = ["read_change", "read_new"]

NAME_BYTES_MAX: Final = 128  # as any text of the contract
CAP_MAX: Final = 2**31 - 1  # Postgres's int
SHOWN_CHARACTERS_MAX: Final = 64  # of a name that we don't know, in the fault about it

_AMOUNT: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_Choice = TypeVar("_Choice", bound=StrEnum)
_Read = Callable[[object], object]


def read_new(fields: Mapping[str, object]) -> NewCampaign:
    """The campaign that these fields describe. Raises `InvalidCampaign` with every fault."""
    faults = [Fault(_shown(name), "no such field in a campaign") for name in fields if name not in _READERS]
    faults += [Fault(name, "is missing") for name in _REQUIRED if name not in fields]
    known = {name: value for name, value in fields.items() if name in _READERS}
    values = _read(known, faults)
    model = values.get("pricing_model")
    if isinstance(model, PricingModel):
        _check_cost(model, values.get("unit_price_micros"), faults)
    if faults:
        raise InvalidCampaign(faults)
    return NewCampaign(**values)  # type: ignore[arg-type]


def read_change(fields: Mapping[str, object], current: Campaign) -> dict[str, object]:
    """What these fields change of a campaign, by the names of `Campaign`. Raises `InvalidCampaign` with every fault."""
    faults = [
        Fault(_shown(name), _FIXED.get(name, "no such field in a campaign"))
        for name in fields
        if name in _FIXED or name not in _READERS
    ]
    known = {name: value for name, value in fields.items() if name in _READERS and name not in _FIXED}
    changes = _read(known, faults)
    _check_cost(current.pricing_model, changes.get("unit_price_micros"), faults)
    if faults:
        raise InvalidCampaign(faults)
    return changes


def _read(fields: Mapping[str, object], faults: list[Fault]) -> dict[str, object]:
    """Values by the names of the model; what can't be read is added to the faults."""
    values: dict[str, object] = {}
    for name, value in fields.items():
        attribute, read = _READERS[name]
        try:
            values[attribute] = read(value)
        except ValueError as wrong:
            faults.append(Fault(name, str(wrong)))
    return values


def _check_cost(model: PricingModel, unit_price_micros: object, faults: list[Fault]) -> None:
    """A price so small that an event would be free is a mistake: its campaign would never end."""
    if isinstance(unit_price_micros, int) and cost_per_event(model, unit_price_micros) == 0:
        faults.append(Fault("unit_price", f"too small for {model}: one event would cost less than half of 0.000001"))


# --- One field ----------------------------------------------------------------------------------------------


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text without lone surrogates") from None
    if not 0 < size <= NAME_BYTES_MAX:
        raise ValueError(f"must have 1 to {NAME_BYTES_MAX} bytes, not {size}")
    if "\0" in value:
        raise ValueError("must not hold a NUL")
    return value


def _money(value: object) -> Micros:
    if isinstance(value, str):
        if not _AMOUNT.fullmatch(value):
            raise ValueError('must be a decimal number such as "12.50"')
        amount = Decimal(value)
    elif isinstance(value, int | Decimal) and not isinstance(value, bool):
        amount = Decimal(value)
    else:
        raise ValueError("must be a decimal number, as a string or as a number")
    micros = micros_from_decimal(amount)
    if micros < 0:
        raise ValueError("must not be below 0")
    return micros


def _price(value: object) -> Micros:
    micros = _money(value)
    if micros == 0:
        raise ValueError("must be above 0")
    return micros


def _cap(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= CAP_MAX:
        raise ValueError(f"must be a whole number from 1 to {CAP_MAX}, or null for no cap")
    return value


def _active(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _choice(choices: type[_Choice], value: object) -> _Choice:
    if not isinstance(value, str) or value not in set(choices):
        raise ValueError(f"must be one of {', '.join(choices)}")
    return choices(value)


def _timezone(value: object) -> str:
    if not isinstance(value, str) or value not in _timezones():
        raise ValueError("must be the name of an IANA time zone, such as Europe/Berlin")
    return value


@cache
def _timezones() -> frozenset[str]:
    # "localtime" is a zone file on some machines, and another one on each.
    return frozenset(zoneinfo.available_timezones() - {"localtime"})


def _shown(name: str) -> str:
    """A name that somebody made up, fit to be sent back."""
    return name[:SHOWN_CHARACTERS_MAX].encode(errors="backslashreplace").decode()


# Field as it is sent -> its name in the model, and how it is read.
_READERS: Final[Mapping[str, tuple[str, _Read]]] = {
    "name": ("name", _name),
    "pricing_model": ("pricing_model", partial(_choice, PricingModel)),
    "unit_price": ("unit_price_micros", _price),
    "total_budget": ("total_budget_micros", _money),
    "daily_budget": ("daily_budget_micros", _money),
    "freq_cap_impressions_per_day": ("freq_cap_impressions_per_day", _cap),
    "active": ("active", _active),
    "pacing": ("pacing", partial(_choice, Pacing)),
    "timezone": ("timezone", _timezone),
}
_REQUIRED: Final = ("name", "pricing_model", "unit_price", "total_budget", "daily_budget")
_FIXED: Final = {
    "pricing_model": "can't be changed, because past events were priced by it: create another campaign",
    "timezone": "can't be changed, because the campaign's day only moves forward: create another campaign",
}
