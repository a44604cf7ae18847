"""Where a fault stops: what a campaign's own code raises closes its actor, and nobody else.

Owns that rule. Errors that are no `Exception` (a cancellation, an interrupt) pass. What happens with every event
(`Registry.post`, `Rounds`, `Flusher`) says the same with `try` and `Actor.fail`: a block like this one takes eight
times as long, when nothing is raised.
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
