"""A fault that was caught at a boundary, told in one line.

Owns how such a line reads. A peer may be able to cause the same fault thousands of times a second, so its traceback,
twenty lines a time, is left out: the error and the line that raised it name the place.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Final

__all__ = ["in_one_line"]

TEXT_CHARACTERS_MAX: Final = 300  # of what the error says: it may quote what a peer has sent


def in_one_line(error: BaseException) -> str:
    """The kind of the error, where it was raised and what it says; of a group, its first error."""
    trace = error.__traceback__
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
        trace = error.__traceback__ or trace
    frames = traceback.extract_tb(trace)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {str(error)[:TEXT_CHARACTERS_MAX]!r}"
