"""A Hugging Face Hub on loopback that serves the model repositories in a folder."""

import hashlib
import json
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.fakes.background import InBackground

COMMIT = "c" * 40
PIECE_BYTES = 1 << 16
MAX_HASHED_BYTES = 1 << 27
"""The sparse files of a 70B model take minutes to read."""


@dataclass
class HubState:
    """How the hub answers, and what it was asked."""

    root: Path
    """Repositories as `owner/name` below it."""
    token: str | None = None
    """Needed to read files, where set."""
    gated: bool = False
    private: bool = False
    knows_ranges: bool = True
    redirects_to: str | None = None
    """Address of the store that holds the large files, as the hub's own does."""
    failures: int = 0
    """So many reads of files fail before one succeeds."""
    lies: bool = False
    """The checksums that it tells are of something else."""
    broken_after: int | None = None
    """Bytes of a body after which the connection closes."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that has what it wants hangs up
            super().handle_error(request, client_address)


class FakeHub(InBackground):
    """`with FakeHub(root) as hub`: `hub.url`, `hub.state`."""

    def __init__(self, root: Path) -> None:
        self.state = HubState(root)
        handler = type("Handler", (_Handler,), {"state": self.state})
        super().__init__(_Server(("127.0.0.1", 0), handler))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: HubState

    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        with self.state.lock:
            self.state.requests.append((self.path, dict(self.headers)))
        if parts[:2] == ["api", "models"]:
            self._info(parts[2:], "blobs=true" in url.query.lower())
        elif parts[0] == "api":  # the client asks for more, and does without
            self._refuse(404, None)
        elif parts[0] == "store":
            self._send(self.state.root.joinpath(*parts[1:]))
        else:
            self._file(parts)

    def _info(self, parts: list[str], sizes: bool) -> None:
        folder = self.state.root.joinpath(*parts[:2])
        if not folder.is_dir() or (self.state.private and not self._may_read()):
            return self._refuse(401, "RepoNotFound")
        if parts[2:] and parts[3] not in {"main", "refs/pr/1", COMMIT}:
            return self._refuse(404, "RevisionNotFound")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [
            {
                "rfilename": str(path.relative_to(folder)),
                **(_told(path, self.state.lies) if sizes else {}),
            }
            for path in files
        ]
        name = "/".join(parts[:2])
        return self._answer(200, {"id": name, "sha": COMMIT, "siblings": siblings})

    def _file(self, parts: list[str]) -> None:
        owner, name, resolve, revision, *path = parts
        assert (resolve, revision) == ("resolve", COMMIT), self.path
        file = self.state.root.joinpath(owner, name, *path)
        if self.state.gated and not self._may_read():
            return self._refuse(403, "GatedRepo")
        if not self._may_read():
            return self._refuse(401, None, "Invalid credentials in Authorization header")
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        with self.state.lock:
            fails, self.state.failures = self.state.failures > 0, self.state.failures - 1
        if fails:
            return self._refuse(503, None)
        if self.state.redirects_to and file.suffix != ".json":
            place = "/".join(["store", owner, name, *path])
            return self._answer(302, {}, Location=f"{self.state.redirects_to}/{place}")
        return self._send(file)

    def _may_read(self) -> bool:
        needed = self.state.token
        return needed is None or self.headers.get("Authorization") == f"Bearer {needed}"

    def _refuse(self, status: int, code: str | None, message: str = "No.") -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._answer(status, {"error": message}, **headers)

    def _answer(self, status: int, content: object, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, file: Path) -> None:
        size = file.stat().st_size
        start, end = 0, size - 1
        asked = self.headers.get("Range", "") if self.state.knows_ranges else ""
        if asked:
            start, end = (int(number) for number in asked.removeprefix("bytes=").split("-"))
            end = min(end, size - 1)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("Content-Length", str(end - start + 1))
        self.end_headers()
        left = end - start + 1
        with file.open("rb") as opened:
            opened.seek(start)
            while left:
                broken_after = self.state.broken_after
                piece = opened.read(min(PIECE_BYTES, left, broken_after or PIECE_BYTES))
                try:
                    self.wfile.write(piece)
                except OSError:  # the client has what it wants
                    self.close_connection = True
                    return
                with self.state.lock:
                    self.state.sent_bytes += len(piece)
                left -= len(piece)
                if broken_after is not None:
                    self.close_connection = True
                    return


def _told(path: Path, lies: bool) -> dict[str, object]:
    """Size and checksum, as the hub tells them: large files are kept apart, by SHA-256."""
    size = path.stat().st_size
    if size > MAX_HASHED_BYTES:
        return {"size": size}
    data = b"x" * size if lies else path.read_bytes()
    if path.suffix in {".safetensors", ".gguf", ".bin"}:
        sha256 = hashlib.sha256(data).hexdigest()
        return {"size": size, "lfs": {"sha256": sha256, "size": size, "pointerSize": 134}}
    return {"size": size, "blobId": hashlib.sha1(b"blob %d\0%b" % (size, data)).hexdigest()}
