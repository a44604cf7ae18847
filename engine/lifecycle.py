"""Where a campaign's actor is in its life, and what moves it on. Pure: a table.

Owns phases, signals, and which signal has a place in which phase; a signal without one is a bug. Only OPEN may reserve,
and only one call at a time (RESERVING). LOADING waits for the plan, CLOSED for a recovery. What happens while a call
is under way (a doubt, a newer plan) moves the state on at once; the reply then finds the state changed and is thrown
away, and its entries go again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """Where a campaign's actor is in its life."""

    LOADING = "loading"
    OPEN = "open"
    RESERVING = "reserving"
    CLOSED = "closed"
    STOPPED = "stopped"


class Signal(StrEnum):
    """What moves it on."""

    PLAN = "plan"  # the plan is here
    CALL = "call"  # a reserve call is sent
    REPLY = "reply"  # its reply is here
    PLAN_BEHIND = "plan behind"  # somebody knows a newer plan
    DOUBT = "doubt"  # Redis or an outcome can't be trusted: recover
    RECOVERED = "recovered"
    STOP = "stop"


# Names of their own for what is asked at every event: looking them up in their class takes three times as long.
LOADING, OPEN, RESERVING, CLOSED, STOPPED = Phase
_DOUBT_OR_STOP: Final = {Signal.DOUBT: CLOSED, Signal.STOP: STOPPED}
TRANSITIONS: Final[dict[Phase, dict[Signal, Phase]]] = {
    LOADING: {Signal.PLAN: OPEN, **_DOUBT_OR_STOP},
    OPEN: {Signal.PLAN: OPEN, Signal.CALL: RESERVING, Signal.PLAN_BEHIND: LOADING, **_DOUBT_OR_STOP},
    RESERVING: {Signal.PLAN: RESERVING, Signal.REPLY: OPEN, Signal.PLAN_BEHIND: LOADING, **_DOUBT_OR_STOP},
    CLOSED: {Signal.PLAN: CLOSED, Signal.RECOVERED: OPEN, **_DOUBT_OR_STOP},
    STOPPED: {},
}


class IllegalTransition(AssertionError):
    """A signal came in a phase that has no place for it: a bug, and the actor is rebuilt."""
