"""What is remembered of heads: it changes nothing that is read."""

from __future__ import annotations

import random
import tracemalloc
from itertools import pairwise

import pytest

from api.intake_reader import HEADS_MAX, Heads, Request, RequestReader
from config.settings import Settings
from tests.http_cases import CASES

SETTINGS = Settings()
READS = 60


def request_of(chance: random.Random) -> bytes:
    """A request of some sender, seldom a wrong one; heads come again and again, with bodies that fit them or not."""
    body = b"x" * chance.choice([0, 5, 5, 7, 4_090])
    length = chance.choice([len(body)] * 9 + [5])
    lines = [chance.choice([b"POST /events/ HTTP/1.1", b"POST /events/?a=b HTTP/1.1", b"HEAD /healthz HTTP/1.1"])]
    lines += [b"Host: h", b"Content-Length: %d" % length]
    if chance.random() < 0.2:
        lines.append(chance.choice([
            b"Connection: keep-alive", b"Connection: close", b"Expect: 100-continue", b"Upgrade: h2c",
            b"Content-Length: 5", b"Folded: a\r\n b",
        ]))  # fmt: skip
    if chance.random() < 0.2:
        lines[2:3], body = (
            [b"Transfer-Encoding: chunked"],
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"",
        )
    return b"\r\n".join([*lines, b"", body])


def reads_of(chance: random.Random) -> list[bytes]:
    """What a connection reads: whole requests, pieces of one, or several at once."""
    reads: list[bytes] = []
    for _ in range(READS):
        request = request_of(chance)
        how = chance.random()
        if how < 0.7:
            reads.append(request)
        elif how < 0.85:
            at = chance.choice([chance.randrange(len(request)), request.find(b"\r\n\r\n") + 4 + 5])
            reads += [request[:at], request[at:]]
        else:
            reads.append(request + request_of(chance))
    return [read for read in reads if read]


@pytest.mark.parametrize("seed", range(200))
def test_what_is_remembered_changes_nothing(seed: int) -> None:
    """Two readers get the same reads; one knows the heads that others have read, the other starts afresh each time."""
    chance = random.Random(seed)
    heads: Heads = {}
    for _ in range(4):  # connections, one after the other
        knowing, plain = RequestReader(SETTINGS, heads), RequestReader(SETTINGS, {})
        for read in reads_of(chance):
            plain._heads.clear()
            for reader in (knowing, plain):
                reader.feed(read)
            assert knowing.requests == plain.requests
            assert (knowing.refusal, knowing.partial, knowing.body_bytes, knowing.awaits_continue) == (
                plain.refusal, plain.partial, plain.body_bytes, plain.awaits_continue
            )  # fmt: skip
            last = knowing.requests[-1:]
            knowing.requests, plain.requests = [], []
            if knowing.refusal is not None or not all(request.head.keep_alive for request in last):
                break  # as a connection does
            knowing.awaits_continue = plain.awaits_continue = False


def test_a_head_that_was_read_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever connection it comes on."""
    heads: Heads = {}
    request = b"POST /events/ HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n"
    RequestReader(SETTINGS, heads).feed(request + b"{}")
    reader = RequestReader(SETTINGS, heads)
    monkeypatch.setattr("api.intake_reader.read_head", None)
    reader.feed(request + b"[]")
    assert reader.requests == [Request(heads[request], b"[]")]


def test_no_more_heads_are_remembered_than_may_be() -> None:
    """Senders that never send the same head twice don't fill the memory."""
    heads: Heads = {}
    reader = RequestReader(SETTINGS, heads)
    for number in range(2 * HEADS_MAX):
        reader.feed(b"GET /readyz?%d HTTP/1.1\r\nHost: h\r\n\r\n" % number)
        assert len(heads) <= HEADS_MAX
        reader.requests.clear()


def test_a_bare_line_feed_ends_no_line() -> None:
    """What is remembered ends at the first empty line: no other end of a head may be one."""
    reader = RequestReader(SETTINGS, {})
    reader.feed(b"POST /events/ HTTP/1.1\nContent-Length: 4\n\n\r\n\r\n")
    assert (reader.requests, reader.refusal is None) == ([], False)


POST = b"POST /events/ HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n%b\r\n"


@pytest.mark.parametrize("behind", [POST % b"" + b"{}", b"rubbish\r\n", b"\r\n", b"POST", b"\x00" * 70_000])
def test_nothing_behind_a_last_request_is_read(behind: bytes) -> None:
    """Neither as a request nor as a fault, with it or later, remembered or not."""
    heads: Heads = {}
    for _ in range(2):
        reader = RequestReader(SETTINGS, heads)
        reader.feed(POST % b"Connection: close\r\n" + b"{}" + behind)
        reader.feed(behind)
        assert [request.body for request in reader.requests] == [b"{}"]
        assert (reader.refusal, reader.partial, reader.body_bytes) == (None, False, 0)


def test_a_body_byte_by_byte_costs_the_memory_of_its_bytes() -> None:
    """Many small reads are not kept as many objects."""
    size = 20_000
    reader = RequestReader(SETTINGS, {})
    reader.feed(b"POST /events/ HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (size + 1))
    tracemalloc.start()
    try:
        for _ in range(size):
            reader.feed(b"x")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.body_bytes == size
    assert held < 4 * size
    reader.feed(b"x")
    assert [request.body for request in reader.requests] == [b"x" * (size + 1)]


@pytest.mark.parametrize("seed", range(100))
def test_whatever_arrives_is_read_the_same_in_any_pieces(seed: int) -> None:
    """Requests and the refusal depend on the bytes, not on how they were cut; and nothing raises."""
    chance = random.Random(seed)
    corpus = [case.sent for case in CASES if len(case.sent) < 20_000]
    for _ in range(20):
        sent = bytearray(b"".join(chance.choices(corpus, k=chance.choice([1, 1, 2, 3]))))
        for _ in range(chance.choice([0, 1, 3])):
            at = chance.randrange(len(sent))
            sent[at : at + chance.choice([0, 1, 2])] = bytes(
                chance.choices(b"\r\n :;,0aA\x00\xff", k=chance.randrange(3))
            )
        reads = []
        for cuts in ([], chance.choices(range(len(sent)), k=9), range(0, len(sent), 7)):
            reader, ends = RequestReader(SETTINGS, {}), sorted({*cuts, 0, len(sent)})
            for start, end in pairwise(ends):
                reader.feed(memoryview(sent)[start:end])
            reads.append((reader.requests, reader.refusal, reader.partial, reader.body_bytes))
        assert reads[0] == reads[1] == reads[2], bytes(sent)
