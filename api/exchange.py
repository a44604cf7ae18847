"""One request and its answer, between Hypercorn and Quart-Trio: what neither of them does alone.

Owns five repairs, each of which a test with a real connection holds in place. Knows no call and no engine.

1. Hypercorn reports the end of an answer while it is still putting its connection back. Quart-Trio takes the
   report for the peer's leaving and cancels the sender, and with it the putting back: connections then neither
   close nor time out. So an answer is sent shielded, within the time that answers may take.
2. A target that is no path ("GET ?x") makes Quart fail. It is told "/…" instead, and answers 404.
3. Who closes a connection while a body is still coming resets it, and the answer is lost on its way. A body that is
   refused for its size is let run into the void first, for a bounded time.
4. A length beside a transfer coding is how requests are smuggled past proxies (RFC 9112, 6.1); h11 lets it pass.
5. Quart bounds each body, and not all of them together. Here what a request says it will send is counted from its head
   to its answer, or what has come of a body of unknown length; a body for which there is no room is 503, unread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, HTTPScope
from quart import Response
from quart.typing import ResponseTypes
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.datastructures import Headers

from api.errors import BadRequest, problem

if TYPE_CHECKING:
    from quart_trio import QuartTrio

__all__ = ["Bodies", "Exchange", "refuse_two_lengths"]

NOWHERE: Final = "/."  # no route has it
TOO_LARGE: Final = 413
# A body that is too large may still come for so long: 250 MB on a gigabit line. The intake waits as long.
LINGER_SECONDS: Final = 2.0


_FULL: Final = problem(503, "overloaded", "too many bodies are arriving at once", retry_after_seconds=1)


class Bodies:
    """The bytes of all bodies of a listener, from their requests' heads to the answers."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held = 0

    def hold(self, size: int) -> bool:
        """Take so many more; False, and nothing, if there is no room."""
        if self._held + size > self._bytes_max:
            return False
        self._held += size
        return True

    def release(self, size: int) -> None:
        """Give them back."""
        self._held -= size
        assert self._held >= 0, "more was given back than was held"


class Exchange(TrioASGIHTTPConnection):
    """Quart-Trio's handling of one request, mended. Its application has `bodies`."""

    def __init__(self, app: QuartTrio, scope: HTTPScope) -> None:
        super().__init__(app, {**scope, "path": _path(scope["path"])})
        self._arrived = trio.Event()  # the whole body, or the peer has left

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Handle the request, noting how much of it has come."""
        bodies: Bodies = self.app.bodies  # type: ignore[attr-defined]
        held = min(_told_bytes(self.scope), self.app.config["MAX_CONTENT_LENGTH"])
        if not bodies.hold(held):
            await _refuse(receive, send)
            return
        came = 0

        async def noted() -> ASGIReceiveEvent:
            nonlocal held, came
            message = await receive()
            if message["type"] != "http.request" or not message["more_body"]:
                self._arrived.set()
            if message["type"] == "http.request":
                came += len(message["body"])
                if came > held:  # its length is not known
                    if not bodies.hold(came - held):
                        return {"type": "http.disconnect"}
                    held = came
            return message

        try:
            await super().__call__(noted, send)
        finally:
            bodies.release(held)

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        if isinstance(response, Response) and response.status_code == TOO_LARGE:
            with trio.move_on_after(LINGER_SECONDS):
                await self._arrived.wait()
        with trio.move_on_after(self.app.config["RESPONSE_TIMEOUT"], shield=True):
            await super()._send_response(send, response)


def _told_bytes(scope: HTTPScope) -> int:
    """What the head says of the body's length; h11 has seen to it that it is a number."""
    return next((int(value) for name, value in scope["headers"] if name.lower() == b"content-length"), 0)


async def _refuse(receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Say that there is no room, after what comes of the body was let run into the void (see 3)."""
    with trio.move_on_after(LINGER_SECONDS):
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass
    headers = [(b"content-length", b"%d" % len(_FULL.body)), *_FULL.headers]
    await send({"type": "http.response.start", "status": _FULL.status, "headers": headers})
    await send({"type": "http.response.body", "body": _FULL.body, "more_body": False})


def _path(target: str) -> str:
    if target.startswith("/"):
        return target
    try:
        return urlsplit(target).path or NOWHERE  # a proxy's form: http://host/path
    except ValueError:
        return NOWHERE


def refuse_two_lengths(headers: Headers) -> None:
    """Raise `BadRequest` (400) for a request that tells two lengths."""
    if "Transfer-Encoding" in headers and "Content-Length" in headers:
        answer = problem(400, "malformed_http", "Content-Length and Transfer-Encoding contradict each other")
        raise BadRequest(answer.with_header(b"connection", b"close"))
