"""What both listeners read from a request's head beside the body's type and encoding: the Idempotency-Key.

Knows no framework: headers come as text, decoded as Latin-1.
"""

from __future__ import annotations

from typing import Final

from api.errors import BadRequest, problem

__all__ = ["read_idempotency_key"]

KEY_CHARACTERS_MAX: Final = 255


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
