"""An S3 store on loopback (moto) that counts what it sends."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.fakes.background import InBackground


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None: ...


class FakeS3(InBackground):
    """`with FakeS3() as s3`: `s3.url`, what it was asked, and the bytes of all answers."""

    def __init__(self) -> None:
        self.knows_ranges = True
        self.cuts_bodies = False
        self.requests: list[tuple[str, str]] = []
        self.sent_bytes = 0
        self._lock = threading.Lock()
        self._application = DomainDispatcherApplication(create_backend_app)
        super().__init__(
            make_server("127.0.0.1", 0, self._count, threaded=True, request_handler=_Quiet)
        )

    def forget(self) -> None:
        """Start counting anew."""
        self.requests, self.sent_bytes = [], 0

    def _count(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterator[bytes]:
        with self._lock:
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if not self.knows_ranges:
            environ.pop("HTTP_RANGE", None)
        pieces: Iterable[bytes] = self._application(environ, start_response)
        for piece in pieces:
            if self.cuts_bodies:
                yield piece[: len(piece) // 2]
                return
            with self._lock:
                self.sent_bytes += len(piece)
            yield piece
