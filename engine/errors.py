"""The engine's errors: few, each named for what the caller should do.

A refused event is no error but a `Verdict`. These are raised by the calls about campaigns and reports, and
between the engine and its stores.
"""

from __future__ import annotations

__all__ = [
    "CampaignNotFound",
    "ConfigurationUnsafe",
    "EngineError",
    "Fault",
    "InvalidCampaign",
    "StoreBusy",
    "StoreUnavailable",
]


class EngineError(Exception):
    """Base of all errors that the engine raises on purpose."""


class StoreUnavailable(EngineError):
    """A store gave no answer, or a refusal that is not about the data. Try again later.

    `certain` is true when the statement certainly had no effect. `told` says to a caller what it was, and names nobody.
    """

    told = "the store gave no answer"

    def __init__(self, message: str, *, certain: bool) -> None:
        super().__init__(message)
        self.certain = certain


class StoreBusy(StoreUnavailable):
    """Somebody else held for too long what the statement needs; nothing was done."""

    told = "another change or an engine in trouble holds this campaign's row"


class CampaignNotFound(EngineError):
    """There is no campaign with this number. Trying again won't help."""


class ConfigurationUnsafe(EngineError):
    """A store is set up so that a 200 could be wrong. Change its configuration and start again."""


class InvalidCampaign(EngineError):
    """The fields of a campaign are not allowed; `faults` names every one of them at once."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(f"{fault.field}: {fault.message}" for fault in faults))
        self.faults = faults


class Fault:
    """One field that is wrong, and what is allowed instead."""

    __slots__ = ("field", "message")

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        self.message = message
