"""What a hostile peer sends: the table of requests and its neighbours, mutated from a seed.

Owns the choice; knows no socket. A connection's plan depends on the seed and its number alone, so one can be repeated.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import NamedTuple

from tests.http_cases import API_CASES, CASES, post

__all__ = ["CAMPAIGN", "Plan", "plan_of"]

CAMPAIGN = b'{"name":"f","pricing_model":"cpc","unit_price":"0.01","total_budget":"1000000","daily_budget":"1000000"}'
LARGE_BYTES = 20_000  # of the corpus: seldom sent
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAMES = (
    b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",  # SETTINGS
    b"\x00\x00\x05\x02\x00\x00\x00\x00\x01\x00\x00\x00\x00\x10" * 1_099,  # PRIORITY
    b"\x00\x00\x04\x01\x05\x00\x00\x00\x01\x82\x84\x86\x41",  # HEADERS
    b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + bytes(8),  # GOAWAY
)
_OTHERS = [
    PREFACE, PREFACE + b"".join(_FRAMES), PREFACE[:10], b"\x81\x85\x00\x00\x00\x00hello",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", post(CAMPAIGN, path=b"/campaigns/"),
    b'PATCH /campaigns/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 17\r\n\r\n{"active": true  }',
    b"GET /report/campaign/1?start=2026-01-01&end=2027-01-01 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /campaigns/?limit=2&after=1 HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: h\r\nAccept: application/openmetrics-text;version=x\r\n\r\n",
    b"GET /openapi.json HTTP/1.0\r\n\r\n\r\n", b"GET /docs HTTP/1.1\r\nHost: h\r\nIf-Match: x\r\n\r\n",
]  # fmt: skip
_ALL = [case.sent for case in (*CASES, *API_CASES)] + _OTHERS
SMALL = [sent for sent in _ALL if len(sent) <= LARGE_BYTES]
LARGE = [sent for sent in _ALL if len(sent) > LARGE_BYTES]
_BYTES = b"\r\n\x00\xff :;,/?#%\"'{}[]()0919aAzZ-+.\\\t"


class Plan(NamedTuple):
    """What is sent on one connection, in which pieces; then the sender ends its half, or is gone at once (`cut`)."""

    pieces: list[bytes]
    cut: bool
    holds: bool  # it stays open for a while before that

    @property
    def events_max(self) -> int:
        """No more events than this stand in it."""
        return b"".join(self.pieces).count(b"campaign_id")


def plan_of(seed: int, number: int) -> Plan:
    """The plan of a seed's connection with this number."""
    chance = random.Random(f"{seed}/{number}")
    sent = bytearray()
    for _ in range(chance.choices([1, 2, 3, 8], [60, 25, 10, 5])[0]):
        sent += chance.choice(LARGE) if chance.random() < 0.01 else chance.choice(SMALL)
    for _ in range(chance.choices([0, 1, 2, 6], [25, 40, 25, 10])[0]):
        _mutate(sent, chance)
    cuts = sorted(chance.choices(range(len(sent) + 1), k=chance.choices([0, 1, 3, 12], [50, 25, 15, 10])[0]))
    edges = [0, *cuts, len(sent)]
    pieces = [bytes(sent[start:end]) for start, end in pairwise(edges) if end > start]
    return Plan(pieces, cut=chance.random() < 0.1, holds=chance.random() < 0.05)


def _mutate(sent: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(sent) + 1)
    size = chance.choice([1, 1, 2, 4, 16, 64, 512])
    kind = chance.randrange(7)
    if kind == 0 and at < len(sent):  # a bit
        sent[at] ^= 1 << chance.randrange(8)
    elif kind == 1:  # bytes that mean something
        sent[at : at + chance.randrange(2)] = bytes(chance.choices(_BYTES, k=chance.choice([1, 1, 2, 4])))
    elif kind == 2:  # a part that is missing
        del sent[at : at + size]
    elif kind == 3:  # an end that is missing
        del sent[at:]
    elif kind == 4:  # a part that comes again
        sent[at:at] = sent[at : at + size] * chance.choice([1, 1, 2, 50])
    elif kind == 5:  # a part of another
        other = chance.choice(SMALL)
        start = chance.randrange(len(other))
        sent[at:at] = other[start : start + size]
    else:  # any bytes
        sent[at:at] = chance.randbytes(size)
