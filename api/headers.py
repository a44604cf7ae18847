"""What both listeners read from a request's head beside the body's type and encoding: the Idempotency-Key.

And what they refuse because they don't do it: a condition that is ignored is a change that its sender did not want.

Knows no framework: headers come as text, decoded as Latin-1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from api.errors import BadRequest, problem
from engine import Fault

__all__ = ["read_idempotency_key", "undone_headers"]

KEY_CHARACTERS_MAX: Final = 255
# Each says that a request is to be done only if, or only in part. Range, Prefer and If-Modified-Since are not among
# them: RFC 9110 and RFC 7240 let a server ignore those, and its answer shows that it did.
_UNDONE: Final = ("If-Match", "If-None-Match", "If-Unmodified-Since", "Content-Range")


def read_idempotency_key(text: str | None) -> str | None:
    """The key, or None when there is no such header. Raises `BadRequest` (400) for one that nobody should rely on."""
    if text is None:
        return None
    if not 0 < len(text) <= KEY_CHARACTERS_MAX or not text.isascii() or not text.isprintable():
        raise BadRequest(
            problem(
                400,
                "malformed_idempotency_key",
                f"Idempotency-Key must have 1 to {KEY_CHARACTERS_MAX} printable ASCII characters",
            )
        )
    return text


def undone_headers(has: Callable[[str], bool], *, reads_key: bool) -> list[Fault]:
    """Headers of a request that promise what isn't done. `reads_key`: the call does read an Idempotency-Key."""
    names = _UNDONE if reads_key else (*_UNDONE, "Idempotency-Key")
    return [Fault(name, "this call does not do what the header asks for: leave it out") for name in names if has(name)]
