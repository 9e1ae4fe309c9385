"""A fake engine: vLLM's OpenAI surface as a raw ASGI app with scripted timing and faults.

It stands where vLLM's FastAPI app stands, so the same deployment, router and load client run
on it without a model. `python -m serve_app.engines.fake --model m --port 8001` serves it alone.
"""

import argparse
import asyncio
import base64
import random
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import msgspec

from serve_app.domain.errors import ConfigError, EngineError
from serve_app.engines import fake_asgi as asgi
from serve_app.engines.fake_death import exhaust_memory
from serve_app.engines.fake_echo import echo_body
from serve_app.engines.fake_responses import ResponseEvents, response_body
from serve_app.engines.fake_script import FakeScript
from serve_app.engines.fake_wire import (
    Answer,
    GenerateRequest,
    Kind,
    StreamChunks,
    StreamOptions,
    error_body,
    full_body,
    models_body,
)

_GENERATE: dict[str, tuple[Kind, str]] = {
    "/v1/chat/completions": ("chat", "chatcmpl"),
    "/v1/completions": ("completion", "cmpl"),
    "/v1/responses": ("response", "resp"),
}
_EMBEDDING = (0.5, -0.5, 0.5, -0.5)
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"


class FakeEngine:
    """The ASGI app. Its counters are for tests to read.

    `requests_total` counts generation requests, `tokens_total` tokens sent, `aborted_total`
    requests whose client left; `running` and `waiting` are the requests now in the engine (one
    that hangs by script runs), `peak_running` the highest number that ran together.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        script: FakeScript,
        clock: Callable[[], float],
        sleep: asgi.Sleep,
    ) -> None:
        self.names = names
        self.script = script
        self.requests_total = 0
        self.tokens_total = 0
        self.aborted_total = 0
        self.running = 0
        self.waiting = 0
        self.peak_running = 0
        self._clock = clock
        self._sleep = sleep
        self._created = int(time.time())
        self._epoch_s: float | None = None
        self._slots = asyncio.Semaphore(script.max_num_seqs) if script.max_num_seqs else None

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: asgi.Receive, send: asgi.Send
    ) -> None:
        """Serve one ASGI connection. A stream that dies by script raises EngineError."""
        if scope["type"] == "lifespan":
            await asgi.lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"].removeprefix(scope.get("root_path", ""))
        if method == "GET":
            await self._get(path, send)
        elif method == "POST":
            await self._post(path, receive, send)
        else:
            await _refuse(send, 405, "Method Not Allowed")

    async def _get(self, path: str, send: asgi.Send) -> None:
        if path == "/v1/models":
            body = models_body(self.names, self.script.max_model_len, self._created)
            await asgi.respond(send, 200, body)
        elif path == "/health":
            await asgi.respond(send, self.script.health_status(), b"")
        elif path == "/metrics":
            await asgi.respond(send, 200, self._metrics(), _TEXT)
        else:
            await _refuse(send, 404, "Not Found")

    async def _post(self, path: str, receive: asgi.Receive, send: asgi.Send) -> None:
        body = await asgi.read_body(receive)
        if body is None:
            return
        try:
            request = msgspec.json.decode(body, type=GenerateRequest)
        except msgspec.DecodeError as error:  # ValidationError is one
            await _refuse(send, 400, f"1 validation error:\n  {error}")
            return
        if request.model and request.model not in self.names:
            aliases = ", ".join(self.names)
            message = f"The model `{request.model}` does not exist. Valid aliases: {aliases}."
            await _refuse(send, 404, message, "NotFoundError", "model")
        elif path == "/v1/completions" and request.echoed is not None:
            await self._echo(request, request.echoed, send)
        elif path in _GENERATE:
            await self._generate(path, request, receive, send)
        elif path == "/v1/embeddings":
            await asgi.respond(send, 200, self._embeddings(request))
        elif path == "/tokenize":
            await asgi.respond(send, 200, self._tokenize(request))
        elif path == "/detokenize":
            text = bytes(token % 256 for token in request.tokens or ()).decode(errors="replace")
            await asgi.respond(send, 200, msgspec.json.encode({"prompt": text}))
        else:
            await _refuse(send, 404, "Not Found")

    async def _generate(
        self, path: str, request: GenerateRequest, receive: asgi.Receive, send: asgi.Send
    ) -> None:
        refusal = self._why_refused(path, request)
        if refusal is not None:
            await _refuse(send, 400, refusal, "BadRequestError")
            return
        self.requests_total += 1
        ordinal = self.requests_total
        if self._epoch_s is None:
            self._epoch_s = self._clock()
        status = self.script.failure_status(ordinal)
        if status is not None:
            await _refuse(send, status, "scripted failure", "InternalServerError")
            return
        limit_mib = self.script.out_of_memory(ordinal)
        if limit_mib is not None:
            exhaust_memory(limit_mib)
        answer = self._answer(path, request, ordinal)
        if not await asgi.until_disconnect(self._run(answer, request, ordinal, send), receive):
            self.aborted_total += 1

    async def _echo(
        self, request: GenerateRequest, prompts: list[list[int]], send: asgi.Send
    ) -> None:
        """At once: nobody times log-probabilities."""
        status, longest = self.script.echo_status(), max(map(len, prompts), default=0)
        if status != 200:
            await _refuse(send, status, "scripted refusal of echo with logprobs")
        elif not 0 < longest < self.script.max_model_len or not all(prompts):
            limit = self.script.max_model_len
            await _refuse(send, 400, f"need prompts of 1 to {limit - 1} tokens, have {longest}")
        else:
            model, k = request.model or self.names[0], int(request.logprobs or 1)
            body = echo_body(prompts, k, model, self._created, self.script.seed)
            await asgi.respond(send, 200, body)

    async def _run(
        self, answer: Answer, request: GenerateRequest, ordinal: int, send: asgi.Send
    ) -> None:
        slow = self.script.slow_body()
        if slow is not None:
            send = asgi.slowed(send, slow, self._sleep)
        async with self._slot():
            if self.script.hangs(ordinal):
                await asyncio.Event().wait()
            if request.stream:
                await self._stream(answer, request, ordinal, send)
                return
            *_, end_s = self._due_times(answer.n_tokens, ordinal)
            await self._sleep(max(0.0, end_s - self._now_s()))
            self.tokens_total += answer.n_tokens
            body = response_body(answer) if answer.kind == "response" else full_body(answer)
            await asgi.respond(send, 200, body)

    async def _stream(
        self, answer: Answer, request: GenerateRequest, ordinal: int, send: asgi.Send
    ) -> None:
        options = request.stream_options or StreamOptions()
        events: StreamChunks | ResponseEvents = (
            ResponseEvents(answer) if answer.kind == "response" else StreamChunks(answer, options)
        )
        dies_after = self.script.dies_after(ordinal)
        await asgi.start(send, 200, b"text/event-stream; charset=utf-8", None)
        for index, due_s in enumerate(self._due_times(answer.n_tokens, ordinal)):
            await self._sleep(max(0.0, due_s - self._now_s()))
            if index == dies_after:
                raise EngineError(f"scripted death after {index} tokens")
            if index == 0:
                for event in events.opening():
                    await asgi.send_event(send, event)
            await asgi.send_event(send, events.token(index))
            self.tokens_total += 1
        for event in events.closing():
            await asgi.send_event(send, event)
        await send({"type": "http.response.body", "body": b""})

    def _due_times(self, n_tokens: int, ordinal: int) -> Iterator[float]:
        """Due instants of the tokens, in seconds of engine time; late sends do not shift them."""
        script = self.script
        rng = random.Random(f"{script.seed}:{ordinal}")
        due_s = self._now_s()
        for index in range(n_tokens):
            work_ms = script.ttft_ms if index == 0 else script.itl_ms
            if script.jitter:
                work_ms *= rng.uniform(1 - script.jitter, 1 + script.jitter)
            due_s = script.work_end(due_s, work_ms / 1000)
            yield due_s

    def _now_s(self) -> float:
        return self._clock() - (self._epoch_s or 0.0)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._slots is not None:
            self.waiting += 1
            try:
                await self._slots.acquire()
            finally:
                self.waiting -= 1
        self.running += 1
        self.peak_running = max(self.peak_running, self.running)
        try:
            yield
        finally:
            self.running -= 1
            if self._slots is not None:
                self._slots.release()

    def _why_refused(self, path: str, request: GenerateRequest) -> str | None:
        field = {"chat": "messages", "completion": "prompt", "response": "input"}
        name = field[_GENERATE[path][0]]
        if getattr(request, name) is None:
            return f"{name}: Field required"
        if request.n not in (None, 1):
            return f"n={request.n}: the fake engine gives one choice per request"
        prompts = request.prompt if isinstance(request.prompt, list) else []
        if len(prompts) > 1 and not all(isinstance(token, int) for token in prompts):
            return "prompt: the fake engine takes one prompt per request"
        asked = request.asked_tokens()
        if asked is not None and asked < 1:
            return f"max_tokens must be at least 1, got {asked}."
        room = self.script.max_model_len - request.prompt_tokens()
        if room < max(1, asked or 0):
            return (
                f"This model's maximum context length is {self.script.max_model_len} tokens. "
                f"However, you requested {asked or 1} output tokens and your prompt contains "
                f"{request.prompt_tokens()} input tokens."
            )
        return None

    def _answer(self, path: str, request: GenerateRequest, ordinal: int) -> Answer:
        kind, prefix = _GENERATE[path]
        prompt_tokens = request.prompt_tokens()
        room = self.script.max_model_len - prompt_tokens
        limit = min(room, request.asked_tokens() or room)
        natural = limit if request.ignore_eos else self.script.output_tokens
        natural = max(natural, request.min_tokens)
        is_cut = request.ignore_eos or natural > limit
        return Answer(
            kind=kind,
            request_id=f"{prefix}-{self._created:x}{ordinal:08x}",
            created=self._created,
            model=request.model or self.names[0],
            prompt_tokens=prompt_tokens,
            n_tokens=min(natural, limit),
            finish_reason="length" if is_cut else "stop",
            seed=self.script.seed,
        )

    def _embeddings(self, request: GenerateRequest) -> bytes:
        inputs = request.input if isinstance(request.input, list) else [request.input]
        packed = struct.pack(f"<{len(_EMBEDDING)}f", *_EMBEDDING)
        vector: Any = _EMBEDDING
        if request.encoding_format == "base64":
            vector = base64.b64encode(packed).decode()
        data = [
            {"index": index, "object": "embedding", "embedding": vector}
            for index in range(len(inputs))
        ]
        n_tokens = request.prompt_tokens()
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens, "completion_tokens": 0}
        model = request.model or self.names[0]
        body = {"id": "embd-fake", "object": "list", "created": self._created, "model": model}
        return msgspec.json.encode(body | {"data": data, "usage": usage})

    def _tokenize(self, request: GenerateRequest) -> bytes:
        tokens = request.prompt_ids()
        max_model_len = self.script.max_model_len
        body = {"count": len(tokens), "max_model_len": max_model_len, "tokens": tokens}
        return msgspec.json.encode(body | {"token_strs": None})

    def _metrics(self) -> bytes:
        label = f'{{model_name="{self.names[0]}",engine="0"}}'
        rows = (
            ("vllm:num_requests_running", "gauge", self.running),
            ("vllm:num_requests_waiting", "gauge", self.waiting),
            ("vllm:generation_tokens_total", "counter", self.tokens_total),
            ("fake:requests_total", "counter", self.requests_total),
            ("fake:aborted_total", "counter", self.aborted_total),
        )
        text = "".join(f"# TYPE {n} {kind}\n{n}{label} {float(v)}\n" for n, kind, v in rows)
        return text.encode()


async def _refuse(
    send: asgi.Send, status: int, message: str, kind: str | None = None, param: str | None = None
) -> None:
    kind = kind or HTTPStatus(status).phrase
    await asgi.respond(send, status, error_body(message, kind, status, param))


def create_app(
    model_names: Sequence[str],
    script: FakeScript | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> FakeEngine:
    """Build a fake engine that answers to `model_names` (the first is `root`).

    `clock` gives monotonic seconds and `sleep` waits for seconds. Raises ConfigError if there
    is no name, or one twice.
    """
    names = tuple(model_names)
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"fake engine: need one or more distinct model names, have {names}")
    return FakeEngine(names, script or FakeScript(), clock, sleep)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve one fake engine with uvicorn on 127.0.0.1 until interrupted."""
    import uvicorn

    parser = argparse.ArgumentParser(prog="python -m serve_app.engines.fake", description=__doc__)
    parser.add_argument("--model", action="append", required=True, help="served name; repeatable")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--ttft-ms", type=float, default=50.0)
    parser.add_argument("--itl-ms", type=float, default=10.0)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--script", default="{}", help="more of FakeScript as JSON (wins)")
    args = parser.parse_args(argv)
    timing = {"ttft_ms": args.ttft_ms, "itl_ms": args.itl_ms, "output_tokens": args.output_tokens}
    script = FakeScript.from_dict(timing | msgspec.json.decode(args.script))
    app = create_app(args.model, script)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=args.port,
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
