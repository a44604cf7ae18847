"""Content-Encoding: gzip and zstd bodies, decoded in small steps under one limit.

Owns what an encoded body may cost before it is refused. Knows no JSON and no answer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator
from typing import Final, NamedTuple, Protocol

import zstandard

from api.slicing import SLICE_WORK

__all__ = ["BodyTooLarge", "UnknownEncoding", "decode_body"]

# Bytes decoded before the limit is looked at again. gzip makes 1,032 bytes of one at most, so a step makes 1 MiB.
GZIP_STEP_BYTES: Final = 1_024
# zstd can make 128 KiB of 4 bytes, so a step makes 8 MiB at most (6 ms), whatever the body claims, and then the body
# is mostly over the limit.
ZSTD_STEP_BYTES: Final = 256
STEPS_A_SLICE: Final = 4_000  # of what does not shrink: 2 ms
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


class _Encoding(NamedTuple):
    new_decoder: Callable[[], _Decoder]
    step_bytes: int


def _gzip_decoder() -> _Decoder:
    return zlib.decompressobj(wbits=31)


def _zstd_decoder() -> _Decoder:
    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX).decompressobj()


_ENCODINGS: Final[dict[str, _Encoding]] = {
    "gzip": _Encoding(_gzip_decoder, GZIP_STEP_BYTES),
    "x-gzip": _Encoding(_gzip_decoder, GZIP_STEP_BYTES),  # RFC 9110, 8.4.1.3: the same
    "zstd": _Encoding(_zstd_decoder, ZSTD_STEP_BYTES),
}


def decode_body(body: bytes, name: str, bytes_max: int) -> Generator[None, None, bytes]:
    """The body without the encoding of this name (lower case), in slices (api/slicing.py).

    Raises `UnknownEncoding`, `BodyTooLarge`, and `ValueError` with the reason for a body that is broken.
    """
    encoding = _ENCODINGS.get(name)
    if encoding is None:
        raise UnknownEncoding(f"Content-Encoding is {name[:NAME_CHARACTERS_MAX]!r}, it must be gzip, zstd or identity")
    try:
        return (yield from _decode_members(body, encoding, bytes_max))
    except (zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"the body is not {name}: {error}") from None
    except EOFError:
        raise ValueError(f"the body is not whole: its {name} ends too early") from None


def _decode_members(body: bytes, encoding: _Encoding, bytes_max: int) -> Generator[None, None, bytes]:
    """All members, one after the other; raises `EOFError` when the last one is cut off."""
    parts: list[bytes] = []
    size = members = 0
    slice_size = SLICE_WORK
    decoder: _Decoder | None = None
    steps = range(0, len(body), encoding.step_bytes)
    for first in range(0, len(steps), STEPS_A_SLICE):
        for start in steps[first : first + STEPS_A_SLICE]:
            step = body[start : start + encoding.step_bytes]
            while step:
                if decoder is None:
                    if members == MEMBERS_MAX:
                        raise ValueError(f"the body has more than {MEMBERS_MAX} members, one after the other")
                    decoder = encoding.new_decoder()
                    members += 1
                part = decoder.decompress(step)
                parts.append(part)
                size += len(part)
                if size >= slice_size:
                    if size > bytes_max:
                        raise BodyTooLarge
                    yield
                    slice_size = size + SLICE_WORK
                step = decoder.unused_data
                if decoder.eof:
                    decoder = None
        if first + STEPS_A_SLICE < len(steps):
            yield
    if decoder is not None or not members:
        raise EOFError
    if size > bytes_max:
        raise BodyTooLarge
    return b"".join(parts)
