"""Waiting within a bound, for what can only be looked at again and again.

A fault that did not happen, or a world that is not well again, must be told by name: a silent time limit passes for
success, and a bare `TooSlowError` says nothing.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

T = TypeVar("T")
WAIT_SECONDS = 30.0  # far above what anything here takes, on two cores that others use, too
_LOOK_SECONDS = 0.03


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Bound the block. Raises `AssertionError` with `what` did not happen."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise AssertionError(f"did not happen within {seconds:.0f} s: {what}") from None


async def until(look: Callable[[], T], what: str, seconds: float = WAIT_SECONDS) -> T:
    """Look until there is something; return it. For what is seen without waiting."""
    with within(seconds, what):
        while not (seen := look()):
            await trio.sleep(_LOOK_SECONDS)
    return seen


async def until_told(ask: Callable[[], Awaitable[T]], what: str, seconds: float = WAIT_SECONDS) -> T:
    """The same, for what must be asked for."""
    with within(seconds, what):
        while not (told := await ask()):
            await trio.sleep(_LOOK_SECONDS)
    return told


def explain(error: Exception) -> str:
    """What went wrong, in one line where that is known; the traceback of anything else.

    A nursery wraps what its tasks raise, however little that tells.
    """
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    trace = "".join(traceback.format_exception(error))
    return f"{error}\n{trace}" if isinstance(error, AssertionError) and str(error) else trace
