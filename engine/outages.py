"""States in which events are refused: each is logged once when it begins and once when it ends, and /readyz tells it.

Owns which parts of the engine fail now, since when, and why. Pure: knows no store and reads no clock. Whoever meets a
failure or a success of a part says so; one log line a call would be thousands a second while a store is away.
"""

from __future__ import annotations

import logging
from typing import Final

log = logging.getLogger(__name__)

# A part works again when it has succeeded and nothing has failed for so long: where one campaign is refused and the
# others are not, failures and successes alternate, and that is one outage.
QUIET_SECONDS: Final = 2.0
# A store that fails in a new way meanwhile is worth a line more, but not every second.
REPEAT_SECONDS: Final = 60.0


class _Outage:
    """One part that fails: when it began and failed last, how often, and what was said of it last."""

    __slots__ = ("failures", "latest", "logged", "since", "why")

    def __init__(self, now: float, why: str) -> None:
        self.since = self.latest = self.logged = now
        self.failures = 0
        self.why = why


class Outages:
    """The outages of one engine process. `now` is always trio's time, in seconds."""

    def __init__(self) -> None:
        self._outages: dict[str, _Outage] = {}

    def failed(self, part: str, why: str, now: float) -> None:
        """A part failed: `part` as operators call it ("Redis", "Postgres"), `why` in the store's own words."""
        outage = self._outages.get(part)
        if outage is None:
            outage = self._outages[part] = _Outage(now, why)
            log.warning("%s: %s: what needs it is answered 503 until it works again", part, why)
        elif why != outage.why and now - outage.logged >= REPEAT_SECONDS:
            outage.logged = now
            log.warning("%s: still fails after %.0f s, now with: %s", part, now - outage.since, why)
        outage.why = why
        outage.latest = now
        outage.failures += 1

    def works(self, part: str, now: float) -> None:
        """A part did what it is for. Cheap where nothing fails: it is said with every round and flush."""
        if not self._outages:
            return
        outage = self._outages.get(part)
        if outage is not None and now - outage.latest >= QUIET_SECONDS:
            del self._outages[part]
            seconds, failures = now - outage.since, outage.failures
            log.warning("%s: works again after %.1f s and %d failures", part, seconds, failures)

    def problems(self) -> list[str]:
        """What fails now, a sentence each, for /readyz."""
        return [f"{part}: {outage.why}" for part, outage in self._outages.items()]

    def __contains__(self, part: str) -> bool:
        """Whether this part fails now: then somebody must try it, or nobody would find out that it works again."""
        return part in self._outages
