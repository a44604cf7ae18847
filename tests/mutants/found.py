"""The faults that the simulation has found, put back. On trial is the script that finds each again, and no other test.

Four of these lines stand in `engine.py`, too, where all tests may notice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.mutants import engine
from tests.mutants.mutant import Edit, Mutant

TEST: Final = "tests/simulation/test_found.py::test_what_was_found_once_is_not_found_again"
ENGINE: Final = "engine/engine.py"


def again(name: str, script: str) -> Mutant:
    """A mutant of the engine's table, which only its script may notice."""
    mutant = next(each for each in engine.MUTANTS if each.name == name)
    return replace(mutant, name=f"found-{name}", tests=[f"{TEST}[{script}]"], own=True)


MUTANTS = [
    Mutant(
        "found-a-deadline-by-a-clock-that-steps",
        "A clock that is set back lets no request wait longer.",
        [
            Edit(ENGINE, "now = trio.current_time()\n        sub", "now = now_us / 1_000_000\n        sub"),
            Edit(ENGINE, "self._expire(trio.current_time())", "self._expire(self._clock.now_us() / 1_000_000)"),
        ],
        [f"{TEST}[a_clock_is_set_back]"],
        own=True,
    ),
    again("a-reply-counts-with-its-generation", "a_reply_is_thrown_away"),
    again("a-void-that-finds-another-redis", "a_void_finds_another_redis"),
    again("nobody-is-reserved-too-late", "a_look_up_grows_old"),
    again("clocks-may-disagree", "two_clocks_disagree"),
]
