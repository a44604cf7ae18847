"""The answer to `/readyz`, the same of both listeners.

Owns its form. Knows nothing of what is in the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from api.codec import JSON_HEADERS, RETRY_AFTER_SECONDS
from api.errors import Answer, problem


class Ready(msgspec.Struct):
    """Events are taken. Notes say what is refused all the same, of some campaigns or of some of their users."""

    status: Literal["ready"] = "ready"
    notes: list[str] | UnsetType = UNSET


def readiness(problems: Sequence[str], notes: Sequence[str]) -> Answer:
    """503 with every problem, if there are any; else 200, and what is refused all the same."""
    if problems:
        return problem(503, "not_ready", "; ".join(problems), retry_after_seconds=RETRY_AFTER_SECONDS)
    return Answer(200, JSON_HEADERS, msgspec.json.encode(Ready(notes=list(notes) or UNSET)))
