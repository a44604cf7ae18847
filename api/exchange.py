"""One request and its answer, between Hypercorn and Quart-Trio: what neither of them does alone.

Owns four repairs, each of which a test with a real connection holds in place. Knows no call and no engine.

1. Hypercorn reports the end of an answer while it is still putting its connection back. Quart-Trio takes the
   report for the peer's leaving and cancels the sender, and with it the putting back: connections then neither
   close nor time out. So an answer is sent shielded, within the time that answers may take.
2. A target that is no path ("GET ?x") makes Quart fail. It is told "/…" instead, and answers 404.
3. Who closes a connection while a body is still coming resets it, and the answer is lost on its way. A body that is
   refused for its size is let run into the void first, for a bounded time.
4. A length beside a transfer coding is how requests are smuggled past proxies (RFC 9112, 6.1); h11 lets it pass.
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

__all__ = ["Exchange", "refuse_two_lengths"]

NOWHERE: Final = "/."  # no route has it
TOO_LARGE: Final = 413
# A body that is too large may still come for so long: 250 MB on a gigabit line. The intake waits as long.
LINGER_SECONDS: Final = 2.0


class Exchange(TrioASGIHTTPConnection):
    """Quart-Trio's handling of one request, mended."""

    def __init__(self, app: QuartTrio, scope: HTTPScope) -> None:
        super().__init__(app, {**scope, "path": _path(scope["path"])})
        self._arrived = trio.Event()  # the whole body, or the peer has left

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Handle the request, noting when all of it has come."""

        async def noted() -> ASGIReceiveEvent:
            message = await receive()
            if message["type"] != "http.request" or not message["more_body"]:
                self._arrived.set()
            return message

        await super().__call__(noted, send)

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        if isinstance(response, Response) and response.status_code == TOO_LARGE:
            with trio.move_on_after(LINGER_SECONDS):
                await self._arrived.wait()
        with trio.move_on_after(self.app.config["RESPONSE_TIMEOUT"], shield=True):
            await super()._send_response(send, response)


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
