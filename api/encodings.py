"""Content-Encoding: gzip and zstd bodies, decoded in small steps under one limit.

Owns what an encoded body may cost before it is refused. Knows no JSON and no answer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, Protocol

import zstandard

__all__ = ["BodyTooLarge", "UnknownEncoding", "decode_body"]

# Bytes decoded before the limit is looked at again: zstd can make 128 KiB of 4 bytes, so one step makes 8 MiB at
# most, whatever the body claims.
STEP_BYTES: Final = 256
# Members of one gzip or frames of one zstd body: 4 MiB in the 64 KiB blocks of bgzip are 65; each costs a decoder.
MEMBERS_MAX: Final = 100
ZSTD_WINDOW_BYTES_MAX: Final = 8 << 20  # RFC 9659: what every decoder of HTTP bodies must take, and no more
NAME_CHARACTERS_MAX: Final = 64  # of an unknown encoding, in the message


class UnknownEncoding(ValueError):
    """An encoding that we don't decode."""


class BodyTooLarge(ValueError):
    """Decoded, the body is larger than allowed."""


class _Decoder(Protocol):
    """The part that the decoders of zlib and zstandard share: each reads one member."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _gzip_decoder() -> _Decoder:
    return zlib.decompressobj(wbits=31)


def _zstd_decoder() -> _Decoder:
    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX).decompressobj()


_DECODERS: Final[dict[str, Callable[[], _Decoder]]] = {
    "gzip": _gzip_decoder,
    "x-gzip": _gzip_decoder,  # RFC 9110, 8.4.1.3: the same
    "zstd": _zstd_decoder,
}


def decode_body(body: bytes, encoding: str, bytes_max: int) -> bytes:
    """The body without its encoding (lower case, "" for none).

    Raises `UnknownEncoding`, `BodyTooLarge`, and `ValueError` with the reason for a body that is broken.
    """
    if encoding in ("", "identity"):
        return body
    new_decoder = _DECODERS.get(encoding)
    if new_decoder is None:
        raise UnknownEncoding(
            f"Content-Encoding is {encoding[:NAME_CHARACTERS_MAX]!r}, it must be gzip, zstd or identity"
        )
    try:
        return _decode_members(body, new_decoder, bytes_max)
    except (zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"the body is not {encoding}: {error}") from None
    except EOFError:
        raise ValueError(f"the body is not whole: its {encoding} ends too early") from None


def _decode_members(body: bytes, new_decoder: Callable[[], _Decoder], bytes_max: int) -> bytes:
    """All members, one after the other; raises `EOFError` when the last one is cut off."""
    parts: list[bytes] = []
    size = members = 0
    decoder: _Decoder | None = None
    for start in range(0, len(body), STEP_BYTES):
        step = body[start : start + STEP_BYTES]
        while step:
            if decoder is None:
                decoder = new_decoder()
                members += 1
            part = decoder.decompress(step)
            parts.append(part)
            size += len(part)
            if size > bytes_max:
                raise BodyTooLarge
            if members > MEMBERS_MAX:
                raise ValueError(f"the body has more than {MEMBERS_MAX} members, one after the other")
            step = decoder.unused_data
            if decoder.eof:
                decoder = None
    if decoder is not None or not members:
        raise EOFError
    return b"".join(parts)
