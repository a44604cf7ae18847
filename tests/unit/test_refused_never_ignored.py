"""What a call would ignore of a query or a head is refused, at both listeners."""

from __future__ import annotations

import json

import pytest

from tests.fakes.api import CAMPAIGN, EVENT, FakeApi
from tests.unit.test_intake import get, post, serving

CALLS = [
    ("POST", "/events/", EVENT),
    ("POST", "/events/batch", [EVENT]),
    ("POST", "/campaigns/", CAMPAIGN),
    ("PATCH", "/campaigns/1", {"active": False}),
    ("GET", "/campaigns/1", None),
    ("GET", "/campaigns/", None),
    ("GET", "/report/campaign/1", None),
    ("GET", "/metrics", None),
    ("GET", "/openapi.json", None),
]
CONDITIONS = ["If-Match", "If-None-Match", "If-Unmodified-Since", "Content-Range"]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
async def test_a_parameter_that_a_call_does_not_have_is_refused(method: str, path: str, body: object) -> None:
    """422 with the name of each, and nothing is done."""
    api = FakeApi()
    await api.create()
    for query, names in (("dry_run=1", {"dry_run"}), ("a=&b", {"a", "b"}), ("%C3%A4=1", {"ä"})):
        told = await api.send(method, f"{path}?{query}", body)
        assert (told.status, told.code) == (422, "invalid_parameter")
        assert len(told.faults) == len(names)
    assert api.engine.recorded == []
    assert len(api.engine.views) == 1
    assert (await api.send(method, f"{path}?", body)).status < 300


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
async def test_a_condition_that_is_not_looked_at_is_refused(method: str, path: str, body: object) -> None:
    """A change that is made although it should not be is worse than none."""
    api = FakeApi()
    await api.create()
    names = CONDITIONS if "events" in path else [*CONDITIONS, "Idempotency-Key"]
    for name in names:
        told = await api.send(method, path, body, data=None, **{name: '"1"'})
        assert (told.status, told.code, told.faults) == (422, "invalid_parameter", {name})
    assert api.engine.recorded == []
    assert api.engine.views[1].campaign.version == 1


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_checks_may_send_what_they_like(path: str) -> None:
    """At both listeners."""
    told = await FakeApi().send("GET", f"{path}?x=1", if_none_match="*", idempotency_key="k")
    assert told.status == 200
    async with serving() as served, served.connect() as sender:
        await sender.send(get(f"{path}?x=1").replace(b"Host", b"If-None-Match: *\r\nHost"))
        assert (await sender.answer()).status == 200


@pytest.mark.parametrize(("path", "body"), [("/events/", EVENT), ("/events/batch", [EVENT])])
async def test_the_intake_answers_as_the_api_does(path: str, body: object) -> None:
    """Byte for byte, also when the head is remembered; and the connection stays."""
    data = json.dumps(body).encode()
    api = FakeApi()
    async with serving() as served, served.connect() as sender:
        served.engine.at_once = True
        for _ in range(2):
            for query in ("?dry_run=1", "?a=&b", "?%C3%A4=1", "?" + "&".join(f"p{number}" for number in range(99))):
                await sender.send(post(data, path=path + query))
                told = await api.send("POST", path + query, data=data)
                assert (await sender.answer())[::2] == (told.status, told.body)
            for name in CONDITIONS:
                await sender.send(post(data, f"{name.upper()}: *", path=path))
                told = await api.send("POST", path, data=data, **{name: "*"})
                assert (await sender.answer())[::2] == (told.status, told.body)
        assert served.engine.taken == 0
        await sender.send(post(data, path=path))
        assert (await sender.answer()).status == 200


async def test_a_flood_of_parameters_is_not_answered_with_a_flood() -> None:
    """A head has room for thousands of them."""
    told = await FakeApi().send("GET", "/metrics?" + "&".join(f"p{number}" for number in range(2_000)))
    assert told.status == 422
    assert len(told.body) < 10_000


async def test_the_document_says_it() -> None:
    """Of every call but those that ignore what they don't know."""
    paths = (await FakeApi().send("GET", "/openapi.json")).json["paths"]
    silent = {path for path, operations in paths.items() for each in operations.values() if not _tells(each)}
    assert silent == {"/healthz", "/readyz"}


def _tells(operation: dict[str, object]) -> bool:
    return "invalid_parameter" in json.dumps(operation)
