"""A system that answers every batch "accepted" and keeps nothing: what the bench's audit must find."""

from __future__ import annotations

import http.server
import signal
import sys

ANSWER = b'{"received":10,"accepted":10,"duplicate":0,"rejected":0,"retry":0,"results":[]}'


class Handler(http.server.BaseHTTPRequestHandler):
    """Says yes."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Whatever it was."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_: object) -> None:
        """Nothing."""


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(f"listening http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201 - for whoever started it
        server.serve_forever()
