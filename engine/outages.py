"""States in which events are refused: each is logged once when it begins and once when it ends, and /readyz tells it.

Owns which parts of the engine fail now, since when, and why. Pure: knows no store and reads no clock. Whoever meets a
failure or a success of a part says so; one log line a call would be thousands a second while a store is away.
"""

from __future__ import annotations

import logging
import re
from typing import Final

log = logging.getLogger(__name__)

# A part works again when it has succeeded and nothing has failed for `quiet_seconds`: where one campaign is refused and
# the others are not, failures and successes alternate, and that is one outage. A part that fails again within a minute
# of its end has to be quiet for twice as long as before, up to so many times: what can't be probed (a disk that is full
# for rows, but not for an empty flush) would begin and end every few seconds.
QUIET_TIMES_MAX: Final = 4
AGAIN_SECONDS: Final = 60.0
# A store that fails in a new way meanwhile is worth a line more, but not every second.
REPEAT_SECONDS: Final = 60.0
# While what fails keeps the engine from being ready it is probed: events come back a second after the store at most,
# and it costs four small calls.
ASK_SECONDS: Final = 1.0
# Anybody may read /readyz. A store's words are a sentence or two; a URL in them may hold a password.
WORDS_MAX: Final = 300
# What concerns some campaigns only, so that the engine stays ready: a part that flushes and recoveries meet.
HELD_ROWS: Final = "rows in Postgres that another session holds"
# Unless no flush of any campaign has committed for so long while these failed: then it concerns all.
STALLED_SECONDS: Final = 5.0
_URL: Final = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)


class _Outage:
    """One part that fails: when it began and failed last, how often, and what was said of it last."""

    __slots__ = ("blocks", "failures", "latest", "logged", "probed", "quiet_seconds", "since", "why")

    def __init__(self, now: float, why: str, blocks: bool, quiet_seconds: float) -> None:
        self.since = self.latest = self.logged = now
        self.failures = 0
        self.why = why
        self.probed = self.blocks = blocks
        self.quiet_seconds = quiet_seconds


class Outages:
    """The outages of one engine process. `now` is always trio's time, in seconds."""

    def __init__(self, quiet_seconds: float) -> None:
        self._quiet_at_first = quiet_seconds
        self._outages: dict[str, _Outage] = {}
        self._ended: dict[str, tuple[float, float]] = {}  # when a part's latest outage ended, and how quiet it was then
        self._committed_at = 0.0

    def failed(self, part: str, why: str, now: float, *, blocks: bool = True) -> None:
        """A part failed: `part` as operators call it ("Redis", "Postgres"), `why` in the store's own words.

        `blocks`: the engine is not ready meanwhile. (What concerns one campaign alone is logged and counted only, as
        long as flushes of others commit.)
        """
        why = _plain(why, part)
        outage = self._outages.get(part)
        if outage is None:
            outage = self._outages[part] = _Outage(now, why, blocks, self._quiet_seconds(part, now))
            tried = f"; it is asked again every {ASK_SECONDS:g} s" if blocks else ""
            log.warning("%s: %s: what needs it is answered 503 until it works again%s", part, why, tried)
        elif why != outage.why and now - outage.logged >= REPEAT_SECONDS:
            outage.logged = now
            log.warning("%s: still fails after %.0f s, now with: %s", part, now - outage.since, why)
        outage.why = why
        outage.latest = now
        outage.failures += 1
        outage.blocks |= now - max(outage.since, self._committed_at) >= STALLED_SECONDS

    def committed(self, now: float) -> None:
        """A flush has committed: what fails does not concern every campaign."""
        self._committed_at = now
        for outage in self._outages.values():
            outage.blocks &= outage.probed

    def works(self, part: str, now: float) -> None:
        """A part did what it is for, as a probe has found, or has not failed for a while."""
        outage = self._outages.get(part)
        if outage is not None and now - outage.latest >= outage.quiet_seconds:
            del self._outages[part]
            self._ended[part] = now, outage.quiet_seconds
            seconds, failures = now - outage.since, outage.failures
            log.warning("%s: works again after %.1f s and %d failures", part, seconds, failures)

    def expire(self, now: float) -> None:
        """End what concerns campaigns only once it has not failed for a while: nobody probes it."""
        for part in [part for part, outage in self._outages.items() if not outage.probed]:
            self.works(part, now)

    def _quiet_seconds(self, part: str, now: float) -> float:
        ended, quiet_seconds = self._ended.get(part, (now - AGAIN_SECONDS, 0.0))
        longest = QUIET_TIMES_MAX * self._quiet_at_first
        return min(2 * quiet_seconds, longest) if now - ended < AGAIN_SECONDS else self._quiet_at_first

    def problems(self) -> list[str]:
        """What fails now and keeps the engine from being ready, a sentence each, for /readyz."""
        return [f"{part}: {outage.why}" for part, outage in self._outages.items() if outage.blocks]

    def __len__(self) -> int:
        return len(self._outages)


def _plain(why: str, part: str) -> str:
    """A store's words in one line, without URLs, and without the name that stands before them anyway."""
    return _URL.sub("(a URL)", " ".join(why.split())).removeprefix(f"{part}: ")[:WORDS_MAX]
