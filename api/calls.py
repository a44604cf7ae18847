"""The table of calls: what each takes, what it gives, and which problems it can end in.

Owns the description that both the routes and the OpenAPI document are made of, so neither can promise what the
other does not have. Knows no framework: a call's handler returns an `Answer`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

from api.codec import JSON, NDJSON
from api.errors import Answer

__all__ = ["JSON", "NDJSON", "Call", "Gives", "Handler", "Parameter", "call", "calls_of"]

Handler = Callable[..., Awaitable[Answer]]
_H = TypeVar("_H", bound=Handler)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One value outside the body. `type` is a type as msgspec knows it."""

    place: Literal["query", "header"]
    name: str
    type: object
    description: str


@dataclass(frozen=True, slots=True)
class Gives:
    """One success: its status, and a type for each media type that its body can have."""

    status: int
    description: str
    content: Mapping[str, object]
    headers: Mapping[str, str] = field(default_factory=dict)  # name -> description


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `path` is a route's rule, such as `/campaigns/<number:campaign_id>`."""

    method: str
    path: str
    name: str
    summary: str
    description: str
    tag: str
    gives: Gives
    takes: Mapping[str, object] | None  # media type -> type
    parameters: Sequence[Parameter]
    problems: Sequence[str]
    ignores: bool  # what it does not know of a query and of headers: health checks send all sorts of things

    @property
    def has_query(self) -> bool:
        """Whether it has parameters there; its handler then reads all of them."""
        return any(parameter.place == "query" for parameter in self.parameters)

    @property
    def reads_key(self) -> bool:
        """Whether it reads an Idempotency-Key."""
        return any(parameter.name == "Idempotency-Key" for parameter in self.parameters)

    @property
    def all_problems(self) -> set[str]:
        """Codes of every problem that it can end in, those that come with its kind included."""
        codes = {*self.problems, "internal_error"}
        if self.takes is not None:
            codes |= {"body_too_large", "request_timeout", "unsupported_content_type", "unsupported_encoding"}
        if not self.ignores:
            codes.add("invalid_parameter")
        return codes


_CALLS: Final[dict[object, Call]] = {}


def call(
    method: str,
    path: str,
    *,
    tag: str,
    gives: Gives,
    takes: Mapping[str, object] | None = None,
    parameters: Sequence[Parameter] = (),
    problems: Sequence[str] = (),
    ignores: bool = False,
) -> Callable[[_H], _H]:
    """Make a method the handler of a call. Its name and docstring are the call's."""

    def enter(handler: _H) -> _H:
        summary, _, description = (handler.__doc__ or "").partition("\n")
        _CALLS[handler] = Call(
            method,
            path,
            handler.__name__,
            summary.strip(),
            "\n".join(line.strip() for line in description.strip().splitlines()),
            tag,
            gives,
            takes,
            parameters,
            problems,
            ignores,
        )
        return handler

    return enter


def calls_of(group: object) -> Iterator[tuple[Call, Handler]]:
    """The calls that an object handles, with its bound handlers."""
    for name, handler in vars(type(group)).items():
        found = _CALLS.get(handler) if callable(handler) else None
        if found is not None:
            yield found, getattr(group, name)
