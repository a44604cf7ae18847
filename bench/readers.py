"""Readers of reports, beside a load: each asks for one campaign's report after the other's, and waits for it."""

from __future__ import annotations

import threading
from itertools import count
from typing import Final, Self

import httpx

from bench.stand import Stand, StandFailed

ANSWER_SECONDS_MAX: Final = 20.0  # twice the engine's own bound


class Readers:
    """`with Readers(stand, n) as readers:` - `reports` tells how many were read.

    Leaving the block raises `StandFailed` when one could not be read.
    """

    def __init__(self, stand: Stand, number: int) -> None:
        assert number == 0 or stand.system.is_engine, "only the engine has reports"
        self.reports = 0
        self._failure: httpx.HTTPError | None = None
        self._stand = stand
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._read, args=(reader,)) for reader in range(number)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise StandFailed(f"a report could not be read: {self._failure!r}")

    def _read(self, reader: int) -> None:
        ids = self._stand.campaign_ids
        try:
            with httpx.Client(base_url=self._stand.api, trust_env=False, timeout=ANSWER_SECONDS_MAX) as client:
                for at in count(reader):
                    if self._stop.is_set():
                        return
                    client.get(f"/report/campaign/{ids[at % len(ids)]}").raise_for_status()
                    with self._lock:
                        self.reports += 1
        except httpx.HTTPError as failure:
            self._failure = failure
