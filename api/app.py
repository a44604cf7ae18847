"""The api listener's application: every call of the contract, on Quart-Trio.

Owns the routes (made from the table of calls), the bounds on bodies, and what becomes of errors. Knows the engine
by the small ports of the calls' modules, and no store. Who runs it: `api/serve.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from math import inf
from typing import Final, NoReturn, Protocol
from urllib.parse import urlsplit

import orjson
import trio
from quart import Response, request
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import BaseConverter, RequestRedirect

from api.calls import Call, Handler, calls_of
from api.campaigns import CampaignCalls, CampaignKeeper
from api.codec import RETRY_AFTER_SECONDS
from api.docs import docs_asset, docs_page
from api.errors import Answer, BadRequest, problem
from api.events import EVENT_NOTES, EventCalls, EventRecorder
from api.headers import undone_headers
from api.openapi import document
from api.ops import OpsCalls
from api.query import refuse_query, unknown_parameters
from api.reports import ReportCalls, Reporter
from config.settings import Settings
from engine import CampaignNotFound, InvalidCampaign, StoreUnavailable

__all__ = ["ServedEngine", "create_app"]

LOGGED_EVERY_SECONDS: Final = 60.0  # the engine has a line of its own when a store goes and when it is back

_log = logging.getLogger("headrace.api")

# What werkzeug and Quart refuse themselves: our code, and what to say.
_REFUSALS: Final = {
    404: ("not_found", "no such path; /docs shows what there is"),
    405: ("method_not_allowed", "not with this method"),
    413: ("body_too_large", "the body is larger than HEADRACE_REQUEST_BYTES_MAX allows"),
}


class ServedEngine(CampaignKeeper, EventRecorder, Reporter, Protocol):
    """The part of the engine that the application needs."""

    settings: Settings

    async def problems(self) -> list[str]:
        """Why events can't be taken now."""
        ...

    def notes(self) -> list[str]:
        """What is refused though events are taken."""
        ...


class _Number(BaseConverter):
    """A campaign's number in a path, in its one form. Eighteen digits fit a bigint, and are more than there will be."""

    regex = "0|[1-9][0-9]{0,17}"

    def to_python(self, value: str) -> int:
        return int(value)


class _SlashMissing(Exception):
    """A path is nearly one of ours; `path` is that one."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class _App(QuartTrio):
    def raise_routing_exception(self, request: BaseRequestWebsocket) -> NoReturn:
        """Redirect nobody: many clients send a redirected POST without its body."""
        error = request.routing_exception
        if isinstance(error, RequestRedirect):
            raise _SlashMissing(urlsplit(error.new_url).path)
        assert error is not None
        raise error


def create_app(engine: ServedEngine, ready: Callable[[], Awaitable[list[str]]] | None = None) -> QuartTrio:
    """The application over an engine. `ready` tells what is in the way of readiness; the engine's own by default."""
    app = _App("headrace", static_folder=None)
    settings = engine.settings
    app.config.update(
        MAX_CONTENT_LENGTH=settings.request_bytes_max,
        BODY_TIMEOUT=None,  # bodies are whole before they come here, and the connection bounds how long
        RESPONSE_TIMEOUT=None,  # an answer may take, as long as its reader makes progress
    )
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # 405, as at the intake
    app.url_map.converters["number"] = _Number
    ops = OpsCalls(ready or engine.problems, engine.notes)
    calls = [
        row
        for group in (CampaignCalls(engine), EventCalls(engine, settings), ReportCalls(engine), ops)
        for row in calls_of(group)
    ]
    for each, handler in calls:
        app.add_url_rule(each.path, each.name, _view(handler, each), methods=[each.method])
    ops.document = orjson.dumps(document((each for each, _ in calls), EVENT_NOTES))
    app.add_url_rule("/docs", "docs_page", _view(docs_page), methods=["GET"])
    app.add_url_rule("/docs/<name>", "docs_asset", _view(docs_asset), methods=["GET"])
    _handle_errors(app)
    return app


def _view(handler: Handler, call: Call | None = None) -> Callable[..., Awaitable[Response]]:
    async def view(**arguments: object) -> Response:
        if call is not None and not call.ignores:
            _refuse_unread(call)
        return _response(await handler(**arguments))

    return view


def _refuse_unread(call: Call) -> None:
    """Raise `BadRequest` (422) for parameters and headers that this call would ignore."""
    faults = undone_headers(lambda name: name in request.headers, reads_key=call.reads_key)
    if not call.has_query:
        faults += unknown_parameters(request.query_string)
    if faults:
        refuse_query(faults)


def _response(answer: Answer) -> Response:
    headers = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers])
    return Response(answer.body, answer.status, headers)


# --- Errors -------------------------------------------------------------------------------------------------


def _handle_errors(app: QuartTrio) -> None:
    for kind, answer in {**_ANSWERS, StoreUnavailable: _StoreRefusals().answer}.items():
        app.register_error_handler(kind, _error_view(answer))


def _error_view(answer: Callable[..., Answer]) -> Callable[[Exception], Awaitable[Response]]:
    async def view(error: Exception) -> Response:
        return _response(answer(error))

    return view


def _refused(error: BadRequest) -> Answer:
    return error.answer


def _not_found(error: CampaignNotFound) -> Answer:
    return problem(404, "campaign_not_found", str(error))


def _invalid(error: InvalidCampaign) -> Answer:
    return problem(422, "invalid_campaign", str(error), errors=error.faults)


class _StoreRefusals:
    """What is answered while a store is away, and the line that tells of it: one a minute, however many ask."""

    def __init__(self) -> None:
        self._logged_at = -inf
        self._unlogged = 0

    def answer(self, error: StoreUnavailable) -> Answer:
        # What the store's client said may name hosts and users: it is for the log.
        now = trio.current_time()
        if now - self._logged_at >= LOGGED_EVERY_SECONDS:
            more = f" (and {self._unlogged} more since it was last said)" if self._unlogged else ""
            _log.warning("a call about campaigns or reports is answered 503: %s%s", error, more)
            self._logged_at, self._unlogged = now, 0
        else:
            self._unlogged += 1
        known = (
            "nothing was done" if error.certain else "it is not known whether it was done: look before you repeat it"
        )
        detail = f"{error.told}; {known}"
        return problem(503, "store_unavailable", detail, retry_after_seconds=RETRY_AFTER_SECONDS)


def _misdirected(error: _SlashMissing) -> Answer:
    return problem(404, "not_found", f"no such path; did you mean {error.path} ?")


def _http_error(error: HTTPException) -> Answer:
    """What the framework refuses, and our own faults: Quart has logged those, and turned them into a 500."""
    status = error.code or 500
    if status in _REFUSALS:
        answer = problem(status, *_REFUSALS[status])
    elif 400 <= status < 500:
        answer = problem(400, "malformed_http", error.description or "the request can't be read")
    else:
        answer = problem(500, "internal_error", "a fault of the server; it has been logged")
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        return answer.with_header(b"allow", ", ".join(sorted(error.valid_methods)).encode())
    return answer


_ANSWERS: Final[dict[type[Exception], Callable[..., Answer]]] = {
    BadRequest: _refused,
    _SlashMissing: _misdirected,
    CampaignNotFound: _not_found,
    InvalidCampaign: _invalid,
    HTTPException: _http_error,
}
