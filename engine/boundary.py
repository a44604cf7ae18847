"""Where a fault stops: the one place that catches what a campaign's own code raises.

Owns the rule that an actor's fault closes that actor and nobody else. Errors that are no `Exception` (a
cancellation, an interrupt) pass.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class FaultBoundary:
    """`with boundary:` - an exception inside is handed to `on_fault`, and ends there. Used again and again."""

    __slots__ = ("_on_fault",)

    def __init__(self, on_fault: Callable[[], None]) -> None:
        self._on_fault = on_fault

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self._on_fault()
        return True
