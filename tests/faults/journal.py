"""The log of a faulty hour: what was asked, what was answered, when a fault was over.

One JSON object a line, in the order in which it happened, with a monotonic time in seconds. The checker reads nothing
else but this and Postgres.

| what | means |
|---|---|
| `start` | `wall` is what a clock on the wall says now, in seconds since 1970-01-01 UTC |
| `clock` | the machine clock of an engine is off by so many seconds from now on |
| `plan` | a campaign is as told since a moment between `asked` and now; `spent`, `day`, `today_micros` by its ledger |
| `invoke` | an attempt to record an event was sent |
| `ok` | that attempt was answered; its `status` is accepted or duplicate |
| `fail` | it was answered: refused for good, with its reason |
| `info` | nothing is known: 503, `retry`, no answer; and why |
| `fault` | a fault begins; `others` are campaigns that it does not concern |
| `clear` | the fault is over, or nothing stands in the way of a recovery any more |
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Journal:
    """Appends records to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "a", buffering=1 << 16)  # noqa: SIM115 - closed by `close`
        self._attempts = 0
        self.write("start", wall=time.time())

    def write(self, what: str, **fields: Any) -> None:
        """One record."""
        self._file.write(json.dumps({"t": round(time.monotonic(), 4), "what": what, **fields}) + "\n")

    def clock(self, whose: str, seconds: float) -> None:
        """An engine's clock is moved."""
        self.write("clock", whose=whose, seconds=seconds)

    def attempt(self) -> int:
        """A number for an attempt."""
        self._attempts += 1
        return self._attempts

    def close(self) -> None:
        """Everything is on disk."""
        self._file.close()
