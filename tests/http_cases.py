"""One table of requests, right and wrong, for both listeners: what is sent, what is answered, what is taken.

Data only. Every path in `CASES` is one that both listeners have, or neither; what only the api has is in `API_CASES`.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import NamedTuple

import zstandard

__all__ = ["API_CASES", "CASES", "EVENT", "Case", "post"]

EVENT = b'{"campaign_id":7,"user_id":"u","event_type":"click"}'
MALFORMED = "malformed_http"
HEAD_BYTES_MAX = 16_384  # documented
BODY_BYTES_MAX = 4 << 20


class Case(NamedTuple):
    """Bytes of one connection. `answers` are statuses, or codes of problems, in order."""

    name: str
    sent: bytes
    answers: tuple[int | str, ...]
    taken: int = 0  # events
    ends: bool = False  # the listener closes the connection after the last answer
    half: bool = False  # the sender closes its half behind them
    bare: bool = False  # the answers have no bodies, as HEAD asks


def request(line: bytes, *headers: bytes, body: bytes = b"", host: bytes | None = b"Host: h") -> bytes:
    """A request, with these lines as they are."""
    return b"\r\n".join([line, *([] if host is None else [host]), *headers, b"", body])


def post(body: bytes = EVENT, *headers: bytes, path: bytes = b"/events/", version: bytes = b"HTTP/1.1") -> bytes:
    """A POST with its length."""
    return request(b"POST %b %b" % (path, version), b"Content-Length: %d" % len(body), *headers, body=body)


def get(target: bytes = b"/healthz", *headers: bytes, method: bytes = b"GET") -> bytes:
    """A request without a body."""
    return request(b"%b %b HTTP/1.1" % (method, target), *headers)


def chunked(*chunks: bytes, line: bytes = b"POST /events/ HTTP/1.1", headers: tuple[bytes, ...] = ()) -> bytes:
    """A POST with what comes as its chunks, as it is."""
    return request(line, b"Transfer-Encoding: chunked", *headers, body=b"".join(chunks))


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    """A chunk."""
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


def show(text: bytes) -> str:
    """Bytes in a name."""
    return repr(text)[2:-1][:50]


LAST = b"0\r\n\r\n"
WHOLE = chunk(EVENT) + LAST


def request_lines() -> Iterator[Case]:
    """Point 14: methods, spaces, versions."""
    for line in (
        b"GET  /healthz HTTP/1.1", b"GET /healthz  HTTP/1.1", b"GET\t/healthz HTTP/1.1", b"GET /healthz\tHTTP/1.1",
        b" GET /healthz HTTP/1.1", b"GET /healthz HTTP/1.1 ", b"GET /healthz", b"GET /healthz ", b"GET", b"/healthz",
        b"GET /healthz RTSP/1.0", b"OPTIONS /healthz RTSP/1.0", b"GET /healthz ICE/1.0", b"GET /healthz http/1.1",
        b"GET /healthz HTTP/1", b"GET /healthz HTTP/1.", b"GET /healthz HTTP/11", b"GET /healthz HTTP/1.10",
        b"GET /healthz HTTP/a.b", b"GET /healthz HTTP 1.1", b"GET /healthz HTTP/1,1", b"GET /healthz HTTP/-1.1",
        b"G\xc3\x89T /healthz HTTP/1.1", b"G(T /healthz HTTP/1.1", b"GET: /healthz HTTP/1.1",
        b"GET /health z HTTP/1.1", b"GET /healthz\x00 HTTP/1.1", b"GET /healthz\x7f HTTP/1.1",
        b"GET /healthz\xff HTTP/1.1", b"\x80 / HTTP/1.1", b"GET /healthz HTTP/1.1\rX: y", b"post /events/ HTTP/1.1",
        b"get /healthz HTTP/1.1", b"Get /healthz HTTP/1.1", b"HTTP/1.1 200 OK", b"hello",
    ):  # fmt: skip
        yield Case(f"line {show(line)}", request(line), (MALFORMED,), ends=True)
    for version in (b"0.9", b"0.0", b"1.2", b"1.9", b"2.0", b"3.0", b"3.7", b"9.9"):
        line = b"GET /healthz HTTP/" + version
        yield Case(f"version {show(version)}", request(line), ("unsupported_http_version",), ends=True)
    for method in (
        b"FOO",
        b"PROPFIND",
        b"QUERY",
        b"PRI",
        b"SETUP",
        b"M-SEARCH",
        b"BREW",
        b"PURGE",
        b"foo",
        b"!",
        b"X" * 99,
    ):
        yield Case(f"method {show(method)}", get(method=method), ("not_implemented",), ends=True)
    for method in (b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE"):
        for target in (b"/events/", b"/events/batch", b"/healthz"):
            yield Case(f"{show(method)} {show(target)}", get(target, method=method), ("method_not_allowed",))
        yield Case(f"{show(method)} nowhere", get(b"/nowhere", method=method), ("not_found",))
    yield Case("GET where POST is", get(b"/events/"), ("method_not_allowed",))
    yield Case("HEAD where POST is", get(b"/events/", method=b"HEAD"), (405,), bare=True)
    yield Case("POST where GET is", post(EVENT, path=b"/healthz"), ("method_not_allowed",))
    yield Case("HEAD", get(method=b"HEAD"), (200,), bare=True)
    yield Case(
        "preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + post(), ("unsupported_http_version",), ends=True
    )
    yield Case("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (MALFORMED,), ends=True)
    yield Case("SSH", b"SSH-2.0-OpenSSH_9.6\r\n", (MALFORMED,), ends=True)
    yield Case("nothing but NUL", bytes(64), (MALFORMED,), ends=True)
    yield Case("HTTP/0.9 of one line", b"GET /healthz\r\n", (MALFORMED,), ends=True)


def targets() -> Iterator[Case]:
    """Point 14: forms of targets, escapes, paths that are nearly ours."""
    for target in (
        b"/healthz?a=b", b"/healthz?", b"/healthz??", b"/healthz?%zz", b"/healthz?a=%2f", b"/health%7a", b"/%68ealthz",
        b"/%68%65%61%6C%74%68%7A", b"http://h/healthz", b"http://other/healthz", b"http://h:80/healthz?a",
        b"HTTP://h/healthz", b"https://h/healthz", b"http://[::1]:8000/healthz", b"http://h:/healthz",
        b"http://h/%68ealthz", b"/healthz?a|b[c]",
    ):  # fmt: skip
        yield Case(f"target {show(target)}", get(target), (200,))
    for target in (
        b"/", b"//healthz", b"//events/", b"///events/", b"/events", b"/events//", b"/events/batch/", b"/Events/",
        b"/events%2f", b"/events%2F", b"/%2fevents/", b"/events/%", b"/events/%2", b"/events/%zz", b"/%2565vents/",
        b"/events/%00", b"/events/%0d%0a", b"/events/%20", b"/events/.", b"/events/..", b"/./events/",
        b"/x/../events/", b"/events/;a", b"/events/\\", b'/events/"', b"/events/<a>", b"/%c3%a9", b"/events/%ff",
        b"/%252e%252e/", b"/healthz/", b"/healthz%3Fa", b"/healthz%23", b"/.", b"/{}", b"/^", b"http://h",
        b"http://h/", b"http://h?a=b", b"http://h/events", b"http://h//healthz",
    ):  # fmt: skip
        yield Case(f"path {show(target)}", get(target), ("not_found",))
    for target in (
        b"events/", b"healthz", b"*", b"h:80", b"h/healthz", b"?a=b", b"%2fhealthz", b"#", b"/healthz#a",
        b"/#/healthz", b"http://h/healthz#a", b"http:///healthz", b"http://", b"http:/healthz", b"http:healthz",
        b"http://:80/healthz", b"http://u@h/healthz", b"http://u:p@h/healthz", b"http://h h/healthz",
        b"http://[/healthz", b"http://[::1/healthz", b"http://h:p/healthz", b"ftp://h/healthz", b"file:///healthz",
        b"javascript:0", b"ws://h/healthz", b"\\healthz", b"://h/healthz",
    ):  # fmt: skip
        yield Case(f"no target {show(target)}", get(target), (MALFORMED,), ends=True)
    yield Case("OPTIONS *", get(b"*", method=b"OPTIONS"), ("not_found",))
    yield Case("POST to an URL", post(path=b"http://h/events/"), (200,), taken=1)
    yield Case("POST to an escaped path", post(path=b"/%65vents/"), (200,), taken=1)
    yield Case("POST to /events%2f", post(path=b"/events%2f"), ("not_found",))
    yield Case("POST to //events/", post(path=b"//events/"), ("not_found",))
    for target in (b"h:443", b"/events/", b"*"):
        sent = get(target, method=b"CONNECT") + post()
        yield Case(f"CONNECT {show(target)}, then a request", sent, ("not_implemented",), ends=True)


def hosts() -> Iterator[Case]:
    """Point 14: exactly one Host that is one."""
    for host in (
        b"h", b"", b"a.b.c", b"a:80", b"a:", b"127.0.0.1:8000", b"[::1]", b"[::1]:80", b"[2001:db8::1]", b"a_b",
        b"%41", b"xn--a", b" h ", b"a..b", b".", b"a" * 64, b"xn--" + b"9" * 70, b"-",
    ):  # fmt: skip
        yield Case(f"Host {show(host)}", request(b"GET /healthz HTTP/1.1", host=b"Host:" + host), (200,))
    for host in (
        b"a b", b"[", b"]", b"[]", b"[::1", b"[::1]x", b"[:::1]", b"[1.2.3.4]", b"[g::]", b"a@b/c", b"a@b", b"a/b",
        b"a, b", b"a:b", b"a:80:80", b"a:-1", b"http://a", b"a?b", b"a#b", b"a\\b", b'"a"', b"<a>", b"%4", b"%zz",
        b"\xc3\xa9", b"a\tb", b"{a}", b"a|b", b"a^b",
    ):  # fmt: skip
        yield Case(
            f"no Host {show(host)}", request(b"GET /healthz HTTP/1.1", host=b"Host: " + host), (MALFORMED,), ends=True
        )
    none = request(b"GET /healthz HTTP/1.1", host=None)
    yield Case("no Host", none, (MALFORMED,), ends=True)
    yield Case("no Host, an URL", request(b"GET http://h/healthz HTTP/1.1", host=None), (MALFORMED,), ends=True)
    yield Case("no Host, an event", post().replace(b"Host: h\r\n", b""), (MALFORMED,), ends=True)
    yield Case("Host twice", get(b"/healthz", b"Host: h"), (MALFORMED,), ends=True)
    yield Case("two Hosts", get(b"/healthz", b"host: other"), (MALFORMED,), ends=True)
    yield Case("two Hosts, an event", post(EVENT, b"HOST: other"), (MALFORMED,), ends=True)
    yield Case("no Host in HTTP/1.0", request(b"GET /healthz HTTP/1.0", host=None), (200,), ends=True)
    yield Case("two Hosts in HTTP/1.0", request(b"GET /healthz HTTP/1.0", b"Host: h"), (MALFORMED,), ends=True)


def headers() -> Iterator[Case]:
    """Point 14: what stands in a head."""
    for line in (
        b"A : b", b"A b", b"A", b": b", b" A: b", b"A: b\r\n c: d", b"A: b\r\n\tc", b"A: b\n c", b"A: b\nB: c",
        b"A: b\rB: c", b"A: \x00", b"A: \x01", b"A: \x7f", b"A\x00: b", b"A(: b", b"A\xc3: b", b'"A": b', b"A,: b",
        b"Content-Length : 5", b"Host\t: h", b"Transfer-Encoding : chunked", b"\x00",
        b"Idempotency-Key: a\r\nIdempotency-Key: b", b"Idempotency-Key: a\r\nidempotency-key: a",
        b"Content-Type: application/json\r\nContent-Type: application/json",
    ):  # fmt: skip
        yield Case(f"header {show(line)}", post(EVENT, line), (MALFORMED,), ends=True)
    for line in (
        b"A:b", b"A:", b"A:  b  ", b"A: \t b", b"A: \xff", b"A: caf\xc3\xa9", b"A: b\r\nA: c", b"A: a:b:c",
        b"a!#$%&'*+.^_`|~-: b", b"1: 2", b"Accept: */*\r\nAccept: text/html", b"Cookie: a=b\r\nCookie: c",
        b"Upgrade: h2c", b"X" * 1_000 + b": y", b"Expect: nothing",
    ):  # fmt: skip
        yield Case(f"fine header {show(line)}", post(EVENT, line), (200,), taken=1)
    bare = post().replace(b"\r\n", b"\n")
    yield Case("bare LF in a head", bare, (MALFORMED,), ends=True)
    yield Case("bare LF behind a line", get().replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"), (MALFORMED,), ends=True)
    yield Case(
        "bare LF behind a header", get(b"/healthz", b"A: b").replace(b"A: b\r\n", b"A: b\n"), (MALFORMED,), ends=True
    )
    yield Case("bare LF for the empty line", get()[:-2] + b"\n", (MALFORMED,), ends=True)
    yield Case("bare CR behind a line", get().replace(b"1.1\r\n", b"1.1\r"), (MALFORMED,), ends=True)


def lengths() -> Iterator[Case]:
    """Points 9, 11 and 14: where a body ends."""
    for text in (
        b"", b"a", b"+52", b"-1", b"0x34", b"5 2", b"52,52", b"52, 52", b"5_2", b"52.0", b"1e1", b"\xb2", b"9" * 5_000,
        b"18446744073709551616",
    ):  # fmt: skip
        sent = request(b"POST /events/ HTTP/1.1", b"Content-Length: " + text, body=EVENT)
        yield Case(f"length {show(text)}", sent, (MALFORMED,), ends=True)
    for text in (
        b"4194305",
        b"9999999999",
        b"18446744073709551615",
        b"04194305",
        b"0" * 5_000 + b"9999999999",
    ):
        sent = request(b"POST /events/ HTTP/1.1", b"Content-Length: " + text, body=EVENT)
        yield Case(f"too long {show(text)}", sent, ("body_too_large",), ends=True)
    for text in (b"52", b"0052", b" 52 ", b"0" * 5_000 + b"52"):
        sent = request(b"POST /events/ HTTP/1.1", b"Content-Length:" + text, body=EVENT)
        yield Case(f"fine length {show(text)}", sent, (200,), taken=1)
    yield Case("two equal lengths", post(EVENT, b"Content-Length: 52"), (MALFORMED,), ends=True)
    yield Case("two lengths", post(EVENT, b"Content-Length: 5"), (MALFORMED,), ends=True)
    yield Case("length and coding", post(WHOLE, b"Transfer-Encoding: chunked"), (MALFORMED,), ends=True)
    yield Case("coding and length", chunked(WHOLE, headers=(b"Content-Length: 5",)), (MALFORMED,), ends=True)
    yield Case("length and unknown coding", post(EVENT, b"Transfer-Encoding: gzip"), (MALFORMED,), ends=True)
    yield Case("no length, no body", request(b"POST /events/ HTTP/1.1"), ("malformed_json",))
    yield Case("length 0", post(b""), ("malformed_json",))
    yield Case("a body shorter than its length", post()[:-1], (MALFORMED,), ends=True, half=True)
    yield Case("a body longer than its length", post() + b"{}", (200, MALFORMED), taken=1, ends=True, half=True)
    yield Case("a head that is cut off", post()[:40], (MALFORMED,), ends=True, half=True)
    yield Case("a line that is cut off", b"GET /hea", (MALFORMED,), ends=True, half=True)
    yield Case(
        "a GET with a body", request(b"GET /healthz HTTP/1.1", b"Content-Length: 2", body=b"ab") + get(), (200, 200)
    )


def codings() -> Iterator[Case]:
    """Point 14: nothing but chunked, once."""
    for text in (
        b"gzip", b"gzip, chunked", b"chunked, gzip", b"identity", b"identity, chunked", b"chunked, chunked",
        b"chunked,", b",chunked", b"", b"xchunked", b"chunkedx", b"chunked;a=b", b'"chunked"', b"deflate",
        b"chunked\r\nTransfer-Encoding: chunked", b"gzip\r\nTransfer-Encoding: chunked",
        b"chunked\r\ntransfer-encoding: identity", b"chunked \x0b",
    ):  # fmt: skip
        sent = request(b"POST /events/ HTTP/1.1", b"Transfer-Encoding: " + text, body=WHOLE + post())
        yield Case(f"coding {show(text)}", sent, ("not_implemented",), ends=True)
    for text in (b"chunked", b"Chunked", b"CHUNKED", b" chunked "):
        sent = request(b"POST /events/ HTTP/1.1", b"Transfer-Encoding:" + text, body=WHOLE)
        yield Case(f"fine coding {show(text)}", sent, (200,), taken=1)
    yield Case("coding in HTTP/1.0", chunked(WHOLE, line=b"POST /events/ HTTP/1.0"), (MALFORMED,), ends=True)
    name = request(
        b"POST /events/ HTTP/1.1", b"Transfer-Encodings: gzip", b"Content-Lengths: x", b"Content-Length: 52", body=EVENT
    )
    yield Case("a name that only begins so", name, (200,), taken=1)


def chunks() -> Iterator[Case]:
    """Point 10: what frames a body."""
    bytewise = b"".join(chunk(EVENT[at : at + 1]) for at in range(len(EVENT)))
    for name, sent in {
        "in one": WHOLE, "byte by byte": bytewise + LAST, "with an extension": chunk(EVENT, b";a=b") + LAST,
        "with a name": chunk(EVENT, b";a") + LAST, "with a quoted text": chunk(EVENT, b';a="b;\\"c"') + LAST,
        "of upper-case size": b"34\r\n" + EVENT + b"\r\n" + LAST,
        "with zeros": b"000034\r\n" + EVENT + b"\r\n000\r\n\r\n",
        "with a trailer": chunk(EVENT) + b"0\r\nA: b\r\n\r\n",
        "with a trailer of a length": chunk(EVENT) + b"0\r\nContent-Length: 5\r\nHost: x\r\nContent-Type: a\r\n\r\n",
        "with a last extension": chunk(EVENT) + b"0;a=b\r\n\r\n",
        "with 60 KB of extensions": chunk(EVENT, b";a=" + b"b" * 60_000) + LAST,
    }.items():  # fmt: skip
        yield Case(f"chunks {name}", chunked(sent), (200,), taken=1)
    for name, sent in {
        "no size": b"\r\n", "0x": b"0x34\r\n", "sign": b"+34\r\n", "minus": b"-1\r\n", "blank before": b" 34\r\n",
        "blank behind": b"34 \r\n", "no digit": b"zz\r\n", "bare LF": b"34\n" + EVENT,
        "too many digits": b"1" * 17 + b"\r\n", "underscore": b"3_4\r\n", "NUL": b"34;\x00\r\n",
        "longer than said": b"5\r\nabcdefgh\r\n" + LAST, "shorter than said": b"34\r\n{}\r\n" + LAST + bytes(60),
        "no CRLF": b"2\r\nab0\r\n\r\n", "bad trailer": chunk(EVENT) + b"0\r\nno header\r\n\r\n",
        "folded trailer": chunk(EVENT) + b"0\r\nA: b\r\n c\r\n\r\n",
        "extension without a name": chunk(EVENT, b";") + LAST,
        "request in an extension": b"34;\r\nPOST / HTTP/1.1\r\n\r\n",
    }.items():  # fmt: skip
        yield Case(f"no chunks: {name}", chunked(sent), (MALFORMED,), ends=True)
    for name, sent in {
        "an endless extension": b"34;" + b"a" * 200_000, "many extensions": chunk(b"a", b";a=" + b"b" * 1_000) * 200,
        "two-byte chunks": chunk(b"  ") * 20_000, "endless trailers": b"0\r\n" + b"A: b\r\n" * 20_000,
        "an endless trailer": b"0\r\nA: " + b"b" * 200_000, "endless zeros": b"0" * 200_000,
        "4 MiB and more": chunk(b" " * 65_536) * 65,
    }.items():  # fmt: skip
        yield Case(f"too many chunks: {name}", chunked(sent), ("body_too_large",), ends=True)
    yield Case("chunks, then a request", chunked(WHOLE) + post(), (200, 200), taken=2)
    yield Case("chunks that are cut off", chunked(chunk(EVENT)), (MALFORMED,), ends=True, half=True)
    yield Case("trailers that are cut off", chunked(chunk(EVENT), b"0\r\nA: b\r\n"), (MALFORMED,), ends=True, half=True)


def lasts() -> Iterator[Case]:
    """Point 9: Connection, HTTP/1.0, what comes behind a request, and pipelining."""
    close = b"Connection: close"
    behind = {
        "nothing": b"",
        "CRLF": b"\r\n",
        "CRLFs": b"\r\n\r\n",
        "a request": post(),
        "rubbish": b"\x00\xff",
        "half a request": post()[:30],
    }
    for name, more in behind.items():
        yield Case(f"close, then {name}", post(EVENT, close) + more, (200,), taken=1, ends=True)
        yield Case(f"HTTP/1.0, then {name}", post(version=b"HTTP/1.0") + more, (200,), taken=1, ends=True)
        yield Case(
            f"chunks and close, then {name}", chunked(WHOLE, headers=(close,)) + more, (200,), taken=1, ends=True
        )
    for value in (
        b"Close",
        b"CLOSE",
        b"keep-alive, close",
        b"close, keep-alive",
        b"a,close",
        b"x\r\nConnection: close",
        b" close ",
    ):
        yield Case(
            f"Connection {show(value)}", post(EVENT, b"Connection: " + value) + post(), (200,), taken=1, ends=True
        )
    for value in (b"keep-alive", b"x", b"closed", b"", b"\xff", b"close-not", b'"close"', b"upgrade"):
        yield Case(f"Connection {show(value)}", post(EVENT, b"Connection: " + value) + post(), (200, 200), taken=2)
    keep = post(EVENT, b"Connection: keep-alive", version=b"HTTP/1.0")
    yield Case("HTTP/1.0 that keeps alive", keep + keep, (200, 200), taken=2)
    yield Case(
        "HTTP/1.0 that doesn't know",
        post(EVENT, b"Connection: keep-alive, close", version=b"HTTP/1.0") + keep,
        (200,),
        1,
        ends=True,
    )
    yield Case("GET of HTTP/1.0", b"GET /healthz HTTP/1.0\r\n\r\n\r\n", (200,), ends=True)
    yield Case("CRLFs before a request", b"\r\n\r\n\r\n" + post(), (200,), taken=1)
    yield Case("CRLFs between requests", post() + b"\r\n" + post() + b"\r\n\r\n", (200, 200), taken=2)
    yield Case("LF before a request", b"\n" + post(), (MALFORMED,), ends=True)
    yield Case("CR before a request", b"\r" + post(), (MALFORMED,), ends=True)
    yield Case("pipelined", post() * 5 + get() * 3, (200,) * 8, taken=5)
    yield Case(
        "pipelined, the third wrong",
        post() * 2 + b"rubbish\r\n\r\n" + post(),
        (200, 200, MALFORMED),
        taken=2,
        ends=True,
    )
    yield Case(
        "pipelined, the third too long",
        post() * 2 + post(b"x" * (BODY_BYTES_MAX + 1))[:200],
        (200, 200, "body_too_large"),
        2,
        ends=True,
    )
    yield Case("an event and its end", post(), (200,), taken=1, ends=True, half=True)
    yield Case("two events and the end", post() * 2, (200, 200), taken=2, ends=True, half=True)
    yield Case("Expect, with its body", post(EVENT, b"Expect: 100-continue"), (200,), taken=1)
    yield Case(
        "Expect in HTTP/1.0", post(EVENT, b"Expect: 100-continue", version=b"HTTP/1.0"), (200,), taken=1, ends=True
    )


def upgrades() -> Iterator[Case]:
    """Point 8: other protocols are declined, and what was asked in HTTP is answered in it."""
    upgrade = b"Connection: Upgrade"
    handshake = (
        upgrade,
        b"Upgrade: websocket",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Version: 13",
    )
    yield Case("websocket", get(b"/healthz", *handshake), (200,))
    yield Case("websocket with a byte behind it", get(b"/healthz", *handshake) + b"\x81", (200, MALFORMED), ends=True)
    yield Case("websocket without a key", get(b"/healthz", upgrade, b"Upgrade: websocket"), (200,))
    yield Case("websocket, no ASCII", get(b"/healthz", *handshake, b"Sec-WebSocket-Protocol: \xff"), (200,))
    yield Case(
        "websocket, Connection no ASCII", get(b"/healthz", b"Connection: Upgrade, \xff", b"Upgrade: websocket"), (200,)
    )
    yield Case("websocket with an event", post(EVENT, *handshake) + post(), (200, 200), taken=2)
    yield Case("websocket with chunks", chunked(WHOLE, headers=handshake) + post(), (200, 200), taken=2)
    for settings in (b"AAAAAAA", b"AAMAAABkAAQAAP__", b"", b"\xff", b"%", b"AAEAAEAAAAIAAAAB"):
        h2c = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: " + settings)
        yield Case(f"h2c {show(settings)}", post(EVENT, *h2c) + post(), (200, 200), taken=2)


def heads() -> Iterator[Case]:
    """Point 14: heads up to 16 KiB, and above."""
    for name, line in {
        "one header": b"A: %b", "a long name": b"%b: A", "blanks before a value": b"A:%b", "blanks behind": b"A: b%b",
    }.items():  # fmt: skip
        fill = b" " if "blanks" in name else b"a"
        empty = len(get(b"/healthz", line % b""))
        for size, answer in ((HEAD_BYTES_MAX, 200), (HEAD_BYTES_MAX + 1, "head_too_large"), (60_000, "head_too_large")):
            sent = get(b"/healthz", line % (fill * (size - empty)))
            yield Case(f"a head of {size} bytes, {name}", sent, (answer,), ends=answer != 200)
    for size, answer in ((HEAD_BYTES_MAX, 200), (HEAD_BYTES_MAX + 1, "head_too_large")):
        sent = get(b"/healthz?" + b"a" * (size - len(get(b"/healthz?"))))
        yield Case(f"a target for a head of {size} bytes", sent, (answer,), ends=answer != 200)
        sent = post(EVENT, b"A: b") + get(b"/healthz", b"A: " + b"a" * (size - len(get(b"/healthz", b"A: "))))
        yield Case(f"a second head of {size} bytes", sent, (200, answer), taken=1, ends=answer != 200)
    many = get(b"/healthz", *[b"A: b"] * 5_000)
    yield Case("5,000 headers", many, ("head_too_large",), ends=True)
    yield Case("1,000 headers", get(b"/healthz", *[b"A: b"] * 1_000), (200,))
    yield Case("a line without end", b"GET /" + b"a" * 20_000, ("head_too_large",), ends=True)
    yield Case("a header without end", b"GET / HTTP/1.1\r\nA: " + b"a" * 20_000, ("head_too_large",), ends=True)


def bodies() -> Iterator[Case]:
    """Point 10, and what stands in bodies: both listeners share the codec."""
    zipped = b"Content-Encoding: gzip"
    ones = b"[" + b"1," * ((2 << 20) - 2) + b"1]"
    batch = b"/events/batch"
    yield Case("a gzip of two million ones", post(gzip.compress(ones), zipped, path=batch), ("too_many_events",))
    packed = zstandard.ZstdCompressor().compress(ones)
    yield Case("a zstd of two million ones", post(packed, b"Content-Encoding: zstd", path=batch), ("too_many_events",))
    yield Case("a gzip that is too large", post(gzip.compress(bytes(5 << 20)), zipped, path=batch), ("body_too_large",))
    yield Case("4 MiB of [", post(gzip.compress(b"[" * BODY_BYTES_MAX), zipped, path=batch), ("malformed_json",))
    yield Case("no gzip", post(b"rubbish", zipped), ("malformed_encoding",))
    yield Case("half a gzip", post(gzip.compress(EVENT)[:-9], zipped), ("malformed_encoding",))
    yield Case("gzip twice", post(gzip.compress(EVENT), zipped, zipped), ("unsupported_encoding",))
    yield Case("unknown encoding", post(EVENT, b"Content-Encoding: br"), ("unsupported_encoding",))
    yield Case("unknown type", post(EVENT, b"Content-Type: text/plain"), ("unsupported_content_type",))
    yield Case("type no ASCII", post(EVENT, b"Content-Type: \xff"), ("unsupported_content_type",))
    yield Case("no JSON", post(b"{"), ("malformed_json",))
    yield Case("no array", post(EVENT, path=batch), ("not_an_array",))
    yield Case("a wrong event", post(b"{}"), ("invalid",))
    yield Case("a batch of one", post(b"[" + EVENT + b"]", path=batch), (200,), taken=1)
    yield Case("a batch with a wrong one", post(b"[" + EVENT + b",1]", path=batch), (200,), taken=1)
    yield Case("an empty batch", post(b"[]", path=batch), (200,))
    yield Case("a key", post(EVENT, b"Idempotency-Key: k"), (200,), taken=1)
    yield Case("an empty key", post(EVENT, b"Idempotency-Key: "), ("malformed_idempotency_key",))
    yield Case("a key no ASCII", post(EVENT, b"Idempotency-Key: \xff"), ("malformed_idempotency_key",))
    yield Case("5,001 events", post(b"[" + b"{}," * 5_000 + b"{}]", path=batch), ("too_many_events",))


CASES = [
    case
    for group in (request_lines, targets, hosts, headers, lengths, codings, chunks, lasts, upgrades, heads, bodies)
    for case in group()
]

API_CASES = [
    Case("a campaign in another form", get(b"/campaigns/00001"), ("not_found",)),
    Case("a campaign that is not there", get(b"/campaigns/1"), ("campaign_not_found",)),
    Case("a campaign, escaped", get(b"/campaigns/%31"), ("campaign_not_found",)),
    Case("campaigns, escaped", get(b"/%63ampaigns/"), (200,)),
    Case("a slash, escaped", get(b"/campaigns%2f1"), ("not_found",)),
    Case("a sign", get(b"/campaigns/+1"), ("not_found",)),
    Case("other digits", get(b"/campaigns/%D9%A1"), ("not_found",)),
    Case("4,302 digits", get(b"/campaigns/" + b"1" * 4_302), ("not_found",)),
    Case("OPTIONS of campaigns", get(b"/campaigns/", method=b"OPTIONS"), ("method_not_allowed",)),
    Case("websocket to the metrics", get(b"/metrics", b"Connection: Upgrade", b"Upgrade: websocket"), (200,)),
    Case("an URL", get(b"http://h/campaigns/"), (200,)),
    Case("a wrong version", get(b"/metrics", b"Accept: application/openmetrics-text;version=x"), (200,)),
]
