"""The head of one HTTP/1.1 request, whole, to what it says: the reading that both listeners share.

Owns which request lines, targets, Host headers, lengths and codings are taken (RFC 9110, RFC 9112; docs/api.md has the
table), and which answer the others get. Knows no connection and no body. llhttp (through httptools) splits the header
lines and refuses what is no header; it is lenient about request lines, Host and Connection, so those are read here.
A parser is made anew for each head: what a head says never depends on what came before it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final, NoReturn

import httptools
import msgspec

from api.codec import too_large
from api.errors import Answer, BadRequest, problem
from api.headers import undone_headers
from api.query import unknown_parameters, wrong_parameters
from config.settings import Settings

__all__ = ["HEAD_END", "NOWHERE", "Head", "check_beginning", "head_too_large", "read_head"]

HEAD_END: Final = b"\r\n\r\n"
NOWHERE: Final = b"/."  # no listener has it: the path of every target that can name none of ours
METHODS: Final = frozenset([b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT"])
# Headers that are one value, not a list: two of them would be read in two ways (RFC 9110, 5.3).
SINGLE: Final = frozenset([b"host", b"content-type", b"idempotency-key"])

_NO_LINE: Final = (
    "the request line must be METHOD, target and HTTP/1.1 in printable ASCII, with one space between, ended by CR LF;"
    " if this is TLS: it is not spoken here"
)
_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n")
_LINE_BEGUN: Final = re.compile(rb"[\x20-\x7e]*\r?")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE)
_ESCAPED: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PATH: Final = re.compile(rb"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*/?")
_CODING: Final = re.compile(rb"\r\ntransfer-encoding[ \t]*:([^\r\n]*)")
_LENGTH: Final = re.compile(rb"\r\ncontent-length[ \t]*:")
_HOST: Final = re.compile(
    rb"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"
)

Line = tuple[bytes, bytes, bool]  # method, target, and whether it is HTTP/1.1 (else 1.0)


class Head(msgspec.Struct, frozen=True):
    """What stands before a body. A header that came twice is joined with ", "."""

    method: bytes
    path: bytes  # unreserved characters decoded, once; `NOWHERE` for what can name nothing here
    keep_alive: bool
    asks_keep_alive: bool  # in so many words: HTTP/1.0 keeps a connection only if both sides say so
    content_type: str = ""
    content_encoding: str = ""
    idempotency_key: str | None = None
    version: str = "1.1"
    target: bytes = b""  # the path and the query, whatever form it was sent in: another decoding changes no path
    headers: Mapping[bytes, bytes] = {}  # all of them, by their names in small letters
    body_bytes: int | None = 0  # None: it comes in chunks
    awaits_continue: bool = False
    ignored: Answer | None = None  # refuses what a call about events would ignore: parameters, and conditions


def check_beginning(begun: bytes) -> Line | None:
    """The request line, if it has come. Raises `BadRequest` for what can't become a head, whatever may come behind it.

    So TLS, HTTP/0.9 and lines without CR are answered at once, not when their time is up.
    """
    line_end = begun.find(b"\n") + 1
    if not line_end:
        if not _LINE_BEGUN.fullmatch(begun):
            _malformed(_NO_LINE)
        return None
    line = _read_line(begun[:line_end])
    if begun.count(b"\n") != begun.count(b"\r\n"):
        _malformed("a line of the head ends in LF without CR")
    return line


def read_head(head: bytes, settings: Settings) -> Head:
    """What a whole head says, from its method to its empty line. Raises `BadRequest` if it isn't to be taken.

    Whatever the bytes, nothing else is raised.
    """
    line = check_beginning(head[: settings.header_bytes_max])  # first: as for a head that comes byte by byte
    if line is None or len(head) > settings.header_bytes_max:
        raise BadRequest(head_too_large(settings))
    method, target, is_1_1 = line
    path, query, authority = _read_target(method, target)
    _check_codings(head.lower(), is_1_1=is_1_1)
    headers = _split(head)
    _check_host(headers.get(b"host"), authority, is_1_1=is_1_1)
    connection = [token.strip(b" \t") for token in headers.get(b"connection", b"").lower().split(b",")]
    closes, keeps = b"close" in connection, b"keep-alive" in connection
    key, chunked = headers.get(b"idempotency-key"), b"transfer-encoding" in headers
    ignored = [
        *undone_headers(lambda name: name.lower().encode() in headers, reads_key=True),
        *unknown_parameters(query[1:]),
    ]
    return Head(
        method,
        path,
        keep_alive=not closes and (is_1_1 or keeps),
        asks_keep_alive=keeps and not closes,
        content_type=headers.get(b"content-type", b"").decode("latin-1"),
        content_encoding=headers.get(b"content-encoding", b"").decode("latin-1"),
        idempotency_key=None if key is None else key.decode("latin-1"),
        version="1.1" if is_1_1 else "1.0",
        target=path + query,
        headers=headers,
        body_bytes=None if chunked else _read_length(headers.get(b"content-length", b"0"), settings),
        awaits_continue=is_1_1 and headers.get(b"expect", b"").lower() == b"100-continue",
        ignored=wrong_parameters(ignored) if ignored else None,
    )


def head_too_large(settings: Settings) -> Answer:
    """The answer to a head over the limit."""
    return problem(431, "head_too_large", f"the request's head has more than {settings.header_bytes_max} bytes")


def _malformed(detail: str) -> NoReturn:
    raise BadRequest(problem(400, "malformed_http", f"not a request of HTTP/1.1: {detail}"))


# --- The request line ---------------------------------------------------------------------------------------


def _read_line(line: bytes) -> Line:
    match = _LINE.fullmatch(line)
    if match is None:
        _malformed(_NO_LINE)
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in b"01":
        raise BadRequest(
            problem(505, "unsupported_http_version", "HTTP/1.1 is spoken here, and HTTP/1.0; no other version")
        )
    if method not in METHODS:
        if method.upper() in METHODS:
            _malformed(f"methods are written in capitals: {method.upper().decode()}")
        raise BadRequest(problem(501, "not_implemented", "no such method here"))
    return method, target, minor == b"1"


def _read_target(method: bytes, target: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Path, query with its question mark, and the authority if the target has one (RFC 9112, 3.2)."""
    if method == b"CONNECT":
        raise BadRequest(problem(501, "not_implemented", "this is no proxy: CONNECT is not done"))
    if b"#" in target:
        _malformed("a target has no fragment")
    if target == b"*":
        if method != b"OPTIONS":
            _malformed("the target * is for OPTIONS only")
        return NOWHERE, b"", None
    authority = None
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            _malformed("the target must be a path that begins with /, or an http URL")
        authority, target = absolute.groups()
    path, mark, query = target.partition(b"?")
    return _normal(path or b"/"), mark + query, authority


