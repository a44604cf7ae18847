"""Calls about campaigns."""

from __future__ import annotations

import json

import msgspec
import pytest

from api.campaigns import CampaignAnswer, CampaignChanges, CampaignFields, CampaignPage
from engine import StoreUnavailable
from engine.plans import _FIXED, _READERS, _REQUIRED
from tests.fakes.api import CAMPAIGN, FakeApi


async def test_a_campaign_is_created_and_read() -> None:
    """201 with its path, money as exact decimals, and the same when it is read."""
    api = FakeApi()
    told = await api.send("POST", "/campaigns/", {**CAMPAIGN, "unit_price": 1.2345})
    assert told.status == 201
    assert told.headers["location"] == "/campaigns/1"
    assert told.json == {
        "id": 1, "name": "spring", "pricing_model": "cpm", "unit_price": "1.234500", "total_budget": "5.000000",
        "daily_budget": "1.000000", "freq_cap_impressions_per_day": None, "active": True, "pacing": "asap",
        "timezone": "UTC", "version": 1, "created_at": "2023-11-14T22:13:20.000000Z", "spent_total": "1.500000",
        "spent_today": "0.500000", "cost_per_event": "0.001235", "halted": None,
    }  # fmt: skip
    assert (await api.send("GET", told.headers["location"])).json == told.json


async def test_what_is_told_is_what_is_documented() -> None:
    """Answers decode strictly as the types that the document shows."""
    api = FakeApi()
    await api.create(freq_cap_impressions_per_day=2)
    for path, kind in (("/campaigns/1", CampaignAnswer), ("/campaigns/", CampaignPage)):
        msgspec.json.decode((await api.send("GET", path)).body, type=kind)


def test_the_documented_fields_are_those_that_are_read() -> None:
    """Neither knows one that the other does not."""
    assert set(CampaignFields.__struct_fields__) == set(_READERS)
    assert set(CampaignChanges.__struct_fields__) == set(_READERS) - set(_FIXED)
    required = {field.name for field in msgspec.structs.fields(CampaignFields) if field.required}
    assert required == set(_REQUIRED)


async def test_numbers_are_read_exactly() -> None:
    """A JSON number is no float on its way in."""
    api = FakeApi()
    body = json.dumps({**CAMPAIGN, "total_budget": "X"}).replace('"X"', "9007199254.740991").encode()
    assert (await api.send("POST", "/campaigns/", data=body)).json["total_budget"] == "9007199254.740991"


async def test_every_fault_is_named_at_once() -> None:
    """In `errors`, each with its field."""
    told = await FakeApi().send("POST", "/campaigns/", {"name": "x", "unit_price": 0, "colour": "\ud800"})
    assert (told.status, told.code) == (422, "invalid_campaign")
    assert told.faults == {"unit_price", "colour", "pricing_model", "total_budget", "daily_budget"}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"{'name': 1}", b'{"unit_price": NaN}', b'{"unit_price": -Infinity}', b"\xff",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
        b'{"name": "a", "name": "b"}', b'{"x": {"a": 1, "a": 2}}', b'{"\\ud800": 1, "\\ud800": 2}', b"[" * 15_000,
        b'{"x": 1e99999999999999999999}', '{"name": "ä"}'.encode("utf-16"), b"{} {}",
    ],
)  # fmt: skip
async def test_what_is_not_json_is_malformed(body: bytes) -> None:
    """Truncated, no numbers, names twice, far too deep, not UTF-8: nothing is guessed."""
    told = await FakeApi().send("POST", "/campaigns/", data=body, content_type="application/json")
    assert (told.status, told.code) == (400, "malformed_json")


@pytest.mark.parametrize("digits", [41, 4_302, 16_000])
@pytest.mark.parametrize("field", ["unit_price", "daily_budget", "freq_cap_impressions_per_day", "name", "x"])
async def test_a_number_of_any_length_is_a_fault_of_its_field(field: str, digits: int) -> None:
    """In our words: nobody is told of Python's settings."""
    data = json.dumps({**CAMPAIGN, field: 0}).replace(f'"{field}": 0', f'"{field}": -{"9" * digits}')
    told = await FakeApi().send("POST", "/campaigns/", data=data.encode())
    assert (told.status, told.code, told.faults) == (422, "invalid_campaign", {field})
    assert b"sys." not in told.body


async def test_a_byte_order_mark_is_skipped() -> None:
    """Some editors put one before what they save."""
    data = b"\xef\xbb\xbf" + json.dumps(CAMPAIGN).encode()
    assert (await FakeApi().send("POST", "/campaigns/", data=data)).status == 201


@pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null"])
async def test_a_campaign_is_an_object(body: bytes) -> None:
    """Other JSON is well-formed, and no campaign."""
    told = await FakeApi().send("POST", "/campaigns/", data=body)
    assert (told.status, told.code) == (422, "invalid_campaign")


