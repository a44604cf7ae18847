"""The OpenAPI 3.1 document, made from the table of calls and the types that are really read and written.

Owns the translation, no promise of its own: what is not in `api/calls.py`, `api/errors.py` or a type is not here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

import msgspec

from api.calls import Call, Gives
from api.errors import PROBLEM_JSON, PROBLEMS

__all__ = ["FieldFault", "Problem", "document"]

VERSION: Final = "1.0.0"  # of the contract, not of the program: it rises when a call changes
_REF: Final = "#/components/schemas/{name}"
_PLACE: Final = re.compile(r"<(?:\w+:)?(\w+)>")
_CAMPAIGN_ID: Final = {"type": "integer", "minimum": 1, "maximum": 10**18 - 1}
_RETRY_AFTER: Final = {"description": "Seconds to wait before trying again.", "schema": {"type": "integer"}}
_RETRIED: Final = (429, 503)  # statuses that say when to come again


class FieldFault(msgspec.Struct):
    """One field or parameter that is wrong, and what is allowed instead."""

    field: str
    message: str


class Problem(msgspec.Struct):
    """Why a call was refused, as RFC 9457 has it."""

    type: Annotated[str, msgspec.Meta(description="Always `about:blank`: see `code`.")]
    title: Annotated[str, msgspec.Meta(description="The status in words.")]
    status: int
    detail: Annotated[str, msgspec.Meta(description="For people; may change.")]
    code: Annotated[str, msgspec.Meta(description="For programs; stable.")]
    errors: Annotated[
        list[FieldFault] | msgspec.UnsetType, msgspec.Meta(description="Every field that is wrong, all at once.")
    ] = msgspec.UNSET
    event_id: Annotated[
        str | msgspec.UnsetType | None, msgspec.Meta(description="The event that a single event's problem is about.")
    ] = msgspec.UNSET


def document(calls: Iterable[Call], notes: Mapping[str, Mapping[str, Mapping[str, object]]]) -> dict[str, Any]:
    """The whole document. `notes` adds to schemas what their types can't say: type's name -> field -> keywords."""
    calls = list(calls)
    types = list({id(kind): kind for each in calls for kind in _types(each)}.values())
    made, components = msgspec.json.schema_components([*types, Problem], ref_template=_REF)
    schemas = {id(kind): schema for kind, schema in zip(types, made, strict=False)}
    for name, fields in notes.items():
        for field, keywords in fields.items():
            components[name]["properties"][field].update(keywords)
    paths: dict[str, dict[str, Any]] = {}
    for each in calls:
        path = _PLACE.sub(r"{\1}", each.path)
        paths.setdefault(path, {})[each.method.lower()] = _operation(each, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headrace",
            "version": VERSION,
            "description": "Takes ad events into Postgres, and lets no campaign spend past its budget. "
            "A 200 for an event means: committed, counted once, inside every budget and cap. "
            "Unknown fields and parameters are refused, never ignored, and so are headers that ask for what is not "
            "done: If-Match, If-None-Match, If-Unmodified-Since, Content-Range; Idempotency-Key but with events.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _types(each: Call) -> list[object]:
    return [
        *(each.takes or {}).values(),
        *each.gives.content.values(),
        *(parameter.type for parameter in each.parameters),
    ]


def _operation(each: Call, schemas: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _CAMPAIGN_ID} for name in _PLACE.findall(each.path)
    ] + [
        {
            "name": parameter.name,
            "in": parameter.place,
            "required": False,
            "description": parameter.description,
            "schema": schemas[id(parameter.type)],
        }
        for parameter in each.parameters
    ]
    operation: dict[str, Any] = {
        "operationId": each.name,
        "summary": each.summary,
        "description": each.description,
        "tags": [each.tag],
        "parameters": parameters,
        "responses": {str(each.gives.status): _success(each.gives, schemas), **_refusals(each)},
    }
    if each.takes is not None:
        operation["requestBody"] = {"required": True, "content": _content(each.takes, schemas)}
    return operation


def _success(gives: Gives, schemas: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": gives.description, "content": _content(gives.content, schemas)}
    if gives.headers:
        response["headers"] = {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in gives.headers.items()
        }
    return response


def _content(content: Mapping[str, object], schemas: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    return {media_type: {"schema": schemas[id(kind)]} for media_type, kind in content.items()}


def _refusals(each: Call) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status in sorted({PROBLEMS[code] for code in each.all_problems}):
        codes = sorted(code for code in each.all_problems if PROBLEMS[code] == status)
        responses[str(status)] = {
            "description": "Problem: " + ", ".join(f"`{code}`" for code in codes),
            "content": {
                PROBLEM_JSON: {
                    "schema": {
                        "allOf": [{"$ref": _REF.format(name="Problem")}, {"properties": {"code": {"enum": codes}}}]
                    }
                }
            },
        }
        if status in _RETRIED:
            responses[str(status)]["headers"] = {"Retry-After": _RETRY_AFTER}
    return responses
