"""The OpenAPI document, and the page that shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.errors import PROBLEMS
from tests.fakes.api import FakeApi

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
NOT_DESCRIBED = {"/docs", "/docs/<name>"}  # for people


async def document(api: FakeApi) -> dict[str, Any]:
    """The document as it is served."""
    told = await api.send("GET", "/openapi.json")
    assert told.headers["content-type"] == "application/json"
    return dict(told.json)


def within(node: object) -> Iterator[dict[str, Any]]:
    """Every object in a document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from within(child)


async def test_it_lists_exactly_the_calls_that_are_served() -> None:
    """Path by path, method by method."""
    api = FakeApi()
    described = {
        (method.upper(), path) for path, operations in (await document(api))["paths"].items() for method in operations
    }
    served = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in api.app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS") and rule.rule not in NOT_DESCRIBED
    }
    assert described == served
    assert ("POST", "/events/batch") in described
    assert ("GET", "/report/campaign/{campaign_id}") in described


async def test_it_is_whole() -> None:
    """Version, references that lead somewhere, ids that differ, a description for every answer."""
    found = await document(FakeApi())
    assert found["openapi"].startswith("3.1.")
    assert {"title", "version"} <= found["info"].keys()
    schemas = found["components"]["schemas"]
    for node in within(found):
        if "$ref" in node:
            assert node["$ref"].removeprefix("#/components/schemas/") in schemas
    operations = [operation for path in found["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["summary"]
        assert operation["responses"]
        assert all(response["description"] for response in operation["responses"].values())
        assert all({"name", "in", "required", "schema"} <= parameter.keys() for parameter in operation["parameters"])


async def test_problems_are_described_with_their_codes() -> None:
    """As problem+json, each code under its status."""
    found = await document(FakeApi())
    seen = set()
    for path in found["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if int(status) < 400:
                    continue
                (_, narrowed) = response["content"]["application/problem+json"]["schema"]["allOf"]
                seen |= set(narrowed["properties"]["code"]["enum"])
                assert all(PROBLEMS[code] == int(status) for code in narrowed["properties"]["code"]["enum"])
                assert ("Retry-After" in response.get("headers", {})) == (status in ("429", "503"))
    # What no call ends in is said of paths, methods and bytes that are no HTTP.
    assert set(PROBLEMS) - seen == {
        "not_found", "method_not_allowed", "malformed_http", "head_too_large", "not_implemented",
        "unsupported_http_version",
    }  # fmt: skip


async def test_the_page_in_docs_has_every_call_and_code() -> None:
    """People who read find what programs do."""
    page = PAGE.read_text()
    for path, operations in (await document(FakeApi()))["paths"].items():
        for method in operations:
            assert f"{method.upper()} {path.replace('campaign_id', 'id')}" in page
    for code in PROBLEMS:
        assert f"`{code}`" in page


async def test_the_calls_about_events_are_described_as_the_contract_has_them() -> None:
    """Media types, headers, statuses."""
    paths = (await document(FakeApi()))["paths"]
    single, batch = paths["/events/"]["post"], paths["/events/batch"]["post"]
    assert set(single["requestBody"]["content"]) == {"application/json"}
    assert set(batch["requestBody"]["content"]) == {"application/json", "application/x-ndjson"}
    assert {"200", "400", "402", "404", "413", "415", "422", "429", "503"} <= single["responses"].keys()
    assert "402" not in batch["responses"]
    for operation in (single, batch):
        assert {parameter["name"] for parameter in operation["parameters"]} == {"Idempotency-Key", "Content-Encoding"}


async def test_the_page_asks_nobody_but_us() -> None:
    """No address of another site in what it loads, and a policy that forbids it."""
    api = FakeApi()
    page = await api.send("GET", "/docs")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    assets = re.findall(rb'(?:src|href)="([^"]+)"', page.body)
    assert len(assets) > 3
    for asset in assets:
        assert b":" not in asset
        assert not asset.startswith(b"//")
        assert (await api.send("GET", "/" + asset.decode())).status == 200
    start = await api.send("GET", "/docs/start.js")
    assert not re.search(rb"https?://", page.body + start.body)
    assert b"validatorUrl: null" in start.body
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy


@pytest.mark.parametrize("name", ["swagger-ui.js", "../__init__.py", "%2e%2e/__init__.py", "VERSION", ""])
async def test_the_page_serves_its_own_files_only(name: str) -> None:
    """Nothing else of the package."""
    assert (await FakeApi().send("GET", f"/docs/{name}")).status == 404
