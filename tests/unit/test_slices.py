"""Small bytes, long work: what a body costs the loop in one go. Work is counted, never timed."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import pytest
import trio
import zstandard

from api.bad_events import EVENT_BYTES_MAX
from api.codec import NDJSON, batch_answer, read_events, start_reading
from api.errors import BadRequest
from api.slicing import Events, Turns, next_slice
from config.settings import Settings
from engine import Event, Invalid, Reason, Status, Submission, Verdict

LIMITS = Settings()
MIB = 1 << 20
FULL = LIMITS.request_bytes_max
# Calls of Python in one slice: each is a token, a search, an event or a step of a decoder; as many are some 5 ms.
CALLS_MAX = 24_000

GOOD = b'{"campaign_id":7,"user_id":"u","event_type":"click"}'
BAD = b'{"campaign_id":7,"user_id":"u","event_type":"clic","ad_id":"\\ud800"}'
EVENT = Event(7, "u", "click")


def filled(head: bytes, piece: bytes, tail: bytes = b"") -> bytes:
    """As many pieces as fit a full body."""
    return head + piece * ((FULL - len(head) - len(tail)) // len(piece)) + tail


HOSTILE = {
    "ones": filled(b"[", b"1,", b"1]"),
    "open brackets": b"[" * FULL,
    "brackets that close": b"[" * (FULL // 2) + b"]" * (FULL // 2),
    "pairs of brackets": filled(b"[", b"[],", b"1]"),
    "pairs within an element": filled(b"[[", b"[],", b"1]]"),
    "deeper pairs": filled(b"[[", b"[[]],", b"1]]"),
    "strings": filled(b"[[", b'"",', b"1]]"),
    "lone surrogates": filled(b'["', b"\\ud800", b'"]'),
    "events of lone surrogates": filled(b"[", b'{"user_id":"' + b"\\ud800" * 2_600 + b'"},', b"1]"),
    "a huge unknown field": filled(b'[{"', b"k", b'":1}]'),
    "an event of 4 MiB": filled(b'[{"campaign_id":7,"user_id":"', b"u", b'","event_type":"click"}]'),
    "bad events": b"[" + b",".join([BAD] * 5_000) + b"]",
    "bad lines": b"\n".join([BAD] * 5_000),
    "good and bad events": b"[" + b", ".join([GOOD, GOOD, GOOD, GOOD, BAD] * 1_000) + b"]",
    "blanks": b" " * FULL,
    "an array of blanks": filled(b"[", b" ", b"]"),
    "blank lines": b"\n" * FULL,
    "a million lines": filled(b"", b"1\n"),
    "backslashes": filled(b'["', b"\\\\", b'"]'),
    "colons": filled(b"[", b":", b"]"),
    "a number": filled(b"[", b"1", b"]"),
    "a field again and again": filled(b"[", b"{" + b'"user_id":"u",' * 1_000 + b'"campaign_id":0},', b"1]"),
    "good events, too many": filled(b"[", GOOD + b",", GOOD + b"]"),
    "good lines, too many": filled(b"", GOOD + b"\n"),
    "open quotes": filled(b"[", b'"a",', b'"]'),
}
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": lambda body: gzip.compress(body, 1),
    "zstd": zstandard.ZstdCompressor().compress,
}


class Calls:
    """Counts the calls of functions, ours and built-in ones, while it is entered."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _on_event(self, _frame: FrameType, event: str, _argument: object) -> None:
        self.count += event in ("call", "c_call")


def calls_of_slices(body: bytes, **how: Any) -> tuple[list[int], Events | BadRequest]:
    """How many calls each slice of a body took, and what came of it."""
    counts: list[int] = []

    def counted(work: Callable[[], Any]) -> Any:
        with Calls() as calls:
            try:
                return work()
            finally:
                counts.append(calls.count)

    try:
        reading = counted(lambda: start_reading(body, limits=LIMITS, **how))
        events = reading if isinstance(reading, list) else None
        while events is None:
            events = counted(lambda: next_slice(reading))
    except BadRequest as refused:
        return counts, refused
    return counts, events


