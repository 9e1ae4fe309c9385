"""The reading half of S3 over a folder, cheap enough to measure the client and not the server.

Keys are paths below the folder, the bucket its first part. `python -m tests.fakes.s3_files FOLDER`
prints its address and serves until its input ends.
"""

import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path

    def log_message(self, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.root / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        start, end = 0, size - 1
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("Content-Length", str(end - start + 1))
        self.send_header("ETag", '"0"')
        self.end_headers()
        self.wfile.flush()
        if with_body:
            with path.open("rb") as file:
                while start <= end and (sent := self._send(file.fileno(), start, end)):
                    start += sent

    def _send(self, fd: int, start: int, end: int) -> int:
        return os.sendfile(self.connection.fileno(), fd, start, end - start + 1)


def serve(folder: Path) -> ThreadingHTTPServer:
    """A server on a free port of loopback; not started."""
    handler = type("Handler", (_Handler,), {"root": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server


if __name__ == "__main__":
    import threading

    running = serve(Path(sys.argv[1]))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{running.server_address[1]}", flush=True)
    sys.stdin.read()
