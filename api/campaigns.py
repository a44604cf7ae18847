"""Calls about campaigns: create, read, list by pages, change.

Owns the JSON of a campaign, in and out. What its fields may hold is the engine's to say (engine/plans.py); the
types here describe that to readers of the document, and make the answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType
from quart import request

from api.calls import JSON, Gives, Parameter, call
from api.codec import JSON_HEADERS
from api.errors import Answer, BadRequest, problem
from api.query import read_query, whole_number
from engine import CampaignView
from engine.model import decimal_text, instant_text

__all__ = ["CampaignCalls", "CampaignKeeper"]

BODY_BYTES_MAX: Final = 16_384  # ten fields of 128 bytes, ten times: what names its faults must not be a flood
PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 200  # campaigns of about 400 bytes: 80 KB
DIGITS_MAX: Final = 40  # of a number that is read as an `int`, with its sign; no field holds 20
ID_MAX: Final = 2**63 - 1
TEXT_CHARACTERS_MAX: Final = 64  # of a header, in the answer


class CampaignKeeper(Protocol):
    """The part of the engine that keeps campaigns."""

    async def create_campaign(self, fields: Mapping[str, object]) -> CampaignView:
        """Make a campaign."""
        ...

    async def campaign(self, campaign_id: int) -> CampaignView:
        """A campaign and its spend."""
        ...

    async def campaigns(self, *, after: int, limit: int) -> list[CampaignView]:
        """The next campaigns in order."""
        ...

    async def update_campaign(self, campaign_id: int, fields: Mapping[str, object]) -> CampaignView:
        """Change some fields."""
        ...


# --- Types --------------------------------------------------------------------------------------------------

Money = Annotated[
    str, Meta(pattern=r"^[0-9]+\.[0-9]{6}$", examples=["12.500000"], description="Exact, with six decimals.")
]
MoneyIn = Annotated[
    Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)?$")] | Annotated[float, Meta(gt=0)],
    Meta(
        description="Above 0, below 9007199254.740992, at most 6 decimals; a string or a number, read exactly.",
        examples=["12.50"],
    ),
]
Model = Annotated[
    Literal["cpm", "cpc", "cpa"],
    Meta(description="What is paid for: 1,000 impressions, a click, a conversion. It can't be changed later."),
]
Pace = Annotated[
    Literal["asap", "even"],
    Meta(description="How a daily budget is spread: as events come, or evenly over the campaign's day."),
]
Name = Annotated[str, Meta(min_length=1, max_length=128, description="1 to 128 bytes of UTF-8, no NUL.")]
Cap = Annotated[
    Annotated[int, Meta(ge=1, le=2**31 - 1)] | None,
    Meta(description="Impressions for one user on one day of the campaign; null for no cap."),
]
Zone = Annotated[
    str,
    Meta(
        description="IANA time zone of the campaign's day. It can't be changed later.",
        examples=["UTC", "Europe/Berlin"],
    ),
]
Instant = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, examples=["2026-01-31T12:00:00.000000Z"])]


class CampaignFields(msgspec.Struct, forbid_unknown_fields=True):
    """A campaign to be created."""

    name: Name
    pricing_model: Model
    unit_price: MoneyIn
    total_budget: MoneyIn
    daily_budget: MoneyIn
    freq_cap_impressions_per_day: Cap = None
    active: bool = True
    pacing: Pace = "asap"
    timezone: Zone = "UTC"


class CampaignChanges(msgspec.Struct, forbid_unknown_fields=True):
    """What to change of a campaign; what is left out stays."""

    name: Name | UnsetType = UNSET
    unit_price: MoneyIn | UnsetType = UNSET
    total_budget: MoneyIn | UnsetType = UNSET
    daily_budget: MoneyIn | UnsetType = UNSET
    freq_cap_impressions_per_day: Cap | UnsetType = UNSET
    active: bool | UnsetType = UNSET
    pacing: Pace | UnsetType = UNSET


class CampaignAnswer(msgspec.Struct):
    """A campaign with what it has spent."""

    id: int
    name: str
    pricing_model: Model
    unit_price: Money
    total_budget: Money
    daily_budget: Money
    freq_cap_impressions_per_day: Cap
    active: bool
    pacing: Pace
    timezone: Zone
    version: Annotated[int, Meta(description="Rises with every change.")]
    created_at: Instant
    spent_total: Money
    spent_today: Annotated[Money, Meta(description="On the campaign's own calendar day.")]
    cost_per_event: Annotated[Money, Meta(description="Of one billable event: cpm is the price of 1,000, rounded.")]
    halted: Annotated[
        str | None,
        Meta(description="Null in service; else why its events are answered 503: since when, who found it, and what."),
    ]

    @classmethod
    def of(cls, view: CampaignView) -> CampaignAnswer:
        """What is told of a campaign."""
        plan = view.campaign
        return cls(
            id=plan.id,
            name=plan.name,
            pricing_model=plan.pricing_model.value,
            unit_price=decimal_text(plan.unit_price_micros),
            total_budget=decimal_text(plan.total_budget_micros),
            daily_budget=decimal_text(plan.daily_budget_micros),
            freq_cap_impressions_per_day=plan.freq_cap_impressions_per_day,
            active=plan.active,
            pacing=plan.pacing.value,
            timezone=plan.timezone,
            version=plan.version,
            created_at=instant_text(plan.created_us),
            spent_total=decimal_text(view.spent_total_micros),
            spent_today=decimal_text(view.spent_today_micros),
            cost_per_event=decimal_text(plan.cost_micros),
            halted=view.halted,
        )


class CampaignPage(msgspec.Struct):
    """Campaigns in order of id. `next` is the `after` of the next page, or null on the last one."""

    campaigns: list[CampaignAnswer]
    next: int | None


# --- Calls --------------------------------------------------------------------------------------------------

_LIMIT: Final = Parameter(
    "query",
    "limit",
    Annotated[int, Meta(ge=1, le=PAGE_MAX, extra_json_schema={"default": PAGE_DEFAULT})],
    "Campaigns on the page.",
)
_AFTER: Final = Parameter(
    "query",
    "after",
    Annotated[int, Meta(ge=0, le=ID_MAX, extra_json_schema={"default": 0})],
    "Begin after the campaign with this id.",
)
_PAGE_READERS: Final = {"limit": whole_number(1, PAGE_MAX), "after": whole_number(0, ID_MAX)}


class CampaignCalls:
    """Handlers of the calls about campaigns."""

    def __init__(self, engine: CampaignKeeper) -> None:
        self._engine = engine

    @call(
        "POST",
        "/campaigns/",
        tag="campaigns",
        takes={JSON: CampaignFields},
        gives=Gives(201, "The new campaign.", {JSON: CampaignAnswer}, {"Location": "Its path."}),
        problems=("malformed_json", "invalid_campaign", "store_unavailable"),
    )
    async def create_campaign(self) -> Answer:
        """Create a campaign."""
        view = await self._engine.create_campaign(await _read_fields())
        return _json(201, CampaignAnswer.of(view), (b"location", b"/campaigns/%d" % view.campaign.id))

    @call(
        "GET",
        "/campaigns/",
        tag="campaigns",
        parameters=(_LIMIT, _AFTER),
        gives=Gives(200, "A page of campaigns.", {JSON: CampaignPage}),
        problems=("store_unavailable",),
    )
    async def list_campaigns(self) -> Answer:
        """List campaigns by pages, in order of id."""
        query = read_query(request.args.to_dict(flat=False), _PAGE_READERS)
        limit = query.get("limit", PAGE_DEFAULT)
        # One more than asked for tells whether there is a next page.
        views = await self._engine.campaigns(after=query.get("after", 0), limit=limit + 1)
        page = [CampaignAnswer.of(view) for view in views[:limit]]
        return _json(200, CampaignPage(page, page[-1].id if len(views) > limit else None))

    @call(
        "GET",
        "/campaigns/<number:campaign_id>",
        tag="campaigns",
        gives=Gives(200, "The campaign.", {JSON: CampaignAnswer}),
        problems=("campaign_not_found", "store_unavailable"),
    )
    async def read_campaign(self, campaign_id: int) -> Answer:
        """Read a campaign and what it has spent."""
        return _json(200, CampaignAnswer.of(await self._engine.campaign(campaign_id)))

    @call(
        "PATCH",
        "/campaigns/<number:campaign_id>",
        tag="campaigns",
        takes={JSON: CampaignChanges},
        gives=Gives(200, "The campaign as it is now.", {JSON: CampaignAnswer}),
        problems=("malformed_json", "campaign_not_found", "invalid_campaign", "store_unavailable"),
    )
    async def change_campaign(self, campaign_id: int) -> Answer:
        """Change some fields of a campaign.

        Events that are reserved from then on follow the new plan; what was accepted before stays as it was.
        """
        view = await self._engine.update_campaign(campaign_id, await _read_fields())
        return _json(200, CampaignAnswer.of(view))


def _json(status: int, body: msgspec.Struct, *headers: tuple[bytes, bytes]) -> Answer:
    return Answer(status, [*JSON_HEADERS, *headers], msgspec.json.encode(body))


# --- Reading a body -----------------------------------------------------------------------------------------


async def _read_fields() -> dict[str, object]:
    """The JSON object in the body, read exactly. Raises `BadRequest` (400, 413, 415, 422)."""
    _check_type(request.headers.get("Content-Type", ""), request.headers.get("Content-Encoding", ""))
    body = await request.get_data(cache=True, as_text=False, parse_form_data=False)
    if len(body) > BODY_BYTES_MAX:
        raise BadRequest(problem(413, "body_too_large", f"a campaign has at most {BODY_BYTES_MAX} bytes"))
    try:
        fields = json.loads(
            body.decode("utf-8-sig"),  # a byte order mark is skipped (RFC 8259, 8.1)
            object_pairs_hook=_without_repeats,
            parse_int=_whole,
            parse_float=_exact,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise _malformed("nested far too deep for a campaign") from None
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise _malformed(str(error)) from None
    if not isinstance(fields, dict):
        raise BadRequest(problem(422, "invalid_campaign", "the body must be a JSON object with a campaign's fields"))
    return fields


def _check_type(content_type: str, content_encoding: str) -> None:
    media_type = content_type.partition(";")[0].strip().lower() or JSON
    if media_type != JSON:
        hint = f"; with curl: -H 'Content-Type: {JSON}'" if media_type.endswith("form-urlencoded") else ""
        detail = f"Content-Type is {media_type[:TEXT_CHARACTERS_MAX]!r}, it must be {JSON}{hint}"
        raise BadRequest(problem(415, "unsupported_content_type", detail))
    encoding = content_encoding.strip().lower()
    if encoding not in ("", "identity"):
        detail = f"Content-Encoding is {encoding[:TEXT_CHARACTERS_MAX]!r}, a campaign is sent as it is"
        raise BadRequest(problem(415, "unsupported_encoding", detail))


def _malformed(why: str) -> BadRequest:
    return BadRequest(problem(400, "malformed_json", f"the body is not JSON: {why}"))


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object in which no name stands twice. Of two budgets, nobody knows which was meant."""
    fields: dict[str, object] = {}
    for name, value in pairs:
        if name in fields:
            shown = name[:TEXT_CHARACTERS_MAX].encode(errors="backslashreplace").decode()
            raise ValueError(f"{shown} stands there twice")
        fields[name] = value
    return fields


def _whole(text: str) -> int | Decimal:
    """A whole number; one that no field can hold stays a `Decimal`, for Python makes no `int` of 4,301 digits."""
    return int(text) if len(text) <= DIGITS_MAX else Decimal(text)


def _exact(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of 20 digits
        raise ValueError("a number is out of all bounds") from None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number of JSON")
