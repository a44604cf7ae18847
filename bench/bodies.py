"""Requests, encoded beforehand: only the time and number inside their ids is put in when they are sent.

Owns the bytes of a request and what its events are, for the audit. Pure: knows no socket and no clock.

An id is a UUIDv7 in two parts: a **stem** that every request has of its own (its time and its number), and a tail that
the event's place in its template gives. In a template the stem is a placeholder, so `bytes.replace` makes a new
request out of a thousand events in some 20 us. A user that is new with every event has the stem in its name, too. An
event that was sent before carries the stem of an earlier request of the same template.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Final

import msgspec

from bench.generate import BAD_KINDS
from bench.scenario import Scenario

STEM: Final = b"########-####-7###-8###"  # of this request
OLD_STEM: Final = b"@@@@@@@@-@@@@-7@@@-8@@@"  # of an earlier one
TEMPLATE_EVENTS: Final = 40_000  # in all templates together: draws enough for any distribution, 6 MB
TEMPLATES_MAX: Final = 4_000  # so that single events come round, and repeats are repeats, within a second
_TYPES: Final = ("impression", "click")


class Line(msgspec.Struct, frozen=True, array_like=True):
    """One event of a template, as the audit must find it. In `user`, `#` stands for the stem."""

    tail: str
    campaign_id: int
    user: str
    event_type: int
    old: bool
    bad: bool


class Template(msgspec.Struct, frozen=True, array_like=True):
    """A request with places for its stems, and its events."""

    request: bytes
    lines: list[Line]
    repeats: bool  # whether it has a place for an earlier stem


def stem(milliseconds: int, number: int) -> bytes:
    """The first 23 characters of the ids of one request (RFC 9562, section 5.7): 48 bits of time, 24 of number."""
    when = b"%012x" % milliseconds
    return b"%b-%b-7%03x-8%03x" % (when[:8], when[8:], number >> 12 & 0xFFF, number & 0xFFF)


def make_templates(
    scenario: Scenario, batch: int, campaign_ids: Sequence[int], *, seed: int, host: str, first: int = 0
) -> list[Template]:
    """As many as hold `TEMPLATE_EVENTS` together, within their bound. `host`: as the `Host` header has it.

    Their ids have numbers from `first` on: two senders at once must not have the same.
    """
    rng = random.Random(f"{scenario.name} {batch} {seed}")
    count = min(TEMPLATES_MAX, max(2, TEMPLATE_EVENTS // batch))
    drawn = scenario.draw_campaigns(rng, count * batch)
    templates = []
    for number in range(count):
        campaigns = [campaign_ids[at] for at in drawn[number * batch : (number + 1) * batch]]
        templates.append(_template(scenario, rng, campaigns, first + number, host))
    return templates


def _template(scenario: Scenario, rng: random.Random, campaigns: Sequence[int], number: int, host: str) -> Template:
    lines: list[Line] = []
    bodies: list[bytes] = []
    for at, campaign in enumerate(campaigns):
        tail = f"{number:06x}{at:06x}"
        user = f"user-{rng.randrange(scenario.users)}" if scenario.users else f"u-#-{at}"
        event_type = int(rng.random() < scenario.clicks_share)
        line, body = Line(tail, campaign, user, event_type, False, False), _event(tail, campaign, user, event_type)
        chance = rng.random()
        if chance < scenario.repeats_share:
            line, body = _repeat(rng, lines, bodies, line, body)
        elif chance < scenario.repeats_share + scenario.bad_share:
            line, body = msgspec.structs.replace(line, bad=True), _bad(rng, body)
        lines.append(line)
        bodies.append(body)
    return Template(request_of(bodies, host), lines, any(line.old for line in lines))


def _event(tail: str, campaign: int, user: str, event_type: int) -> bytes:
    placed = user.replace("#", STEM.decode())
    return (
        f'{{"event_id":"{STEM.decode()}-{tail}","campaign_id":{campaign},"user_id":"{placed}",'
        f'"event_type":"{_TYPES[event_type]}","ad_id":"ad-{campaign % 20}"}}'
    ).encode()


def _repeat(rng: random.Random, lines: list[Line], bodies: list[bytes], line: Line, body: bytes) -> tuple[Line, bytes]:
    """An event of an earlier request of this template, itself new then; this very one where there is none before."""
    fresh = [at for at, each in enumerate(lines) if not (each.old or each.bad)]
    if fresh:
        at = rng.choice(fresh)
        line, body = lines[at], bodies[at]
    return msgspec.structs.replace(line, old=True), body.replace(STEM, OLD_STEM)


def _bad(rng: random.Random, body: bytes) -> bytes:
    """As senders get it wrong, but JSON: what is not would cost its whole request."""
    while True:
        wrong = rng.choice(BAD_KINDS)(json.loads(body))
        try:
            json.loads(wrong)
        except ValueError:
            continue
        return wrong


def request_of(bodies: Sequence[bytes], host: str) -> bytes:
    """A whole request with these events: one alone, or a batch."""
    path, body = ("/events/", bodies[0]) if len(bodies) == 1 else ("/events/batch", b"[" + b",".join(bodies) + b"]")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
