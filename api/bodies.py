"""Batches that are not read in one go: long ones, and those with something wrong in them, slice by slice.

Owns how an array and lines are gone through, what each step costs (api/slicing.py), and that events are counted
before more of them are made. One bad event costs only itself; `BadRequest` means that nothing is accepted.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from api.bad_events import EVENT, EVENT_BYTES_MAX, check_json, explain, mark_lone_surrogates, too_long
from api.elements import STEP_BYTES, Elements, NotJson
from api.errors import BadRequest, problem
from api.slicing import SLICE_WORK, Reading
from config.settings import Settings
from engine import Event, Invalid

__all__ = ["EVENTS", "has_long_event", "malformed", "read_array", "read_line", "read_lines", "too_many_events"]

EVENTS: Final = msgspec.json.Decoder(list[Event])
# Of an array, decoded in one go if nothing is wrong in them: 1,300 events at most. Where something is, some events.
GULP_BYTES_MAX: Final = 65_536
GULP_BYTES_MIN: Final = 1_024
STEP_WORK: Final = 500  # of a search, whatever it passes
STEP_BYTE_WORK: Final = 8  # of each byte that it passes: 30 ns if all are quotes or backslashes
# Searches of one array: five an event, and some more for each bracket within one, of which good events have none. Those
# 200 ms are ten times what a long array takes.
STEPS_MAX: Final = 200_000
EVENT_WORK: Final = 500  # of one good event, beside its bytes
BAD_EVENT_WORK: Final = 8_000  # of one that is explained: it is decoded four times, and the decoder's words are parsed
BAD_BYTE_WORK: Final = 26  # of each byte of that: escapes are looked at one by one, and digits cost by their square

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"  # skipped (RFC 8259, 8.1): some editors and .NET put it there
_BLANKS: Final = re.compile(rb"\s*")


_TOO_MANY_BRACKETS: Final = BadRequest(
    problem(413, "body_too_large", f"the body has some {STEPS_MAX} brackets; events have no lists or objects within")
)


def read_array(body: bytes, at: int, limits: Settings) -> Reading:
    """The events of the JSON array that begins at `at`: many in one gulp where they are good, else one by one."""
    events: list[Event | Invalid] = []
    found, steps, work = Elements(body, at), 0, 0
    gulp_bytes, gulp_from = GULP_BYTES_MAX, at
    try:
        while not found.ended:
            begun = found.at
            if found.between and begun >= gulp_from:
                work += gulp_bytes
                if _gulp(found, body, gulp_bytes, events):
                    gulp_bytes = min(2 * gulp_bytes, GULP_BYTES_MAX)
                elif gulp_bytes > GULP_BYTES_MIN:
                    gulp_bytes //= 8
                else:
                    gulp_from = begun + 1  # not from this element
            else:
                element = found.step()
                steps += 1
                work += STEP_WORK + STEP_BYTE_WORK * (found.at - begun)
                if element is not None:
                    work += _read_element(body, *element, events, alone=not found.between)
                    gulp_bytes = min(2 * gulp_bytes, GULP_BYTES_MAX)
            if len(events) > limits.request_events_max:
                raise too_many_events(limits)
            if steps > STEPS_MAX:
                raise _TOO_MANY_BRACKETS
            if work >= SLICE_WORK:
                yield
                work = 0
    except NotJson as wrong:
        raise malformed(wrong) from None
    return events


def _gulp(found: Elements, body: bytes, size: int, events: list[Event | Invalid]) -> bool:
    """Decode all elements that end within so many bytes at once; False, and none, if something is wrong in them."""
    start = found.at
    end = body.rfind(b"},", start, start + size) + 1
    if end == 0 or has_long_event(body, start, end, b"{"):
        return False
    try:
        events += EVENTS.decode(b"[%b]" % body[start:end])
    except (ValueError, RecursionError):
        return False
    found.jump(end + 1)
    return True


def has_long_event(body: bytes, start: int, end: int, mark: bytes) -> bool:
    """Whether some event may be longer than is read: for so long there is no `mark`, of which each event has one."""
    while end - start > EVENT_BYTES_MAX:
        begins = body.rfind(mark, start + 1, start + EVENT_BYTES_MAX + 1)
        if begins < 0:
            return True
        start = begins
    return False


def _read_element(body: bytes, start: int, end: int, events: list[Event | Invalid], *, alone: bool) -> int:
    """Read the event of an array that stands there, and add it. Returns the work. `alone`: no comma is behind it."""
    raw = body[start:end].strip(b" \t\r\n")
    if len(raw) > EVENT_BYTES_MAX:
        events.append(too_long(raw))
        return 2 * (end - start)
    if not raw:
        if events or not alone:
            raise NotJson(f"nothing stands before a comma or the end, behind {len(events)} events")
        return end - start
    try:
        events.append(EVENT.decode(raw))
    except (ValueError, RecursionError):
        raw = mark_lone_surrogates(raw)
        check_json(raw)
        events.append(explain(raw))
        return BAD_EVENT_WORK + BAD_BYTE_WORK * len(raw)
    return EVENT_WORK + len(raw)


def read_lines(body: bytes, limits: Settings) -> Reading:
    """The events of lines. The line is the frame: what stands in it costs no other. Blank lines are skipped."""
    events: list[Event | Invalid] = []
    at = len(BYTE_ORDER_MARK) if body.startswith(BYTE_ORDER_MARK) else 0
    work = 0
    while at < len(body):
        begun = at
        blanks = _BLANKS.match(body, at, at + STEP_BYTES)
        assert blanks is not None
        at = blanks.end()
        if at < min(begun + STEP_BYTES, len(body)):
            _check_count(len(events) + 1, limits)
            end = body.find(b"\n", at)
            end = len(body) if end < 0 else end
            start = max(begun, body.rfind(b"\n", begun, at) + 1)
            work += read_line(body[start:end], events)
            at = end + 1
        work += STEP_WORK + at - begun
        if work >= SLICE_WORK:
            yield
            work = 0
    return events


def read_line(line: bytes, events: list[Event | Invalid]) -> int:
    """Read the event of a line, and add it. Returns the work, the passing of its bytes apart."""
    if len(line) > EVENT_BYTES_MAX and len(line.rstrip()) > EVENT_BYTES_MAX:
        events.append(too_long(line))
        return len(line)
    try:
        events.append(EVENT.decode(line))
    except (ValueError, RecursionError):
        events.append(explain(mark_lone_surrogates(line)))
        return BAD_EVENT_WORK + BAD_BYTE_WORK * len(line)
    return EVENT_WORK


def _check_count(count: int, limits: Settings) -> None:
    if count > limits.request_events_max:
        raise too_many_events(limits)


def too_many_events(limits: Settings) -> BadRequest:
    """They are counted no further than that."""
    return BadRequest(
        problem(
            413,
            "too_many_events",
            f"the batch has more than {limits.request_events_max} events: send them in several requests",
        )
    )


def malformed(wrong: NotJson) -> BadRequest:
    """The body as a whole is no JSON."""
    return BadRequest(problem(400, "malformed_json", f"the body is not JSON: {wrong}"))
