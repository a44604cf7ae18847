"""A Redis that says what a test tells it to: error replies, half answers, nothing, or good-bye."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import hiredis
import trio

OK = b"+OK\r\n"
SILENCE = b""
HANG_UP = None


class ScriptedRedis:
    """Answers each function call with the next of `answers`, and everything else as a healthy Redis does."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.url = f"unix://{path}"
        self.info = {"redis_version": "8.2.0", "role": "master", "maxmemory_policy": "noeviction"}
        self.info_away = False  # hang up when INFO is asked
        self.loading: bytes | None = None  # what FUNCTION LOAD is answered instead of OK
        self.answers: deque[bytes | None] = deque()
        self.trickles = False  # say each answer byte by byte
        self.heard: list[bytes] = []  # names of the functions that were called, and of other commands

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept connections until cancelled."""
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(self.path)
        listening.listen()
        task_status.started()
        await trio.serve_listeners(self._talk, [trio.SocketListener(listening)])

    def vanish(self) -> None:
        """Be found no more; connections that are open stay."""
        Path(self.path).unlink()

    async def _talk(self, client: trio.SocketStream) -> None:
        reader = hiredis.Reader()
        async with client:
            try:
                async for data in client:
                    reader.feed(bytes(data))
                    while isinstance(command := reader.gets(), list):
                        answer = self._answer(command)
                        if answer is HANG_UP:
                            return
                        if self.trickles:
                            for at in range(len(answer)):
                                await client.send_all(answer[at : at + 1])
                                await trio.sleep(0.01)
                        else:
                            await client.send_all(answer)
            except trio.BrokenResourceError:
                pass  # the ledger has given up on this connection

    def _answer(self, command: list[bytes]) -> bytes | None:
        name = command[0]
        self.heard.append(command[1] if name == b"FCALL" else name)
        if name == b"FCALL":
            return self.answers.popleft() if self.answers else SILENCE
        if name == b"INFO" and self.info_away:
            return HANG_UP
        if name == b"INFO":
            text = "".join(f"{field}:{value}\r\n" for field, value in self.info.items())
            return f"${len(text)}\r\n{text}\r\n".encode()
        if name == b"FUNCTION" and self.loading is not None:
            return self.loading
        return OK


@asynccontextmanager
async def open_scripted() -> AsyncIterator[ScriptedRedis]:
    """A scripted Redis on a socket of its own."""
    with tempfile.TemporaryDirectory(prefix="hr-scripted-") as folder:
        async with trio.open_nursery() as nursery:
            scripted = ScriptedRedis(str(Path(folder) / "redis.sock"))
            await nursery.start(scripted.serve)
            yield scripted
            nursery.cancel_scope.cancel()
