"""The table of requests (`tests/http_cases.py`) against both listeners: one reading of HTTP, and only true answers."""

from __future__ import annotations

import logging

import pytest
import trio

from api.errors import PROBLEMS
from config.settings import Settings
from tests.fakes.listeners import LISTENERS, Listener, Told, listening, read_answer
from tests.http_cases import API_CASES, CASES, Case, get

GIVE_UP_SECONDS = 20  # only there so that a hanging listener ends the test
BYTEWISE_MAX = 1_000
SETTINGS = Settings()


class Peer:
    """A sender, and what it has heard."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._arrived = b""

    async def send(self, sent: bytes, size: int) -> None:
        """In pieces of `size`. Who is refused in the middle of it may go on sending into the void, or be cut off."""
        for start in range(0, len(sent), size):
            try:
                await self._stream.send_all(sent[start : start + size])
            except trio.BrokenResourceError:
                return

    async def end(self) -> None:
        """Close this half."""
        await self._stream.send_eof()

    async def answer(self, *, bare: bool = False) -> Told:
        """The next answer."""
        while True:
            told, self._arrived = read_answer(self._arrived, bare=bare)
            if told is not None and told.status != 100:
                return told
            if told is None:
                more = await self._stream.receive_some()
                assert more, f"the connection ended before the answer; what came: {self._arrived!r}"
                self._arrived += more

    async def ended(self) -> None:
        """Nothing more comes, and the listener closes."""
        assert self._arrived == b""
        assert await self._stream.receive_some() == b""


def check_answer(told: Told, expected: int | str, *, bare: bool) -> None:
    """The status, or the code of a problem that is one."""
    status = expected if isinstance(expected, int) else PROBLEMS[expected]
    assert told.status == status, told
    if status != 200 and not bare:
        assert told.headers["content-type"] == "application/problem+json"
        assert PROBLEMS[told.json["code"]] == told.json["status"] == status
        assert "Traceback" not in told.json["detail"]
        assert isinstance(expected, int) or told.json["code"] == expected, told


async def run(case: Case, which: Listener, size: int) -> None:
    """Send a case in pieces of `size`: the answers are as expected, no other comes, and the listener goes on."""
    async with listening(which, SETTINGS) as (engine, address):
        with trio.fail_after(GIVE_UP_SECONDS):
            async with await trio.open_tcp_stream(*address) as stream:
                peer = Peer(stream)
                await peer.send(case.sent, size)
                if case.half:
                    await peer.end()
                counted = 0
                for expected in case.answers:
                    told = await peer.answer(bare=case.bare)
                    check_answer(told, expected, bare=case.bare)
                    counted += told.counted
                if not case.ends:
                    await peer.send(get(b"/readyz"), 1_000)
                    assert (await peer.answer()).json == {"status": "ready"}
                    await peer.end()
                elif not case.half:
                    assert told.headers["connection"] == "close"
                await peer.ended()
                assert counted == case.taken == engine.taken
            async with await trio.open_tcp_stream(*address) as stream:
                peer = Peer(stream)
                await peer.send(get(), 1_000)
                assert (await peer.answer()).json == {"status": "ok"}


def check_log(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing that a sender may send is an error of ours."""
    bad = [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert not bad, caplog.text


@pytest.mark.parametrize("which", LISTENERS)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_both_listeners_read_the_same(case: Case, which: Listener, caplog: pytest.LogCaptureFixture) -> None:
    """In one piece, and byte by byte: what is answered is what was taken, and the next sender is served."""
    await run(case, which, len(case.sent))
    if len(case.sent) <= BYTEWISE_MAX:
        await run(case, which, 1)
    check_log(caplog)


@pytest.mark.parametrize("case", API_CASES, ids=[case.name for case in API_CASES])
async def test_the_api_reads_its_own_paths_so_too(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """Those that the intake does not have."""
    await run(case, "api", len(case.sent))
    check_log(caplog)
