"""One event that can't be taken as it is: what is wrong with it, in our words.

Owns the messages to its sender, the largest event that is read at all, and the repair of escapes that are no text.
Knows no batch: it gets the bytes of one event.
"""

from __future__ import annotations

import re
import uuid
from typing import Final

import msgspec

from api.elements import NotJson
from engine import Event, Invalid
from engine.instants import NOT_AN_INSTANT
from engine.model import EVENT_TYPE_NAMES, EventId

__all__ = ["EVENT", "EVENT_BYTES_MAX", "check_json", "explain", "mark_lone_surrogates", "too_long"]

# Two strings of 1,024 bytes, as many as the settings allow, written as escapes of six bytes each: 12 KiB, and 2 KiB for
# all else that an event has. What is longer is blanks, or no event.
EVENT_BYTES_MAX: Final = 16_384
NAME_CHARACTERS_MAX: Final = 64  # of an unknown field, in the answer

EVENT: Final = msgspec.json.Decoder(Event)
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)
_RAW_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Named(msgspec.Struct):
    """What can still be read of a bad event: the id that its sender will look for."""

    event_id: uuid.UUID | None = None


class _Placed(msgspec.Struct):
    """And its campaign, among whose events it keeps its place; read by itself, as the id may be what is wrong."""

    campaign_id: int


_NAMED: Final = msgspec.json.Decoder(_Named)
_PLACED: Final = msgspec.json.Decoder(_Placed)

_MUST_BE: Final = {
    "campaign_id": "must be a whole number from 1 to 9223372036854775807",
    "user_id": "must be a string",
    "event_type": f"must be one of {', '.join(EVENT_TYPE_NAMES)}",
    "ad_id": "must be a string or null",
    "event_id": "must be a UUID or null",
    "occurred_at": f"{NOT_AN_INSTANT}, or null",
}
_NESTED: Final = "nested far too deep for an event"


def too_long(raw: bytes) -> Invalid:
    """What stands for an event that is longer than is read. Its campaign is looked for: the event keeps its place."""
    return Invalid(f"an event must have at most {EVENT_BYTES_MAX} bytes as JSON", None, _campaign_of(raw))


def check_json(raw: bytes) -> None:
    """Raise `NotJson` if it is none. What is nested too deep to tell passes: it is no event."""
    try:
        _RAW.decode(raw)
    except RecursionError:
        pass
    except ValueError as error:
        raise NotJson(_why_not_json(error)) from None


def explain(raw: bytes) -> Event | Invalid:
    """One event, or what is wrong with it. Lone surrogates are marked already."""
    try:
        return EVENT.decode(raw)
    except msgspec.ValidationError as error:
        detail = _explain(str(error))
    except UnicodeDecodeError:
        detail = f"{_field_not_unicode(raw)}: must be Unicode text without lone surrogates"
    except RecursionError:
        detail = _NESTED
    except ValueError as error:
        detail = f"not JSON: {_why_not_json(error)}"
    return Invalid(detail, _id_of(raw), _campaign_of(raw))


_EXPLANATIONS: Final = re.compile(
    r"Object contains unknown field `(?P<unknown>.*)`$"
    r"|Object missing required field `(?P<missing>.*)`$"
    r"|.* - at `\$\.(?P<wrong>\w+)`$",
    re.DOTALL,
)


def _explain(message: str) -> str:
    """A message of msgspec in our words: which field, and what is allowed there."""
    match = _EXPLANATIONS.match(message)
    if match is None:
        return "an event must be a JSON object"
    if match["unknown"] is not None:
        return f"{match['unknown'][:NAME_CHARACTERS_MAX]}: no such field in an event"
    if match["missing"]:
        return f"{match['missing']}: is missing"
    return f"{match['wrong']}: {_MUST_BE[match['wrong']]}"


def _field_not_unicode(raw: bytes) -> str:
    try:
        fields = _RAW_OBJECT.decode(raw)
    except (ValueError, RecursionError):
        return "the name of a field"
    for name, value in fields.items():
        try:
            bytes(value).decode()
        except UnicodeDecodeError:
            return name
    return "a field that stands there twice"


def _id_of(raw: bytes) -> EventId | None:
    try:
        event_id = _NAMED.decode(raw).event_id
    except (ValueError, RecursionError):
        return None
    return None if event_id is None else EventId(event_id.bytes)


def _campaign_of(raw: bytes) -> int | None:
    try:
        return _PLACED.decode(raw).campaign_id
    except (ValueError, RecursionError):
        return None


# Backslashes go in pairs; what is left begins an escape. A pair of surrogates is one character, a lone one is none: the
# rest of its string goes with it, so an event has no more of them than strings.
_SURROGATES: Final = re.compile(
    rb"(?:\\\\)+|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})(?:[^\x00-\x1f\"\\]+|\\[\"\\/bfnrt]|\\u[0-9a-fA-F]{4})*"
)


def mark_lone_surrogates(body: bytes) -> bytes:
    """Make each escape of a lone surrogate, such as D800, a byte that is no UTF-8.

    Such escapes are well-formed JSON, but msgspec takes them for an end of the text: it would call the whole body
    malformed. The byte in its place costs the string that it stands in.
    """
    if b"\\u" not in body:  # as of most that is wrong: the search below passes it byte by byte, 30 ns each
        return body
    return _SURROGATES.sub(lambda match: b"\xff" if match["lone"] else match[0], body)


def _why_not_json(error: ValueError) -> str:
    message = str(error)
    return "it ends too early" if "truncated" in message else message.removeprefix("JSON is malformed: ")
