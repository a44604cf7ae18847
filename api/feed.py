"""Lines of a file to events that may be sent.

Owns what `headrace send` changes in a line: an id where there is none, campaigns renamed, times moved, both only if
asked for. All else, an unknown field or a wrong value, goes out as it stands: the server judges, not the sender.
Pure: knows no file, no clock and no HTTP.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from engine.instants import instant_us
from engine.model import instant_text, new_event_id

CHUNK_BYTES: Final = 65_536  # of a read: what a pipe holds
LINE_BYTES_MAX: Final = 1 << 20  # of a line: a full event has about 1 KB, so a longer line is no event
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"  # some editors begin a file with it

_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Unreadable(ValueError):
    """A line that is no JSON object, so that no id can be given to it; the message says why."""


class Outgoing(NamedTuple):
    """One event to be sent: the number of its line, counted from 1, and its JSON."""

    line: int
    body: bytes


class Lines:
    """Cuts a stream into numbered lines. Holds one unfinished line, and of that not more than is needed."""

    def __init__(self) -> None:
        self._rest = b""
        self._count = 0

    def feed(self, chunk: bytes) -> list[tuple[int, bytes]]:
        """The lines that this chunk ends, without blank ones. A line that is too long comes cut, but still too long."""
        *whole, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest[: LINE_BYTES_MAX + 1]
        return self._numbered(whole)

    def end(self) -> list[tuple[int, bytes]]:
        """The last line, if the stream did not end with a line's end."""
        rest, self._rest = self._rest, b""
        return self._numbered([rest])

    def _numbered(self, lines: list[bytes]) -> list[tuple[int, bytes]]:
        if lines and not self._count:
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        first = self._count + 1
        self._count += len(lines)
        return [(number, line) for number, line in enumerate(map(bytes.strip, lines), first) if line]


class Feed:
    """Makes lines ready to be sent.

    `renames` maps what stands as `campaign_id` in the file (a number or a text) to the number to be sent. With
    `rebase_time`, the first `occurred_at` becomes the present, and all others are shifted by as much, but never
    past the present: a server takes no event from the future.
    """

    def __init__(self, *, renames: Mapping[str, int] | None = None, rebase_time: bool = False) -> None:
        self._renames: dict[bytes, int] = {}
        for old, new in (renames or {}).items():
            self._renames[old.encode()] = self._renames[msgspec.json.encode(old)] = new
        self._rebase_time = rebase_time
        self._shift_us: int | None = None

    def prepare(self, line: bytes, now_us: int) -> bytes:
        """The event of a line, with an id. Raises `Unreadable`."""
        fields = _read(line)
        changed: dict[str, object] = {}
        if _raw(fields, "event_id") in (b"", b"null"):
            changed["event_id"] = str(uuid.UUID(bytes=new_event_id(now_us, os.urandom(10))))
        if self._renames and (campaign := self._renames.get(_raw(fields, "campaign_id"))) is not None:
            changed["campaign_id"] = campaign
        if self._rebase_time and (occurred_us := _instant_us(_raw(fields, "occurred_at"))) is not None:
            if self._shift_us is None:
                self._shift_us = now_us - occurred_us
            changed["occurred_at"] = instant_text(min(occurred_us + self._shift_us, now_us))
        return msgspec.json.encode({**fields, **changed}) if changed else line


def _read(line: bytes) -> dict[str, msgspec.Raw]:
    if len(line) > LINE_BYTES_MAX:
        raise Unreadable(f"longer than {LINE_BYTES_MAX:,} bytes")
    try:
        return _FIELDS.decode(line)
    except msgspec.ValidationError:
        raise Unreadable("not a JSON object") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {str(error).removeprefix('JSON is malformed: ')}") from None


def _raw(fields: Mapping[str, msgspec.Raw], name: str) -> bytes:
    """The JSON of a field; empty if it isn't there."""
    return bytes(fields.get(name, b""))


def _instant_us(raw: bytes) -> int | None:
    """The instant of a JSON string, or None if there is none in it: the server will say what is wrong with it."""
    try:
        return instant_us(msgspec.json.decode(raw, type=str))
    except (ValueError, TypeError):
        return None
