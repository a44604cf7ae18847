"""Calls for operators: is it alive, is it ready, what does it count, and what can be called here.

Owns health, readiness, metrics and the document. Knows of the engine only whether it has problems.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import msgspec
import trio
from msgspec import Meta
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from quart import request

from api.calls import JSON, Gives, call
from api.codec import JSON_HEADERS
from api.errors import Answer
from api.readiness import Ready, readiness

__all__ = ["OpsCalls"]


class Healthy(msgspec.Struct):
    """The process serves."""

    status: Literal["ok"] = "ok"


_Metrics = Annotated[str, Meta(description="Prometheus's text format; OpenMetrics if it is asked for.")]
_Document = Annotated[dict[str, Any], Meta(description="OpenAPI 3.1.")]


class OpsCalls:
    """Handlers of the calls for operators. `document` is set once all calls are known."""

    document: bytes = b"{}"

    def __init__(self, ready: Callable[[], Awaitable[list[str]]], notes: Callable[[], list[str]]) -> None:
        self._ready = ready
        self._notes = notes

    @call("GET", "/healthz", tag="operations", gives=Gives(200, "It serves.", {JSON: Healthy}), ignores=True)
    async def tell_health(self) -> Answer:
        """Say whether the process serves.

        It asks no store: a process is not restarted because a store is away.
        """
        return Answer(200, JSON_HEADERS, msgspec.json.encode(Healthy()))

    @call(
        "GET",
        "/readyz",
        tag="operations",
        gives=Gives(200, "Events are taken.", {JSON: Ready}),
        problems=("not_ready",),
        ignores=True,
    )
    async def tell_readiness(self) -> Answer:
        """Say whether events are taken, and what is in the way if they are not."""
        return readiness(await self._ready(), self._notes())

    @call(
        "GET",
        "/metrics",
        tag="operations",
        gives=Gives(200, "All that is counted and timed.", {"text/plain": _Metrics}),
    )
    async def tell_metrics(self) -> Answer:
        """Tell Prometheus what was counted and timed, summed over all engine processes of this server."""
        try:
            encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        except (TypeError, ValueError):  # the library compares a version that is none: the plain format is for all
            encode, content_type = choose_encoder("")
        # In a thread: with several processes it reads a file of each.
        body = await trio.to_thread.run_sync(lambda: encode(_registry()))
        return Answer(200, [(b"content-type", content_type.encode())], body)

    @call("GET", "/openapi.json", tag="operations", gives=Gives(200, "This document.", {JSON: _Document}))
    async def tell_document(self) -> Answer:
        """Describe every call, for programs. People find the same at /docs."""
        return Answer(200, JSON_HEADERS, self.document)


def _registry() -> CollectorRegistry:
    """What this process counts; or with a folder where several processes meet, what all of them count."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry
