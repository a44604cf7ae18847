"""One request and its answer, between Hypercorn and Quart-Trio: what neither of them does alone.

Owns three repairs, each of which a test with a real connection holds in place. Knows no call and no engine.

1. Hypercorn reports the end of an answer while it is still putting its connection back. Quart-Trio takes the
   report for the peer's leaving and cancels the sender, and with it the putting back: connections then neither
   close nor time out. So an answer is sent shielded, within the time that answers may take.
2. A target that is no path ("GET ?x") makes Quart fail. It is told "/…" instead, and answers 404.
3. A length beside a transfer coding is how requests are smuggled past proxies (RFC 9112, 6.1); h11 lets it pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import trio
from hypercorn.typing import ASGISendCallable, HTTPScope
from quart.typing import ResponseTypes
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.datastructures import Headers

from api.errors import BadRequest, problem

if TYPE_CHECKING:
    from quart_trio import QuartTrio

__all__ = ["Exchange", "refuse_two_lengths"]

NOWHERE: Final = "/."  # no route has it


class Exchange(TrioASGIHTTPConnection):
    """Quart-Trio's handling of one request, mended."""

    def __init__(self, app: QuartTrio, scope: HTTPScope) -> None:
        super().__init__(app, {**scope, "path": _path(scope["path"])})

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
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
        raise BadRequest(answer._replace(headers=[*answer.headers, (b"connection", b"close")]))
