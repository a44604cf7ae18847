"""A body in chunks (RFC 9112, 7.1) to its bytes.

Owns the bounds on what frames the chunks: sizes, extensions and trailers, which say nothing to us. Knows no socket
and no head. llhttp would neither bound an extension nor tell where a body ends; a test holds this to its reading.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["FRAMING_BYTES_MAX", "ChunkedBody", "MalformedChunk", "TooMuchFraming"]

# Of one body. A chunk of its own for each of 5,000 events has 35 KB, 4 MiB in chunks of half a KiB 57 KB.
FRAMING_BYTES_MAX: Final = 64 << 10

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_SIZE: Final = re.compile(rb"0*([0-9A-Fa-f]{1,15})(?:;%b(?:=(?:%b|%b))?)*\r\n" % (_TOKEN, _TOKEN, _QUOTED))
_TRAILER: Final = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n")
_TOO_LONG: Final = "a chunk is longer than its size says"
_CRLF: Final = b"\r\n"


class MalformedChunk(ValueError):
    """What came is no chunk; the text says why."""


class TooMuchFraming(Exception):
    """More than `FRAMING_BYTES_MAX` bytes that are not the body."""


class ChunkedBody:
    """Feed it what arrives. `body` is what has come, in one piece of memory, however small the chunks are."""

    __slots__ = ("_framing_bytes", "_in_data", "_in_trailers", "_left", "body", "whole")

    def __init__(self) -> None:
        self.body = bytearray()
        self.whole = False
        self._left = 0  # bytes of the chunk that is arriving
        self._in_data = False  # its CRLF has not come yet
        self._in_trailers = False
        self._framing_bytes = 0

    def feed(self, piece: bytes, at: int) -> int:
        """Take what it can of `piece`, from `at`; where it stopped. What is left comes again, with more behind it.

        Raises `MalformedChunk` and `TooMuchFraming`.
        """
        while not self.whole and at < len(piece):
            if self._left:
                taken = piece[at : at + self._left]
                self.body += taken
                self._left -= len(taken)
                at += len(taken)
                continue
            end = piece.find(b"\n", at) + 1
            self._count(end - at if end else len(piece) - at, taken=end > 0)
            if not end:
                if self._in_data and piece[at:] != _CRLF[:1]:
                    raise MalformedChunk(_TOO_LONG)
                break
            self._read_line(piece[at:end])
            at = end
        return at

    def _count(self, size: int, *, taken: bool) -> None:
        if self._framing_bytes + size > FRAMING_BYTES_MAX:
            raise TooMuchFraming
        if taken:
            self._framing_bytes += size

    def _read_line(self, line: bytes) -> None:
        if self._in_data:
            if line != _CRLF:
                raise MalformedChunk(_TOO_LONG)
            self._in_data = False
        elif self._in_trailers:
            self.whole = line == _CRLF
            if not self.whole and not _TRAILER.fullmatch(line):
                raise MalformedChunk("what stands behind the last chunk is no header")
        else:
            size = _SIZE.fullmatch(line)
            if size is None:
                raise MalformedChunk("a chunk must begin with its size, in hexadecimal digits, ended by CR LF")
            self._left = int(size[1], 16)
            self._in_data = self._left > 0
            self._in_trailers = not self._in_data
