"""Headrace's engine: the door. Listeners import from here, and from nowhere below.

`engine.runtime.open_engine` opens one.
"""

from engine.engine import Engine
from engine.errors import (
    CampaignNotFound,
    ConfigurationUnsafe,
    EngineError,
    Fault,
    InvalidCampaign,
    StoreUnavailable,
)
from engine.model import Campaign, CampaignView, Event, Invalid, Reason, Report, Status, StoredEvent, Verdict
from engine.submission import Entry, Submission

__all__ = [
    "Campaign",
    "CampaignNotFound",
    "CampaignView",
    "ConfigurationUnsafe",
    "Engine",
    "EngineError",
    "Entry",
    "Event",
    "Fault",
    "Invalid",
    "InvalidCampaign",
    "Reason",
    "Report",
    "Status",
    "StoreUnavailable",
    "StoredEvent",
    "Submission",
    "Verdict",
]
