"""Bodies in chunks: read as llhttp reads them, and bounded by what arrives."""

from __future__ import annotations

import random
import tracemalloc

import httptools
import pytest

from api.chunked import FRAMING_BYTES_MAX, ChunkedBody, MalformedChunk, TooMuchFraming

HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECE_BYTES = 65_536


def feed_all(sent: bytes, cuts: list[int]) -> tuple[ChunkedBody, int]:
    """Feed it in pieces that end at `cuts`; the reader, and how many bytes it took."""
    chunked, come, taken = ChunkedBody(), b"", 0
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        come += sent[start:end]
        used = chunked.feed(come, 0)
        come, taken = come[used:], taken + used
        if chunked.whole:
            break
    return chunked, taken


def llhttp(sent: bytes) -> bytes | Exception | None:
    """What llhttp makes of the body: None while it is not whole."""
    parts: list[bytes] = []
    ends: list[bool] = []

    class Told:
        def on_body(self, part: bytes) -> None:
            parts.append(part)

        def on_message_complete(self) -> None:
            ends.append(True)

    try:
        httptools.HttpRequestParser(Told()).feed_data(HEAD + sent)
    except httptools.HttpParserError as error:
        if not ends:  # what stands behind the body is not asked about
            return error
    return b"".join(parts) if ends else None


def body_of(chance: random.Random) -> bytes:
    """Some chunks, mostly well formed, then changed in a byte or two."""
    sent = b""
    for _ in range(chance.randrange(4)):
        data = bytes(chance.choices(b"ab\r\n0;: ", k=chance.choice([1, 2, 15, 16, 17, 300])))
        size = chance.choice([b"%x", b"%X", b"0%x", b"000%x"]) % len(data)
        sent += (
            size + chance.choice([b"", b"", b";", b";a=b", b';a="b c"', b" ;a", b";a;b=c"]) + b"\r\n" + data + b"\r\n"
        )
    sent += (
        chance.choice([b"0", b"00", b"0;a=b"]) + b"\r\n" + chance.choice([b"", b"", b"A: b\r\n", b"A:\r\nB: c \r\n"])
    )
    changed = bytearray(sent + b"\r\n")
    for _ in range(chance.choice([0, 0, 1, 2])):
        at = chance.randrange(len(changed))
        changed[at : at + chance.randrange(2)] = bytes(chance.choices(b"\r\n0a;x: -+\x00\xff", k=chance.randrange(2)))
    return bytes(changed)


@pytest.mark.parametrize("seed", range(100))
def test_what_llhttp_refuses_or_waits_for_is_never_taken(seed: int) -> None:
    """And what both take is the same body; ours may be stricter."""
    chance = random.Random(seed)
    taken = 0
    for _ in range(50):
        sent = body_of(chance)
        cuts = sorted(chance.choices(range(len(sent) + 1), k=chance.randrange(5)))
        try:
            chunked, _ = feed_all(sent, cuts)
        except MalformedChunk:
            continue
        if chunked.whole:
            taken += 1
            assert llhttp(sent) == bytes(chunked.body), sent
    assert taken > 10


def test_what_stands_behind_the_body_is_left() -> None:
    """It may be the next request."""
    sent = b"3;a\r\nabc\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\n"
    for cut in range(len(sent)):
        chunked, taken = feed_all(sent, [cut])
        assert (bytes(chunked.body), chunked.whole, sent[taken:]) == (b"abc", True, b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "bad",
    [
        b"\r\n", b";a\r\n", b"0x5\r\n", b"+5\r\n", b"-5\r\n", b"5_0\r\n", b" 5\r\n", b"5 \r\n", b"g\r\n", b"5\n",
        b"1\r\nab\r\n", b"1\r\na\n", b"1\r\na0\r\n\r\n", b"0\r\nno header\r\n", b"0\r\n: b\r\n", b"0\r\n A: b\r\n",
        b"0\r\nA: b\n", b"0\r\n\n", b"5;\x00\r\n", b"5;\n\r\n", b"1" * 17 + b"\r\n", b"\xb2\r\n",
    ],
)  # fmt: skip
def test_what_is_no_chunk_is_refused(bad: bytes) -> None:
    """In one piece as byte by byte."""
    for cuts in ([], list(range(1, len(bad)))):
        with pytest.raises(MalformedChunk):
            feed_all(bad, cuts)


ENDLESS = {
    "an extension": b"5;" + b"a" * 200_000,
    "extensions": b"5;a=b\r\nabcde\r\n" * 20_000,
    "two-byte chunks": b"2\r\nab\r\n" * 30_000,
    "a trailer": b"0\r\nA: " + b"b" * 200_000,
    "trailers": b"0\r\n" + b"A: b\r\n" * 20_000,
    "zeros before a size": b"0" * 200_000,
}


def feed_in_reads(chunked: ChunkedBody, sent: bytes, size: int) -> None:
    """Feed it as a socket brings it."""
    come = b""
    for start in range(0, len(sent), size):
        come += sent[start : start + size]
        come = come[chunked.feed(come, 0) :]
        assert len(come) <= FRAMING_BYTES_MAX


@pytest.mark.parametrize("sent", ENDLESS.values(), ids=ENDLESS)
def test_what_frames_the_chunks_is_bounded(sent: bytes) -> None:
    """However it arrives, no more of it is taken than may be."""
    for size in (1_000, PIECE_BYTES):
        chunked = ChunkedBody()
        with pytest.raises(TooMuchFraming):
            feed_in_reads(chunked, sent, size)
        assert len(chunked.body) <= FRAMING_BYTES_MAX


def test_an_event_a_chunk_is_within_the_bound() -> None:
    """5,000 of them, as senders of NDJSON may write them."""
    line = b"x" * 150 + b"\n"
    chunked, _ = feed_all(b"%x\r\n%b\r\n" % (len(line), line) * 5_000 + b"0\r\n\r\n", [])
    assert bytes(chunked.body) == line * 5_000


def test_small_chunks_cost_the_memory_of_their_bytes() -> None:
    """A body of ten thousand chunks is one object, not ten thousand."""
    sent = b"1\r\na\r\n" * 10_000
    tracemalloc.start()
    try:
        chunked = ChunkedBody()
        chunked.feed(sent, 0)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(chunked.body) == 10_000
    assert held < 3 * len(chunked.body)
