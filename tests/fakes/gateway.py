"""An HTTP server whose answers are written by the test: `gateway.answers["/status"] = ...`."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.fakes.background import InBackground

Reply = tuple[int, bytes, dict[str, str]]
Script = Callable[[bytes], Reply]


def as_json(body: object, status: int = 200) -> Script:
    """A script that always answers this."""
    return lambda _: (status, json.dumps(body).encode(), {})


def as_text(text: str | bytes, status: int = 200) -> Script:
    """A script that always answers this."""
    return lambda _: (status, text if isinstance(text, bytes) else text.encode(), {})


def one_token(served: str | None = None, *, is_whole: bool = True) -> Script:
    """A script that streams an answer of one token."""
    event = {
        "choices": [{"delta": {"content": "a"}, "finish_reason": "length" if is_whole else None}]
    }
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    events = [event, usage] if is_whole else [event]
    lines = "".join(f"data: {json.dumps(each)}\n\n" for each in events)
    body = (lines + ("data: [DONE]\n\n" if is_whole else "")).encode()
    return lambda _: (200, body, {} if served is None else {"x-variant": served})


class Gateway(InBackground):
    """Answers by path from `answers`, 404 else; `asked` are method, path and JSON of each."""

    def __init__(self) -> None:
        self.answers: dict[str, Script] = {}
        self.asked: list[tuple[str, str, Any]] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                gateway.asked.append((self.command, self.path, json.loads(body) if body else None))
                script = gateway.answers.get(self.path, as_text("no such page", 404))
                status, answer, headers = script(body)
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(answer))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *args: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        super().__init__(Server(("127.0.0.1", 0), Handler))