async def test_type_encoding_and_size_of_a_body() -> None:
    """415 and 413, each with its code; charset and a missing type are fine."""
    api = FakeApi()
    data = json.dumps(CAMPAIGN).encode()
    form = await api.send("POST", "/campaigns/", data=data, content_type="application/x-www-form-urlencoded")
    assert (form.status, form.code) == (415, "unsupported_content_type")
    packed = await api.send("POST", "/campaigns/", data=data, content_encoding="gzip")
    assert (packed.status, packed.code) == (415, "unsupported_encoding")
    large = await api.send("POST", "/campaigns/", data=b" " * 20_000)
    assert (large.status, large.code) == (413, "body_too_large")
    for content_type in ("application/json; charset=utf-8", "Application/JSON"):
        assert (await api.send("POST", "/campaigns/", data=data, content_type=content_type)).status == 201
    assert (await api.send("POST", "/campaigns/", data=data)).status == 201


async def test_pages_follow_each_other_to_the_end() -> None:
    """`next` is the `after` of the next page, and null on the last one, also when it is full."""
    api = FakeApi()
    for _ in range(4):
        await api.create()
    seen, path = [], "/campaigns/?limit=2"
    for _ in range(2):
        page = (await api.send("GET", path)).json
        seen += [campaign["id"] for campaign in page["campaigns"]]
        path = f"/campaigns/?limit=2&after={page['next']}"
    assert seen == [1, 2, 3, 4]
    assert page["next"] is None
    assert (await api.send("GET", "/campaigns/?after=9")).json == {"campaigns": [], "next": None}


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=201", "limit=x", "limit=", "limit=-1", "limit=1&limit=2", "limit=%D9%A1", "after=-1",
        "after=9223372036854775808", "after=1.0", "after=" + "9" * 5_000, "page=2",
    ],
)  # fmt: skip
async def test_parameters_are_known_once_and_readable(query: str) -> None:
    """Anything else is 422, never ignored."""
    told = await FakeApi().send("GET", f"/campaigns/?{query}")
    assert (told.status, told.code) == (422, "invalid_parameter")
    assert told.faults == {query.partition("=")[0]}


async def test_a_change_changes_what_it_names() -> None:
    """The answer is the campaign as it is now."""
    api = FakeApi()
    await api.create(freq_cap_impressions_per_day=2)
    told = await api.send("PATCH", "/campaigns/1", {"freq_cap_impressions_per_day": None, "active": False})
    assert told.status == 200
    assert {key: told.json[key] for key in ("freq_cap_impressions_per_day", "active", "version", "name")} == {
        "freq_cap_impressions_per_day": None, "active": False, "version": 2, "name": "spring"
    }  # fmt: skip
    wrong = await api.send("PATCH", "/campaigns/1", {"pricing_model": "cpc", "daily_budget": "-1"})
    assert (wrong.status, wrong.code, wrong.faults) == (422, "invalid_campaign", {"pricing_model", "daily_budget"})


@pytest.mark.parametrize(("method", "body"), [("GET", None), ("PATCH", {"active": True})])
async def test_an_unknown_campaign_is_404(method: str, body: object) -> None:
    """With a code that tells it from a wrong path, which a number beyond all numbers is."""
    api = FakeApi()
    for number in ("7", "0", "9" * 18):
        assert (await api.send(method, f"/campaigns/{number}", body)).code == "campaign_not_found"
    for number in (str(2**63), "9" * 5_000, "-1", "x", "1.0", "%D9%A1"):
        assert (await api.send(method, f"/campaigns/{number}", body)).code == "not_found"


@pytest.mark.parametrize(("certain", "word"), [(True, "nothing was done"), (False, "not known")])
async def test_a_store_that_is_away_is_503(certain: bool, word: str) -> None:
    """With Retry-After, whether a repeat is safe, and nothing of what the store's client said."""
    api = FakeApi()
    api.engine.failure = StoreUnavailable("no route to db.internal", certain=certain)
    for method, path, body in (
        ("POST", "/campaigns/", CAMPAIGN), ("GET", "/campaigns/", None), ("GET", "/campaigns/1", None),
        ("PATCH", "/campaigns/1", {}), ("GET", "/report/campaign/1", None),
    ):  # fmt: skip
        told = await api.send(method, path, body)
        assert (told.status, told.code, told.headers["retry-after"]) == (503, "store_unavailable", "1")
        assert word in told.json["detail"]
        assert b"internal" not in told.body


async def test_a_store_that_is_away_is_one_line_however_many_ask(caplog: pytest.LogCaptureFixture) -> None:
    """An outage of a minute is no thousand lines of the same."""
    api = FakeApi()
    api.engine.failure = StoreUnavailable("no route to db.internal", certain=True)
    for _ in range(20):
        assert (await api.send("GET", "/campaigns/")).status == 503
    assert caplog.text.count("no route to db.internal") == 1