@pytest.mark.parametrize("content_type", ["application/json", NDJSON])
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_no_slice_does_more_than_its_share(body: bytes, content_type: str) -> None:
    """Whatever 4 MiB hold, each slice takes a bounded number of calls."""
    counts, _ = calls_of_slices(body, content_type=content_type, content_encoding="", batch=True)
    assert max(counts) <= CALLS_MAX


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize(
    "name", ["ones", "pairs within an element", "bad lines", "blank lines", "good events, too many"]
)
def test_no_slice_of_an_encoded_body_does_more_than_its_share(name: str, encoding: str) -> None:
    """A few KB hold 4 MiB; decoding and reading don't meet in one slice."""
    body = ENCODERS[encoding](HOSTILE[name])
    content_type = NDJSON if "lines" in name else "application/json"
    counts, _ = calls_of_slices(body, content_type=content_type, content_encoding=encoding, batch=True)
    assert max(counts) <= CALLS_MAX


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_single_event_is_read_in_one_slice_of_few_calls(body: bytes) -> None:
    """What is longer than an event is not read at all."""
    counts, _ = calls_of_slices(body, content_type="", content_encoding="", batch=False)
    assert len(counts) == 1
    assert counts[0] <= 100


@pytest.mark.parametrize("piece", [b"\\ud800", b"\\ud83d\\ude00", b"\\\\", b"\\n", b'\\"', b"{", b"[", b"\xff"])
@pytest.mark.parametrize("frame", [b'{"user_id":"%b"}', b'{"%b":1}', b"%b"], ids=["text", "name", "bare"])
def test_a_bad_event_is_explained_in_few_calls(piece: bytes, frame: bytes) -> None:
    """Also if it is as long as an event may be."""
    body = frame % (piece * ((EVENT_BYTES_MAX - len(frame)) // len(piece)))
    counts, _ = calls_of_slices(body, content_type="", content_encoding="", batch=False)
    assert counts[0] <= 6_000


@pytest.mark.parametrize("name", ["open brackets", "strings", "lone surrogates", "backslashes", "colons", "a number"])
def test_no_slice_goes_through_more_than_a_mebibyte(name: str) -> None:
    """Of what has to be gone through byte by byte."""
    counts, _ = calls_of_slices(HOSTILE[name], content_type="", content_encoding="", batch=True)
    assert len(counts) >= FULL // MIB


@pytest.mark.parametrize(("encoding", "slices"), [("gzip", FULL // MIB), ("zstd", 3)])
def test_no_slice_decodes_more_than_a_mebibyte_and_a_step(encoding: str, slices: int) -> None:
    """Of a body that shrinks to nothing; one step of zstd makes all of it, and then others have their turn."""
    counts, _ = calls_of_slices(
        ENCODERS[encoding](bytes(FULL)), content_type="", content_encoding=encoding, batch=False
    )
    assert len(counts) >= slices


def test_elements_are_counted_before_they_are_made() -> None:
    """Two million numbers cost no more memory than the events that a batch may have."""
    body = HOSTILE["ones"]
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="413"):
            read_events(body, content_type="", content_encoding="", batch=True, limits=LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()


def test_brackets_within_elements_are_bounded() -> None:
    """Events have no lists within; a million of them are refused, not gone through for a second."""
    with pytest.raises(BadRequest) as refused:
        read_events(HOSTILE["pairs within an element"], content_type="", content_encoding="", batch=True, limits=LIMITS)
    assert json.loads(refused.value.answer.body)["code"] == "body_too_large"


def test_the_answer_to_a_full_batch_is_bounded_work() -> None:
    """Of bad events each of which has words of its own."""
    made = Submission(0, 0, lambda _: None, lambda _: None)
    for index in range(LIMITS.request_events_max):
        made.entries.append(Invalid(f"x{index}: no such field in an event"))
        made.verdicts[index] = Verdict(Status.REJECTED, Reason.INVALID, f"x{index}: no such field in an event")
    with Calls() as calls:
        batch_answer(made)
    assert calls.count <= 10 * LIMITS.request_events_max


@pytest.mark.parametrize("separator", [b",", b", ", b",\n", b" , "])
@pytest.mark.parametrize("place", [0, 2_500, 4_999])
def test_an_event_that_is_too_long_costs_only_itself(place: int, separator: bytes) -> None:
    """It is not read; all others are, in their places, in an array and in lines."""
    texts = [GOOD] * 5_000
    texts[place] = GOOD.replace(b'"u"', b'"' + b"u" * EVENT_BYTES_MAX + b'"')
    bodies = {"application/json": b"[" + separator.join(texts) + b"]", NDJSON: b"\n".join(texts)}
    for content_type, body in bodies.items():
        events = read_events(body, content_type=content_type, content_encoding="", batch=True, limits=LIMITS)
        assert [index for index, event in enumerate(events) if event != EVENT] == [place]
        assert isinstance(events[place], Invalid)


@pytest.mark.parametrize("size", [MIB // 2, MIB + 1, 3 * MIB])
@pytest.mark.parametrize("separator", [b",", b", ", b" , "])
def test_long_arrays_are_read_as_short_ones(size: int, separator: bytes) -> None:
    """In one go or gulp by gulp: the same events in the same order."""
    count = 4_999
    texts = [GOOD.replace(b"7", b"%d" % index, 1) for index in range(1, count + 1)]
    filler = b" " * (size // count - len(GOOD))
    body = b"[" + separator.join(text[:-1] + filler + b"}" for text in texts) + b"]"
    events = read_events(body, content_type="", content_encoding="", batch=True, limits=LIMITS)
    assert [event.campaign_id for event in events if isinstance(event, Event)] == list(range(1, count + 1))


@pytest.mark.parametrize(
    "bad", [b"[GOOD,,GOOD]", b"[GOOD,]", b"[,GOOD]", b"[GOOD GOOD]", b"[GOOD}", b"[GOOD]x", b"[GOOD", b'[GOOD,"\\']
)
@pytest.mark.parametrize("filler", [b"", b" " * 70_000], ids=["short", "long"])
def test_what_is_no_array_is_refused_whole(bad: bytes, filler: bytes) -> None:
    """Also behind bad events, which make it go the long way."""
    body = bad.replace(b"GOOD", GOOD, 1).replace(b"GOOD", BAD + filler)
    with pytest.raises(BadRequest) as refused:
        read_events(body, content_type="", content_encoding="", batch=True, limits=LIMITS)
    assert json.loads(refused.value.answer.body)["code"] == "malformed_json"


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xef\xbb\xbf \n"])
def test_a_byte_order_mark_is_skipped(mark: bytes) -> None:
    """At the beginning of a single event, of an array and of lines."""
    how: dict[str, Any] = {"content_encoding": "", "limits": LIMITS}
    assert read_events(mark + GOOD, content_type="", batch=False, **how) == [EVENT]
    assert read_events(mark + b"[" + GOOD + b"]", content_type="", batch=True, **how) == [EVENT]
    assert read_events(mark + GOOD + b"\n" + GOOD, content_type=NDJSON, batch=True, **how) == [EVENT, EVENT]


LONG = b"[" + b",".join([BAD] * 5_000) + b"]"


def long_reading() -> Any:
    """A reading that is not at its end."""
    return start_reading(LONG, content_type="", content_encoding="", batch=True, limits=LIMITS)


async def test_long_bodies_take_turns_with_all_else() -> None:
    """Between two slices every other task has its turn, however many bodies are read."""
    turns, ticks, between = Turns(LIMITS), 0, []

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    async def read(done: list[int]) -> None:
        def note() -> bool:
            between.append(ticks)
            return False

        events = await turns.finish(long_reading(), len(LONG), note)
        assert events is not None
        done.append(len(events))

    done: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        async with trio.open_nursery() as readers:
            for _ in range(3):
                readers.start_soon(read, done)
        nursery.cancel_scope.cancel()
    assert done == [5_000] * 3
    assert ticks >= len(between) - 3


async def test_too_many_long_bodies_are_refused() -> None:
    """As many are read at once as fit into the bytes that may be arriving, as sent and as decoded."""
    settings = Settings(intake_bytes_max=2 * FULL)
    turns, begun = Turns(settings), trio.Event()

    def note() -> bool:
        begun.set()
        return False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.finish, long_reading(), FULL, note)
        await begun.wait()
        with pytest.raises(BadRequest, match="503"):
            await turns.finish(long_reading(), FULL)
    assert await turns.finish(long_reading(), FULL)


async def test_a_body_that_nobody_waits_for_is_read_no_further() -> None:
    """Its connection was closed."""
    assert await Turns(LIMITS).finish(long_reading(), FULL, lambda: True) is None
