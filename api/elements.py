"""Where the elements of a JSON array begin and end, found in bounded steps and without reading them.

Owns strings, brackets and commas as far as they frame elements. Knows no event: whether an element is JSON is for
its reader to find out, and the array is JSON if all of them are.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["STEP_BYTES", "Elements", "NotJson", "skip_blanks"]

STEP_BYTES: Final = 16_384  # of one search, so that none is longer than that; the longest event that is read

_STRING: Final = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_IN_ARRAY: Final = re.compile(rb'(?:[^"{}\[\],]+|' + _STRING + rb")*", re.DOTALL)
_IN_ELEMENT: Final = re.compile(rb'(?:[^"{}\[\]]+|' + _STRING + rb")*", re.DOTALL)
_REST_OF_STRING: Final = re.compile(rb'(?:[^"\\]+|\\.)*', re.DOTALL)
_OPENING: Final = re.compile(rb"[{\[]+")
_CLOSING: Final = re.compile(rb"[}\]]+")
_BLANKS: Final = re.compile(rb"[ \t\r\n]*")
_QUOTE, _COMMA, _ARRAY, _ARRAY_END = b'",[]'


class NotJson(ValueError):
    """The body is no JSON; the message says why."""


def skip_blanks(body: bytes, at: int) -> int:
    """The place of the next byte that is no blank, or one that is a step further."""
    match = _BLANKS.match(body, at, at + STEP_BYTES)
    assert match is not None
    return match.end()


class Elements:
    """The elements of the array that begins at `at`, one after the other.

    `at` is how far it has come. `between` says that an element begins there, `ended` that the body is at its end.
    """

    def __init__(self, body: bytes, at: int) -> None:
        assert body[at] == _ARRAY
        self.at = at + 1
        self.between = True
        self.ended = False
        self._body = body
        self._start = self.at  # of the element
        self._depth = 1  # brackets that are open, that of the array included
        self._in_string = False  # in one that is longer than a step

    def step(self) -> tuple[int, int] | None:
        """One search: where an element begins and ends if its end was found. Raises `NotJson`."""
        if self._depth == 0:
            self._step_behind()
            return None
        if self.at >= len(self._body):
            raise NotJson("it ends too early")
        self.between = False
        if self._in_string:
            self._step_in_string()
            return None
        skipped = (_IN_ARRAY if self._depth == 1 else _IN_ELEMENT).match(self._body, self.at, self.at + STEP_BYTES)
        assert skipped is not None
        begun, self.at = self.at, skipped.end()
        if self.at == begun + STEP_BYTES or self.at == len(self._body):
            return None
        mark = self._body[self.at]
        if mark == _QUOTE:
            if self.at == begun:  # a whole step did not reach the end of this string
                self._in_string = True
                self.at += 1
            return None
        if mark == _COMMA:
            return self.jump(self.at + 1)
        return self._pass_brackets()

    def jump(self, at: int) -> tuple[int, int]:
        """Go on at `at`, where an element begins behind its comma. Returns the one before."""
        before = self._start, at - 1
        self.at = self._start = at
        self.between = True
        return before

    def _pass_brackets(self) -> tuple[int, int] | None:
        opening = _OPENING.match(self._body, self.at, self.at + STEP_BYTES)
        if opening is not None:
            self._depth += opening.end() - self.at
            self.at = opening.end()
            return None
        closing = _CLOSING.match(self._body, self.at, self.at + STEP_BYTES)
        assert closing is not None
        closed = min(closing.end() - self.at, self._depth)
        self._depth -= closed
        self.at += closed
        if self._depth > 0:
            return None
        if self._body[self.at - 1] != _ARRAY_END:
            raise NotJson("its array does not end in ]")
        return self._start, self.at - 1

    def _step_in_string(self) -> None:
        body, begun = self._body, self.at
        match = _REST_OF_STRING.match(body, begun, begun + STEP_BYTES)
        assert match is not None
        self.at = match.end()
        if self.at < len(body) and body[self.at] == _QUOTE:
            self.at += 1
            self._in_string = False
        elif self.at == begun:  # a backslash, and nothing behind it
            raise NotJson("it ends too early")

    def _step_behind(self) -> None:
        """Behind the array, where only blanks may be."""
        begun, self.at = self.at, skip_blanks(self._body, self.at)
        if self.at == len(self._body):
            self.ended = True
        elif self.at == begun:
            raise NotJson("something stands behind its array")
