"""One hostile connection: sends a plan, reads what comes, and says what was wrong with it."""

from __future__ import annotations

from typing import NamedTuple

import trio

from api.errors import PROBLEMS
from tests.fakes.listeners import Told, read_answer
from tests.fuzz.mutate import Plan

__all__ = ["Heard", "converse"]

END_SECONDS = 40.0  # longer than the listeners let a request take to arrive
HOLD_SECONDS = 4.0
STATUSES = {100, 200, 201, 402, 422, 429, *PROBLEMS.values()} - {500}


class Heard(NamedTuple):
    """What a connection came to."""

    accepted: int  # events, as the answers say
    whole: bool  # every answer has been read
    answers: list[int]
    faults: list[str]


async def converse(address: tuple[str, int], plan: Plan) -> Heard:
    """Send it, and read to the end."""
    arrived, lost = bytearray(), trio.Event()
    with trio.move_on_after(END_SECONDS) as scope:
        async with await trio.open_tcp_stream(*address) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(_send, stream, plan, nursery.cancel_scope)
            try:
                async for part in stream:
                    arrived += part
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                lost.set()
            nursery.cancel_scope.cancel()
    cut = plan.cut or lost.is_set()
    answers, faults = _read(bytes(arrived), cut=cut)
    if scope.cancelled_caught:
        faults.append(f"no end after {END_SECONDS} s")
    for told in answers:
        faults += _faults_of(told)
    whole = not cut and not scope.cancelled_caught
    return Heard(sum(told.counted for told in answers), whole, [told.status for told in answers], faults)


async def _send(stream: trio.SocketStream, plan: Plan, scope: trio.CancelScope) -> None:
    try:
        for piece in plan.pieces:
            await stream.send_all(piece)
            await trio.lowlevel.checkpoint()
        if plan.holds:
            await trio.sleep(HOLD_SECONDS)
        if plan.cut:
            scope.cancel()
        else:
            await stream.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return  # refused in the middle of it: what was answered can still be read


def _read(arrived: bytes, *, cut: bool) -> tuple[list[Told], list[str]]:
    """The answers; a body that is not there is that of an answer to HEAD."""
    answers: list[Told] = []
    while arrived:
        try:
            _, _, rest = arrived.partition(b"\r\n\r\n")
            told, arrived = read_answer(arrived, bare=not rest or rest.startswith(b"HTTP/1.1 "))
        except (ValueError, KeyError) as error:
            return answers, [f"no answer: {arrived[:200]!r} ({error})"]
        if told is None:
            return answers, [] if cut else [f"half an answer: {arrived[:200]!r}"]
        answers.append(told)
    return answers, []


def _faults_of(told: Told) -> list[str]:
    if told.status not in STATUSES:
        return [f"status {told.status}: {told.body!r}"]
    if told.status < 400 or told.body is None:
        return []
    if told.headers.get("content-type") != "application/problem+json" or PROBLEMS.get(told.json["code"]) != told.status:
        return [f"no problem: {told}"]
    return []