def _normal(path: bytes) -> bytes:
    """Escapes of unreserved characters mean the same as those (RFC 3986, 6.2.2.2); no path of ours needs another.

    What has one still, or two slashes in a row, must not be decoded once more by a framework behind us.
    """
    if b"%" in path:
        path = _ESCAPED.sub(_unescape, path)
    return path if _PATH.fullmatch(path) else NOWHERE


def _unescape(escaped: re.Match[bytes]) -> bytes:
    byte = int(escaped[1], 16)
    return bytes([byte]) if byte in _UNRESERVED else escaped[0]


# --- The headers --------------------------------------------------------------------------------------------


class _Lines:
    """What llhttp calls."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.twice: bytes | None = None

    def on_header(self, name: bytes, value: bytes) -> None:
        name, value = name.lower(), value.rstrip(b" \t")  # llhttp leaves blanks at the end (RFC 9112, 5)
        known = self.headers.get(name)
        if known is not None:
            if name in SINGLE:
                self.twice = name
            value = b"%b, %b" % (known, value)
        self.headers[name] = value


def _split(head: bytes) -> dict[bytes, bytes]:
    lines = _Lines()
    try:
        httptools.HttpRequestParser(lines).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # declined, as RFC 9110 (7.8) lets a server do: Java's client offers h2c with every request
    except httptools.HttpParserError as error:
        _malformed(str(error))
    if lines.twice is not None:
        _malformed(f"{lines.twice.decode()} stands there twice")
    return lines.headers


def _check_codings(head: bytes, *, is_1_1: bool) -> None:
    """Refuse what is no single `chunked` (RFC 9112, 6.1), which llhttp calls malformed; `head` is in lower case."""
    codings = _CODING.findall(head) if b"transfer-encoding" in head else []
    if not codings:
        return
    if _LENGTH.search(head):
        _malformed("Content-Length and Transfer-Encoding contradict each other")
    if not is_1_1:
        _malformed("HTTP/1.0 has no Transfer-Encoding")
    if [coding.strip(b" \t") for coding in codings] != [b"chunked"]:
        raise BadRequest(problem(501, "not_implemented", "Transfer-Encoding must be chunked, once, and nothing else"))


def _read_length(text: bytes, settings: Settings) -> int:
    """The length of a body. llhttp has seen to it that it is digits, and below 2**64; zeros before it may be many."""
    length = int(text.lstrip(b"0") or b"0")
    if length > settings.request_bytes_max:
        raise BadRequest(too_large(settings))
    return length


def _check_host(host: bytes | None, authority: bytes | None, *, is_1_1: bool) -> None:
    """RFC 9112, 3.2: exactly one that is well-formed; HTTP/1.0 may have none."""
    if host is None and is_1_1:
        _malformed("the Host header is missing")
    if host is not None and not _is_host(host):
        _malformed("the Host header must be a host, maybe with a port")
    if authority is not None and (not authority or authority.startswith(b":") or not _is_host(authority)):
        _malformed("the URL must have a host, maybe with a port, and no user")


def _is_host(text: bytes) -> bool:
    match = _HOST.fullmatch(text)
    if match is None:
        return False
    if match["v6"] is None:
        return True
    try:
        ipaddress.IPv6Address(match["v6"].decode())
    except ValueError:
        return False
    return True
