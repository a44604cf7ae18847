"""Whether this machine's clock may be followed, and what is said of it.

Owns the comparison of four clocks: the machine's, Postgres's, Redis's, and the even one that the engine goes by. Pure:
reads no clock. A clock of the whole host that is set takes Postgres's along, where that runs on the same host; only the
even clock tells, because it goes on as nobody sets it. While any of them disagrees nothing is taken and nothing is
followed: the spend day stays where it is. Which of two times is right can't be told from here, so a person says it, by
setting the clock back, or by starting the engines again.
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from engine.model import SECOND_US

log = logging.getLogger(__name__)

_CALM: Final = 0.5  # of the limit: a clock that wanders around a limit is not told again and again


class Compared(NamedTuple):
    """What a heartbeat has found, in microseconds."""

    postgres_us: int  # the machine's clock less Postgres's
    redis_us: int | None  # the machine's clock less Redis's; None: it could not be asked
    even_us: int | None  # the engine's even clock less Postgres's; None: it was never found right until now


class ClockCheck:
    """What was found of the clocks last; each state is logged once when it begins, and once when it ends."""

    def __init__(self, warn_seconds: float, refuse_seconds: float) -> None:
        self._warn_us = warn_seconds * SECOND_US
        self._refuse_us = refuse_seconds * SECOND_US
        self._redis_us = 0  # as it was heard last: a Redis that can't be asked now makes no clock right
        self._warned = False
        self.wrong: str | None = None  # why nothing is taken, and the machine's clock not followed

    def check(self, compared: Compared) -> bool:
        """Whether the machine's clock is right."""
        if compared.redis_us is not None:
            self._redis_us = compared.redis_us
        wrong = self._what_is_wrong(compared)
        if wrong and not self.wrong:
            log.warning("no events are taken: %s", wrong)
        elif self.wrong and not wrong:
            log.warning("the clocks agree again: events are taken")
        self.wrong = wrong
        if wrong is None:
            self._warn(max(compared.postgres_us, self._redis_us, key=abs))
        return wrong is None

    def _what_is_wrong(self, compared: Compared) -> str | None:
        if abs(compared.postgres_us) > self._refuse_us:
            return f"clock: {_seconds(compared.postgres_us)} off from Postgres's; correct this machine's clock"
        if abs(self._redis_us) > self._refuse_us:
            return f"clock: {_seconds(self._redis_us)} off from Redis's; correct the clock of this host or of Redis's"
        if compared.even_us is not None and abs(compared.even_us) > self._refuse_us:
            return (
                f"clock: this machine's and Postgres's were set by {_seconds(-compared.even_us)} while the engine ran; "
                "set them back, or start Headrace again if the new time is right"
            )
        return None

    def _warn(self, off_us: int) -> None:
        if not self._warned and abs(off_us) > self._warn_us:
            self._warned = True
            log.warning("this machine's clock is %s off from a store's: correct it in time", _seconds(off_us))
        elif self._warned and abs(off_us) <= self._warn_us * _CALM:
            self._warned = False
            log.warning("this machine's clock is right again, %s off from a store's", _seconds(off_us))


def _seconds(us: int) -> str:
    return f"{us / SECOND_US:.1f} s"
