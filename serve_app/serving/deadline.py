"""End a request at its deadline, in the engine too, with an answer that says so."""

import asyncio

from serve_app.domain.errors import DeadlineError
from serve_app.engines.engine import ASGIApp, Message, Receive, Scope, Send
from serve_app.serving.hangup import serve_until_hangup
from serve_app.serving.http import header, route_path, send_error
from serve_app.serving.sse import WholeEvents, error_event, is_stream


async def serve_within(
    limit_s: float, app: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run `app` for at most `limit_s`; then it hears `http.disconnect`, and is heard no more.

    A request without an answer so far gets a 504, a stream an error event. Any other answer is cut:
    raises DeadlineError.
    """
    gate = _Gate(send, asyncio.get_running_loop().time() + limit_s)
    try:
        async with asyncio.timeout(limit_s) as timeout:
            await serve_until_hangup(app, scope, receive, gate)
    except TimeoutError:
        if not timeout.expired():
            raise
        gate.is_shut = True
    if gate.is_shut and not gate.is_over:
        await _say_so(gate, scope, send, limit_s)


class _Gate:
    """The way to the client; shut at the deadline. What an engine says when it is told that its
    client left is meant for nobody (vLLM answers 200 with `null`).
    """

    def __init__(self, send: Send, end_s: float) -> None:
        self.events: WholeEvents | None = None
        self.is_shut = self.is_started = self.is_over = False
        self._head: Message | None = None
        self._send = send
        self._end_s = end_s
        self._time = asyncio.get_running_loop().time

    async def __call__(self, message: Message) -> None:
        self.is_shut = self.is_shut or self._time() >= self._end_s
        if self.is_shut:
            return
        if message["type"] == "http.response.start":
            if is_stream(header(message.get("headers", ()), b"content-type")):
                self.events = WholeEvents()
            self._head = message  # until its body begins there may still be another answer
            return
        if self._head is not None:
            self.is_started, head, self._head = True, self._head, None
            await self._send(head)
        self.is_over = not message.get("more_body", False)
        if self.events is not None:
            whole = self.events.take(message.get("body", b""))
            message["body"] = whole + self.events.rest() if self.is_over else whole
        await self._send(message)


async def _say_so(gate: _Gate, scope: Scope, send: Send, limit_s: float) -> None:
    error = DeadlineError(f"the request's time, {limit_s:g} s, is up")
    if not gate.is_started:
        await send_error(send, error)
    elif gate.events is not None:
        path, events = route_path(scope), gate.events
        event = events.fresh_line() + error_event(path, error.code, str(error), events.last)
        await send({"type": "http.response.body", "body": event, "more_body": False})
    else:
        raise error
